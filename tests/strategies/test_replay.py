"""Replay: remembered sentences say what their own step annotated, are mixed in as asked, and can be deleted."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import ner_cl
from ner_cl.config import parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.data.stream import build_stream
from ner_cl.errors import ConfigError, DataError
from ner_cl.evaluate.counts import count_spans
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.model.store import load_model
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.distill import Distill, DistillStrategyOptions
from ner_cl.strategies.replay import Replay, ReplayOptions, _key
from ner_cl.strategies.self_training import SelfTraining, SelfTrainingOptions
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence, Span
from tests.tiny import ALIKE, TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_corpus, toy_sentences, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, same_weights

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
MIXINGS = ("concatenate", "batch_ratio", "loss", "der")
OLD = (("PER",), ("LOC",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def shown(count: int, types: Sequence[str], *, seed: int) -> list[Sentence]:
    return [sentence.restrict(types) for sentence in toy_sentences(count, seed=seed)]


MEMORY = (*shown(6, ["PER"], seed=21), *shown(9, ["LOC"], seed=22))


def begin(
    folder: Path, head: str = "extendner", *, memory: Sequence[Sentence] = MEMORY, train: int = 30, **options: object
) -> tuple[Replay, StepContext]:
    """The strategy in step 3 (ORG), with sentences of both steps before in its memory."""
    model = tiny_model(folder, head, steps=OLD, max_pieces=20, window_overlap=4)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a model with opinions
    strategy = Replay(ReplayOptions.model_validate(options))
    strategy.load_sentences(memory)
    context = toy_context(model, ["ORG"], grown=False)
    strategy.begin_step(context)
    sentences = strategy.sentences(context, shown(train, ["ORG"], seed=20))
    model.grow(["ORG"], generator=torch.Generator().manual_seed(4))
    context.encoded = model.encode(sentences)
    return strategy, context


def rows_of(context: StepContext, *, remembered: bool | None = None) -> Batch:
    assert context.encoded is not None
    kept = [origin == "remembered" for origin in context.encoded.origins]
    rows = [row for row, found in enumerate(kept) if remembered in (None, found)]
    return context.encoded.batch(rows)


def fixed_emissions(context: StepContext, batch: Batch) -> Emissions:
    """Made-up scores, in leaves that gradients can be read off."""
    generator = torch.Generator().manual_seed(11)
    blocks = context.model(batch).blocks
    return Emissions(tuple(torch.randn(b.shape, generator=generator).requires_grad_() for b in blocks), batch.word_mask)


def own_means(strategy: Replay, context: StepContext, batch: Batch, emissions: Emissions) -> list[tuple[int, Tensor]]:
    """Words of each remembered row, and what `head.supervised` says of it alone."""
    return [
        (
            batch.row_words[row],
            context.model.head.supervised(emissions.select([row]), batch.select([row]), unannotated="unknown"),
        )
        for row in rows_from(batch.origins, "remembered")
    ]


# --- nothing to replay


@pytest.mark.parametrize("mixing", MIXINGS)
def test_nothing_to_remember_trains_as_without_to_the_last_bit(folder: Path, mixing: str) -> None:
    """T10, T11: in step 1, with an empty memory, and with no strength."""
    stream = toy_stream(train=40)
    silent = {"alpha": 0, "beta": 0} if mixing == "der" else {"weight": 0}
    without = Learner(tiny_model(folder), parse_strategies(["distill"]), SHORT_TRAINING)
    emptied, weak = (
        Learner(
            tiny_model(folder),
            parse_strategies([{"name": "replay", "mixing": mixing, "budget": 5, **o}]),
            SHORT_TRAINING,
        )
        for o in ({}, silent)
    )
    for step in stream.steps:
        for learner in (without, emptied, weak):
            list(learner.learn_step(step))
        assert same_weights(without.model, emptied.model)
        assert same_weights(without.model, weak.model)
        assert len(emptied.model.kept_sentences.pop("replay")) == 5


def test_a_fresh_strategy_keeps_nothing() -> None:
    strategy = Replay(ReplayOptions())
    assert (strategy.state_dict(), strategy.kept_sentences()) == ({}, ())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rehearsal": 5, "mixing": "loss"}, "rehearsal: counts sentences for mixing: concatenate"),
        ({"rehearsal": 0}, "rehearsal"),
        ({"ratio": 1.0}, "ratio"),
        ({"weight": -1}, "weight"),
        ({"budget": 2.5}, "budget: 2.5 is no whole number"),
        ({"budget": 1.0}, "say unit: step_fraction or step"),
        ({"budget": True}, "true is no number"),
        ({"ratio": 0.5}, "ratio: has no effect with mixing: concatenate"),
        ({"weight": 2, "mixing": "der"}, "weight: has no effect with mixing: der"),
        ({"alpha": 0.1}, "alpha: has no effect with mixing: concatenate"),
        ({"beta": 0.1, "mixing": "loss"}, "beta: has no effect with mixing: loss"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ReplayOptions.model_validate(options)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_options_written_out_with_their_defaults_are_read_again(mixing: str) -> None:
    options = ReplayOptions.model_validate({"mixing": mixing})
    assert ReplayOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize("name", ["replay", "agem", "gem"])
def test_a_memory_of_unknown_types_is_refused_before_anything_changes(folder: Path, name: str) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    model.kept_sentences = {name: (Sentence(("Ada",), (), frozenset({"Per"}), source="replay.jsonl:4"),)}
    learner = Learner(model, parse_strategies([name]), SHORT_TRAINING)
    with pytest.raises(DataError, match=r"replay.jsonl:4: a remembered sentence is annotated for Per"):
        list(learner.learn_step(toy_stream(train=20).steps[1]))
    assert model.types == ("PER",)


def test_it_stands_on_distillation_and_not_beside_joint() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["replay"]))] == ["distill", "replay"]
    with pytest.raises(ConfigError, match="replay and joint cannot be combined: joint trains on all earlier"):
        build_strategies(parse_strategies(["replay", "joint"]))


# --- what a remembered sentence says (§9.5)


@pytest.mark.parametrize("labels", ["own", "naive"])
def test_outside_never_punishes_a_type_that_was_not_annotated(folder: Path, labels: str) -> None:
    """§9.5, R2: on an O word, ∂L/∂z_c = p_c - p_c / Σ_{c∉A} p_c ≤ 0 for every c∉A; R5 breaks that."""
    strategy, context = begin(folder, labels=labels)
    batch = rows_of(context, remembered=True)
    emissions = fixed_emissions(context, batch)
    strategy.losses(context, batch, emissions)["replay"].backward()
    [logits] = emissions.blocks
    assert logits.grad is not None
    words = batch.word_mask.sum()
    outside = batch.word_mask & (batch.targets == 0)
    seen = 0
    for row, word in outside.nonzero().tolist():
        own = [1, 2] if batch.annotated[row, 0] else [3, 4]
        others = [column for column in range(7) if column not in own]
        p = logits[row, word].detach().softmax(-1)
        found = logits.grad[row, word, others] * words
        if labels == "own":
            torch.testing.assert_close(found, p[others] - p[others] / p[others].sum(), atol=1e-5, rtol=1e-4)
            assert (found <= 1e-6).all()
        else:
            assert (found[1:] > 0).all()
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("labels", ["own", "naive"])
def test_addner_teaches_the_block_of_the_sentences_own_step(folder: Path, labels: str) -> None:
    """§9.5, R1: no other block gets a gradient from it, not even a naive one."""
    strategy, context = begin(folder, "addner", memory=MEMORY[:6], labels=labels)
    batch = rows_of(context, remembered=True)
    emissions = fixed_emissions(context, batch)
    found = strategy.losses(context, batch, emissions)["replay"]
    found.backward()
    assert [block.grad is not None and bool(block.grad.any()) for block in emissions.blocks] == [True, False, False]
    words = batch.word_mask
    expected = torch.nn.functional.cross_entropy(emissions.blocks[0][words], batch.targets[words])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("labels", "spared"), [("own", True), ("naive", False)])
def test_amazon_is_not_denied_to_be_an_organisation(folder: Path, labels: str, spared: bool) -> None:
    """B.4: "Amazon grew in Rome", annotated for LOC; -log(1 - p(B-LOC) - p(I-LOC)) on Amazon, or plainly -log p(O)."""
    sentence = Sentence(("Amazon", "grew", "in", "Rome"), (Span(3, 4, "LOC"),), frozenset({"LOC"}))
    strategy, context = begin(folder, memory=[sentence], labels=labels)
    batch = rows_of(context, remembered=True)
    emissions = fixed_emissions(context, batch)
    p = emissions.blocks[0][0].softmax(-1).tolist()
    outside = [1 - q[3] - q[4] if spared else q[0] for q in p[:3]]
    expected = -(sum(map(math.log, outside)) + math.log(p[3][3])) / 4
    assert strategy.losses(context, batch, emissions)["replay"].item() == pytest.approx(expected, abs=1e-5)


def test_relabelled_sentences_are_complete_for_the_old_types_and_gold_wins(folder: Path) -> None:
    """§9.5, R3, and B.4: the teacher does not know ORG yet, so nothing is said of Amazon's being one."""
    model = tiny_model(folder, steps=OLD)
    strategy = Replay(ReplayOptions(labels="relabel"))
    gold = Sentence(tuple("abcdefgh"), (Span(2, 4, "LOC"),), frozenset({"LOC"}), source="x:1")
    strategy.load_sentences([gold])
    context = toy_context(model, ["ORG"], grown=False)
    predicted = [Span(0, 2, "PER"), Span(3, 5, "PER"), Span(5, 6, "LOC"), Span(6, 8, "PER")]
    context.predict = lambda sentences: [predicted for _ in sentences]
    [own, shown_] = strategy.sentences(context, [gold.restrict(()).with_spans((), {"ORG"})])
    assert own.annotated_types == {"ORG"}
    assert shown_.spans == (Span(0, 2, "PER"), Span(2, 4, "LOC"), Span(6, 8, "PER"))
    assert shown_.annotated_types == {"PER", "LOC"}
    assert strategy.kept_sentences() == (gold,)  # what is kept is gold alone
    model.grow(["ORG"])
    context.encoded = model.encode([own, shown_])
    assert context.encoded.origins == ["own", "remembered"]
    batch = rows_of(context, remembered=True)
    emissions = fixed_emissions(context, batch)
    p = emissions.blocks[0][0].softmax(-1)
    tags = [1, 2, 3, 4, None, None, 1, 2]
    likelihoods = [p[i, tag] if tag else p[i, [0, 5, 6]].sum() for i, tag in enumerate(tags)]
    expected = -torch.stack(likelihoods).log().mean()
    torch.testing.assert_close(strategy.losses(context, batch, emissions)["replay"], expected)


