"""GEM: a reference for every earlier step, and the update that a quadratic program gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.constraints import HalfSpace
from ner_cl.strategies.gem import Gem, GemOptions
from ner_cl.train.combine import Updater
from ner_cl.train.project import Projector
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learn_all, learner_of, no_dropout, same_weights

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def sentences(types: Sequence[str], *, count: int = 12, seed: int = 0) -> tuple[Sentence, ...]:
    return tuple(s.restrict(types) for s in toy_sentences(count, seed=seed))


def prepared(
    folder: Path, head: str = "extendner", *, remembered: Sequence[str] = ("PER", "LOC", "ORG"), **options: Any
) -> tuple[NerModel, Gem, StepContext]:
    """In the middle of a step that learns MISC after PER, LOC and ORG, some of which are remembered."""
    model = no_dropout(tiny_model(folder, head, steps=[["PER"], ["LOC"], ["ORG"], ["MISC"]])).train()
    strategy = Gem(GemOptions(**options))
    strategy.load_sentences([s for type_ in remembered for s in sentences([type_], count=8)])
    context = toy_context(model, ["MISC"], train=sentences(["MISC"], seed=9))
    context.batch_tokens = 10_000
    strategy.gates(context)
    return model, strategy, context


# -- the projection -------------------------------------------------------------------------------------------------


def projected(gradient: Tensor, references: Sequence[Tensor], *, margin: float = 0.0, ridge: float = 0.0) -> Tensor:
    half_spaces = [HalfSpace({"w": reference}, margin, ridge) for reference in references]
    found = Projector({})({"w": -gradient}, half_spaces)
    return -found["w"] if found else gradient


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"margin": 0.0, "ridge": 0.0}, (-0.2, 0.0, -0.4)), ({}, (-0.19976, 0.001998, -0.40012))],
)
def test_the_vectors_of_gem(options: dict[str, float], expected: tuple[float, ...]) -> None:
    """A.5; the second line with the options as they come."""
    chosen = GemOptions(**options)
    references = [torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([0.0, -1.0, 0.0])]
    found = projected(torch.tensor([1.0, 2.0, -1.0]), references, margin=chosen.margin, ridge=chosen.ridge)
    assert found.tolist() == pytest.approx(expected, abs=2e-6)


def solved(gradient: np.ndarray, rows: np.ndarray, margin: float, ridge: float) -> np.ndarray:
    """§7.1 by a general solver of quadratic programs with bounds."""
    if (rows @ gradient >= 0).all():
        return gradient
    pairs, slopes = rows @ rows.T + ridge * np.eye(len(rows)), rows @ gradient
    found = scipy.optimize.minimize(
        lambda v: 0.5 * v @ pairs @ v + slopes @ v,
        np.full(len(rows), margin + 1.0),
        jac=lambda v: pairs @ v + slopes,
        bounds=[(margin, None)] * len(rows),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000},
    )
    return gradient + rows.T @ found.x


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 1e-3, 0.1]))
def test_the_projection_is_the_quadratic_programs(seed: int, count: int, margin: float, ridge: float) -> None:
    generator = np.random.default_rng(seed)
    gradient, rows = generator.normal(size=20), generator.normal(size=(count, 20))
    references = [torch.from_numpy(row).float() for row in rows]
    found = projected(torch.from_numpy(gradient).float(), references, margin=margin, ridge=ridge)
    np.testing.assert_allclose(found.double().numpy(), solved(gradient, rows, margin, ridge), rtol=1e-3, atol=1e-4)


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_what_projecting_on_several_steps_promises(seed: int, count: int) -> None:
    """G1 to G4."""
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(12, generator=generator)
    references = [torch.randn(12, generator=generator) for _ in range(count)]
    found = projected(gradient, references)
    products = torch.stack(references) @ found
    norms = torch.stack([reference.norm() for reference in references]) * gradient.norm()
    if all(float(gradient @ reference) >= 0 for reference in references):
        assert torch.equal(found, gradient)
        assert torch.equal(projected(gradient, references, margin=0.5, ridge=1e-3), gradient)
        return
    assert (products >= -1e-5 * norms).all()
    weights = torch.linalg.lstsq(torch.stack(references).T, (found - gradient).unsqueeze(1)).solution.squeeze(1)
    assert ((weights < 1e-4) | (products.abs() < 1e-5 * norms)).all()
    assert (weights > -1e-4).all()
    worst = min(references, key=lambda reference: float(gradient @ reference))
    alone = projected(gradient, [worst])
    expected = gradient - min(0.0, float(gradient @ worst)) / float(worst @ worst) * worst
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projected(gradient, [*references, *references]), found, rtol=1e-3, atol=1e-4)
    assert bool(projected(gradient, [*references, *references], margin=0.5, ridge=1e-3).isfinite().all())


# -- references -----------------------------------------------------------------------------------------------------


@BOTH
def test_every_step_has_the_gradient_of_its_own_sentences(folder: Path, head: str) -> None:
    model, strategy, context = prepared(folder, head, draw=100)
    found = strategy.constraints(context)
    assert [(half_space.margin, half_space.ridge) for half_space in found] == [(0.5, 1e-3)] * 3
    for half_space, type_ in zip(found, ("PER", "LOC", "ORG"), strict=True):
        model.zero_grad()
        batch = model.encode(sentences([type_], count=8)).batch(range(8))
        model.head.supervised(model(batch), batch, unannotated="unknown").backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        if head == "addner":  # whose newest block has no part in the loss of older types
            expected = {name: gradient for name, gradient in expected.items() if ".blocks.3" not in name}
        trained = {name: part for name, part in expected.items() if bool(part.any())}
        assert half_space.reference.keys() >= trained.keys()
        for name, part in half_space.reference.items():
            torch.testing.assert_close(part, expected[name], rtol=1e-3, atol=1e-6)


@BOTH
def test_a_step_of_which_nothing_is_left_constrains_nothing(folder: Path, head: str) -> None:
    _, strategy, context = prepared(folder, head, remembered=["LOC"])
    (half_space,) = strategy.constraints(context)
    if head == "addner":
        assert {name.split(".")[2] for name in half_space.reference if name.startswith("head.")} == {"1"}
    _, strategy, context = prepared(folder, head, remembered=[])
    assert list(strategy.constraints(context)) == []


def test_draws_are_new_at_every_update_and_the_same_when_it_is_run_again(folder: Path) -> None:
    _, strategy, context = prepared(folder, draw=2)
    drawn = []
    for update in (0, 1, 0):
        context.update = update
        drawn.append([dict(half_space.reference) for half_space in strategy.constraints(context)])
    assert all(same_weights(one, again) for one, again in zip(drawn[0], drawn[2], strict=True))
    assert not all(same_weights(one, other) for one, other in zip(drawn[0], drawn[1], strict=True))


# -- in training ----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("apply_to", ["update", "gradient"])
def test_an_update_of_the_model_is_the_quadratic_programs(folder: Path, head: str, apply_to: Any) -> None:
    """With the margin and the ridge as they come, under SGD with a rate and clipping of its own."""
    violated = 0
    for seed in range(4):
        model, strategy, context = prepared(folder, head, draw=100)
        train = [s.with_spans((), {"MISC"}) for s in toy_sentences(12, seed=seed)]
        batch = model.encode(train).batch(range(12))
        # In a model that was not trained all steps want the same; ascending is what memories object to.
        (-model.head.supervised(model(batch), batch, unannotated="negative")).backward()
        gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        half_spaces = strategy.constraints(context)
        names = list(gradient)
        flat = [
            torch.cat([part[n].flatten() if n in part else torch.zeros(gradient[n].numel()) for n in names]).double()
            for part in (gradient, *(half_space.reference for half_space in half_spaces))
        ]
        rows = torch.stack(flat[1:]).numpy()
        violated += bool((rows @ flat[0].numpy() < 0).any())
        expected = solved(flat[0].numpy(), rows, 0.5, 1e-3)
        before = torch.cat([model.get_parameter(n).detach().flatten() for n in names]).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        updater = Updater([strategy], context, optimizer, clip=0.0, apply_to=apply_to)
        assert updater.update()
        after = torch.cat([model.get_parameter(n).detach().flatten() for n in names]).double()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(((before - after) / 0.1).numpy(), expected, rtol=1e-2, atol=1e-3 * scale)
    assert violated


@BOTH
def test_an_empty_memory_is_plain_training_to_the_last_bit(folder: Path, head: str) -> None:
    """T10, and T11 for step 1."""
    stream = toy_stream(train=40)
    plain, emptied = learner_of(folder, ["distill"], head=head), learner_of(folder, ["distill", "gem"], head=head)
    for learner in (plain, emptied):
        list(learner.learn_step(stream.steps[0]))
    assert same_weights(plain.model, emptied.model)
    assert emptied.model.kept_sentences["gem"]
    emptied.model.kept_sentences.clear()
    for learner in (plain, emptied):
        list(learner.learn_step(stream.steps[1]))
    assert same_weights(plain.model, emptied.model)


@BOTH
def test_three_steps_train_under_adamw(folder: Path, head: str) -> None:
    """Updates keep the size that AdamW gives them: references are gradients, hundreds of times as long."""
    stream = toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60)
    moved = []
    for strategies in (["finetune"], ["finetune", {"name": "gem", "budget": 5}]):
        learner = learner_of(folder, strategies, head=head)
        list(learner.learn_step(stream.steps[0]))
        before = {name: p.detach().clone() for name, p in learner.model.encoder.named_parameters()}
        learn_all(learner, stream, first=2)
        after = dict(learner.model.encoder.named_parameters())
        moved.append(float(torch.cat([(after[n].detach() - old).flatten() for n, old in before.items()]).norm()))
        assert all(bool(p.isfinite().all()) for p in learner.model.parameters())
    assert moved[0] != moved[1]
    assert moved[1] < 5 * moved[0]
