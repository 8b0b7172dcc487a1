"""Means over runs."""

import statistics

from ner_cl.report.spread import Spread


def test_mean_and_sample_deviation() -> None:
    values = [0.2, 0.4, 0.9]
    assert Spread.of(values) == Spread(statistics.fmean(values), statistics.stdev(values), 3)


def test_undefined_values_are_left_out_and_counted() -> None:
    assert Spread.of([None, 0.5]) == Spread(0.5, None, 1)
    assert Spread.of([None]) == Spread(None, None, 0)


def test_as_text() -> None:
    assert Spread.of([0.5]).percent() == "50.0"
    assert Spread.of([0.25, 0.75]).percent() == "50.0 ± 35.4"
    assert Spread.of([0.25]).percent(signed=True) == "+25.0"
    assert Spread.of([]).percent() == ""
