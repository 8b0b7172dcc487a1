"""A-GEM: the reference gradient is the one it should be, disturbs nothing, and no update opposes it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import parse_config
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.agem import Agem, AgemOptions
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.constraints import HalfSpace
from ner_cl.strategies.references import References
from ner_cl.train.combine import Updater
from ner_cl.train.project import Projector
from ner_cl.train.run import run_stream
from ner_cl.types import Sentence, Span
from tests.forks import train_together
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.test_processes import PLAIN, close_to, without_dropout
from tests.train.toy_runs import SHORT_TRAINING, learn_all, learner_of, no_dropout, run_config, run_values, same_weights

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def sentences(types: Sequence[str], *, count: int = 12, seed: int = 0) -> tuple[Sentence, ...]:
    return tuple(s.restrict(types) for s in toy_sentences(count, seed=seed))


def prepared(
    folder: Path,
    head: str = "extendner",
    *,
    old: Sequence[Sequence[str]] = (("PER",), ("LOC",)),
    kept: int = 8,
    **options: Any,
) -> tuple[NerModel, Agem, StepContext]:
    """In the middle of a step that learns MISC, with so many remembered sentences of each earlier one."""
    model = tiny_model(folder, head, steps=[*old, ["MISC"]])
    strategy = Agem(AgemOptions(**options))
    strategy.load_sentences([s for i, types in enumerate(old) for s in sentences(types, count=kept, seed=i)])
    context = toy_context(model, ["MISC"], train=sentences(["MISC"], seed=9))
    strategy.gates(context)
    return model.train(), strategy, context


def reference_of(strategy: Agem, context: StepContext) -> dict[str, Tensor]:
    (half_space,) = strategy.constraints(context)
    assert (half_space.margin, half_space.ridge) == (0, 0)
    return dict(half_space.reference)


# -- the projection -------------------------------------------------------------------------------------------------


def projected(gradient: Tensor, reference: Tensor) -> Tensor:
    found = Projector({})({"w": -gradient}, [HalfSpace({"w": reference})])
    return -found["w"] if found else gradient


@pytest.mark.parametrize(
    ("gradient", "expected"), [((1.0, 2.0, -1.0), (-0.2, 2.0, -0.4)), ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0))]
)
def test_the_vectors_of_a_gem(gradient: tuple[float, ...], expected: tuple[float, ...]) -> None:
    """A.4."""
    found = projected(torch.tensor(gradient), torch.tensor([-2.0, 0.0, 1.0]))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(-5, 5))
def test_what_projecting_a_gradient_promises(seed: int, length: float, other_length: float) -> None:
    """AG1 to AG6, and the closed form."""
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(10, generator=generator) * 10.0**length
    reference = torch.randn(10, generator=generator) * 10.0**other_length
    found = projected(gradient, reference)
    product = float(gradient.double() @ reference.double())
    scale = float(gradient.norm() * reference.norm())
    assert float(found @ reference) >= -1e-6 * scale
    if product >= 0:
        assert torch.equal(found, gradient)
    else:
        expected = gradient - product / float(reference.double() @ reference.double()) * reference
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(gradient.norm()))
    assert float(found.norm()) <= float(gradient.norm()) * (1 + 1e-6)
    assert float((projected(found, reference) - found).norm()) <= 1e-5 * float(gradient.norm())
    assert float(projected(gradient, -gradient).norm()) <= 1e-6 * float(gradient.norm())
    assert torch.equal(projected(gradient, torch.zeros(10)), gradient)


# -- the reference --------------------------------------------------------------------------------------------------


@BOTH
def test_the_reference_is_the_gradient_of_the_mean_loss_of_what_is_remembered(folder: Path, head: str) -> None:
    """Against the loss written out: each word under its own step's annotation alone (§7.0)."""
    model, strategy, context = prepared(folder, head, draw=1000)
    no_dropout(model)
    context.batch_tokens = 10_000
    found = reference_of(strategy, context)
    losses = []
    for number, types in enumerate((["PER"], ["LOC"])):
        for sentence in sentences(types, count=8, seed=number):
            encoded = model.encode([sentence])
            emissions = model(encoded.batch([0]))
            scores = emissions.blocks[number if head == "addner" else 0][0]
            log_probs = torch.log_softmax(scores, dim=-1)
            first = 1 if head == "addner" else 1 + 2 * number
            for word in range(len(sentence.words)):
                span = next((s for s in sentence.spans if s.start <= word < s.end), None)
                if span is None:
                    losses.append(-torch.log(1 - log_probs[word, first : first + 2].exp().sum()))
                else:
                    losses.append(-log_probs[word, first + (word > span.start)])
    torch.stack(losses).mean().backward()
    assert any(name.startswith("head.blocks.2") for name in found) == (head == "extendner")  # in the same softmax
    for name, parameter in model.named_parameters():
        if name.startswith("head.blocks.2") and head == "addner":
            continue
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_a_remembered_sentence_says_nothing_of_types_of_other_steps(folder: Path) -> None:
    """B.4: "Amazon" may well be an ORG. Only its own two columns are pushed down, and all others up."""
    amazon = Sentence(("Amazon", "grew"), (), frozenset(["LOC"]))
    model = tiny_model(folder, steps=[["ORG"], ["LOC"], ["MISC"]]).train()
    strategy, context = Agem(AgemOptions()), toy_context(model, ["MISC"])
    strategy.load_sentences([amazon])
    strategy.gates(context)
    bias = {name: part for name, part in reference_of(strategy, context).items() if name.endswith("bias")}
    assert (bias["head.blocks.0.bias"] < 0).all()  # O, B-ORG, I-ORG: descending the loss raises them
    assert (bias["head.blocks.1.bias"] > 0).all()  # B-LOC, I-LOC


