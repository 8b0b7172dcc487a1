"""Calibration, with bins worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from ner_cl.errors import DataError
from ner_cl.evaluate.reliability import Bin, calibration_error, judge, reliability
from ner_cl.types import Sentence, Span


def test_bins_and_error_by_hand() -> None:
    bins = reliability([0.2, 0.5, 0.6, 0.9, 1.0], [False, True, False, True, True], bins=2)
    assert bins[0] == Bin(0.0, 0.5, 2, 0.35, 0.5)
    assert (bins[1].count, bins[1].score, bins[1].right) == (3, pytest.approx(2.5 / 3), pytest.approx(2 / 3))
    # (2 · |0.5 − 0.35| + 3 · |2/3 − 2.5/3|) / 5 = (0.3 + 0.5) / 5
    assert calibration_error(bins) == pytest.approx(0.16)


def test_borders_belong_to_the_lower_bin() -> None:
    counts = [cell.count for cell in reliability([0.0, 0.1, 0.10001, 1.0], [True] * 4)]
    assert counts == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_scores_that_keep_their_word_have_no_error() -> None:
    assert calibration_error(reliability([0.5] * 4, [True, False, True, False])) == 0.0
    assert calibration_error(reliability([0.0, 1.0], [False, True])) == 0.0


def test_without_predictions_nothing_is_known() -> None:
    bins = reliability([], [])
    assert calibration_error(bins) is None
    assert {(cell.count, cell.score, cell.right) for cell in bins} == {(0, None, None)}


def test_a_missing_verdict_is_refused() -> None:
    with pytest.raises(DataError, match="1 scores but 0 verdicts"):
        reliability([0.5], [])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_the_error_is_that_of_numpy(drawn: list[tuple[float, bool]]) -> None:
    """An oracle that sorts predictions into bins by `digitize`."""
    scores, right = np.array([s for s, _ in drawn]), np.array([r for _, r in drawn])
    place = np.digitize(scores, [(i + 1) / 10 for i in range(9)], right=True)
    apart = [abs(right[place == i].mean() - scores[place == i].mean()) * (place == i).sum() for i in set(place)]
    assert calibration_error(reliability(*zip(*drawn, strict=True))) == pytest.approx(sum(apart) / len(drawn))


def test_as_scikit_learn_has_it() -> None:
    draw = np.random.default_rng(3)
    scores = draw.random(500)
    right = draw.random(500) < scores**2
    shares, means = calibration_curve(right, scores, n_bins=15)
    bins = [cell for cell in reliability(scores.tolist(), right.tolist(), bins=15) if cell.count]
    assert [cell.right for cell in bins] == pytest.approx(shares.tolist())
    assert [cell.score for cell in bins] == pytest.approx(means.tolist())


def test_what_nobody_annotated_is_not_judged() -> None:
    sentence = Sentence(("Ada", "met", "Rome"), (Span(0, 1, "PER"),), frozenset({"PER"}))
    found = [(Span(0, 1, "PER"), 0.9), (Span(1, 2, "PER"), 0.4), (Span(2, 3, "LOC"), 0.8)]
    assert judge([sentence], [found]) == ([0.9, 0.4], [True, False])
