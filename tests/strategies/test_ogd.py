"""OGD: directions of old outputs, orthonormal, and an update that has no part in them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import parse_config
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.constraints import Subspace
from ner_cl.strategies.ogd import Ogd, OgdOptions, orthogonalise
from ner_cl.train.combine import Updater
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learn_all, learner_of, run_values, same_weights

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
LAST = "encoder.backbone.encoder.layer.1."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def sentences(types: Sequence[str], *, count: int = 12, seed: int = 0) -> tuple[Sentence, ...]:
    return tuple(s.restrict(types) for s in toy_sentences(count, seed=seed))


def measured(
    folder: Path, head: str = "extendner", *, steps: Sequence[Sequence[str]] = (["PER"],), **options: object
) -> tuple[NerModel, Ogd, StepContext]:
    """A strategy that has seen the end of each of some steps, of a model that was not trained."""
    model, strategy = tiny_model(folder, head), Ogd(OgdOptions(**options))
    for number, types in enumerate(steps):
        model.grow(types, generator=torch.Generator().manual_seed(number))
        context = toy_context(model, types, train=sentences(types, seed=number))
        strategy.gates(context)
        strategy.end_step(context)
    return model, strategy, context


def rows_of(directions: dict[str, Tensor]) -> Tensor:
    """The directions as rows of a matrix, in fp64."""
    return torch.cat([part.flatten(1).double() for part in directions.values()], dim=1)


def constraint_of(strategy: Ogd, context: StepContext) -> Subspace:
    strategy.gates(context)
    (subspace,) = strategy.constraints(context)
    return subspace


# -- directions -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("scope", ["head_and_last", "last", "encoder"])
def test_directions_are_orthonormal_over_all_steps(folder: Path, head: str, scope: str) -> None:
    """O1."""
    _, strategy, _ = measured(folder, head, steps=[["PER"], ["LOC", "ORG"], ["MISC"]], per_step=5, scope=scope)
    rows = rows_of(strategy.state_dict())
    assert len(rows) > 10
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-5, rtol=0)


@BOTH
def test_the_first_direction_is_the_gradient_of_the_gold_logits_of_a_sentence(folder: Path, head: str) -> None:
    model, strategy, context = measured(folder, head, per_step=1)
    found = strategy.state_dict()
    assert all(len(part) == 1 for part in found.values())
    candidates = []
    for row, sentence in enumerate(context.encoded.sentences):  # type: ignore[union-attr]
        if not sentence.spans:
            continue
        batch = context.encoded.batch([row])  # type: ignore[union-attr]
        inside = [word for span in sentence.spans for word in range(span.start, span.end)]
        model(batch).blocks[0][0, inside, batch.targets[0, inside]].sum().backward()
        gradient = torch.cat([model.get_parameter(name).grad.flatten() for name in found])  # type: ignore[union-attr]
        candidates.append(gradient / gradient.norm())
        model.zero_grad()
    direction = rows_of(found)[0].float()
    assert max(float(direction @ candidate) for candidate in candidates) > 1 - 1e-5


@BOTH
def test_outputs_are_logits_of_new_gold_tags_only(folder: Path, head: str) -> None:
    """A sentence with pseudo-labels of old types too: those were stored when they were gold."""
    model = tiny_model(folder, head, steps=[["PER"], ["LOC", "ORG"]])
    encoded = model.encode(toy_sentences(10, seed=3, types=("PER", "LOC", "ORG")))
    batch = encoded.batch(range(10))
    with torch.no_grad():
        emissions = model(batch)
    expected = 0.0
    for row, sentence in enumerate(encoded.sentences):
        for span in sentence.spans:
            for word in range(span.start, span.end):
                if span.type == "PER":
                    continue
                tag = ("B-" if word == span.start else "I-") + span.type
                column = model.tagset.tags.index(tag) - (2 if head == "addner" else 0)
                expected += float(emissions.blocks[-1][row, word, column])
    assert float(model.head.gold_logits(emissions, batch)) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 10))
def test_orthogonalising_is_taking_the_projection_out(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(20, count, generator=generator))[0].T
    vector = torch.randn(20, generator=generator) * 10 ** float(torch.randint(-6, 6, (), generator=generator))
    # Nearly all of it lies in the basis: once is not enough then.
    vector = vector + 300 * vector.norm() * rows[0]
    basis = {"a": rows[:, :8].reshape(count, 2, 4), "b": rows[:, 8:]}
    found = orthogonalise({"a": vector[:8].view(2, 4), "b": vector[8:]}, basis)
    direction = torch.cat([found["a"].flatten(), found["b"]]).double().numpy()
    matrix, target = rows.double().T.numpy(), vector.double().numpy()
    left = target - matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]
    assert np.abs(matrix.T @ direction).max() < 1e-5
    assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-6)
    assert direction @ left / np.linalg.norm(left) > 1 - 1e-3


def test_a_gradient_that_says_nothing_new_is_dropped() -> None:
    basis = {"a": torch.eye(4)[:2], "b": torch.zeros(2, 3)}
    inside = torch.tensor([3.0, -2.0, 0.0, 0.0])
    assert orthogonalise({"a": inside}, basis) == {}
    assert orthogonalise({"a": inside + torch.tensor([0, 0, 1e-4, 0])}, basis) == {}
    assert orthogonalise({"a": torch.zeros(4)}, basis) == {}
    assert orthogonalise({}, basis) == {}
    found = orthogonalise({"a": inside + torch.tensor([0, 0, 1e-2, 0])}, basis)
    assert found.keys() == {"a", "b"}
    torch.testing.assert_close(found["a"], torch.tensor([0.0, 0, 1, 0]), atol=1e-4, rtol=0)


def test_a_sentence_twice_is_one_direction_and_one_without_mentions_none(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    full, empty = (next(s for s in sentences(["PER"], count=30) if bool(s.spans) == has) for has in (True, False))
    for train, count in (((full, full, empty), 1), ((empty, empty), 0)):
        strategy = Ogd(OgdOptions())
        context = toy_context(model, ["PER"], train=train)
        strategy.gates(context)
        strategy.end_step(context)
        assert [len(part) for part in strategy.state_dict().values()][:1] == [count] * bool(count)


def test_remembered_sentences_give_no_directions(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    strategy = Ogd(OgdOptions())
    context = toy_context(model, ["LOC"], train=sentences(["PER"]))
    strategy.gates(context)
    strategy.end_step(context)
    assert strategy.state_dict() == {}


def test_every_scope_is_what_it_says(folder: Path) -> None:
    model, strategy, _ = measured(folder, per_step=2)
    names = set(strategy.state_dict())
    assert names == {n for n, _ in model.named_parameters() if n.startswith(("head.", LAST))}
    assert set(measured(folder, per_step=2, scope="last", last=1)[1].state_dict()) == {
        name for name in names if name.startswith(LAST)
    }
    # Rows of word embeddings would say which words a sentence had.
    whole = {n for n, _ in model.named_parameters() if n.startswith("encoder.") and "word_embeddings" not in n}
    assert set(measured(folder, per_step=2, scope="encoder")[1].state_dict()) == whole
    layers = set(measured(folder, per_step=2, scope="last", last=2)[1].state_dict())
    assert layers == {name for name in whole if ".layer." in name}
    assert layers == set(measured(folder, per_step=2, scope="last", last=9)[1].state_dict())


def test_what_is_not_trained_gets_no_directions(folder: Path) -> None:
    """Frozen word-piece embeddings would be the largest part of them."""
    model = tiny_model(folder, steps=[["PER"]])
    strategy = Ogd(OgdOptions(scope="encoder", per_step=2))
    context = toy_context(model, ["PER"], train=sentences(["PER"]))
    model.encoder.embeddings.requires_grad_(False)
    strategy.gates(context)
    model.requires_grad_(True)
    strategy.end_step(context)
    assert "encoder.backbone.embeddings.position_embeddings.weight" in strategy.state_dict()
    assert "encoder.backbone.embeddings.word_embeddings.weight" not in strategy.state_dict()


@BOTH
def test_measuring_leaves_the_model_as_it_was(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    strategy, context = Ogd(OgdOptions()), toy_context(model, ["PER"], train=sentences(["PER"]))
    strategy.gates(context)
    strategy.end_step(context)
    assert same_weights(before, model)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert torch.equal(random, torch.get_rng_state())


# -- the constraint -------------------------------------------------------------------------------------------------


@BOTH
def test_an_update_under_adamw_has_no_part_in_the_directions(folder: Path, head: str) -> None:
    """O2 for what is applied, momentum, decay and all; the new block is free."""
    model, strategy, _ = measured(folder, head, per_step=6)
    model.grow(["LOC"])
    context = toy_context(model, ["LOC"])
    subspace = constraint_of(strategy, context)
    assert strategy.constraints(context)[0] is subspace
    assert not any(name.startswith("head.blocks.1") for name in subspace.directions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    updater = Updater([strategy], context, optimizer, clip=1.0)
    generator = torch.Generator().manual_seed(0)
    rows = rows_of(dict(subspace.directions))
    free = {name: p.detach().clone() for name, p in model.named_parameters() if name not in subspace.directions}
    for _ in range(5):
        before = {name: model.get_parameter(name).detach().clone() for name in subspace.directions}
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        assert updater.update()
        change = torch.cat([(model.get_parameter(name).detach() - old).flatten() for name, old in before.items()])
        assert float((rows @ change.double()).abs().max()) < 1e-5 * float(change.norm())
    assert not any(torch.equal(model.get_parameter(name), old) for name, old in free.items())


@BOTH
@pytest.mark.parametrize("projected", [True, False])
def test_a_linear_model_keeps_its_stored_outputs(folder: Path, head: str, projected: bool) -> None:
    """O4: on a frozen encoder the outputs are linear in the head, and the guarantee is exact, however long we train."""
    model = tiny_model(folder, head, steps=[["PER"]])
    train = sentences(["PER"])
    strategy, context = Ogd(OgdOptions(per_step=50)), toy_context(model, ["PER"], train=train)
    model.encoder.requires_grad_(False)
    strategy.gates(context)
    strategy.end_step(context)
    model.grow(["LOC"])

    def stored() -> Tensor:
        encoded = model.encode(train)
        with torch.no_grad():
            batch = encoded.batch(range(len(train)))
            logits = model(batch).flat().gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
            typed = torch.where(batch.targets > 0, logits, 0.0).sum(dim=1)
        return typed[(batch.targets > 0).any(dim=1)]

    before = stored()
    later = toy_context(model, ["LOC"], train=sentences(["LOC"], seed=5))
    batch = later.encoded.batch(range(12))  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05)
    updater = Updater([strategy] if projected else [], later, optimizer, clip=0.0)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (
            (model(batch).flat() - torch.nn.functional.one_hot(batch.targets, 5 + (head == "addner"))).square().mean()
        )
        loss.backward()
        assert updater.update()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    moved = float((stored() - before).abs().max())
    assert moved < 2e-5 if projected else moved > 0.05


@BOTH
def test_old_outputs_move_less_over_a_step_of_training(folder: Path, head: str) -> None:
    """Only to first order and where the directions were taken, but that is worth something."""
    stream = toy_stream(train=60)
    moved = []
    for strategies in (["finetune"], ["finetune", {"name": "ogd", "per_step": 30}]):
        learner = learner_of(folder, strategies, head=head)
        list(learner.learn_step(stream.steps[0]))
        batch = learner.model.encode(stream.steps[0].train).batch(range(30))
        before = learner.model.head.gold_logits(learner.model(batch), batch).item()
        list(learner.learn_step(stream.steps[1]))
        typed = batch.targets > 0
        logits = learner.model.eval()(batch).blocks[0].gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        after = logits[typed].sum().item()
        moved.append(abs(after - before))
    assert moved[1] < 0.8 * moved[0]


# -- state, strength, composition -----------------------------------------------------------------------------------


@BOTH
def test_without_directions_every_bit_is_as_without_the_strategy(folder: Path, head: str) -> None:
    """T10 and T11: strength zero over two steps, and step 1 at any strength."""
    stream = toy_stream(train=40)
    plain, zero = (learner_of(folder, ["distill", *more], head=head) for more in ([], [{"name": "ogd", "per_step": 0}]))
    learn_all(plain, stream)
    learn_all(zero, stream)
    assert same_weights(plain.model, zero.model)
    assert zero.model.strategy_state == {}
    first, strong = learner_of(folder, ["distill"], head=head), learner_of(folder, ["distill", "ogd"], head=head)
    for learner in (first, strong):
        list(learner.learn_step(stream.steps[0]))
    assert same_weights(first.model, strong.model)
    assert strong.model.strategy_state.keys() == {"ogd"}


def test_directions_taken_back_go_on_to_the_last_bit(folder: Path) -> None:
    model, straight, _ = measured(folder, per_step=3)
    again = Ogd(OgdOptions(per_step=3))
    # As a file gives them: in another order, and anywhere in memory.
    state = straight.state_dict()
    shifted = {}
    for name in sorted(state, reverse=True):
        shifted[name] = torch.empty(state[name].numel() + 1)[1:].view(state[name].shape).copy_(state[name])
    again.load_state_dict(shifted)
    model.grow(["LOC"])
    context = toy_context(model, ["LOC"], train=sentences(["LOC"], seed=1))
    for strategy in (straight, again):
        strategy.gates(context)
        strategy.end_step(context)
    assert same_weights(straight.state_dict(), again.state_dict())
    count = len(state["head.blocks.0.bias"])
    for name, part in straight.state_dict().items():
        assert torch.equal(part[:count], state[name] if name in state else torch.zeros_like(part[:count]))


def test_ogd_and_gpm_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(ogd and gpm|gpm and ogd) cannot be combined: both keep the update out of"):
        parse_config(run_values(tmp_path, strategies=["ogd", "gpm"]))


def test_the_kept_bytes_are_four_a_parameter_and_direction(folder: Path) -> None:
    model, strategy, _ = measured(folder, per_step=4, scope="last")
    parameters = sum(p.numel() for n, p in model.named_parameters() if n.startswith(LAST))
    state = strategy.state_dict()
    count = len(next(iter(state.values())))
    assert count == 4
    assert sum(part.nbytes for part in state.values()) == 4 * count * parameters