def test_addner_constrains_the_heads_that_were_drawn_and_no_others(folder: Path) -> None:
    _, strategy, context = prepared(folder, "addner")
    strategy.load_sentences(sentences(["LOC"]))
    strategy.gates(context)
    blocks = {name.split(".")[2] for name in reference_of(strategy, context) if name.startswith("head.")}
    assert blocks == {"1"}


@BOTH
def test_measuring_touches_neither_gradients_nor_weights_nor_the_random_stream(folder: Path, head: str) -> None:
    model, strategy, context = prepared(folder, head)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(index))
    before, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    assert reference_of(strategy, context)
    assert torch.equal(random, torch.get_rng_state())
    assert same_weights(before, model)
    assert all(bool((p.grad == index).all()) for index, p in enumerate(model.parameters()) if p.grad is not None)
    assert model.training


def test_frozen_parameters_have_no_reference(folder: Path) -> None:
    model, strategy, context = prepared(folder)
    model.encoder.embeddings.requires_grad_(False)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reference_of(strategy, context).keys() == names
    model.requires_grad_(False)
    assert list(strategy.constraints(context)) == []


def test_dropout_is_on_and_the_same_update_draws_the_same_again(folder: Path) -> None:
    """What a resumed run needs: everything is a function of epoch and update."""
    model, strategy, context = prepared(folder, draw=4)
    drawn = {}
    for place in ((1, 0), (1, 1), (2, 0)):
        context.epoch, context.update = place
        torch.manual_seed(sum(place))
        drawn[place] = reference_of(strategy, context)
    context.epoch, context.update = 1, 1
    assert same_weights(reference_of(strategy, context), drawn[1, 1])
    assert not same_weights(drawn[1, 0], drawn[1, 1])
    assert not same_weights(drawn[1, 0], drawn[2, 0])
    no_dropout(model)
    assert not same_weights(reference_of(strategy, context), drawn[1, 1])


# -- the draw -------------------------------------------------------------------------------------------------------


def drawn(references: References, count: int | None, tokens: int = 128, seed: int = 0) -> list[int]:
    return references.draw(references.groups, np.random.default_rng(seed), count=count, tokens=tokens)


