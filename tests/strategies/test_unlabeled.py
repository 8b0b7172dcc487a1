"""Distillation on raw text: what it says, of which words, how often, and that it holds what no sentence mentions."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ner_cl
from ner_cl.config import parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.data.stream import Step
from ner_cl.errors import DataError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.distill import Distill, DistillStrategyOptions
from ner_cl.strategies.mixing import mixed
from ner_cl.train.events import Note, StepStarted
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_training, trained_model
from tests.train.toy_runs import SHORT_TRAINING

HEADS = pytest.mark.parametrize("head", ["addner", "extendner", "spankl"])
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(24, seed=3, types=("PER", "LOC")))
TRAIN_MANY = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(40, seed=9, types=("PER", "LOC")))
RAW = tuple(Sentence(sentence.words) for sentence in toy_sentences(15, seed=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def begin(
    folder: Path, head: str = "extendner", *, raw: Any = RAW, train: Sequence[Sentence] = TRAIN, **options: Any
) -> tuple[Distill, StepContext, NerModel]:
    """A strategy at the start of step 2, whose sentences are encoded with raw ones, and the model before the step."""
    model = tiny_model(folder, head, steps=[["PER"]])
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = model.copy()
    strategy = Distill(DistillStrategyOptions(**options))
    context = toy_context(model, ["LOC"], grown=False)
    context.unlabeled = raw
    strategy.begin_step(context)
    train = strategy.sentences(context, train)
    model.grow(["LOC"], generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for parameter in model.head.parameters():  # a student that has moved on
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    context.encoded = model.encode(train)
    return strategy, context, before


def everything(context: StepContext) -> tuple[Batch, Emissions]:
    assert context.encoded is not None
    batch = context.encoded.batch(range(len(context.encoded)))
    return batch, context.model(batch)


@HEADS
def test_terms_are_shares_of_one_mean_over_all_words(folder: Path, head: str) -> None:
    strategy, context, before = begin(folder, head, temperature=3.0, alpha=0.5)
    batch, emissions = everything(context)
    own, raw = (rows_from(batch.origins, origin) for origin in ("own", "unlabeled"))
    assert (len(own), len(raw)) == (len(TRAIN), len(RAW))
    found = strategy.losses(context, batch, emissions)
    share = sum(batch.row_words[row] for row in raw) / sum(batch.row_words)
    alone = strategy.losses(context, batch.select(own), emissions.select(own))
    for name, term in alone.items():
        torch.testing.assert_close(found[name], term * (1 - share))
    with torch.no_grad():
        said = before(batch.select(raw)).flat()
    options = DistillOptions(temperature=3.0, scale=False, mention_weight=4.0)
    imitation = context.model.head.imitation(emissions.select(raw), said, options)
    torch.testing.assert_close(found["kd_raw"], 0.5 * 9 * share * imitation, atol=1e-6, rtol=1e-5)
    assert found.keys() == {*alone, "kd_raw"}
    assert found["kd_raw"] > 0


@pytest.mark.parametrize(
    ("sentences", "raw", "options", "alpha"),
    [
        (39, True, {}, 0.1),
        (40, True, {}, 0.5),
        (39, False, {}, 0.5),
        (39, True, {"unlabeled": 0.0}, 0.5),
        (39, True, {"alpha": 0.5}, 0.5),
    ],
)
@HEADS
def test_few_sentences_beside_raw_text_are_held_less(
    folder: Path, head: str, sentences: int, raw: bool, options: dict[str, float], alpha: float
) -> None:
    """`alpha: auto` gives the loss of that number, whatever else the batch holds."""
    texts, train = RAW if raw else (), TRAIN_MANY[:sentences]
    begun = [begin(folder, head, raw=texts, train=train, **given) for given in (options, {**options, "alpha": alpha})]
    found, expected = (strategy.losses(context, *everything(context)) for strategy, context, _ in begun)
    torch.testing.assert_close(found, expected)
    assert ("kd_raw" in found) is (raw and "unlabeled" not in options)


@HEADS
def test_a_student_that_says_the_same_of_old_types_costs_nothing(folder: Path, head: str) -> None:
    """Whatever it says of the new one, as long as a shared softmax takes that from `O`."""
    _, context, before = begin(folder, head)
    batch, emissions = everything(context)
    with torch.no_grad():
        said = before(batch).flat()
    old = said.shape[-1]
    columns = torch.cat([said, emissions.flat().detach()[..., old:]], dim=-1)
    if head == "extendner":
        # Of the probability of `O`, the new columns take a half and a quarter.
        columns[..., old], columns[..., old + 1] = said[..., 0] - math.log(2), said[..., 0] - math.log(4)
        columns[..., 0] = said[..., 0] - math.log(4)
    changed = context.model.head.of_scores(columns, batch.word_mask)
    options = DistillOptions(temperature=3.0)
    assert context.model.head.imitation(changed, said, options).item() == pytest.approx(0, abs=1e-6)
    columns[..., 1] += 2.0
    changed = context.model.head.of_scores(columns, batch.word_mask)
    assert context.model.head.imitation(changed, said, options).item() > 1e-3


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_every_batch_has_its_share_and_every_raw_sentence_its_turn(folder: Path, share: float) -> None:
    strategy, context, _ = begin(folder, unlabeled=share)
    encoded = context.encoded
    assert encoded is not None
    plan = encoded.plan(encoded.annotated, batch_tokens=128, generator=np.random.default_rng(1))
    mixed = strategy.plan(context, plan, np.random.default_rng(2))
    rows = Counter(row for batch in mixed for row in batch)
    assert {row: rows[row] for row in encoded.annotated} == dict.fromkeys(encoded.annotated, 1)
    drawn = [rows[row] for row in rows_from(encoded.origins, "unlabeled")]
    assert max(drawn) - min(drawn) <= 1
    for batch in mixed:
        assert sum(encoded.origins[row] == "unlabeled" for row in batch) >= share * len(batch) - 1e-9
    assert strategy.plan(context, plan, np.random.default_rng(2)) == mixed
    assert strategy.plan(context, plan, np.random.default_rng(3)) != mixed


def test_of_much_raw_text_some_is_drawn(folder: Path) -> None:
    raw = toy_sentences(50, seed=9)
    _, context, _ = begin(folder, raw=raw, unlabeled_sentences=7)
    assert context.encoded is not None
    drawn = [s.words for s in context.encoded.sentences if not s.annotated_types]
    assert len(drawn) == 7
    assert {sentence.words for sentence in raw} > set(drawn)


@HEADS
@pytest.mark.parametrize("options", [{"unlabeled": 0.0}, {"alpha": 0.0}])
def test_unread_text_changes_no_bit(folder: Path, head: str, options: dict[str, float]) -> None:
    learned = []
    for raw in ((), RAW):
        model = tiny_model(folder, head, steps=[["PER"]])
        learner = Learner(model, parse_strategies([{"name": "distill", **options}]), SHORT_TRAINING)
        list(learner.learn_step(Step(2, ("LOC",), TRAIN, ()), unlabeled=raw))
        learned.append(learner.model.state_dict())
    assert all(torch.equal(learned[0][name], tensor) for name, tensor in learned[1].items())


def test_step_one_has_nothing_to_hold(folder: Path) -> None:
    learned = []
    for raw in ((), RAW):
        learner = Learner(tiny_model(folder), parse_strategies(["distill"]), SHORT_TRAINING)
        events = list(learner.learn_step(Step(1, ("LOC",), TRAIN, ()), unlabeled=raw))
        assert [event.sentences for event in events if isinstance(event, StepStarted)] == [len(TRAIN)]
        learned.append(learner.model.state_dict())
    assert all(torch.equal(learned[0][name], tensor) for name, tensor in learned[1].items())


@pytest.mark.parametrize("replay", [{"mixing": "batch_ratio"}, {"rehearsal": 5}], ids=str)
def test_the_share_of_raw_text_is_of_what_else_is_trained_on(folder: Path, replay: dict[str, Any]) -> None:
    """And not of all that is remembered, of which other strategies may draw little."""
    options = parse_strategies([{"name": "replay", "budget": 60, **replay}, "distill"])
    learner = Learner(tiny_model(folder), options, SHORT_TRAINING)
    first = tuple(s.restrict({"PER"}) for s in toy_sentences(80, seed=2))
    list(learner.learn_step(Step(1, ("PER",), first, ())))
    rows: Counter[str] = Counter()
    losses = learner.strategies[0].losses

    def counted(context: StepContext, batch: Batch, emissions: Emissions) -> Any:
        rows.update(batch.origins)
        return losses(context, batch, emissions)

    learner.strategies[0].losses = counted  # type: ignore[method-assign]
    list(learner.learn_step(Step(2, ("LOC",), TRAIN, ()), unlabeled=RAW))
    assert rows["unlabeled"] / rows.total() == pytest.approx(0.25, abs=0.06)
    assert rows["remembered"]


@pytest.mark.parametrize(
    "others", [["replay"], [{"name": "replay", "mixing": "loss"}], ["spg"], ["frozen_trunk"], ["ewc"]]
)
def test_raw_rows_are_nobody_elses_business(folder: Path, others: list[Any]) -> None:
    """Others train beside it and keep nothing of it, and the step counts its own sentences only."""
    learner = Learner(tiny_model(folder), parse_strategies(["distill", *others]), SHORT_TRAINING)
    list(learner.learn_step(Step(1, ("PER",), tuple(s.restrict({"PER"}) for s in toy_sentences(24)), ())))
    events = list(learner.learn_step(Step(2, ("LOC",), TRAIN, ()), unlabeled=RAW))
    started = next(event for event in events if isinstance(event, StepStarted))
    kept = sum(map(len, learner.model.kept_sentences.values()))
    assert len(TRAIN) <= started.sentences <= len(TRAIN) + kept
    raw = {sentence.words for sentence in RAW}
    assert not any(s.words in raw for kept in learner.model.kept_sentences.values() for s in kept)


def test_a_list_that_reads_no_raw_text_says_so(folder: Path) -> None:
    learner = Learner(tiny_model(folder), parse_strategies(["finetune"]), SHORT_TRAINING)
    events = list(learner.learn_step(Step(1, ("LOC",), TRAIN, ()), unlabeled=RAW))
    assert [e.text for e in events if isinstance(e, Note)] == [
        "no strategy of the list reads the raw text; distill does"
    ]


@HEADS
def test_raw_text_holds_types_that_the_step_never_mentions(tmp_path: Path, head: str) -> None:
    """Persons are known; the step speaks of places in sentences without persons."""
    model = trained_model(tmp_path, head)
    texts = [" ".join(sentence.words) for sentence in toy_sentences(80, seed=21, types=("PER", "LOC", "ORG"))]
    train = list(toy_sentences(60, seed=22, types=("ORG",)))
    test = toy_sentences(80, seed=23, types=("PER", "LOC", "ORG"))
    training = toy_training(head)
    f1 = {}
    for unlabeled in (None, texts):
        result = ner_cl.learn(model, train, types=["ORG"], dev=test, unlabeled=unlabeled, training=training)
        after = {change.type: change.after for change in result.changes}
        f1[unlabeled is not None] = after
    assert sum(f1[True][t] for t in ("PER", "LOC")) > sum(f1[False][t] for t in ("PER", "LOC"))
    assert f1[True]["ORG"] > 0.5


@pytest.mark.parametrize("strategy", ["distill", "finetune", "self_training", "lwf"])
def test_a_sentence_that_nobody_annotated_for_the_new_type_denies_nothing(folder: Path, strategy: str) -> None:
    """What a file declares as annotated for other types only is not read as "there is none"."""
    other = [s.restrict({"PER"}) for s in toy_sentences(20, seed=5, types=("PER", "LOC"))]
    learned = []
    for extra in ([], other):
        model = tiny_model(folder)
        training = SHORT_TRAINING.model_copy(update={"calibrate": False})
        result = ner_cl.learn(
            model, [*TRAIN, *extra], types=["LOC"], dev=TRAIN, strategies=[strategy], training=training
        )
        learned.append(result.model.state_dict())
    assert all(torch.equal(learned[0][name], tensor) for name, tensor in learned[1].items())


def test_a_step_that_nobody_annotated_is_refused(folder: Path) -> None:
    learner = Learner(tiny_model(folder), parse_strategies(["distill"]), SHORT_TRAINING)
    with pytest.raises(DataError, match="step 1: no sentence is annotated for LOC"):
        list(learner.learn_step(Step(1, ("LOC",), RAW, ())))


@HEADS
def test_blocks_weigh_the_same_in_raw_text_as_elsewhere(folder: Path, head: str) -> None:
    """Their mean, or their sum: on the same words the teacher costs the same in both."""
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    batch = model.encode(TRAIN).batch(range(len(TRAIN)))
    emissions = model(batch)
    teacher = emissions.flat().detach() + torch.randn(
        emissions.flat().shape, generator=torch.Generator().manual_seed(1)
    )
    total = model.head.imitation(emissions, teacher, DistillOptions(temperature=1.0, blocks="sum"))
    mean = model.head.imitation(emissions, teacher, DistillOptions(temperature=1.0, blocks="mean"))
    torch.testing.assert_close(mean, total / (1 if head == "extendner" else 2))


def test_batches_with_raw_rows_are_of_like_length() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(3.2, 0.6, size=1500), 4, 200).astype(int).tolist()
    own, raw = draw.permutation(1000).tolist(), list(range(1000, 1500))
    plan = mixed([[row] for row in own], raw, lengths, tokens=512, ratio=0.25, generator=np.random.default_rng(1))
    filled = sum(lengths[row] for batch in plan for row in batch)
    room = sum(max(lengths[row] for row in batch) * len(batch) for batch in plan)
    assert filled / room > 0.8  # drawn as they come, rows fill 0.6
    assert sorted(row for batch in plan for row in batch if row < 1000) == list(range(1000))
    for batch in plan:
        new = sum(row < 1000 for row in batch)
        assert len(batch) - new >= 0.25 * len(batch) - 1e-9
        assert new == 1 or max(lengths[row] for row in batch) * len(batch) <= 512
    firsts = [max(lengths[row] for row in batch) for batch in plan]
    assert firsts != sorted(firsts)


def test_rows_of_a_unit_stay_together() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(4, 60, size=300).tolist()
    units = [list(range(start, start + 8)) for start in range(0, 200, 8)]
    plan = mixed(units, list(range(200, 300)), lengths, tokens=512, ratio=0.25, generator=draw)
    assert sorted(row for batch in plan for row in batch if row < 200) == list(range(200))
    for batch in plan:
        own = {row // 8 for row in batch if row < 200}
        assert sum(row < 200 for row in batch) == 8 * len(own)
        assert sum(row >= 200 for row in batch) >= 0.25 * len(batch) - 1e-9


def test_a_teacher_that_says_too_much_to_be_kept_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, context, _ = begin(folder)
    batch, emissions = everything(context)
    kept = strategy.losses(context, batch, emissions)
    strategy, context, _ = begin(folder)
    monkeypatch.setattr("ner_cl.strategies.teacher._MOST_BYTES", 0)
    batch, emissions = everything(context)
    asked = strategy.losses(context, batch, emissions)
    assert strategy._teacher is not None
    assert strategy._teacher._logits is None
    for name, term in kept.items():
        torch.testing.assert_close(asked[name], term, atol=1e-6, rtol=1e-4)
