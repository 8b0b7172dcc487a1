"""The everyday verb: one more step on a model that exists."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ner_cl
from ner_cl.config import DEFAULT_STRATEGIES, OptimizerOptions
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.data.words import with_text
from ner_cl.data.writers import write_sentences
from ner_cl.errors import CheckFailed, ConfigError, DataError, ModelError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.train.changes import LearnResult, TypeChange, check_measurable
from ner_cl.train.events import Event, Note, StepStarted
from ner_cl.train.held_back import hold_back_texts
from ner_cl.train.learn import _prepare
from ner_cl.types import Sentence, Span
from tests.tiny import ALIKE, toy_sentences
from tests.train.toy_runs import (
    GOOD_TRAINING,
    SHORT_TRAINING,
    learn_all,
    learner_of,
    same_weights,
    toy_encoder,
    weights_of,
)

BOTH = toy_sentences(120, seed=40, types=("PER", "LOC"))
DEV = toy_sentences(40, seed=41, types=("PER", "LOC"))
NEW = [sentence.restrict({"LOC"}) for sentence in BOTH]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder"), hidden=64)


@pytest.fixture(scope="module")
def old_model(encoder: Path) -> NerModel:
    """Knows PER, well."""
    from tests.tiny import toy_stream

    learner = learner_of(encoder, training=GOOD_TRAINING)
    list(learner.learn_step(toy_stream().steps[0]))
    return learner.model.eval()


@pytest.fixture(scope="module")
def learned(old_model: NerModel) -> LearnResult:
    return ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, strategies=[ALIKE], training=GOOD_TRAINING)


def test_the_new_model_knows_more_and_the_old_one_is_unchanged(encoder: Path, old_model: NerModel) -> None:
    before, state = weights_of(old_model), (list(old_model.history), dict(old_model.metrics), old_model.types)
    result = ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, training=SHORT_TRAINING)
    assert same_weights(old_model, before)
    assert (old_model.history, old_model.metrics, old_model.types) == state
    assert all(p.requires_grad and p.grad is None for p in old_model.parameters())
    assert result.model is not old_model
    assert result.model.types == ("PER", "LOC")
    assert not result.model.training


def test_old_and_new_types_are_measured_on_gold_where_there_is_gold(old_model: NerModel, learned: LearnResult) -> None:
    from ner_cl.evaluate.counts import count_spans

    old, new = learned.changes
    assert (old.type, old.measured, new.type, new.before, new.measured) == ("PER", "gold", "LOC", None, "gold")
    before = count_spans(DEV, predict_sentences(old_model, DEV, precision="fp32"), ["PER"])
    after = count_spans(DEV, predict_sentences(learned.model, DEV, precision="fp32"), ["PER", "LOC"])
    assert old.before == before["PER"].f1
    assert (old.after, new.after) == (after["PER"].f1, after["LOC"].f1)
    assert new.after is not None
    assert new.after > 0.8
    assert old.drop == old.before - old.after < 0.1
    assert learned.largest_drop == old


def test_without_old_annotation_the_model_before_is_the_measure(old_model: NerModel) -> None:
    dev = [sentence.restrict({"LOC"}) for sentence in DEV]
    result = ner_cl.learn(old_model, NEW, types=["LOC"], dev=dev, training=GOOD_TRAINING)
    old, new = result.changes
    assert (old.measured, old.before, new.measured) == ("agreement", 1.0, "gold")
    assert old.after is not None
    assert 0.8 < old.after <= 1.0
    assert "agreement" in result.table


def test_the_step_is_written_into_the_models_history(learned: LearnResult, old_model: NerModel) -> None:
    assert learned.model.history[:-1] == old_model.history
    record = learned.model.history[-1]
    assert (record["step"], record["types"], record["sentences"]) == (2, ["LOC"], len(NEW))
    assert record["f1_after"] == {change.type: change.after for change in learned.changes}
    assert record["measured"] == {"PER": "gold", "LOC": "gold"}
    assert record["strategies"][0]["name"] == "distill"


def test_a_tenth_is_held_back_where_no_dev_sentences_are_given(old_model: NerModel) -> None:
    started = []

    def receive(event: object) -> None:
        if isinstance(event, StepStarted):
            started.append(event.sentences)

    result = ner_cl.learn(old_model, NEW, types=["LOC"], training=SHORT_TRAINING, on_event=receive)
    assert started == [108]
    assert result.changes[0].measured == "agreement"
    ner_cl.learn(old_model, NEW[:50], types=["LOC"], training=SHORT_TRAINING, on_event=receive)
    assert abs(started[1] - 40) <= 1  # a handful of sentences would tell nothing
    ner_cl.learn(old_model, NEW[:30], types=["LOC"], training=SHORT_TRAINING, on_event=receive)
    assert started[2] == 30  # and of so few none can be spared


def test_only_the_new_types_are_looked_at(old_model: NerModel) -> None:
    """Sentences that are annotated for old types too teach nothing more: the old annotation is hidden."""
    models = [
        ner_cl.learn(
            old_model, data, types=["LOC"], dev=[s.restrict({"LOC"}) for s in DEV], training=SHORT_TRAINING
        ).model
        for data in (BOTH, NEW)
    ]
    assert same_weights(*models)


def test_learning_from_files_is_learning_from_sentences(old_model: NerModel, tmp_path: Path) -> None:
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    write_sentences(train, NEW)
    write_sentences(dev, DEV)
    by_file = ner_cl.learn(old_model, train, types=["LOC"], dev=str(dev), training=SHORT_TRAINING)
    by_value = ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, training=SHORT_TRAINING)
    assert same_weights(by_file.model, by_value.model)
    assert by_file.changes == by_value.changes
    again = ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, training=SHORT_TRAINING, seed=14)
    assert not same_weights(again.model, by_value.model)


def test_learning_goes_on_from_a_saved_model(learned: LearnResult, tmp_path: Path) -> None:
    learned.model.save(tmp_path / "two")
    third = toy_sentences(60, seed=42, types=("ORG",))
    results = [
        ner_cl.learn(model, third, types=["ORG"], strategies=["distill"], training=SHORT_TRAINING)
        for model in (learned.model, ner_cl.load(tmp_path / "two"))
    ]
    assert same_weights(results[0].model, results[1].model)
    assert results[0].model.types == ("PER", "LOC", "ORG")
    assert [record["step"] for record in results[1].model.history] == [r["step"] for r in learned.model.history] + [3]
    assert [change.measured for change in results[0].changes] == ["agreement", "agreement", "gold"]


def test_a_model_that_knows_nothing_learns_its_first_types(encoder: Path) -> None:
    from tests.tiny import tiny_model

    result = ner_cl.learn(tiny_model(encoder), BOTH, types=["LOC", "PER"], training=SHORT_TRAINING)
    assert result.model.types == ("LOC", "PER")
    assert [change.before for change in result.changes] == [None, None]
    assert result.largest_drop is None
    result.check(0.0)


def test_the_gate_names_the_type_that_fell_most(learned: LearnResult, old_model: NerModel) -> None:
    changes = (
        TypeChange("PER", 0.9, 0.85, "gold"),
        TypeChange("ORG", 0.8, None, "agreement", 7),
        TypeChange("LOC", None, 0.3, "gold"),
    )
    result = LearnResult(learned.model, changes)
    fell = r"ORG fell by 80.0 points of F1 \(agreement, on 7 mentions\), more than the 10.0 allowed"
    with pytest.raises(CheckFailed, match=fell):
        result.check(0.1)
    result.check(0.8)
    lines = result.table.splitlines()
    assert lines[0].split() == ["type", "before", "after", "change", "measured"]
    assert lines[1].split() == ["PER", "90.0", "85.0", "-5.0", "gold"]
    assert lines[2].split() == ["ORG", "80.0", "-", "agreement,", "7", "mentions"]
    assert lines[3].split() == ["LOC", "new", "30.0", "gold"]


def test_what_cannot_be_learned_is_refused_with_a_reason(old_model: NerModel, learned: LearnResult) -> None:
    with pytest.raises(DataError, match=r"no sentence mentions LOCATION; the data have LOC|did you mean 'LOC'"):
        ner_cl.learn(old_model, NEW, types=["LOCATION"])
    with pytest.raises(ModelError, match="PER"):
        ner_cl.learn(old_model, BOTH, types=["PER"])
    with pytest.raises(ModelError, match="LOC"):
        ner_cl.learn(learned.model, NEW, types=["LOC"])
    with pytest.raises(ModelError, match="LOC"):
        ner_cl.learn(old_model, NEW, types=["LOC", "LOC"])
    for types in ("LOC", [], ()):
        with pytest.raises(ConfigError, match="types: give a list of new types"):
            ner_cl.learn(old_model, NEW, types=types)
    with pytest.raises(DataError, match="there are no training sentences"):
        ner_cl.learn(old_model, [], types=["LOC"])
    with pytest.raises(DataError, match="no sentence mentions LOC"):
        ner_cl.learn(old_model, [Sentence(("Rome",), (), frozenset({"LOC"}))], types=["LOC"])
    with pytest.raises(ConfigError, match="strategies: joint needs the data of earlier steps"):
        ner_cl.learn(old_model, NEW, types=["LOC"], strategies=["joint"])
    with pytest.raises(ConfigError, match=r"strategies: .*unknown strategy 'distil', did you mean 'distill'"):
        ner_cl.learn(old_model, NEW, types=["LOC"], strategies=["distil"])


def test_a_high_rate_that_explodes_is_told_and_leaves_the_model(old_model: NerModel) -> None:
    before = weights_of(old_model)
    wild = SHORT_TRAINING.model_copy(update={"optimizer": OptimizerOptions(name="sgd", lr=1e30, head_lr=1e30, clip=0)})
    with pytest.raises(ner_cl.TrainingError, match="the loss is not finite"):
        ner_cl.learn(old_model, NEW, types=["LOC"], training=wild)
    assert same_weights(old_model, before)


def test_two_steps_by_learn_are_two_steps_of_a_learner(encoder: Path) -> None:
    from tests.tiny import tiny_model, toy_stream

    stream = toy_stream(train=60)
    learner = learner_of(encoder, DEFAULT_STRATEGIES)
    learn_all(learner, stream)
    model = tiny_model(encoder)
    for step in stream.steps:
        model = ner_cl.learn(model, step.train, types=step.types, dev=step.dev, training=SHORT_TRAINING).model
    assert same_weights(model, learner.model)


def test_a_handful_of_sentences_is_trained_on_whole_and_nothing_is_measured(old_model: NerModel) -> None:
    sentence = next(sentence for sentence in NEW if sentence.spans)
    result = ner_cl.learn(old_model, [sentence], types=["LOC"], training=SHORT_TRAINING)
    assert result.model.history[-1]["sentences"] == 1
    assert [(change.measured, change.after) for change in result.changes] == [("nothing", None)] * 2
    assert [line.split()[1:3] for line in result.table.splitlines()[1:]] == [["-", "-"], ["new", "-"]]
    with pytest.raises(CheckFailed, match=r"none of the old types \(PER\) can be measured; give dev"):
        result.check(1.0)


def test_with_raw_text_old_types_are_measured_though_the_sentences_are_few(old_model: NerModel) -> None:
    texts = [" ".join(sentence.words) for sentence in toy_sentences(60, seed=8)]
    kept, held_back = hold_back_texts(read_unlabeled(texts), NEW[:30], 13)
    expected = sum(span.type == "PER" for spans in predict_sentences(old_model, held_back) for span in spans)
    few = {"types": ["LOC"], "training": SHORT_TRAINING, "unlabeled": texts}
    result = ner_cl.learn(old_model, NEW[:30], must_measure=True, **few)
    old, new = result.changes
    assert (len(kept), len(held_back), old.measured, old.before, old.mentions) == (50, 10, "agreement", 1.0, expected)
    assert expected > 0
    assert (new.measured, new.after) == ("nothing", None)
    with_dev = ner_cl.learn(old_model, NEW[:30], dev=DEV, **few)
    assert [change.mentions for change in with_dev.changes] == [
        len([span for sentence in DEV for span in sentence.spans if span.type == type_]) for type_ in ("PER", "LOC")
    ]


def test_what_cannot_be_measured_is_refused_before_it_is_trained(old_model: NerModel) -> None:
    events: list[Event] = []
    with pytest.raises(CheckFailed, match=r"none of the old types \(PER\) can be measured"):
        ner_cl.learn(old_model, NEW[:39], types=["LOC"], must_measure=True, on_event=events.append)
    assert not events


@pytest.mark.parametrize(("mentions", "found", "measurable"), [(1, 0, True), (0, 1, True), (0, 0, False)])
def test_an_old_type_is_measured_on_what_gold_mentions_or_the_old_model_finds(
    mentions: int, found: int, measurable: bool
) -> None:
    span = Span(0, 1, "PER")
    dev = Sentence(("Ada", "left"), (span,) * mentions, frozenset({"PER", "LOC"}))
    before = [[span] * found]
    if measurable:
        check_measurable([dev], before, ["PER"])
    else:
        with pytest.raises(CheckFailed):
            check_measurable([dev], before, ["PER"])
    check_measurable([dev], before, [])  # a model that knows no type forgets none


def test_a_sentence_that_was_not_annotated_for_the_new_type_stays_so(old_model: NerModel) -> None:
    """It is trained on, for the teacher knows something of it, but its words are no negatives of the new type."""
    silent = [sentence.restrict(()) for sentence in NEW[:5]]
    step, _, _ = _prepare(old_model, [*NEW, *silent], ["LOC"], DEV, {}, 13)
    shown = [sentence.annotated_types for sentence in step.train]
    assert shown == [frozenset({"LOC"})] * len(NEW) + [frozenset()] * len(silent)


def test_what_the_model_was_taught_before_is_known_to_strategies(old_model: NerModel) -> None:
    """The old type was taught by sentences full of it, and these have none: the new one is lowered as that says."""
    model = old_model.copy()
    model.history = [{"step": 1, "types": ["PER"], "mentions": {"PER": 90}, "words": {"PER": 300}}]
    train = [s for s in NEW if s.spans and not any(span.type == "PER" for span in BOTH[NEW.index(s)].spans)]
    events: list[Event] = []
    options = {"types": ["LOC"], "dev": DEV, "training": SHORT_TRAINING, "on_event": events.append}
    adjusted, plain = (
        ner_cl.learn(model, train, strategies=["distill", *more], **options).model
        for more in ([{"name": "logit_adjustment", "prior": "old_types", "strength": 1.0}], [])
    )
    moved = adjusted.head.new_block().bias.detach() - plain.head.new_block().bias.detach()
    assert float(moved[-1]) < -0.5
    assert [record["types"] for record in adjusted.history] == [["PER"], ["LOC"]]
    settled = adjusted.history[-1]["settled"]["logit_adjustment"]
    assert settled["shifts"] == {"LOC": pytest.approx(float(moved[-1]), abs=1e-3)}
    told = [event.text for event in events if isinstance(event, Note)]
    assert [text for text in told if text.startswith("logit_adj")] == [f"logit_adjustment: {settled['text']}"]
    assert "settled" not in plain.history[-1]


def test_overlapping_mentions_that_are_remembered_are_read_again(encoder: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_model

    words, spans = ("the", "University", "of", "Oslo"), (Span(1, 4, "ORG"), Span(3, 4, "LOC"))
    nested = [Sentence(words, spans, frozenset({"ORG", "LOC"}))] * 12
    taught = ner_cl.learn(
        tiny_model(encoder, "spankl"), nested, types=["ORG", "LOC"], strategies=["replay"], training=SHORT_TRAINING
    )
    taught.model.save(tmp_path / "nested")
    loaded = ner_cl.load(tmp_path / "nested")
    assert loaded.kept_sentences["replay"][0].spans == nested[0].spans
    loaded.save(tmp_path / "again")
    assert ner_cl.load(tmp_path / "again").kept_sentences["replay"][0].spans == nested[0].spans


def test_options_may_be_a_mapping_and_are_checked(old_model: NerModel) -> None:
    options = {"training": SHORT_TRAINING.model_dump(mode="json"), "seed": 3}
    result = ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, **options)
    same = ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, training=SHORT_TRAINING, seed=3)
    assert same_weights(result.model, weights_of(same.model))
    with pytest.raises(ConfigError, match=r"training.*epoch"):
        ner_cl.learn(old_model, NEW, types=["LOC"], dev=DEV, training={"epoch": 1})


def test_lines_of_a_text_teach_as_sentences_do(old_model: NerModel) -> None:
    """Sentences that stand in one text, a line each, are the same sentences."""
    lines = [with_text(sentence) for sentence in NEW[:30]]
    joined = []
    for first in range(0, len(lines), 3):
        text, words, spans, offsets = "", [], [], []
        for line in lines[first : first + 3]:
            spans += [Span(s.start + len(words), s.end + len(words), s.type) for s in line.spans]
            offsets += [(start + len(text), end + len(text)) for start, end in line.offsets or ()]
            words += line.words
            text += f"{line.text}\n\n"
        joined.append(Sentence(tuple(words), tuple(spans), lines[0].annotated_types, text, tuple(offsets)))
    options: dict[str, Any] = {"types": ["LOC"], "dev": DEV, "training": SHORT_TRAINING}
    apart, together = (ner_cl.learn(old_model, given, **options) for given in (lines, joined))
    assert same_weights(apart.model, weights_of(together.model))


def test_a_result_is_shown_by_its_table(learned: LearnResult) -> None:
    assert repr(learned) == f"LearnResult(LOC; 2 types)\n{learned.table}"


@pytest.mark.parametrize("max_drop", [7.0, float("nan")])
def test_a_gate_that_is_no_share_is_refused(learned: LearnResult, max_drop: float) -> None:
    with pytest.raises(ConfigError, match=r"max_drop: .* is more than all of F1"):
        learned.check(max_drop)


def test_the_random_numbers_of_the_caller_are_left_alone(old_model: NerModel) -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ner_cl.learn(old_model, NEW[:40], types=["LOC"], training=SHORT_TRAINING)
        drawn.append(torch.rand(()).item())
        torch.manual_seed(seed)
        assert torch.rand(()).item() == drawn[-1]
    assert drawn[0] != drawn[1]


ACCELERATOR = """
from accelerate import Accelerator
from ner_cl.train.engine import Engine
{0}
{1}
print(accelerator.mixed_precision, engine.device)
"""
LINES = ("engine = Engine()", 'accelerator = Accelerator(mixed_precision="bf16", cpu=True)')


@pytest.mark.parametrize("lines", [LINES, LINES[::-1]], ids=["first", "second"])
def test_an_accelerator_beside_it_has_a_precision_of_its_own(lines: tuple[str, str]) -> None:
    command = [sys.executable, "-c", ACCELERATOR.format(*lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "bf16 cpu\n"), done.stderr


def test_sentences_without_words_teach_nothing(old_model: NerModel) -> None:
    blank = [Sentence((), (), frozenset({"LOC"}))] * 300  # enough for batches of nothing else
    learned, same = (
        ner_cl.learn(old_model, train, types=["LOC"], dev=DEV, training=SHORT_TRAINING)
        for train in ([*blank, *NEW], NEW)
    )
    assert same_weights(learned.model, weights_of(same.model))


def test_an_option_that_does_not_exist_is_no_option_of_reading(old_model: NerModel) -> None:
    with pytest.raises(TypeError, match="max_drop"):
        ner_cl.learn(old_model, NEW, types=["LOC"], max_drop=0.05)  # type: ignore[call-arg]


def test_the_gate_allows_what_it_says(learned: LearnResult) -> None:
    """0.8 - 0.75 is more than 0.05 in floating point."""
    result = LearnResult(learned.model, (TypeChange("PER", 0.8, 0.75, "gold"),))
    result.check(0.05)
    with pytest.raises(CheckFailed):
        result.check(0.0499)


def test_old_types_are_measured_on_gold_that_is_held_back(old_model: NerModel) -> None:
    """The sentences are annotated for the old type too; what is trained on is annotated for the new one alone."""
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            told.append(event.text)

    result = ner_cl.learn(old_model, BOTH, types=["LOC"], training=SHORT_TRAINING, on_event=listen)
    assert [(change.type, change.measured) for change in result.changes] == [("PER", "gold"), ("LOC", "gold")]
    assert [text for text in told if "PER" in text] == [
        "mentions of PER in the data are not trained on, as the model knows these types already"
    ]
    step, dev, known = _prepare(old_model, BOTH, ["LOC"], None, {}, 13)
    assert known == ["PER"]
    assert {frozenset({"LOC"})} == {sentence.annotated_types for sentence in (*step.train, *step.dev)}
    assert {frozenset({"PER", "LOC"})} == {sentence.annotated_types for sentence in dev}


def test_a_folder_is_as_good_as_the_model_in_it(old_model: NerModel, tmp_path: Path) -> None:
    old_model.save(tmp_path / "old")
    one, two = (
        ner_cl.learn(model, NEW, types=["LOC"], dev=DEV, training=SHORT_TRAINING)
        for model in (old_model, tmp_path / "old")
    )
    assert same_weights(one.model, weights_of(two.model))


def test_sentences_that_are_annotated_for_nothing_are_told(old_model: NerModel) -> None:
    with pytest.raises(DataError, match="none of the 5 sentences is annotated for any type; name the types"):
        ner_cl.learn(old_model, [sentence.restrict(()) for sentence in NEW[:5]], types=["LOC"])