def test_a_memory_that_was_edited_to_know_the_new_type_is_read_for_old_types_only(folder: Path) -> None:
    edited = [sentence.with_spans(sentence.spans, {*sentence.annotated_types, "ORG"}) for sentence in MEMORY]
    strategy, context = begin(folder, memory=edited)
    assert context.encoded is not None
    assert context.encoded.origins.count("remembered") >= len(MEMORY)
    assert {s.annotated_types for s in context.encoded.sentences[30:]} == {frozenset({"PER"}), frozenset({"LOC"})}
    assert strategy.losses(context, rows_of(context), context.model(rows_of(context)))["replay"] > 0


def test_self_training_leaves_remembered_sentences_alone(folder: Path) -> None:
    model = tiny_model(folder, steps=OLD)
    replay = Replay(ReplayOptions())
    replay.load_sentences(MEMORY)
    context = toy_context(model, ["ORG"], grown=False)
    new = shown(5, ["ORG"], seed=2)
    labelled = SelfTraining(SelfTrainingOptions()).sentences(context, replay.sentences(context, new))
    assert tuple(labelled[5:]) == MEMORY
    assert all(sentence.annotated_types == {"PER", "LOC", "ORG"} for sentence in labelled[:5])


# --- means


@BOTH
def test_concatenated_rows_make_one_mean_over_words(folder: Path, head: str) -> None:
    """T9: however the rows of different steps are cut into batches."""
    strategy, context = begin(folder, head, weight=3.0)
    batch = rows_of(context)
    emissions = fixed_emissions(context, batch)
    parts = own_means(strategy, context, batch, emissions)
    expected = 3 * torch.stack([words * mean for words, mean in parts]).sum() / sum(batch.row_words)
    torch.testing.assert_close(strategy.losses(context, batch, emissions)["replay"], expected)
    halves = [range(0, len(batch.rows), 2), range(1, len(batch.rows), 2)]
    total = torch.zeros(())
    for half in halves:
        part = batch.select(half)
        share = sum(part.row_words) / sum(batch.row_words)
        total += share * strategy.losses(context, part, emissions.select(half))["replay"]
    torch.testing.assert_close(total, expected)


