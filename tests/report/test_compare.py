"""Methods side by side."""

import csv
import io
import json
import shutil
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml

from ner_cl.errors import DataError
from ner_cl.evaluate.matrix import Matrix
from ner_cl.evaluate.significance import paired_bootstrap, sentence_counts
from ner_cl.report.collect import collect
from ner_cl.report.compare import Comparison, compare
from ner_cl.report.comparison_page import comparison_page
from ner_cl.report.figures import draw_all
from ner_cl.report.outputs import run_outputs
from ner_cl.report.runs import load_run, method_of
from ner_cl.report.tables import COLUMNS, Cells, method_cells, outcome_cells, to_csv, to_latex, to_markdown, type_cells
from ner_cl.train.run import run_stream
from tests.report.conftest import WELL
from tests.train.toy_runs import run_config


@pytest.fixture(scope="module")
def methods(seeds: Path) -> list[Path]:
    """Fine-tuning with two seeds, distillation with the same two, and the upper bound with one."""
    home = seeds.parent
    for name, strategies, numbers in (
        ("distill", [{"name": "distill", "temperature": 1.5}], (1, 2)),
        ("joint", [{"name": "joint", "last_only": True}], (1,)),
    ):
        for seed in numbers:
            output = str(home / name / f"seed-{seed}")
            run_stream(run_config(home, seed=seed, strategies=strategies, output=output, training=WELL))
    return [seeds, home / "distill", home / "joint"]


@pytest.fixture(scope="module")
def comparison(methods: list[Path]) -> Comparison:
    return compare(methods, resamples=200)


def matrices(folder: Path) -> list[Matrix]:
    return [Matrix.load(path) for path in sorted(folder.glob("seed-*"))]


def test_scores_are_means_over_runs(comparison: Comparison, methods: list[Path]) -> None:
    for method, folder in zip(comparison.methods, methods, strict=True):
        finals = [m.metrics["final/macro_f1"] for m in matrices(folder)]
        values = [value for value in finals if value is not None]
        spread = method.scores["final/macro_f1"]
        assert spread.mean == pytest.approx(fmean(values))
        assert spread.sd == (pytest.approx(stdev(values)) if len(values) > 1 else None)
        assert (method.seeds, method.orders, len(method.runs)) == (len(values), 1, len(values))
    assert comparison.methods[1].method == "distill (temperature 1.5), head extendner"


def test_what_became_of_mentions_is_what_the_matrices_count(comparison: Comparison, methods: list[Path]) -> None:
    for method, folder in zip(comparison.methods, methods, strict=True):
        rows = [row for matrix in matrices(folder) if (row := matrix.counts[-1]) is not None]
        assert method.judged == len(rows)
        for type_, fates in method.outcomes.items():
            assert fates.right == sum(row[type_].tp for row in rows)
            assert (fates.gold, fates.found) == (
                sum(row[type_].gold for row in rows),
                sum(row[type_].tp + row[type_].fp for row in rows),
            )
    cells = outcome_cells(comparison)
    assert [row[0] for row in cells.rows] == [method.name for method in comparison.methods]
    for method, row in zip(comparison.methods, cells.rows, strict=True):
        named = dict(zip(cells.header, row, strict=True))
        found, right = (sum(getattr(f, key) for f in method.outcomes.values()) for key in ("found", "right"))
        assert named["precision"] == f"{100 * right / max(1, found):.1f}"
        assert named["found"] == f"{found / method.judged:.0f}"


def test_the_gap_is_to_the_upper_bound(comparison: Comparison) -> None:
    finetune, distill, joint = comparison.methods
    assert joint.gap is None
    for method in (finetune, distill):
        final, upper = method.scores["final/micro_f1"].mean, joint.scores["final/micro_f1"].mean
        assert final is not None
        assert upper is not None
        assert method.gap == pytest.approx(upper - final)


