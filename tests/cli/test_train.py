"""`ner-cl train`."""

import json
import signal
import statistics
from pathlib import Path

import pytest

from ner_cl.cli.app import main
from ner_cl.config import Config
from ner_cl.errors import CheckFailed
from ner_cl.evaluate.counts import Counts
from ner_cl.evaluate.matrix import Matrix, render
from ner_cl.model.ner_model import NerModel
from ner_cl.train.run import Run, run_stream
from tests.cli.conftest import Toy
from tests.forks import Command, Pair


def test_a_run_prints_its_matrix_and_keeps_everything(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = ["train", str(toy.config), "--output", str(output), "--set", "training.epochs=2"]
    assert main(words) == 0
    captured = capsys.readouterr()
    matrix = Matrix.load(output)
    assert captured.out == render(matrix) + "\n"
    assert [len(row or ()) for row in matrix.counts] == [1, 2]
    for line in ("step 1 (PER): 100 sentences", "step 2 epoch 2: ce ", "step 2 done in ", f"everything is in {output}"):
        assert line in captured.err
    assert {"01", "02"} == {path.name for path in (output / "steps").iterdir()}

    assert main(words) == 2
    assert "use --resume" in capsys.readouterr().err

    assert main([*words, "--resume", "--json", "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {"output": str(output), **matrix.to_dict()}

    assert main([*words, "--resume", "--set", "seed=14"]) == 2
    assert "written by another configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_make_one_run_and_one_of_them_talks(toy: Toy, tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = ["--output", str(output), "--set", "training.epochs=1"]
    done = Pair("train", str(toy.config), *settings, told=tmp_path / "told").wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout == render(Matrix.load(output)) + "\n"
    assert [line.split(":")[0] for line in done.stderr.splitlines() if " epoch " in line] == [
        "step 1 epoch 1",
        "step 2 epoch 1",
    ]


def test_the_toy_types_are_learned(run_folder: Path) -> None:
    first, last = Matrix.load(run_folder).micro_f1
    assert first is not None
    assert last is not None
    assert first > 0.9
    assert last > 0.9


def test_a_dry_run_describes_and_writes_nothing(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(toy.config), "--output", str(tmp_path / "run"), "--dry-run"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "strategies distill" in captured.out
    assert main([*words, "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert [(step["types"], step["sentences"], step["dev_sentences"]) for step in description["steps"]] == [
        (["PER"], 100, 20),
        (["LOC"], 100, 20),
    ]
    assert all(step["mentions"][type_] > 50 for step in description["steps"] for type_ in step["types"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategies", ["[finetune, joint]", "[{name: distill, temprature: 2}]", "[destill]"])
def test_a_dry_run_refuses_wrong_strategies(strategies: str, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(toy.config), "--dry-run", "--set", f"strategies={strategies}"]) == 2
    assert "strategies" in capsys.readouterr().err


def test_the_gate_ends_a_run_that_forgets(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    settings = ["--set", "strategies=[finetune]", "--set", "training.epochs=4"]
    assert main(["train", str(toy.config), "--output", str(output), "--max-drop", "0.1", *settings]) == 1
    captured = capsys.readouterr()
    assert captured.out == render(Matrix.load(output)) + "\n"
    assert "step 2: F1 of PER fell by" in captured.err.splitlines()[-1]
    assert [path.name for path in (output / "steps").iterdir()] == ["01"]
    again = ["train", str(toy.config), "--output", str(output), "--resume", *settings]
    assert main([*again, "--max-drop", "0.1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"output": str(output), **Matrix.load(output).to_dict()}
    assert main([*again, "-q", "--max-drop", "1"]) == 0  # the gate decides what is published, and may be opened
    assert {path.name for path in (output / "steps").iterdir()} == {"01", "02"}


def test_a_dry_run_checks_every_run(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(toy.config), "--output", str(tmp_path), "--dry-run"]
    assert main([*words, "--orders", "3"]) == 2
    assert "--orders 3: 2 steps have 2 orders" in capsys.readouterr().err
    (tmp_path / "order-2" / "seed-1").mkdir(parents=True)
    (tmp_path / "order-2" / "seed-1" / "thesis.txt").touch()
    assert main([*words, "--orders", "2", "--seeds", "1,2", "--json"]) == 0
    captured = capsys.readouterr()
    orders = {name: [step["types"] for step in run["steps"]] for name, run in json.loads(captured.out).items()}
    assert orders == {"order-1": [["PER"], ["LOC"]], "order-2": [["LOC"], ["PER"]]}
    assert captured.err.count("seed-1 exists and is no run folder") == 1


def test_seeds_give_a_run_each_and_their_mean(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-q", "train", str(toy.config), "--output", str(tmp_path), "--seeds", "1,2", "--set", "training.epochs=1"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    runs = [Matrix.load(tmp_path / f"seed-{seed}").metrics for seed in (1, 2)]
    assert [result["seeds"]["1"], result["seeds"]["2"]] == runs
    for key in ("final/micro_f1", "final/macro_f1", "forgetting/max_drop"):
        values = [run[key] for run in runs]
        assert result["mean"][key] == pytest.approx(statistics.mean(values))  # type: ignore[type-var]
        assert result["sd"][key] == pytest.approx(statistics.stdev(values))  # type: ignore[type-var]
    assert main([*words, "--resume"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["×", "100", "seed", "1", "seed", "2", "mean", "sd"]
    assert table[-1].startswith("forgetting")


def test_a_seed_that_fails_does_not_end_the_others(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gated(config: Config, **given: object) -> Run:
        if config.seed == 1:
            Matrix.start([["PER"], ["LOC"]]).with_row({"PER": Counts(1, 0, 0)}).save(Path(config.output))
            raise CheckFailed("step 2: F1 of PER fell by 12.0 points")
        return run_stream(config, **given)  # type: ignore[arg-type]

    monkeypatch.setattr("ner_cl.train.run.run_stream", gated)
    words = ["train", str(toy.config), "--output", str(tmp_path), "--seeds", "1,2", "--set", "training.epochs=1"]
    assert main([*words, "--set", "stream.steps=[[PER]]"]) == 1
    captured = capsys.readouterr()
    assert "seed-1 failed: step 2: F1 of PER fell by 12.0 points" in captured.err
    assert captured.err.splitlines()[-1].startswith("ner-cl: error: 1 of 2 runs failed: seed-1; ")
    assert captured.out.splitlines()[0].split() == ["×", "100", "seed", "2", "seed", "1", "failed", "mean", "sd"]
    finished = Matrix.load(tmp_path / "seed-2").metrics
    assert main([*words, "--set", "stream.steps=[[PER]]", "--resume", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["seeds"], list(result["failed"])) == ({"2": finished}, ["seed-1"])
    assert result["mean"]["final/micro_f1"] == finished["final/micro_f1"]


@pytest.mark.parametrize("seeds", ["1,1", "1,,2", "one", "-1"])
def test_wrong_seeds_are_refused(seeds: str, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(toy.config), "--seeds", seeds]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_a_run_interrupted_before_it_began_leaves_nothing(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NerModel, "from_options", interrupt)
    assert main(["train", str(toy.config), "--output", str(tmp_path / "run")]) == 130
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.splitlines()[-1] == "ner-cl: error: interrupted"


def test_a_run_interrupted_in_its_course_can_go_on(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    words = ["train", str(toy.config), "--output", str(tmp_path / "run"), "--set", "training.epochs=1"]
    with monkeypatch.context() as patch:
        patch.setattr(NerModel, "save", interrupt)
        assert main(words) == 130
    assert "--resume goes on with" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert len(Matrix.load(tmp_path / "run").counts) == 2


@pytest.mark.slow
def test_a_terminated_run_can_go_on(toy: Toy, tmp_path: Path) -> None:
    words = ["train", str(toy.config), "--output", str(tmp_path / "run"), "--set", "training.epochs=300"]
    process = Command(*words)
    with process.stderr as stderr:
        while "step 1 epoch" not in (line := stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(signal.SIGTERM)
        said = stderr.read().splitlines()
    assert process.wait(60) == 143
    assert said[-1] == "ner-cl: error: terminated"
    assert f"the same command with --resume goes on with {tmp_path / 'run'}" in said[-2]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no lock is left
    words[-1] = "training.epochs=1"
    assert main(words) == 2  # the folder is in use


def test_orders_give_a_run_each(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(toy.config), "--output", str(tmp_path), "--orders", "2", "--set", "training.epochs=1"]
    assert main([*words, "--seeds", "7", "--json"]) == 0
    captured = capsys.readouterr()
    assert "order-2: LOC → PER" in captured.err
    result = json.loads(captured.out)
    assert list(result["runs"]) == ["order-1/seed-7", "order-2/seed-7"]
    steps = [Matrix.load(tmp_path / name).steps for name in result["runs"]]
    assert steps == [(("PER",), ("LOC",)), (("LOC",), ("PER",))]
    words[3] = str(tmp_path / "unseeded")
    assert main([*words, "-q"]) == 0
    header, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["×", "100", "order", "1", "order", "2", "mean", "sd"]
    assert main([*words, "--orders", "3"]) == 2
    assert "2 steps have 2 orders" in capsys.readouterr().err


def test_a_tracker_is_named_on_the_command_line(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(toy.config), "--tracker", "notebook", "--dry-run"]) == 2
    assert "tracker" in capsys.readouterr().err
