"""Which mentions were lost and made up."""

from ner_cl.evaluate.mistakes import Mistake, Occurrence, invented_mentions, lost_mentions, most_frequent
from ner_cl.types import Sentence, Span

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
