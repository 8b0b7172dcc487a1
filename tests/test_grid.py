"""The grid runner: what is done is skipped, what was stopped goes on, and sharing step 1 changes no bit."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from benchmarks import grid
from ner_cl.config import parse_config
from ner_cl.evaluate.matrix import Matrix
from ner_cl.model.store import load_model
from ner_cl.report.comparable import _of_settings
from ner_cl.report.runs import RunRecord
from ner_cl.train.run import run_stream
from tests.train.toy_runs import run_values, step_files, teaches, weights_of

CONFIGS = Path(__file__).parents[1] / "configs" / "benchmarks"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small grid in it."""
    folder = tmp_path_factory.mktemp("grid")
    base = {key: value for key, value in run_values(folder).items() if key != "output"}
    methods = {
        "distill": {"strategies": ["distill"]},
        "finetune": {"strategies": ["finetune"]},
        "replay": {"strategies": [{"name": "replay", "budget": 5}], "seeds": [1]},
    }
    values = {"base": base, "seeds": [1, 2], "baseline": "distill", "methods": methods}
    (folder / "toy.yaml").write_text(yaml.safe_dump(values))
    return folder


def run_grid(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["grid", *map(str, words)])
    grid.main()


def test_a_grid_makes_its_runs_and_its_tables_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = home / "all"
    words = (home / "toy.yaml", "--output", output)
    run_grid(monkeypatch, *words, "--dry-run")
    assert capsys.readouterr().out.split() == [
        word
        for name in (
            "distill/order-1/seed-1",
            "distill/order-1/seed-2",
            "finetune/order-1/seed-1",
            "finetune/order-1/seed-2",
            "replay/order-1/seed-1",
        )
        for word in ("to", "do", name)
    ]
    run_grid(monkeypatch, *words, "--only", "distill,replay", "--seeds", "1")
    run_grid(monkeypatch, *words)
    told = capsys.readouterr().out
    assert told.count("step 1 is that of distill/order-1/seed-") == 2  # finetune does the same in it, replay keeps some
    results = json.loads((output / "results.json").read_text())
    assert [(method["name"], method["seeds"]) for method in results["methods"]] == [
        ("distill", 2),
        ("finetune", 2),
        ("replay", 1),
    ]
    assert all((output / f"results{ending}").is_file() for ending in (".md", ".csv", ".html"))
    run_grid(monkeypatch, *words)
    assert "updates an epoch" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was written by another configuration"):
        run_grid(monkeypatch, *words, "--set", "training.epochs=9")


def test_a_file_that_is_set_is_looked_up_like_one_of_the_grid(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "raw.txt").write_text("Ada saw Rome.\n", encoding="utf-8")
    monkeypatch.setenv("NER_CL_DATA", str(tmp_path))
    words = (home / "toy.yaml", "--output", home / "set", "--only", "distill", "--seeds", "1")
    run_grid(monkeypatch, *words, "--set", "stream.corpus.unlabeled=raw.txt", "--set", "training.epochs=1")
    config = yaml.safe_load((home / "set" / "distill/order-1/seed-1/config.resolved.yaml").read_text())
    assert config["stream"]["corpus"]["unlabeled"] == str(tmp_path / "raw.txt")
    with pytest.raises(SystemExit, match=r"--set training\.epochs: write it as key\.path=value"):
        run_grid(monkeypatch, *words, "--set", "training.epochs")


