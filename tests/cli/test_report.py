"""`ner-cl report`."""

import json
import shutil
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from ner_cl.evaluate.matrix import Matrix
from tests.forks import run_without


def test_a_page_and_figures_are_written(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run_folder), "--output", str(page), "--figures", str(tmp_path / "figures")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{page}\n"
    assert "14 figures are in" in captured.err
    assert page.read_text("utf-8").startswith("<!doctype html>")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"heatmap.png", "heatmap.svg", "curves-1.png", "calibration.svg"} <= names


def test_the_page_goes_into_the_run_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_folder), "--no-predict"]) == 0
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"
    (run_folder / "report.html").unlink()


def test_json_holds_the_values_and_writes_nothing(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    matrix = Matrix.load(run_folder)
    assert [score["mean"] for score in values["micro"]] == matrix.micro_f1
    assert values["calibration"][-1]["step"] == 2
    assert not (run_folder / "report.html").exists()


def test_damaged_runs_are_told_with_the_file(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    for name, content in (
        ("matrix.json", "{"),
        ("matrix.json", '{"types": 1}'),
        ("config.resolved.yaml", "[1,2"),
        ("env.json", "{"),
        ("env.json", "[]"),
    ):
        whole = (run / name).read_text()
        (run / name).write_text(content)
        assert main(["report", str(run), "--no-predict"]) == 2
        error = capsys.readouterr().err
        assert str(run / name) in error
        assert "unexpected" not in error
        (run / name).write_text(whole)
    (run / "env.json").unlink()
    assert main(["report", str(run), "--no-predict"]) == 0


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(run_folder: Path, tmp_path: Path) -> None:
    done = run_without("matplotlib", "report", str(run_folder), told=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "ner-cl: error: drawing needs matplotlib; run: pip install 'ner-cl[report]'"