def test_a_draw_is_balanced_over_steps_and_fits_a_batch(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"], ["ORG"], ["MISC"]])
    kept = [sentences(["PER"], count=40), (), sentences(["ORG"], count=5, seed=1)]
    references = References(toy_context(model, ["MISC"]), kept)
    assert [len(group) for group in references.groups] == [40, 5]
    lengths = model.encode([*kept[0], *kept[2]]).lengths
    seen: set[int] = set()
    for seed in range(60):
        rows = drawn(references, 8, seed=seed)
        assert len(set(rows)) == len(rows) == 8
        assert sum(row >= 40 for row in rows) == 4
        rows = drawn(references, None, seed=seed)
        assert max(lengths[row] for row in rows) * len(rows) <= 128
        few = sum(row >= 40 for row in rows)  # of the step that has five
        assert few == 5 if len(rows) > 10 else abs(len(rows) - 2 * few) <= 1
        seen.update(rows)
    assert seen == set(range(45))
    assert sorted(drawn(references, 1000)) == list(range(45))
    assert len(drawn(references, None, tokens=1)) == 1  # one that is longer than a batch stands alone


def test_a_draw_of_several_batches_has_the_gradient_of_one(folder: Path) -> None:
    model, strategy, context = prepared(folder, draw=1000)
    no_dropout(model)
    in_batches = reference_of(strategy, context)
    context.batch_tokens = 10_000
    at_once = reference_of(strategy, context)
    for name, part in at_once.items():
        torch.testing.assert_close(in_batches[name], part, rtol=1e-3, atol=1e-6)


def test_the_mean_is_over_words_however_steps_are_mixed(folder: Path) -> None:
    """AddNER averages each block over its own words, so that few rows of one step would count as many of another."""
    model = no_dropout(tiny_model(folder, "addner", steps=[["PER"], ["LOC"], ["ORG"]]))
    few, many = ([s.restrict([type_]) for s in toy_sentences(n, seed=n)] for n, type_ in ((3, "PER"), (20, "LOC")))
    context = toy_context(model, ["ORG"])
    references = References(context, [few, many])
    rows = [row for group in references.groups for row in group]
    for context.batch_tokens in (10_000, 64):
        found = references.gradient(context, rows, np.random.default_rng(0))
        model.zero_grad(set_to_none=True)
        words = sum(len(sentence.words) for sentence in (*few, *many))
        for sentence in (*few, *many):
            batch = model.encode([sentence]).batch([0])
            loss = model.head.supervised(model(batch), batch, unannotated="unknown")
            (loss * len(sentence.words) / words).backward()
        for name, part in found.items():
            torch.testing.assert_close(part, model.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


def test_references_agree_in_bf16_and_fp32_on_what_opposes_what(folder: Path) -> None:
    """T8: the sign of every product that is not next to nothing."""
    _, strategy, context = prepared(folder, draw=3)
    products: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision in ("fp32", "bf16"):
        context.precision = precision
        found = []
        for update in range(12):
            context.update = update
            found.append(torch.cat([part.flatten() for part in reference_of(strategy, context).values()]))
        rows = torch.stack(found) - torch.stack(found).mean(dim=0)
        cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
        products[precision] = cosines.flatten().tolist()
    assert products["bf16"] != products["fp32"]  # or nothing was computed in bf16
    pairs = [(a, b) for a, b in zip(products["fp32"], products["bf16"], strict=True) if abs(a) > 0.05]
    assert min(a for a, _ in pairs) < 0 < max(a for a, _ in pairs)
    assert all((a > 0) == (b > 0) for a, b in pairs)


# -- in training ----------------------------------------------------------------------------------------------------


def span_words(sentence: Sentence) -> tuple[str, ...]:
    span = sentence.spans[0]
    return sentence.words[span.start : span.end]


def memory_loss(model: NerModel, kept: Sequence[Sentence]) -> float:
    batch = model.encode(kept).batch(range(len(kept)))
    with torch.no_grad():
        return float(model.head.supervised(model(batch), batch, unannotated="unknown"))


@BOTH
def test_a_small_step_of_sgd_does_not_raise_the_loss_on_the_memory(folder: Path, head: str) -> None:
    """AG7, the draw being all of the memory; without A-GEM some steps do raise it, where a mention changes its type."""
    raised = {True: 0.0, False: 0.0}
    for seed in range(8):
        words = [span_words(s) for s in toy_sentences(10, seed=20 + seed) if s.spans]
        kept = [Sentence(w, (Span(0, len(w), "PER"),), frozenset(["PER"])) for w in words]
        for constrained in raised:
            model = no_dropout(tiny_model(folder, head, steps=[["PER"], ["LOC"]])).train()
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():  # heads that say something, for AddNER's are at odds through the encoder only
                for block in model.head.blocks:
                    block.weight.normal_(0, 0.3, generator=draw)
            strategy = Agem(AgemOptions(draw=100))
            strategy.load_sentences(kept)
            train = [Sentence(w, (Span(0, len(w), "LOC"),), frozenset(["LOC"])) for w in words]
            context = toy_context(model, ["LOC"], train=train)
            context.batch_tokens = 10_000
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
            updater = Updater([strategy] if constrained else [], context, optimizer, clip=0.0)
            batch = context.encoded.batch(range(len(train)))  # type: ignore[union-attr]
            before = memory_loss(model, kept)
            model.head.supervised(model(batch), batch, unannotated="negative").backward()
            assert updater.update()
            change = memory_loss(model, kept) - before
            raised[constrained] = max(raised[constrained], change)
    assert raised[False] > 1e-3
    assert raised[True] < 0.02 * raised[False]


@BOTH
def test_an_empty_memory_is_plain_training_to_the_last_bit(folder: Path, head: str) -> None:
    """T10, and T11 for step 1: a memory deleted for privacy leaves the strategy without effect."""
    stream = toy_stream(train=40)
    plain, emptied = learner_of(folder, ["distill"], head=head), learner_of(folder, ["distill", "agem"], head=head)
    for learner in (plain, emptied):
        list(learner.learn_step(stream.steps[0]))
    assert same_weights(plain.model, emptied.model)
    assert len(emptied.model.kept_sentences["agem"]) == 1
    emptied.model.kept_sentences.clear()
    for learner in (plain, emptied):
        list(learner.learn_step(stream.steps[1]))
    assert same_weights(plain.model, emptied.model)


@BOTH
def test_where_nothing_is_opposed_the_trajectory_is_not_disturbed(
    folder: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second forward and backward pass runs at every update, and leaves no trace when nothing comes of it."""
    real: Callable[..., dict[str, Tensor]] = References.gradient
    calls = []

    def idle(*args: Any) -> Mapping[str, Tensor]:
        calls.append({name: torch.zeros_like(part) for name, part in real(*args).items()})
        return calls[-1]

    stream = toy_stream(train=40)
    plain = learner_of(folder, ["distill"], head=head)
    learn_all(plain, stream)
    monkeypatch.setattr(References, "gradient", idle)
    other = learner_of(folder, ["distill", {"name": "agem", "budget": 5}], head=head)
    learn_all(other, stream)
    assert len(calls) > 2
    assert all(calls)
    assert same_weights(plain.model, other.model)


def test_one_reference_an_update_however_many_batches_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T9."""
    asked = []
    real = Agem.constraints

    def count(self: Agem, context: StepContext) -> Sequence[HalfSpace]:
        asked.append((context.epoch, context.update))
        return real(self, context)

    monkeypatch.setattr(Agem, "constraints", count)
    training = SHORT_TRAINING.model_copy(update={"batch_tokens": 64, "accumulate": 3})
    learner = learner_of(folder, ["agem"], training=training)
    events = learn_all(learner, toy_stream(train=40))
    assert len(asked) == sum(type(event).__name__ == "UpdateDone" for event in events)


@BOTH
def test_training_with_it_moves_otherwise_and_remembers(folder: Path, head: str) -> None:
    stream = toy_stream(train=40)
    plain = learner_of(folder, ["finetune"], head=head)
    bound = learner_of(folder, ["finetune", {"name": "agem", "budget": 10}], head=head)
    for learner in (plain, bound):
        learn_all(learner, stream)
    assert not same_weights(plain.model, bound.model)
    kept = bound.model.kept_sentences["agem"]
    assert [sum(s.annotated_types == {type_} for s in kept) for type_ in ("PER", "LOC")] == [10, 10]


def test_agem_and_gem_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agem and gem cannot be combined: agem is gem with one reference"):
        parse_config(run_values(tmp_path, strategies=["agem", "gem"]))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["addner", "extendner"])
def test_two_processes_make_the_updates_of_one(tmp_path: Path, head: str) -> None:
    """Both ask for the same references in the same order, or they would wait for each other for ever."""
    strategies = ["distill", {"name": "agem", "budget": 5}, {"name": "ogd", "per_step": 3}]
    changes = {"head": {"name": head}, "strategies": strategies}
    values = run_values(tmp_path, output=str(tmp_path / "together"), training=PLAIN, **changes)
    without_dropout(tmp_path / "encoder")
    alone = run_config(tmp_path, output=str(tmp_path / "alone"), training={**PLAIN, "accumulate": 2}, **changes)
    run_stream(alone)
    path = tmp_path / "together.yaml"
    path.write_text(yaml.safe_dump(values))
    done = train_together(path)
    assert done.returncode == 0, done.stderr
    close_to(tmp_path / "together", tmp_path / "alone")
