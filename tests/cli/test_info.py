"""`ner-cl info`."""

import json
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from ner_cl.evaluate.matrix import Matrix, render
from ner_cl.model.store import load_model
from ner_cl.registry import heads, readers, strategies
from tests.cli.conftest import Toy


def test_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["strategies"], values["heads"], values["formats"]) == (
        list(strategies),
        list(heads),
        list(readers),
    )
    assert values["precision"] in ("fp32", "bf16")
    assert values["threads"] >= 1
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert ["packages.torch", values["packages"]["torch"]] in [line.split() for line in out.splitlines()]


def test_a_model(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model_folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    model = load_model(model_folder)
    assert values["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert values["bytes"] >= (model_folder / "model.safetensors").stat().st_size
    assert [step["types"] for step in values["steps"]] == [["PER"], ["LOC"]]
    assert values["steps"][1]["f1"] == model.history[1]["f1_after"]
    assert main(["info", str(model_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = [f"{100 * step['f1']['PER']:.1f}" for step in values["steps"]]
    assert ["PER", *scores] in [line.split() for line in lines]


def test_a_run(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = Matrix.load(run_folder)
    assert main(["info", str(run_folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(render(matrix))
    assert "forgetting/max_drop" in out
    assert main(["info", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == matrix.to_dict()


def test_anything_else_is_refused(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(toy.data)]) == 2
    assert "neither a model folder nor a run folder" in capsys.readouterr().err
    assert main(["info", "no-model"]) == 2
    assert "no such model folder" in capsys.readouterr().err