@BOTH
def test_a_second_loss_is_a_mean_of_its_own(folder: Path, head: str) -> None:
    """§9.4 (iii): the sum of all terms is, but for one common factor, L_new + λ·L_mem."""
    strategy, context = begin(folder, head, mixing="loss", weight=0.7)
    distill = Distill(DistillStrategyOptions(alpha=0))
    distill.begin_step(toy_context(tiny_model(folder, head, steps=OLD), ["ORG"], grown=False))
    assert context.encoded is not None
    batch = rows_of(context)
    emissions = fixed_emissions(context, batch)
    planned = plan_of(strategy, context)
    rows = list(itertools.chain(*planned))
    for cut in (planned, [rows], [rows[:7], rows[7:]]):  # T9: however they are cut
        words = sum(batch.row_words[row] for row in rows)
        total, new, kept = torch.zeros(()), [], []
        for numbers in cut:
            part, said = batch.select(numbers), emissions.select(numbers)
            terms = strategy.losses(context, part, said) | distill.losses(context, part, said)
            total = total + sum(part.row_words) / words * torch.stack(list(terms.values())).sum()
        for row in rows:
            alone, said = batch.select([row]), emissions.select([row])
            if batch.origins[row] == "own":
                new.append((alone.row_words[0], distill.losses(context, alone, said)["ce"]))
            else:
                kept += own_means(strategy, context, alone, said)
        l_new, l_mem = (sum(n * mean for n, mean in parts) / sum(n for n, _ in parts) for parts in (new, kept))
        common = sum(n for n, _ in new) / words
        torch.testing.assert_close(total, common * (l_new + 0.7 * l_mem))