def test_each_of_several_streams_has_its_own_folder_and_table(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((home / "toy.yaml").read_text())
    stream = values["base"].pop("stream")
    values["streams"] = {"forth": stream, "back": {**stream, "steps": stream["steps"][::-1]}}
    (home / "two.yaml").write_text(yaml.safe_dump({**values, "seeds": [1]}, sort_keys=False))
    words = (home / "two.yaml", "--output", home / "two", "--only", "distill")
    run_grid(monkeypatch, *words, "--dry-run")
    assert capsys.readouterr().out.splitlines() == [
        "to do    forth/distill/order-1/seed-1",
        "to do    back/distill/order-1/seed-1",
    ]
    run_grid(monkeypatch, *words, "--streams", "back")
    results = json.loads((home / "two" / "back" / "results.json").read_text())
    assert results["types"] == [type_ for types in stream["steps"][::-1] for type_ in types]
    assert not (home / "two" / "forth").exists()
    with pytest.raises(SystemExit, match=r"has no sideways; it has forth, back"):
        run_grid(monkeypatch, *words, "--streams", "sideways")


def test_a_run_with_a_shared_step_is_the_run_without(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_grid(monkeypatch, home / "toy.yaml", "--output", home / "shared", "--seeds", "2")
    values = run_values(home, strategies=["finetune"], seed=2, output=str(home / "alone"))
    alone = run_stream(parse_config(values)).folder
    shared = home / "shared" / "finetune" / "order-1" / "seed-2"
    found, expected = ({n: b for n, b in step_files(run).items() if "history" not in n} for run in (shared, alone))
    assert found == expected
    first, second = load_model(shared / "steps" / "02").history
    assert [options["name"] for options in first["strategies"]] == ["distill"]  # whose step it was
    assert [options["name"] for options in second["strategies"]] == ["finetune"]
    events = [json.loads(line)["event"] for line in (shared / "events.jsonl").read_text().splitlines()]
    assert events.count("StepDone") == 2


@pytest.mark.slow
def test_workers_make_the_same_runs_and_a_failing_one_does_not_stop_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load((home / "toy.yaml").read_text())
    values["methods"]["broken"] = {"encoder": {"name": str(home / "nothing")}}
    (home / "broken.yaml").write_text(yaml.safe_dump({**values, "seeds": [1]}, sort_keys=False))
    words = (home / "broken.yaml", "--output", home / "broken")
    with pytest.raises(SystemExit, match=r"^grid: broken/order-1/seed-1: encoder.name: cannot load"):
        run_grid(monkeypatch, *words, "--workers", "2", "--drop-models")
    run_grid(monkeypatch, home / "toy.yaml", "--output", home / "one", "--seeds", "1")
    for method in ("distill", "finetune", "replay"):
        made, expected = (home / name / method / "order-1" / "seed-1" for name in ("broken", "one"))
        assert (made / "matrix.json").read_bytes() == (expected / "matrix.json").read_bytes()
        assert not [*made.rglob("*.safetensors")]
        assert [*expected.rglob("*.safetensors")]
    results = json.loads((home / "broken" / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["distill", "finetune", "replay"]
    del values["methods"]["broken"]  # a method is added when nobody has a step 1 to share any more
    values["methods"]["lwf"] = {"strategies": ["lwf"]}
    (home / "more.yaml").write_text(yaml.safe_dump({**values, "seeds": [1]}, sort_keys=False))
    run_grid(monkeypatch, home / "more.yaml", "--output", home / "broken")
    assert len(json.loads((home / "broken" / "results.json").read_text())["methods"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_grid_that_is_stopped_leaves_no_process_and_goes_on(
    home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    output = home / f"stopped-{how.name}"
    words = [sys.executable, "-m", "benchmarks.grid", str(home / "toy.yaml"), "--output", str(output), "--workers", "2"]
    # Whoever runs the tests in the background may have it ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    words += ["--only", "distill,finetune", "--seeds", "1,2"]
    begun = subprocess.Popen(words, cwd=repository, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)
    assert begun.stdout is not None
    assert "step 1" in begun.stdout.readline()
    workers = psutil.Process(begun.pid).children(recursive=True)
    begun.send_signal(how)
    _, told = begun.communicate(timeout=60)
    assert begun.returncode == 1
    assert told.splitlines()[-1] == "grid: stopped; the same command goes on with it"
    psutil.wait_procs(workers, timeout=30)
    assert not [process for process in workers if process.is_running()]
    run_grid(monkeypatch, home / "toy.yaml", "--output", output, "--only", "distill")
    assert len(list(output.glob("distill/order-1/seed-*/matrix.json"))) == 2


def test_a_step_that_was_half_copied_is_no_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (home / "toy.yaml", "--output", home / "torn", "--seeds", "1")
    run_grid(monkeypatch, *words, "--only", "distill")
    monkeypatch.setattr(grid.shutil, "copy2", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        run_grid(monkeypatch, *words, "--only", "distill,finetune")
    assert not (home / "torn" / "finetune" / "order-1" / "seed-1").exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [("[]", "is no grid"), ("base: [", "while parsing"), (None, "No such file")],
)
def test_what_is_no_grid_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, what: str
) -> None:
    path = tmp_path / "some.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=rf"^grid: .*{what}"):
        run_grid(monkeypatch, path)


def test_streams_are_not_chosen_from_a_grid_without_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^--streams: .*toy\.yaml names no streams"):
        run_grid(monkeypatch, home / "toy.yaml", "--streams", "forth", "--dry-run")


@pytest.mark.parametrize("head", ["addner", "extendner"])
def test_step_one_of_plain_strategies_is_the_same_to_the_last_bit(home: Path, head: str) -> None:
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name in sorted(name for name in grid.PLAIN_FIRST_STEP if teaches(name, head)):
        strategy = {"name": name, "since": 2} if name == "frozen_trunk" else name
        values: dict[str, Any] = run_values(
            home,
            strategies=[strategy],
            head={"name": head},
            output=str(home / f"{head}-{name}"),
            training={"epochs": 1},
        )
        model = load_model(run_stream(parse_config(values)).folder / "steps" / "01")
        assert not any(model.strategy_state.values())
        assert not any(model.kept_sentences.values())
        weights[name] = weights_of(model)
    for name, tensors in weights.items():
        assert all(torch.equal(tensor, weights["finetune"][key]) for key, tensor in tensors.items()), name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_of_the_project_is_whole(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setenv("NER_CL_DATA", str(repository.parent / "shared" / "data"))
    if "steps: null" in path.read_text():
        request.getfixturevalue("shared_data")  # the corpus says which types there are
    run_grid(monkeypatch, path, "--dry-run", "--output", "nowhere")
    values = yaml.safe_load(path.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(values["methods"]) * len(values["seeds"]) * len(values.get("streams", [""]))
    assert values["baseline"] in values["methods"]
    monkeypatch.setattr(sys, "argv", ["grid", str(path)])
    for item in grid.read_grids(grid._arguments()):
        methods: dict[str, list[RunRecord]] = {}
        for name, config in item.runs.items():
            run = RunRecord(Path(name), config, Matrix.start([["X"]]), {}, (), None, {}, {}, published=True)
            methods.setdefault(name.split("/")[0], []).append(run)
        spoiling = [found.what for found in _of_settings(methods) if found.spoils]
        assert bool(spoiling) == item.allow_differences, spoiling  # or no table could be made of the runs
