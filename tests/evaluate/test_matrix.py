import csv
import io
import json
from pathlib import Path

import pytest

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import Counts
from ner_cl.evaluate.matrix import Matrix, render, render_side_by_side

CONTRACT = {
    "types": ["PER", "LOC"],
    "steps": [["PER"], ["LOC"]],
    "counts": [
        {"PER": {"tp": 1, "fp": 0, "fn": 2}},
        {"PER": {"tp": 1, "fp": 1, "fn": 2}, "LOC": {"tp": 3, "fp": 0, "fn": 1}},
    ],
    "f1": [{"PER": 0.5}, {"PER": 0.4, "LOC": 0.857}],
    "micro_f1": [0.5, 0.667],
    "macro_f1": [0.5, 0.629],
}


@pytest.fixture
def matrix() -> Matrix:
    return (
        Matrix.start([["PER"], ["LOC"]])
        .with_row({"PER": Counts(1, 0, 2)})
        .with_row({"LOC": Counts(3, 0, 1), "PER": Counts(1, 1, 2)})
    )


def _stream(steps: int, types: int) -> Matrix:
    matrix = Matrix.start([[f"TYPE-{step}-{index}" for index in range(types)] for step in range(steps)])
    for step in range(1, steps + 1):
        matrix = matrix.with_row({type_: Counts(tp=9, fp=1, fn=step) for type_ in matrix.seen_after(step)})
    return matrix


def test_json_has_the_documented_shape(matrix: Matrix) -> None:
    written = json.loads(matrix.to_json())
    metrics = written.pop("metrics")
    assert list(written) == list(CONTRACT)
    assert json.loads(json.dumps(written), parse_float=lambda text: round(float(text), 3)) == CONTRACT
    assert metrics["average/micro_f1"] == pytest.approx(0.583333)
    assert metrics["forgetting/max_drop"] == pytest.approx(0.1)
    assert metrics["bwt/final"] == pytest.approx(-0.1)


@pytest.mark.parametrize("row", [None, {"PER": Counts(2, 1, 0), "LOC": Counts(0, 3, 0), 'Ärzte, "x"': Counts(1)}])
def test_json_round_trip_is_byte_equal(row: dict[str, Counts] | None) -> None:
    matrix = Matrix.start([["PER"], ["LOC", 'Ärzte, "x"']]).with_row(None).with_row(row)
    assert Matrix.from_json(matrix.to_json()) == matrix
    assert Matrix.from_json(matrix.to_json()).to_json() == matrix.to_json()


def test_a_type_without_gold_is_null(matrix: Matrix) -> None:
    changed = Matrix(matrix.types, matrix.steps, (matrix.counts[0], {"PER": Counts(1), "LOC": Counts(fp=2)}))
    written = json.loads(changed.to_json())
    assert written["f1"][1] == {"PER": 1.0, "LOC": None}
    assert written["macro_f1"][1] == 1.0
    assert written["micro_f1"][1] == 0.5


def test_a_row_does_not_change_with_the_caller_s_dict() -> None:
    row = {"PER": Counts(1)}
    matrix = Matrix.start([["PER"]]).with_row(row)
    row["PER"] = Counts()
    assert matrix.counts == ({"PER": Counts(1)},)


def test_csv_is_long_form(matrix: Matrix) -> None:
    rows = list(csv.DictReader(io.StringIO(matrix.to_csv())))
    assert [(row["step"], row["type"]) for row in rows] == [("1", "PER"), ("2", "PER"), ("2", "LOC")]
    assert {key: rows[2][key] for key in ("tp", "fp", "fn", "precision", "recall")} == {
        "tp": "3",
        "fp": "0",
        "fn": "1",
        "precision": "1.0",
        "recall": "0.75",
    }
    assert float(rows[2]["f1"]) == matrix.f1[1]["LOC"]


def test_save_and_load(matrix: Matrix, tmp_path: Path) -> None:
    matrix.save(tmp_path / "run")
    matrix.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["matrix.csv", "matrix.json"]
    assert Matrix.load(tmp_path / "run") == Matrix.load(tmp_path / "run" / "matrix.json") == matrix
    assert (tmp_path / "run" / "matrix.json").read_bytes() == matrix.to_json().encode()


def test_a_failed_save_keeps_the_old_file(matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix.save(tmp_path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Matrix.start(matrix.steps).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrix.csv", "matrix.json"]
    assert Matrix.load(tmp_path) == matrix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "expected the content of a matrix.json"),
        ('{"types": ["A"], "counts": []}', "steps"),
        ('{"types": ["A"], "steps": [["A"]], "counts": [{"A": {"tp": "many"}}]}', r"counts\.0\.A\.tp"),
        ('{"types": ["A"], "steps": [["B"]], "counts": []}', "are not those of the steps"),
        ('{"types": ["A", "A"], "steps": [["A"], ["A"]], "counts": []}', "each once"),
        ('{"types": ["A"], "steps": [["A"], []], "counts": []}', "at least one type"),
        ('{"types": ["A"], "steps": [["A"]], "counts": [null, null]}', "2 rows for 1 steps"),
        ('{"types": ["A", "B"], "steps": [["A"], ["B"]], "counts": [{"B": {"tp": 1}}]}', "row 1 has the types"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Matrix.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Matrix.load(tmp_path)


def test_render(matrix: Matrix) -> None:
    assert render(matrix).splitlines() == [
        "F1 × 100 after step    1     2",
        "PER                 50.0* 40.0",
        "LOC                       85.7*",
        "all types, micro    50.0  66.7",
        "all types, macro    50.0  62.9",
        "* the step that taught it   - no gold in the test set   ? not evaluated",
    ]


def test_render_marks_missing_rows_and_types_without_gold() -> None:
    matrix = Matrix.start([["PER"], ["LOC"]]).with_row(None).with_row({"PER": Counts(1), "LOC": Counts(fp=1)})
    lines = render(matrix).splitlines()
    assert lines[1].split() == ["PER", "?*100.0"]
    assert lines[2].split() == ["LOC", "-*"]


def test_render_side_by_side(matrix: Matrix) -> None:
    other = Matrix.start([["LOC"], ["DRUG"]]).with_row({"LOC": Counts(1)})
    assert render_side_by_side(matrix, other, ("spg", "finetune")).splitlines()[:5] == [
        "                   spg          |finetune",
        "F1 × 100 after step    1     2  |    1",
        "PER                 50.0* 40.0  |",
        "LOC                       85.7* |100.0*",
        "all types, micro    50.0  66.7  |100.0",
    ]


def test_eight_steps_fit_side_by_side() -> None:
    matrix = _stream(8, 3)
    lines = render_side_by_side(matrix, matrix, ("left", "right")).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum("TYPE-" in line for line in lines) == 24


def test_wide_streams_are_grouped_by_step() -> None:
    matrix = _stream(11, 6)
    text = render(matrix)
    assert "TYPE" not in text
    assert "step 11 (6 types)" in text
    assert max(map(len, text.splitlines())) <= 120
    both = render_side_by_side(matrix, matrix, ("left", "right"))
    assert max(map(len, both.splitlines())) <= 120
    assert both.count(text) == 2


def test_long_streams_go_on_below() -> None:
    lines = render(_stream(25, 1)).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("TYPE-0-0 ") for line in lines) == 2
    assert sum(line.startswith("TYPE-24-0 ") for line in lines) == 1


def test_a_table_can_be_drawn_before_the_first_row() -> None:
    empty = Matrix.start([["PER"]])
    assert "after step" in render(empty)
    assert "after step" in render_side_by_side(empty, empty, ("left", "right"))