# --- DER++


def stored(folder: Path, head: str) -> tuple[Replay, NerModel]:
    """A strategy at the end of step 2, which has seen the end of step 1."""
    strategy = Replay(ReplayOptions(mixing="der", budget=5, alpha=0.3, beta=0.6))
    model = tiny_model(folder, head, steps=[["PER"]], max_pieces=14, window_overlap=4)
    for number, types in enumerate(OLD):
        if number:
            model.grow(types, generator=torch.Generator().manual_seed(5))
        strategy.end_step(toy_context(model, types, train=shown(30, types, seed=number)))
    return strategy, model


@BOTH
def test_der_stores_what_the_model_said_at_the_end_of_the_sentences_step(folder: Path, head: str) -> None:
    strategy, model = stored(folder, head)
    state = strategy.state_dict()
    assert len(state) == len(strategy.kept_sentences()) == 10
    new = strategy.memory.by_step(OLD)[1]
    encoded = model.encode(new)
    widths = {"extendner": (3, 5), "addner": (3, 6)}[head]
    assert Counter(logits.shape[1] for logits in state.values()) == {widths[0]: 5, widths[1]: 5}
    for row, window in enumerate(encoded.windows):
        with torch.no_grad():
            said = model(encoded.batch([row])).flat()[0]
        own = state[_key(new[window.sentence])][window.first_word :][: len(said)]
        torch.testing.assert_close(own, said, atol=1e-5, rtol=1e-5)
    assert any(window.first_word for window in encoded.windows)  # some are read in several windows