def test_the_gap_is_to_training_with_all_annotation(methods: list[Path], tmp_path: Path) -> None:
    """`joint` with the steps' own annotation is no upper bound, and has a gap itself."""
    own = [{"name": "joint", "last_only": True, "annotation": "own"}]
    output = str(tmp_path / "own")
    run_stream(run_config(methods[0].parent, seed=1, strategies=own, output=output, training={**WELL, "epochs": 1}))
    with_own = compare([*methods, Path(output)], allow_differences=True, resamples=10)
    joint, own_only = with_own.methods[2:]
    assert (joint.gap, own_only.gap) == (
        None,
        pytest.approx((joint.scores["final/micro_f1"].mean or 0) - (own_only.scores["final/micro_f1"].mean or 0)),
    )
    assert with_own.methods[0].gap == compare(methods, resamples=10).methods[0].gap


def test_runs_are_paired_by_seed(comparison: Comparison, methods: list[Path]) -> None:
    distill, joint = comparison.contrasts
    assert (distill.name, distill.pairs) == ("distill", 2)
    assert (joint.name, joint.pairs) == ("joint", 1)
    pairs = []
    for seed in (1, 2):
        tables = []
        for folder in methods[:2]:
            outputs = run_outputs(load_run(folder / f"seed-{seed}"), steps=[2])
            tables.append(sentence_counts(outputs.test, outputs.by_step[2].spans, ["LOC", "PER"]))
        pairs.append((tables[0], tables[1]))
    assert distill.micro == paired_bootstrap(pairs, average="micro", resamples=200)
    changes = [
        (right.metrics["final/micro_f1"] or 0) - (left.metrics["final/micro_f1"] or 0)
        for left, right in zip(*map(matrices, methods[:2]), strict=True)
    ]
    assert distill.micro.difference == pytest.approx(fmean(changes))
    assert distill.runs["final/micro_f1"].pairs == 2
    assert distill.runs["final/micro_f1"].smallest == 0.5
    assert "average/micro_f1" not in joint.runs  # its earlier steps were not evaluated


def test_distillation_keeps_what_fine_tuning_loses(comparison: Comparison) -> None:
    [distill, _] = comparison.contrasts
    assert distill.macro is not None
    assert distill.macro.difference > 0


def test_another_baseline_turns_the_sign(methods: list[Path], comparison: Comparison) -> None:
    other = compare(methods[:2], baseline="distill", resamples=100).contrasts[0]
    first = comparison.contrasts[0]
    assert other.micro is not None
    assert first.micro is not None
    assert other.name == "finetune"
    assert other.micro.difference == pytest.approx(-first.micro.difference)
    with pytest.raises(DataError, match="--baseline nobody: is none of finetune, distill"):
        compare(methods[:2], baseline="nobody")


def test_what_differs_is_said(comparison: Comparison) -> None:
    assert [str(item) for item in comparison.differences] == ["seeds: 1, 2 (finetune, distill); 1 (joint)"]


def changed(run: Path, folder: Path, **changes: object) -> Path:
    """A copy of a run that says it was made with other settings."""
    copy = Path(shutil.copytree(run, folder))
    values = yaml.safe_load((copy / "config.resolved.yaml").read_text())
    for path, value in changes.items():
        target = values
        *sections, key = path.split("__")
        for section in sections:
            target = target[section]
        target[key] = value
    (copy / "config.resolved.yaml").write_text(yaml.safe_dump(values))
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training__epochs", 5),
        ("training__early_stopping__metric", "seen"),
        ("training__optimizer__lr", 0.1),
        ("stream__protocol", "greedy"),
        ("stream__seed", 7),
        ("encoder__max_pieces", 32),
    ],
)
def test_more_than_the_method_is_refused(methods: list[Path], tmp_path: Path, key: str, value: object) -> None:
    other = changed(methods[1] / "seed-1", tmp_path / "other", **{key: value})
    what = key.replace("__", ".")
    with pytest.raises(DataError, match=f"differ in more than their method: {what}: .*--allow-differences"):
        compare([methods[0], other], resamples=100)
    allowed = compare([methods[0], other], allow_differences=True, resamples=100)
    assert [item.what for item in allowed.differences if item.spoils] == [what]
    assert f"- {what}: " in to_markdown(allowed)


@pytest.mark.parametrize(("part", "value"), [("data", "0" * 64), ("dev", "0" * 64), ("dev", None)])
def test_other_data_are_refused(methods: list[Path], tmp_path: Path, part: str, value: str | None) -> None:
    other = Path(shutil.copytree(methods[1] / "seed-1", tmp_path / "other"))
    history = other / "steps" / "02" / "history.jsonl"
    records = [json.loads(line) for line in history.read_text().splitlines()]
    records[0][part] = value
    history.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(DataError, match=f"{part} of step 1 of PER LOC: "):
        compare([methods[0], other])


