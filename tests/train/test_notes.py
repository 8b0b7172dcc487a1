"""What a step says when the list of strategies does not fit what the model kept."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ner_cl
from ner_cl.config import HeadOptions, parse_strategies
from ner_cl.data.stream import Step, Stream
from ner_cl.model.ner_model import NerModel
from ner_cl.registry import strategies
from ner_cl.train.events import Event, EventLog, Note, StepStarted
from ner_cl.train.learner import Learner
from ner_cl.train.notes import hardly_met
from ner_cl.types import Sentence, Span
from tests.tiny import tiny_model, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, learner_of, toy_encoder

TRAINING = SHORT_TRAINING.model_copy(update={"epochs": 1})
KEEPERS = ("agem", "das", "ewc", "gem", "gpm", "is3", "ncl", "ogd", "replay", "slda", "spg")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def stream() -> Stream:
    return toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60)


def first_step(encoder: Path, stream: Stream, names: Sequence[Any]) -> NerModel:
    """A model that has learned PER with these strategies."""
    learner = learner_of(encoder, names, training=TRAINING)
    events = list(learner.learn_step(stream.steps[0]))
    assert notes(events) == []
    return learner.model


def next_step(model: NerModel, stream: Stream, names: Sequence[Any]) -> list[Event]:
    """What happens while the model learns the next step with these strategies."""
    learner = Learner(model, parse_strategies(list(names)), TRAINING)
    return list(learner.learn_step(stream.steps[len(model.tagset.steps)]))


def notes(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_what_is_not_in_the_list_is_dropped_with_a_note(encoder: Path, stream: Stream, tmp_path: Path) -> None:
    model = first_step(encoder, stream, ["gpm", "replay"])
    assert (model.strategy_state.keys(), model.kept_sentences.keys()) == ({"gpm"}, {"replay"})
    old = model.copy(memory=True)
    events = next_step(model, stream, ["distill"])
    assert notes(events) == [
        "what gpm and replay kept of earlier steps is dropped, because they are not in the list of strategies; "
        "old models keep theirs"
    ]
    assert [type(event).__name__ for event in events[:2]] == ["Note", "StepStarted"]  # before anything is trained
    assert (model.strategy_state, model.kept_sentences) == ({}, {})
    assert old.strategy_state["gpm"]
    assert old.kept_sentences["replay"]
    assert notes(next_step(old, stream, ["gpm"])) == [
        "what replay kept of earlier steps is dropped, because it is not in the list of strategies; "
        "old models keep theirs"
    ]
    assert old.strategy_state.keys() == {"gpm"}
    log = EventLog(tmp_path / "events.jsonl")
    log.write(events[0])
    record = json.loads((tmp_path / "events.jsonl").read_text())
    assert (record["event"], record["step"], record["text"]) == ("Note", 2, notes(events)[0])


def test_a_strategy_without_anything_kept_says_so_once(encoder: Path, stream: Stream) -> None:
    model = first_step(encoder, stream, ["distill"])
    assert notes(next_step(model, stream, ["replay", "spg"])) == [
        "replay has kept nothing of earlier steps; it begins to act in the next step",
        "spg has kept nothing of earlier steps; it begins to act in the next step",
    ]
    assert notes(next_step(model, stream, ["replay", "spg"])) == []


@pytest.mark.parametrize("name", KEEPERS)
def test_the_note_is_true(name: str, encoder: Path, stream: Stream) -> None:
    """Those that begin in the next step train what their ground alone trains; those that act at once do not."""
    models = [first_step(encoder, stream, ["distill"]) for _ in range(2)]
    options: dict[str, Any] = {"name": name}
    events = next_step(models[0], stream, [options] if strategies[name].holds_old_types else ["distill", options])
    next_step(models[1], stream, ["distill"])
    begins = "" if name in ("das", "is3", "ncl", "slda") else "; it begins to act in the next step"
    assert notes(events) == [f"{name} has kept nothing of earlier steps{begins}"]
    weights, alone = (model.state_dict() for model in models)
    assert all(torch.equal(weights[key], alone[key]) for key in weights) == bool(begins)
    assert models[0].strategy_state.get(name) or models[0].kept_sentences.get(name)


def test_mentions_longer_than_the_head_can_find_are_counted(encoder: Path, stream: Stream) -> None:
    long = sum(len(s.words[span.start : span.end]) > 1 for s in stream.steps[0].train for span in s.spans)
    assert long >= 5
    for limit, said in (
        (1, [f"{long} mentions are longer than 1 words and cannot be learned; raise head.max_words"]),
        (2, []),
    ):
        model = tiny_model(encoder, HeadOptions(name="spankl", max_words=limit))
        assert notes(next_step(model, stream, [])) == said


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ("bias_correction", True),
        ("logit_adjustment", True),
        ({"name": "logit_adjustment", "prior": "old_types"}, False),
        ({"name": "logit_adjustment", "strength": 0}, False),
        ({"name": "weight_average", "old_share": "auto"}, True),
        ("weight_average", False),
        ("distill", False),
    ],
)
def test_what_measures_on_dev_sentences_says_that_there_are_none(
    options: Any, needs: bool, encoder: Path, stream: Stream
) -> None:
    without = replace(stream, steps=tuple(replace(step, dev=()) for step in stream.steps))
    name = options if isinstance(options, str) else options["name"]
    said = [f"{name} measures on dev sentences and there are none: it does nothing in this step"] if needs else []
    for given, expected in ((without, said), (stream, [])):
        told = notes(next_step(first_step(encoder, given, ["distill"]), given, [options]))
        assert [note for note in told if "measures on dev sentences" in note] == expected


def test_a_new_type_that_no_dev_sentence_mentions_is_told(encoder: Path, stream: Stream) -> None:
    """But not where old types tell which epoch is best, as with joint training."""
    first, second, _ = stream.steps
    silent = replace(second, dev=tuple(replace(sentence, spans=()) for sentence in second.dev))
    said = "no dev sentence mentions LOC: the last epoch is kept, whichever is best"
    for names, earlier_dev, expected in ((["distill"], (), [said]), (["joint"], first.dev, [])):
        learner = learner_of(encoder, names, training=TRAINING)
        list(learner.learn_step(first, earlier=first.train, earlier_dev=first.dev))
        events = list(learner.learn_step(silent, earlier=first.train + second.train, earlier_dev=earlier_dev))
        assert notes(events) == expected


def test_those_that_keep_something_are_known() -> None:
    assert {name for name in strategies if strategies[name].keeps} == set(KEEPERS)


def test_sentences_that_are_given_count_as_kept(encoder: Path, stream: Stream) -> None:
    model = first_step(encoder, stream, ["distill"])
    model.kept_sentences = {"replay": stream.steps[0].train[:5]}
    assert notes(next_step(model, stream, ["replay"])) == []
    model.kept_sentences = {"replay": ()}  # all of them have been deleted
    assert len(notes(next_step(model, stream, ["replay"]))) == 1


def test_the_strategies_of_a_step_are_told_with_what_was_added(encoder: Path, stream: Stream) -> None:
    start = next(learner_of(encoder, ["spg"], training=TRAINING).learn_step(stream.steps[0]))
    assert isinstance(start, StepStarted)
    assert start.strategies == ("distill", "spg")


def test_words_that_the_encoder_does_not_know_are_told(encoder: Path) -> None:
    known = Sentence(("Ada", "visited", "Rome", "."), (Span(0, 1, "PER"),), frozenset({"PER"}))
    foreign = Sentence(("Ада", "在", "रोम", "."), (Span(0, 1, "PER"),), frozenset({"PER"}))

    def told(*sentences: Sentence) -> list[str]:
        return notes(list(learner_of(encoder, training=TRAINING).learn_step(Step(1, ("PER",), sentences, ()))))

    assert told(*[known] * 20) == []
    assert told(known, foreign) == [
        "38% of the words are unknown to this encoder; begin with one of their language or script"
    ]


def test_old_types_that_the_sentences_hardly_mention_are_told() -> None:
    words = ("Ada", "met", "Bob", "in", "Rome", "with", "Eve")
    sentences = [Sentence(words, (Span(2, 3, "ORG"),), frozenset({"ORG"}))] * 4
    ada, bob, rome, eve = Span(0, 1, "PER"), Span(2, 3, "PER"), Span(4, 5, "LOC"), Span(6, 7, "PER")
    said = "these sentences hardly mention {} (fewer than 5 times each), so little in them helps to keep that; "
    advice = "raw text (unlabeled) or a few annotated sentences (replay) would"
    found = [[ada, bob, rome]] * 4  # Bob is known to be an organisation here, so he is no person
    assert hardly_met(sentences, found, ["PER", "LOC"]) == said.format("PER, LOC") + advice
    assert hardly_met(sentences, [[ada, rome, eve]] * 4, ["PER", "LOC"]) == said.format("LOC") + advice
    assert hardly_met(sentences * 2, found * 2, ["PER", "LOC"]) == ""
    assert hardly_met(sentences, found, ["PER", "LOC", *"abcd"]) == said.format("PER, LOC, a, b, c and 1 more") + advice


def test_learn_says_so_unless_something_else_holds_them(encoder: Path, stream: Stream) -> None:
    """Sentences of nothing but organisations teach a model that knows persons."""
    model = first_step(encoder, stream, [])
    org = {"spans": (Span(0, 1, "ORG"),), "annotated_types": frozenset({"ORG"})}
    train = [replace(sentence, **org) for sentence in stream.steps[0].train[:4]]
    raw = [" ".join(sentence.words) for sentence in stream.steps[1].train]
    old = stream.steps[0].train[:2]

    def said(**more: Any) -> bool:
        events: list[Event] = []
        ner_cl.learn(model, train, types=["ORG"], training=TRAINING, on_event=events.append, **more)
        return any("hardly mention PER" in text for text in notes(events))

    assert said()
    assert not said(unlabeled=raw)
    assert not said(replay=old)
    assert not said(strategies=["frozen"])


def test_that_predictions_are_no_longer_corrected_is_told(encoder: Path, stream: Stream) -> None:
    model = first_step(encoder, stream, [])
    assert notes(next_step(model, stream, ["distill"])) == [
        "what slda kept of earlier steps is dropped, because it is not in the list of strategies, and "
        "predictions are no longer corrected by slda; old models keep theirs"
    ]
    assert notes(next_step(model, stream, [])) == ["slda has kept nothing of earlier steps"]