@BOTH
def test_der_pays_for_the_distance_to_stored_logits_over_the_columns_there_were(folder: Path, head: str) -> None:
    """§9.4 (iv): α·MSE over columns that existed and valid words, and β times cross entropy."""
    strategy, model = stored(folder, head)
    kept = strategy.kept_sentences()
    state = strategy.state_dict()
    fresh = Replay(ReplayOptions(mixing="der", alpha=0.3, beta=0.6))
    fresh.load_state_dict(state)
    fresh.load_sentences(kept[1:])  # somebody deleted one: its logits go too
    assert len(fresh.state_dict()) == 9
    context = toy_context(model, ["ORG"], grown=False)
    sentences = fresh.sentences(context, shown(12, ["ORG"], seed=20))
    model.grow(["ORG"], generator=torch.Generator().manual_seed(6))
    context.encoded = model.encode(sentences)
    batch = rows_of(context)
    emissions = fixed_emissions(context, batch)
    planned = Counter[bool]()
    for row in itertools.chain(*plan_of(fresh, context)):
        planned[batch.origins[row] == "own"] += batch.row_words[row]
    found = fresh.losses(context, batch, emissions)
    flat = emissions.flat()
    distances, words = [], 0
    for row, number in enumerate(batch.rows):
        window = context.encoded.windows[number]
        if batch.origins[row] == "own":
            continue
        words += batch.row_words[row]
        sentence = context.encoded.sentences[window.sentence]
        logits = state.get(_key(sentence))
        for place in range(batch.row_words[row]):
            assert logits is not None
            wanted = logits[window.first_word + place]
            distances.append((flat[row, place, : len(wanted)] - wanted).square().mean())
    common = planned[True] / planned[False] * words / sum(batch.row_words)
    torch.testing.assert_close(found["replay_logits"], 0.3 * common * torch.stack(distances).mean())
    parts = own_means(fresh, context, batch, emissions)
    l_mem = torch.stack([count * mean for count, mean in parts]).sum() / words
    torch.testing.assert_close(found["replay"], 0.6 * common * l_mem)
    found["replay_logits"].backward()
    newest = emissions.blocks[-1].grad
    assert newest is None or not newest[..., -2:].any()  # the columns of ORG were not there


def test_der_goes_on_without_logits(folder: Path) -> None:
    """Sentences that a user brought, or changed by a word, have none; then cross entropy alone is paid."""
    strategy, _ = stored(folder, "extendner")
    changed = [
        Sentence(("X", *s.words[1:]), s.spans, s.annotated_types, source=s.source) for s in strategy.kept_sentences()
    ]
    strategy.load_sentences(changed)
    assert strategy.state_dict() == {}
    other, context = begin(folder, memory=changed, mixing="der")
    assert other.losses(context, rows_of(context), context.model(rows_of(context))).keys() == {"replay"}


def test_logits_go_when_another_mixing_is_chosen_or_their_step_must_give_way(folder: Path) -> None:
    strategy, model = stored(folder, "extendner")
    state, kept = strategy.state_dict(), strategy.kept_sentences()
    context = toy_context(model, ["LOC"], train=shown(30, ["LOC"], seed=1))
    for options, left in (({"mixing": "loss", "budget": 5}, 0), ({"mixing": "der", "budget": 4, "unit": "total"}, 4)):
        later = Replay(ReplayOptions.model_validate(options))
        later.load_state_dict(state)
        later.load_sentences(kept)
        assert {name: tensor.tolist() for name, tensor in later.state_dict().items()} == {
            name: tensor.tolist() for name, tensor in state.items()
        }
        later.end_step(context)
        assert len(later.state_dict()) == left


