"""Every score of one matrix that was worked by hand; `three_steps.md` shows the work."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ner_cl.evaluate.counts import Counts
from ner_cl.evaluate.matrix import Matrix
from ner_cl.evaluate.metrics import comparison

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "three_steps.json").read_text("utf-8"))


def _value(fraction: str | None) -> Any:
    return None if fraction is None else pytest.approx(float(Fraction(fraction)), abs=1e-12)


@pytest.fixture
def matrix() -> Matrix:
    return Matrix.from_json(json.dumps(GOLDEN))


def test_cells(matrix: Matrix) -> None:
    assert matrix.f1 == [{type_: _value(score) for type_, score in row.items()} for row in GOLDEN["f1"]]
    assert matrix.micro_f1 == [_value(score) for score in GOLDEN["micro_f1"]]
    assert matrix.macro_f1 == [_value(score) for score in GOLDEN["macro_f1"]]


@pytest.mark.parametrize("key", GOLDEN["metrics"])
def test_metric(matrix: Matrix, key: str) -> None:
    assert matrix.metrics[key] == _value(GOLDEN["metrics"][key])


def test_every_metric_is_worked_by_hand(matrix: Matrix) -> None:
    assert list(matrix.metrics) == list(GOLDEN["metrics"])


def test_scores_against_other_runs(matrix: Matrix) -> None:
    joint = Matrix.start([matrix.types]).with_row({type_: Counts(**cell) for type_, cell in GOLDEN["joint"].items()})
    scores = comparison(matrix, joint=joint, scratch=GOLDEN["scratch"])
    assert scores == {key: _value(value) for key, value in GOLDEN["comparison"].items()}