def test_sentences_of_other_test_sets_are_not_paired(methods: list[Path], tmp_path: Path) -> None:
    """Two test sets of the same length are still two."""
    test = Path(load_run(methods[1] / "seed-1").config.stream.corpus.test)
    lines = test.read_text().splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(reversed(lines)))
    other = changed(methods[1] / "seed-1", tmp_path / "other", stream__corpus__test=str(tmp_path / "turned.jsonl"))
    [contrast] = compare([methods[0], other], allow_differences=True, resamples=10).contrasts
    assert (contrast.pairs, contrast.micro, contrast.macro) == (1, None, None)
    [contrast] = compare([methods[0], methods[1] / "seed-1"], resamples=10).contrasts
    assert contrast.micro is not None


def test_other_orders_without_one_in_common_are_refused(methods: list[Path], tmp_path: Path) -> None:
    home = methods[0].parent
    values = run_config(home).stream.model_copy(update={"steps": (("LOC",), ("PER",))})
    config = run_config(home, output=str(tmp_path / "turned"), training={**WELL, "epochs": 1})
    run_stream(config.model_copy(update={"stream": values}))
    with pytest.raises(DataError, match=r"differ in more than their method: training\.epochs"):
        compare([methods[0], tmp_path / "turned"])
    found = compare([methods[0], tmp_path / "turned"], allow_differences=True)
    assert "orders: PER → LOC (finetune); LOC → PER (turned)" in [str(item) for item in found.differences]
    assert (found.contrasts[0].pairs, found.contrasts[0].micro, found.contrasts[0].runs) == (0, None, {})
    # An order has the same number in all methods.
    rows = csv.DictReader(io.StringIO(to_csv(found)))
    assert [(row["run"], row["order"]) for row in rows] == [("finetune", "1"), ("finetune", "1"), ("turned", "2")]


def test_a_run_that_is_not_done_is_left_out(methods: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(methods[1], tmp_path / "half"))
    half = copy / "seed-2" / "matrix.json"
    values = json.loads(half.read_text())
    half.write_text(json.dumps({**values, "counts": values["counts"][:1]}))
    found = compare([methods[0], copy], resamples=100)
    assert (found.methods[1].seeds, found.contrasts[0].pairs) == (1, 1)
    assert "half/seed-2: is not done, and left out" in found.notes
    with pytest.raises(DataError, match="seed-2: no run is done"):
        compare([copy / "seed-2"])


def test_a_folder_of_several_methods_or_settings_is_refused(methods: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"are of different methods; give a folder for each"):
        compare([methods[0].parent])
    mixed = tmp_path / "mixed"
    shutil.copytree(methods[1] / "seed-1", mixed / "seed-1")
    changed(methods[1] / "seed-2", mixed / "seed-2", training__epochs=5)
    with pytest.raises(
        DataError, match=r"mixed: \S+/seed-1 and \S+/seed-2 differ in training\.epochs: \d+, 5; give a folder"
    ):
        compare([methods[0], mixed])
    with pytest.raises(DataError, match="given twice"):
        compare([methods[0], methods[0]])


def test_the_order_of_strategies_makes_no_other_method(methods: list[Path], tmp_path: Path) -> None:
    both = tmp_path / "both"
    written = yaml.safe_load((methods[1] / "seed-1" / "config.resolved.yaml").read_text())["strategies"]
    trunk = {"name": "frozen_trunk"}
    changed(methods[1] / "seed-1", both / "seed-1", strategies=[*written, trunk])
    changed(methods[1] / "seed-2", both / "seed-2", strategies=[trunk, *written])
    assert compare([methods[0], both], resamples=10).methods[1].seeds == 2
    assert len(collect(both).runs) == 2