# --- mixing


def plan_of(strategy: Replay, context: StepContext, *, seed: int = 1) -> list[list[int]]:
    assert context.encoded is not None
    whole = [list(range(len(context.encoded)))]
    return strategy.plan(context, whole, np.random.default_rng(seed))


def test_all_is_shuffled_together_by_default(folder: Path) -> None:
    strategy, context = begin(folder)
    assert context.encoded is not None
    assert plan_of(strategy, context) == [list(range(len(context.encoded)))]


@pytest.mark.parametrize("mixing", ["batch_ratio", "loss", "der"])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8])
def test_every_batch_has_its_share_of_remembered_rows(folder: Path, mixing: str, ratio: float) -> None:
    strategy, context = begin(folder, train=80, mixing=mixing, ratio=ratio)
    encoded = context.encoded
    assert encoded is not None
    plan = plan_of(strategy, context)
    own = Counter(row for batch in plan for row in batch if encoded.origins[row] == "own")
    assert set(own.values()) == {1}
    assert len(own) == encoded.origins.count("own")
    for batch in plan:
        new = sum(encoded.origins[row] == "own" for row in batch)
        assert new >= 1
        assert len(batch) - new == math.ceil(new * ratio / (1 - ratio) - 1e-6)
        padded = max(encoded.lengths[row] for row in batch) * len(batch)
        assert new == 1 or padded <= context.batch_tokens
    drawn = Counter(row for batch in plan for row in batch if encoded.origins[row] == "remembered")
    assert max(drawn.values()) - min(drawn[row] for row in rows_from(encoded.origins, "remembered")) <= 1
    assert plan_of(strategy, context) == plan
    assert plan_of(strategy, context, seed=2) != plan


def test_rehearsal_draws_as_often_from_every_earlier_step(folder: Path) -> None:
    """CT0: with replacement, so a step with few sentences is sampled up."""
    strategy, context = begin(folder, rehearsal=20)
    encoded = context.encoded
    assert encoded is not None
    plan = plan_of(strategy, context)
    drawn = Counter(
        next(iter(encoded.sentences[encoded.windows[row].sentence].annotated_types))
        for batch in plan
        for row in batch
        if encoded.windows[row].first_word == 0
    )
    assert drawn == {"ORG": 30, "PER": 20, "LOC": 20}
    assert all(max(encoded.lengths[r] for r in batch) * len(batch) <= context.batch_tokens for batch in plan)
    assert plan_of(strategy, context) == plan
    assert plan_of(strategy, context, seed=2) != plan


