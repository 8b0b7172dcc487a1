"""Calibration, with bins worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.errors import DataError
from ner_cl.evaluate.reliability import Bin, calibration_error, reliability


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
