"""`ner-cl compare`."""

import json
from pathlib import Path

import pytest

from ner_cl.cli.app import main


def test_every_form_is_written(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [tmp_path / f"table{ending}" for ending in (".md", ".tex", ".csv", ".json", ".html")]
    flags = [word for path in outputs for word in ("--output", str(path))]
    assert main(["compare", str(run_folder), *flags, "--resamples", "100"]) == 0
    captured = capsys.readouterr()
    assert captured.out == outputs[0].read_text("utf-8")
    assert captured.out.startswith("Stream stream, protocol disjoint, 2 steps.")
    assert outputs[1].read_text("utf-8").count(r"\begin{tabular}") == 2
    assert outputs[2].read_text("utf-8").count("\n") == 2
    assert json.loads(outputs[3].read_text("utf-8"))["baseline"] == run_folder.name
    assert outputs[4].read_text("utf-8").startswith("<!doctype html>")
    assert captured.err.count("written: ") == 5

    assert main(["compare", str(run_folder), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(outputs[3].read_text("utf-8"))


def test_an_ending_that_says_nothing_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run_folder), "--output", "table.txt"]) == 2
    assert "its name must end in .md, .tex, .csv, .json, .html" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "holds no finished run" in capsys.readouterr().err