@pytest.mark.parametrize("options", [{"rehearsal": 12}, {"mixing": "der"}])
def test_a_sentence_that_two_steps_remember_counts_for_both_and_after_a_reload(
    folder: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    """Relabelled for all old types, both copies say the same; only before a reload do they differ by their source."""
    corpus = toy_corpus(train=80, types=("PER", "LOC", "ORG"))
    stream = build_stream(corpus, [["PER"], ["LOC"], ["ORG"]], protocol="overlap")
    parsed = parse_strategies([{"name": "replay", "budget": 0.9, "labels": "relabel", **options}])
    learner = Learner(tiny_model(folder), parsed, SHORT_TRAINING)
    for step in stream.steps[:2]:
        list(learner.learn_step(step))
    texts = [sentence.words for sentence in learner.model.kept_sentences["replay"]]
    assert len(set(texts)) < len(texts)  # some are remembered twice
    learner.model.save(tmp_path / "two")
    resumed = Learner(load_model(tmp_path / "two"), parsed, SHORT_TRAINING)
    for one in (learner, resumed):
        list(one.learn_step(stream.steps[2]))
    assert same_weights(learner.model, resumed.model)


def test_rehearsal_of_sentences_shown_alike_still_draws_from_every_step(folder: Path) -> None:
    model = tiny_model(folder, steps=OLD)
    strategy = Replay(ReplayOptions(rehearsal=20, labels="relabel"))
    texts = [sentence.words for sentence in toy_sentences(6, seed=1)]
    strategy.load_sentences([Sentence(words, (), frozenset({type_})) for type_ in ("PER", "LOC") for words in texts])
    context = toy_context(model, ["ORG"], grown=False)
    context.predict = lambda sentences: [[] for _ in sentences]
    sentences = strategy.sentences(context, [Sentence(("the", "report"), (), frozenset({"ORG"}))] * 30)
    model.grow(["ORG"])
    context.encoded = model.encode(sentences)
    rows = list(itertools.chain(*plan_of(strategy, context)))
    assert sum(context.encoded.origins[row] == "remembered" for row in rows) == 40


def test_one_percent_of_the_new_for_every_earlier_step_is_a_good_quarter_of_the_mix(folder: Path) -> None:
    """A.14: 38 earlier data sets, 1000 of each to 100 000 new: 38 000 / 138 000 = 27.54 % (here in hundreds)."""
    types = [f"T{number}" for number in range(38)]
    model = tiny_model(folder, steps=[[type_] for type_ in types])
    strategy = Replay(ReplayOptions(rehearsal=10))
    strategy.load_sentences([Sentence(("a",), (Span(0, 1, type_),), frozenset({type_})) for type_ in types])
    context = toy_context(model, ["ORG"], grown=False)
    new = [Sentence(("the", "report"), (), frozenset({"ORG"}))] * 1000
    sentences = strategy.sentences(context, new)
    model.grow(["ORG"])
    context.encoded = model.encode(sentences)
    rows = list(itertools.chain(*plan_of(strategy, context)))
    assert len(rows) == 1380
    assert sum(context.encoded.origins[row] == "remembered" for row in rows) / len(rows) == pytest.approx(
        0.2754, abs=5e-5
    )


@pytest.mark.parametrize("options", [{"mixing": "loss"}, {"rehearsal": 7}, {"mixing": "der"}])
@BOTH
def test_every_mixing_trains(folder: Path, head: str, options: dict[str, object]) -> None:
    learner = Learner(
        tiny_model(folder, head),
        parse_strategies([{"name": "replay", "budget": 6, "selection": "balanced", "labels": "relabel", **options}]),
        SHORT_TRAINING,
    )
    events = [event for step in toy_stream(train=40).steps for event in learner.learn_step(step)]
    terms = {name for event in events if type(event).__name__ == "UpdateDone" for name in event.losses}
    assert terms == {"ce", "kd", "replay", *(["replay_logits"] if options.get("mixing") == "der" else [])}
    assert len(learner.model.kept_sentences["replay"]) == 12


@pytest.mark.parametrize("mixing", ["batch_ratio", "loss", "der"])
def test_raw_text_leaves_every_batch_its_share(folder: Path, mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the annotated rows of a batch are remembered ones, with raw rows beside them as without."""
    planned: list[list[str]] = []
    plan = Distill.plan

    def noted(self: Distill, context: StepContext, batches: list[list[int]], generator: np.random.Generator) -> Any:
        found = plan(self, context, batches, generator)
        if context.old_types:
            planned.extend([context.encoded.origins[row] for row in batch] for batch in found)
        return found

    monkeypatch.setattr(Distill, "plan", noted)
    chosen = parse_strategies(["distill", {"name": "replay", "budget": 20, "mixing": mixing, "ratio": 0.5}])
    learner = Learner(tiny_model(folder), chosen, SHORT_TRAINING)
    raw = tuple(Sentence(sentence.words) for sentence in toy_sentences(30, seed=9))
    for step in toy_stream(train=40).steps:
        list(learner.learn_step(step, unlabeled=raw))
    shares = Counter(batch.count("remembered") / (len(batch) - batch.count("unlabeled")) for batch in planned)
    assert set(shares) == {0.5}
    assert all(batch.count("unlabeled") >= len(batch) / 4 for batch in planned)


# --- what it is for, and how it ends


@pytest.mark.parametrize(("head", "ground"), [("addner", "finetune"), ("extendner", ALIKE)])
def test_a_few_sentences_keep_the_old_type_alive(folder: Path, head: str, ground: object) -> None:
    """AddNER needs no more. ExtendNER's plain cross entropy denies old types in the new sentences, so it needs both."""
    stream = toy_stream(train=120)
    learner = Learner(
        tiny_model(folder, head), parse_strategies([ground, {"name": "replay", "budget": 20}]), TOY_TRAINING
    )
    for step in stream.steps:
        list(learner.learn_step(step))
    counts = count_spans(stream.test, predict_sentences(learner.model, stream.test, precision="fp32"), ["PER", "LOC"])
    assert all(count.f1 is not None and count.f1 > 0.9 for count in counts.values())


def test_sentences_to_replay_must_be_about_old_types(folder: Path) -> None:
    model, train = tiny_model(folder, steps=OLD), shown(30, ["ORG"], seed=1)
    for replay, said in (([], "no sentences to replay"), ([train[0].restrict(())], "annotated for no type")):
        with pytest.raises(DataError, match=said):
            ner_cl.learn(model, train, types=["ORG"], replay=replay)
    with pytest.raises(DataError, match="annotated for PER, which the model does not know; it knows no type yet"):
        ner_cl.learn(tiny_model(folder), train, types=["ORG"], replay=MEMORY)
    result = ner_cl.learn(model, train, types=["ORG"], replay=MEMORY, training=SHORT_TRAINING)
    assert result.model.kept_sentences["replay"][: len(MEMORY)] == MEMORY
    assert model.kept_sentences == {}


@BOTH
def test_a_model_whose_sentences_were_deleted_predicts_the_same_and_learns_on(folder: Path, head: str) -> None:
    stream = toy_stream(train=40)
    options = parse_strategies([{"name": "replay", "budget": 6, "mixing": "der"}])
    learner = Learner(tiny_model(folder, head), options, SHORT_TRAINING)
    list(learner.learn_step(stream.steps[0]))
    model = learner.model
    assert len(model.strategy_state["replay"]) == len(model.kept_sentences["replay"]) == 6
    model.strategy_state = {**model.strategy_state, "other": {"importance": torch.ones(2)}}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.forget_sentences() == 6
    assert model.forget_sentences() == 0
    assert (model.kept_sentences, list(model.strategy_state)) == ({}, ["other"])
    assert same_weights(model, before)
    model.save(folder / f"forgetful-{head}")
    again = Learner(load_model(folder / f"forgetful-{head}"), options, SHORT_TRAINING)
    plain = Learner(load_model(folder / f"forgetful-{head}"), parse_strategies(["distill"]), SHORT_TRAINING)
    for one in (again, plain):
        list(one.learn_step(stream.steps[1]))
    assert same_weights(again.model, plain.model)


def test_the_memory_survives_the_model_folder(folder: Path, tmp_path: Path) -> None:
    options = parse_strategies([{"name": "replay", "budget": 6}])
    stream = toy_stream(train=40)
    learner = Learner(tiny_model(folder), options, SHORT_TRAINING)
    list(learner.learn_step(stream.steps[0]))
    learner.model.save(tmp_path / "one")
    loaded = load_model(tmp_path / "one")
    kept = [(s.words, s.spans, s.annotated_types) for s in loaded.kept_sentences["replay"]]
    assert kept == [(s.words, s.spans, s.annotated_types) for s in learner.model.kept_sentences["replay"]]
    resumed = Learner(loaded, options, SHORT_TRAINING)
    for one in (learner, resumed):
        list(one.learn_step(stream.steps[1]))
    assert same_weights(learner.model, resumed.model)
