"""Reliability and its error, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from ner_cl.evaluate.calibrate import Bin, Judged, expected_calibration_error, judge, reliability
from ner_cl.types import Sentence, Span


def test_by_hand() -> None:
    judged = [Judged(0.95, True), Judged(0.91, False), Judged(0.3, False), Judged(1.0, True), Judged(0.0, False)]
    assert reliability(judged, bins=10) == [
        Bin(1, 0.0, 0.0),
        Bin(1, 0.3, 0.0),
        Bin(3, (0.95 + 0.91 + 1.0) / 3, 2 / 3),
    ]
    assert expected_calibration_error(judged, bins=10) == pytest.approx((0.3 + abs(2.86 - 2)) / 5)


def test_nothing_found_is_no_error() -> None:
    assert expected_calibration_error([]) is None
    assert reliability([]) == []


def test_as_scikit_learn_has_it() -> None:
    draw = np.random.default_rng(3)
    scores = draw.random(500)
    right = draw.random(500) < scores**2
    judged = [Judged(float(score), bool(hit)) for score, hit in zip(scores, right, strict=True)]
    shares, means = calibration_curve(right, scores, n_bins=15)
    bins = reliability(judged)
    assert [own.right for own in bins] == pytest.approx(shares.tolist())
    assert [own.score for own in bins] == pytest.approx(means.tolist())
    assert sum(own.count for own in bins) == 500


def test_what_nobody_annotated_is_not_judged() -> None:
    sentence = Sentence(("Ada", "met", "Rome"), (Span(0, 1, "PER"),), frozenset({"PER"}))
    found = [(Span(0, 1, "PER"), 0.9), (Span(1, 2, "PER"), 0.4), (Span(2, 3, "LOC"), 0.8)]
    assert judge([sentence], [found]) == [Judged(0.9, True), Judged(0.4, False)]
