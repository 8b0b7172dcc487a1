"""`ner-cl sweep`."""

import json
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from tests.cli.conftest import Toy
from tests.forks import run_without


def test_a_sweep_tells_its_trials_and_goes_on(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(toy.config), "--search", "training.optimizer.lr=1e-4..1e-2:log", "--steps", "1"]
    words += ["--set", "training.epochs=1", "--output", str(tmp_path)]
    assert main([*words, "--trials", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split("  ")[0] == "trial"
    assert "trial 1 of 1 (training.optimizer.lr " in captured.err
    assert f"ner-cl train {tmp_path / 'best.yaml'}" in captured.err
    assert main([*words, "--trials", "2", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [trial["number"] for trial in found["trials"]] == [1, 2]
    assert "trial 2 of 2" in captured.err
    assert "trial 1" not in captured.err
    assert main(["train", str(tmp_path / "best.yaml"), "--dry-run"]) == 0


def test_nothing_to_search_is_refused(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(toy.config), "--output", str(tmp_path)]) == 2
    assert "sweep.search: names no key to search" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(toy: Toy, tmp_path: Path) -> None:
    done = run_without("optuna", "sweep", str(toy.config), told=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "ner-cl: error: a sweep needs optuna; run: pip install 'ner-cl[sweep]'"