def test_the_same_run_does_not_count_twice(methods: list[Path], tmp_path: Path) -> None:
    """`--seeds 1,2` and later `--orders 2 --seeds 1` train the same run in two places below one folder."""
    twice = tmp_path / "twice"
    shutil.copytree(methods[1] / "seed-1", twice / "seed-1")
    shutil.copytree(methods[1] / "seed-1", twice / "order-1" / "seed-1")
    told = r"twice/order-1/seed-1 and \S+twice/seed-1 have the same seed \(1\) and order"
    with pytest.raises(DataError, match=told):
        compare([methods[0], twice])
    with pytest.raises(DataError, match=told):
        collect(twice)


def test_without_predictions_only_runs_are_tested(methods: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(path, tmp_path / path.name)) for path in methods[:2]]
    for copy in copies:
        for folder in copy.glob("*/predictions"):
            shutil.rmtree(folder)
    found = compare(copies, predict=False)
    assert found.contrasts[0].micro is None
    assert found.contrasts[0].runs["final/micro_f1"].pairs == 2
    before, after = (method.scores["final/micro_f1"].mean for method in found.methods)
    assert found.contrasts[0].changes["final/micro_f1"] == pytest.approx(after - before)
    change = f"{100 * (after - before):+.1f}"
    assert f"| 2 | {change} |  |  | " in to_markdown(found)
    assert len(found.notes) == 4


def test_markdown_has_a_line_for_each_method(comparison: Comparison) -> None:
    text = to_markdown(comparison)
    header = next(line for line in text.splitlines() if line.startswith("| run | seeds"))
    assert all(title in header for title in COLUMNS.values())
    assert {line.count("|") for line in text.splitlines() if line.startswith("| distill | 2 | ")} <= {
        header.count("|"),
        11,
    }
    score = comparison.methods[0].scores["final/micro_f1"].percent()
    assert f"| finetune | 2 | {score} |" in text


def test_csv_has_a_line_for_each_run(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [(row["run"], row["seed"]) for row in rows] == [
        ("finetune", "1"),
        ("finetune", "2"),
        ("distill", "1"),
        ("distill", "2"),
        ("joint", "1"),
    ]
    matrix = Matrix.load(Path(rows[2]["folder"]))
    assert float(rows[2]["forgetting/max_drop"]) == matrix.metrics["forgetting/max_drop"]
    assert float(rows[2]["f1/LOC"]) == (matrix.f1[-1] or {})["LOC"]
    assert rows[4]["average/micro_f1"] == ""


def test_the_page_holds_everything_and_fetches_nothing(comparison: Comparison) -> None:
    page = comparison_page(comparison)
    assert page.count("<svg") == 2
    for cell in ("finetune", "distill (temperature 1.5), head extendner", "seeds: 1, 2 (finetune, distill)"):
        assert cell in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_run_without_earlier_rows_has_a_page_too(methods: list[Path]) -> None:
    report = collect(methods[2])
    assert report.f1[0] is None
    assert (list(report.confusion), report.lost) == ([2], ())
    names = [item.name for item in draw_all(report)]
    assert {"heatmap", "curves-1", "calibration"} <= set(names)
    assert "changes" not in names


def test_the_default_method_has_a_name(methods: list[Path]) -> None:
    config = load_run(methods[1] / "seed-1").config
    assert method_of(config) == "distill (temperature 1.5)"
    assert method_of(config.model_copy(update={"strategies": ()})) == "default"


def test_cells_are_the_same_in_latex(comparison: Comparison) -> None:
    """Read back: rows end in a double backslash, cells are separated by an ampersand."""
    blocks = to_latex(comparison).split(r"\begin{tabular}")[1:]
    for block, cells in zip(blocks, (method_cells(comparison), type_cells(comparison)), strict=True):
        columns, *lines = block.splitlines()
        assert columns == "{l" + "r" * (len(cells.header) - 1) + "}"
        rows = [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r"\\")]
        plain = [tuple(cell.replace(r"$\pm$", "±").replace("\\_", "_") for cell in row) for row in rows]
        assert plain == [cells.header, *cells.rows]


def test_what_means_something_to_latex_is_escaped() -> None:
    (line,) = [line for line in Cells(("a",), (("R&D_50%~{x}^\\$#",),)).to_latex().splitlines() if "R" in line]
    assert line == r"R\&D\_50\%\textasciitilde{}\{x\}\textasciicircum{}\textbackslash{}\$\# \\"
