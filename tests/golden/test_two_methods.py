"""Differences, confusion, calibration and mistakes of two methods worked by hand; `two_methods.md` shows the work."""

import pytest

from ner_cl.evaluate.counts import count_spans, macro_f1, micro_f1, word_confusion, word_table
from ner_cl.evaluate.mistakes import Occurrence, invented_mentions, lost_mentions
from ner_cl.evaluate.reliability import calibration_error, reliability
from ner_cl.evaluate.significance import Average, paired_bootstrap, sentence_counts, sign_flip_test
from ner_cl.types import Sentence, Span

TYPES = ("PER", "LOC")
GOLD = (
    Sentence(("Ada", "saw", "Rome", "."), (Span(0, 1, "PER"), Span(2, 3, "LOC")), frozenset(TYPES)),
    Sentence(("Oslo", "met", "Bob", "today"), (Span(0, 1, "LOC"), Span(2, 3, "PER")), frozenset(TYPES)),
)
A = [[Span(0, 1, "PER"), Span(1, 3, "LOC")], [Span(2, 3, "LOC")]]
B = [[Span(0, 1, "PER"), Span(2, 3, "LOC")], [Span(2, 3, "PER"), Span(3, 4, "PER")]]
SCORES, RIGHT = [0.9, 0.6, 0.8], [True, False, False]


def test_counts_by_sentence() -> None:
    assert sentence_counts(GOLD, A, TYPES).tolist() == [[[1, 0, 0], [0, 1, 1]], [[0, 0, 1], [0, 1, 1]]]
    assert sentence_counts(GOLD, B, TYPES).tolist() == [[[1, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 1]]]
    counts = [count_spans(GOLD, found, TYPES) for found in (A, B)]
    assert [micro_f1(row) for row in counts] == [pytest.approx(2 / 7), pytest.approx(3 / 4)]
    assert [macro_f1(row) for row in counts] == [pytest.approx(1 / 3), pytest.approx(11 / 15)]


@pytest.mark.parametrize(
    ("average", "whole", "low", "high"), [("micro", 13 / 28, 13 / 28, 1 / 2), ("macro", 2 / 5, 1 / 3, 1 / 2)]
)
def test_every_draw_of_the_bootstrap(average: Average, whole: float, low: float, high: float) -> None:
    pair = (sentence_counts(GOLD, A, TYPES), sentence_counts(GOLD, B, TYPES))
    found = paired_bootstrap([pair], average=average, resamples=399)
    assert (found.difference, found.low, found.high) == pytest.approx((whole, low, high))
    assert found.p == pytest.approx(2 / 400)


def test_exchange_within_pairs() -> None:
    found = sign_flip_test([0.1, 0.2, -0.05])
    assert found is not None
    assert (found.pairs, found.p, found.smallest) == (3, 4 / 8, 2 / 8)


def test_confusion() -> None:
    assert word_table(GOLD, A, old=["PER"], new=["LOC"]) == {
        "old": {"old": 1, "new": 1, "o": 0},
        "new": {"old": 0, "new": 1, "o": 1},
        "o": {"old": 0, "new": 1, "o": 3},
    }
    assert word_confusion(GOLD, A, old=["PER"], new=["LOC"]) == {
        "confusion/old_to_o": 0.0,
        "confusion/old_to_new": 1 / 2,
        "confusion/o_to_new": 1 / 4,
        "confusion/new_to_o": 1 / 2,
    }


def test_calibration() -> None:
    assert calibration_error(reliability(SCORES, RIGHT, bins=2)) == pytest.approx(13 / 30)
    assert calibration_error(reliability(SCORES, RIGHT, bins=5)) == pytest.approx(1 / 2)


def test_mistakes() -> None:
    after = {
        1: [[Span(0, 1, "PER")], [Span(2, 3, "PER")]],
        2: [[], [Span(0, 1, "LOC")]],
        3: A,
    }
    lost = list(lost_mentions(GOLD, after, learned={"PER": 1, "LOC": 2}))
    assert lost == [Occurrence(1, Span(0, 1, "LOC"), "O"), Occurrence(1, Span(2, 3, "PER"), "LOC")]
    assert list(invented_mentions(GOLD, A, TYPES)) == [
        Occurrence(0, Span(1, 3, "LOC"), "other borders"),
        Occurrence(1, Span(2, 3, "LOC"), "PER"),
    ]
