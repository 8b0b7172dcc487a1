"""Which mentions were lost and made up."""

import pytest
from hypothesis import given, settings

from ner_cl.evaluate.counts import Counts, count_spans
from ner_cl.evaluate.mistakes import (
    Mistake,
    Occurrence,
    Outcomes,
    invented_mentions,
    lost_mentions,
    most_frequent,
    outcomes,
)
from ner_cl.types import Sentence, Span
from tests.evaluate.corpora import TYPES as DRAWN_TYPES
from tests.evaluate.corpora import Drawn, annotations, corpus, iob2

TYPES = frozenset({"PER", "LOC", "ORG"})
GOLD = (
    Sentence(("Ada", "Byron", "saw", "Rome", "."), (Span(0, 2, "PER"), Span(3, 4, "LOC")), TYPES),
    Sentence(("Rome", "slept"), (Span(0, 1, "LOC"),), TYPES),
    Sentence(("Rome", "woke"), (Span(0, 1, "LOC"),), TYPES),
)
LEARNED = {"PER": 1, "LOC": 2, "ORG": 3}
AFTER = {
    1: [[Span(0, 2, "PER")], [], []],
    2: [[Span(0, 2, "PER"), Span(3, 4, "LOC")], [Span(0, 1, "LOC")], []],
    3: [[Span(0, 1, "PER"), Span(3, 4, "ORG")], [], [Span(0, 1, "LOC"), Span(1, 2, "ORG")]],
}


def test_lost_is_what_was_found_when_learned_and_is_no_more() -> None:
    assert list(lost_mentions(GOLD, AFTER, learned=LEARNED)) == [
        Occurrence(0, Span(0, 2, "PER"), "other borders"),
        Occurrence(0, Span(3, 4, "LOC"), "ORG"),
        Occurrence(1, Span(0, 1, "LOC"), "O"),
    ]


def test_a_type_of_the_last_step_cannot_be_lost_yet() -> None:
    gold = [Sentence(("Acme",), (Span(0, 1, "ORG"),), TYPES)]
    assert list(lost_mentions(gold, {3: [[]]}, learned=LEARNED)) == []


def test_types_whose_step_has_no_predictions_are_left_out() -> None:
    without_first = {step: found for step, found in AFTER.items() if step != 1}
    assert {item.span.type for item in lost_mentions(GOLD, without_first, learned=LEARNED)} == {"LOC"}


def test_invented_is_what_the_gold_has_not() -> None:
    assert list(invented_mentions(GOLD, AFTER[3], ["PER", "LOC", "ORG"])) == [
        Occurrence(0, Span(0, 1, "PER"), "other borders"),
        Occurrence(0, Span(3, 4, "ORG"), "LOC"),
        Occurrence(2, Span(1, 2, "ORG"), "O"),
    ]
    half = [sentence.restrict(["PER", "LOC"]) for sentence in GOLD]
    assert {item.span.type for item in invented_mentions(half, AFTER[3], LEARNED)} == {"PER"}


def test_the_most_frequent_words_come_first() -> None:
    lost = list(lost_mentions(GOLD, AFTER, learned=LEARNED))
    assert most_frequent(GOLD, lost) == [
        Mistake("Rome", "LOC", 2, lost[1], {"ORG": 1, "O": 1}),
        Mistake("Ada Byron", "PER", 1, lost[0], {"other borders": 1}),
    ]
    assert [item.text for item in most_frequent(GOLD, lost, limit=1)] == ["Rome"]


def test_what_became_of_mentions() -> None:
    found = outcomes(GOLD, AFTER[3], ["PER", "LOC", "ORG"])
    assert found["PER"] == Outcomes(other_borders=1, wrong_borders=1)
    assert found["LOC"] == Outcomes(right=1, other_type=1, missed=1)
    assert found["ORG"] == Outcomes(wrong_type=1, made_up=1)
    later = outcomes(GOLD, AFTER[3], ["PER", "LOC", "ORG"], learned=LEARNED)["LOC"]
    assert later == Outcomes(right=1, other_type=1, missed=1, later_type=1)  # Rome, found as the ORG of step 3
    backwards = outcomes(GOLD, AFTER[3], ["PER", "LOC", "ORG"], learned={"PER": 3, "LOC": 2, "ORG": 1})
    assert backwards["LOC"].later_type == 0
    assert (found["LOC"].gold, found["LOC"].found, found["ORG"].gold, found["ORG"].found) == (3, 1, 0, 2)


def test_only_what_is_asked_for_and_annotated_counts() -> None:
    assert outcomes(GOLD, AFTER[3], ["LOC"]) == {"LOC": Outcomes(right=1, missed=2)}
    unknown = [sentence.restrict(["PER"]) for sentence in GOLD]
    assert outcomes(unknown, AFTER[3], ["LOC", "PER"])["LOC"] == Outcomes()


@given(annotations())
@settings(max_examples=150)
def test_outcomes_add_up_and_agree_with_words(drawn: Drawn) -> None:
    gold, predicted = corpus(drawn)
    found = outcomes(gold, predicted, DRAWN_TYPES)
    for type_, cell in count_spans(gold, predicted, DRAWN_TYPES).items():
        fates = found[type_]
        assert cell == Counts(fates.right, fates.found - fates.right, fates.gold - fates.right)
    missed = made_up = 0
    for sentence, spans in zip(gold, predicted, strict=True):
        there, said = ([set(range(s.start, s.end)) for s in side] for side in (sentence.spans, spans))
        missed += sum(not words & set().union(*said) for words in there)
        made_up += sum(not words & set().union(*there) for words in said)
    assert (sum(f.missed for f in found.values()), sum(f.made_up for f in found.values())) == (missed, made_up)


@given(annotations())
@settings(max_examples=150)
def test_missed_and_made_up_are_those_of_muc_scoring(drawn: Drawn) -> None:
    """Where a span overlaps two of the other side, nervaluate pairs it with one of them."""
    nervaluate = pytest.importorskip("nervaluate", reason="nervaluate needs Python 3.11")
    gold, predicted = corpus(drawn)
    sides = [(sentence.spans, tuple(spans)) for sentence, spans in zip(gold, predicted, strict=True)]
    if any(sum(s.overlaps(o) for o in b) > 1 for pair in sides for a, b in (pair, pair[::-1]) for s in a):
        return
    tags = [[iob2(spans[side], length) for length, *spans in drawn] for side in (0, 1)]
    overall = nervaluate.Evaluator(*tags, tags=list(DRAWN_TYPES), loader="list").evaluate()["overall"].get("exact")
    found = outcomes(gold, predicted, DRAWN_TYPES).values()
    if overall is None:  # nervaluate says nothing of nothing
        assert set(found) == {Outcomes()}
        return
    assert (overall.missed, overall.spurious) == (sum(f.missed for f in found), sum(f.made_up for f in found))
