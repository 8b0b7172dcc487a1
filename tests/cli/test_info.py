"""`ner-cl info`."""

import json
from pathlib import Path

import pytest
import torch

from ner_cl.cli.app import main
from ner_cl.evaluate.matrix import Matrix, render
from ner_cl.model.discriminant import Discriminant
from ner_cl.model.store import load_model
from ner_cl.registry import heads, readers, strategies
from tests.cli.conftest import Toy
from tests.tiny import tiny_encoder, tiny_model, toy_sentences


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


def test_what_strategies_keep(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each: tensors, sentences, or both; the rows add up to what need not be kept to predict."""
    model = load_model(model_folder)
    kept = toy_sentences(5)
    ewc = {"fisher/a": torch.zeros(1000), "anchor/a": torch.zeros(1000)}
    model.strategy_state = {"ewc": ewc, "der": {"logits": torch.zeros(7)}}
    model.kept_sentences = {"der": kept[:2], "replay": kept}
    model.save(tmp_path / "model")
    assert main(["info", str(tmp_path / "model"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    rows = {row["strategy"]: row for row in values["kept"]}
    assert list(rows) == ["der", "ewc", "replay"]
    assert {name: row["sentences"] for name, row in rows.items()} == {"der": 2, "ewc": 0, "replay": 5}
    assert 8000 <= rows["ewc"]["bytes"] < 8400
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert rows["ewc"]["bytes_per_parameter"] == rows["ewc"]["bytes"] / parameters
    assert sum(row["bytes"] for row in rows.values()) == values["bytes_to_learn_more"]
    assert main(["info", str(tmp_path / "model")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["replay", str(rows["replay"]["bytes"]), f"{rows['replay']['bytes'] / parameters:.2f}", "5"] in lines


def test_what_corrects_the_choice_among_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(tiny_encoder(tmp_path / "encoder"), steps=[["PER"], ["LOC"]])
    model.save(tmp_path / "without")
    model.discriminant = Discriminant.on(model.encoder, held=0, layers=1, tags=[1, 2, 3, 4])
    model.save(tmp_path / "with")
    found = {}
    for name in ("without", "with"):
        assert main(["info", str(tmp_path / name), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["without"]["discriminant"] is None
    size = found["with"]["discriminant"].pop("bytes")
    assert found["with"]["discriminant"] == {"types": ["PER", "LOC"], "layers": 1, "copied_layers": 1}
    assert size == pytest.approx(found["with"]["bytes"] - found["without"]["bytes"], rel=0.1)
    assert main(["info", str(tmp_path / "with")]) == 0
    assert ["discriminant.types", "PER,", "LOC"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_what_a_step_changed_at_its_end(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(model_folder)
    settled = {"weight_average": {"text": "0.2 of the old weights kept", "old_share": 0.2}}
    model.history = [model.history[0], {**model.history[1], "settled": settled}]
    model.save(tmp_path / "model")
    assert main(["info", str(tmp_path / "model"), "--json"]) == 0
    assert [step.get("settled") for step in json.loads(capsys.readouterr().out)["steps"]] == [None, settled]
    assert main(["info", str(tmp_path / "model")]) == 0
    assert "step 2, weight_average: 0.2 of the old weights kept" in capsys.readouterr().out.splitlines()


def test_a_model_that_keeps_nothing(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == []
    assert main(["info", str(model_folder)]) == 0
    assert "kept to learn more" not in capsys.readouterr().out


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


def test_a_folder_of_runs(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        (tmp_path / f"seed-{seed}").mkdir()
        for name in ("matrix.json", "events.jsonl"):
            (tmp_path / f"seed-{seed}" / name).write_bytes((run_folder / name).read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines if line[0].startswith("seed-")] == [
        [f"seed-{seed}", "2", "of", "2"] for seed in (1, 2)
    ]
    assert main(["info", str(tmp_path), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert runs == dict.fromkeys(("seed-1", "seed-2"), Matrix.load(run_folder).to_dict())
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 2
    assert "neither a model folder nor a run folder" in capsys.readouterr().err
