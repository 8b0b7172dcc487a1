"""Real processes: killed at any moment and resumed, and two that train together."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from ner_cl.evaluate.matrix import Matrix
from ner_cl.evaluate.predictions import Predictions, predictions_file
from ner_cl.model.store import load_model
from ner_cl.train.run import Run, run_stream
from tests.forks import FORKS, Pair, train, train_disturbed, train_together
from tests.train.toy_runs import f1_after, run_config, run_values, step_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


def environment() -> dict[str, str]:
    """Of a child process: one thread, this checkout, warnings told."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false"}


def check_published(run: Path, expected: dict[str, bytes]) -> int:
    """Every step folder that can be seen loads and is the right one; gives how many there are."""
    folders = sorted((run / "steps").glob("[0-9]*"))
    for folder in folders:
        assert load_model(folder).types
        assert (folder / "model.safetensors").read_bytes() == expected[f"steps/{folder.name}/model.safetensors"]
    if (run / "matrix.json").exists():
        assert len(Matrix.load(run).counts) >= len(folders) - 1
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
            json.loads(line)
    return len(folders)


def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(home: Path) -> None:
    changes = {"strategies": ["distill"], "training": {"checkpoint_seconds": 0, "epochs": 3, "batch_tokens": 128}}
    whole = run_stream(run_config(home, output=str(home / "whole"), **changes))
    expected = step_files(whole.folder)
    run = home / "killed"
    path = home / "killed.yaml"
    path.write_text(yaml.safe_dump(run_values(home, output=str(run), **changes)))
    draw = random.Random(7)
    kills = {0: 0, 1: 0, 2: 0}  # by steps published at the start
    published, status = 0, None
    for _ in range(40):
        trainer = FORKS.Process(target=train, args=(path,))
        trainer.start()
        if published < 2:
            if kills[published] < 4:
                wait_for_changes(run / "checkpoints", draw.randint(1, 12))
            else:  # right after the step is published
                wait_until((run / "steps" / f"{published + 1:02d}").exists)
            time.sleep(draw.uniform(0, 0.03))
            trainer.kill()
        trainer.join(120)
        status = trainer.exitcode
        assert status in (0, -signal.SIGKILL)
        kills[published] += status != 0
        published = check_published(run, expected)
        if status == 0:
            break
    assert status == 0
    assert kills[0] + kills[1] >= 6
    assert kills[0] > 0
    assert kills[1] > 0
    assert step_files(run) == expected
    assert (run / "matrix.csv").read_bytes() == (whole.folder / "matrix.csv").read_bytes()
    assert not [path for path in run.glob("*/.*") if path.is_dir()]


def wait_until(reached: Callable[[], bool]) -> None:
    """Until something is so, or a minute is over."""
    deadline = time.monotonic() + 60
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.001)


def wait_for_changes(folder: Path, changes: int) -> None:
    """Until something in the folder has been made, renamed or deleted so many times."""
    stamps = set()

    def reached() -> bool:
        with contextlib.suppress(FileNotFoundError):
            stamps.add(folder.stat().st_mtime_ns)
        return len(stamps) > changes

    wait_until(reached)


def test_the_command_line_resumes_what_was_killed(home: Path) -> None:
    path = home / "command.yaml"
    changes = {"strategies": ["distill"], "training": {"checkpoint_seconds": 0, "epochs": 3}}
    path.write_text(yaml.safe_dump(run_values(home, output=str(home / "command"), **changes)))
    command = [sys.executable, "-W", "error", "-m", "ner_cl", "train", str(path), "--resume", "--quiet"]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_until((home / "command" / "checkpoints" / "current").exists)
    first.kill()
    assert first.wait(10) == -signal.SIGKILL
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert (second.returncode, second.stderr) == (0, "")
    whole = run_stream(run_config(home, output=str(home / "command-whole"), **changes))
    assert step_files(home / "command") == step_files(whole.folder)
    events = [json.loads(line) for line in (home / "command" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("Resumed") == 1


# -- two processes --------------------------------------------------------------------------------------------------

# On CPUs too `--multi_gpu` is how `accelerate launch` is told to start several processes; `--cpu` starts one.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def together(launcher: list[str], path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Two processes that train together; they are killed if they hang."""
    command = [sys.executable, "-m", *launcher, "-m", "ner_cl", "train", str(path), *flags]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill_family(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_family(process: subprocess.Popen[str]) -> None:
    """Kills a launcher and the processes it has started, which lead sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(10)
    psutil.wait_procs(family, 10)


# Dropout draws differ from process to process, so it is off where two processes are compared with one.
def without_dropout(encoder: Path) -> None:
    config = json.loads((encoder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (encoder / "config.json").write_text(json.dumps(config))


# SGD: Adam would turn gradients that are only rounding into whole steps.
PLAIN = {
    "epochs": 3,
    "batch_tokens": 128,
    "early_stopping": {"patience": 0},
    "optimizer": {"name": "sgd", "lr": 0.05, "head_lr": 0.5, "momentum": 0.9},
}


@pytest.fixture(scope="module")
def alone(home: Path) -> Run:
    """What one process makes of pairs of batches."""
    run_values(home)
    without_dropout(home / "encoder")
    return run_stream(
        run_config(home, output=str(home / "alone"), strategies=["distill"], training={**PLAIN, "accumulate": 2})
    )


def close_to(run: Path, other: Path) -> None:
    assert f1_after(run) == [pytest.approx(row, abs=0.03) for row in f1_after(other)]
    for name in ("01", "02"):
        one, two = (load_model(folder / "steps" / name).state_dict() for folder in (run, other))
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, two[key], rtol=1e-4, atol=1e-4)
    for step in (1, 2):  # in the order of the sentences, however they were shared out
        mine, theirs = (Predictions.load(predictions_file(folder, step)) for folder in (run, other))
        same = [left == right for left, right in zip(mine.spans, theirs.spans, strict=True)]
        assert sum(same) >= 0.9 * len(same)


def test_two_processes_make_the_updates_of_one(home: Path, alone: Run) -> None:
    path = home / "together.yaml"
    path.write_text(
        yaml.safe_dump(run_values(home, output=str(home / "together"), strategies=["distill"], training=PLAIN))
    )
    done = together(ACCELERATE, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PER") == 1  # one process prints the matrix
    assert "tokenizers" not in done.stderr  # which warn when they are forked after use
    close_to(home / "together", alone.folder)
    names = [json.loads(line)["event"] for line in (home / "together" / "events.jsonl").read_text().splitlines()]
    assert names == [*["StepStarted", *["EpochDone"] * 3, "StepDone"] * 2, "RunDone"]
    told = [
        [
            json.loads(line)["losses"]["ce"]
            for line in (run / "events.jsonl").read_text().splitlines()
            if "losses" in line
        ]
        for run in (home / "together", alone.folder)
    ]
    assert told[0] == pytest.approx(told[1], rel=0.3)  # of its own half of the words
    # The folder is taken: both processes say so, once.
    refused = together(TORCHRUN, path)
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run already") == 1


@pytest.mark.usefixtures("alone")
def test_blocks_without_a_loss_get_no_gradient_in_two_processes_either(home: Path) -> None:
    """Plain fine-tuning teaches AddNER's newest block only; zeros in place of no gradient would let old ones decay."""
    changes = {"strategies": ["finetune"], "head": {"name": "addner"}}
    training = {**PLAIN, "accumulate": 2}
    one = run_stream(run_config(home, output=str(home / "addner-alone"), training=training, **changes))
    path = home / "addner.yaml"
    path.write_text(yaml.safe_dump(run_values(home, output=str(home / "addner"), training=PLAIN, **changes)))
    done = train_together(path)
    assert done.returncode == 0, done.stderr
    close_to(home / "addner", one.folder)
    first, second = (load_model(home / "addner" / "steps" / name).head.blocks[0].weight for name in ("01", "02"))
    assert torch.equal(first, second)


def test_a_loss_that_is_not_finite_in_one_process_stops_both_with_the_reason(home: Path, alone: Run) -> None:
    path = home / "wild.yaml"
    training = {**PLAIN, "optimizer": {"name": "sgd", "lr": 1e30, "head_lr": 1e30, "clip": 0}}
    path.write_text(yaml.safe_dump(run_values(home, output=str(home / "wild"), training=training)))
    done = train_together(path)
    assert done.returncode != 0
    assert done.stderr.count("the loss is not finite on") == 1
    assert not (home / "wild" / "steps").exists()


@pytest.mark.usefixtures("alone")
def test_two_processes_resume(home: Path) -> None:
    """Here an epoch is four batches and then three, of which one process gets two and the other one."""
    uneven = {**PLAIN, "batch_tokens": 76}
    whole = run_stream(run_config(home, output=str(home / "uneven"), training={**uneven, "accumulate": 4}))
    path = home / "resumed.yaml"
    training = {**uneven, "accumulate": 2, "checkpoint_seconds": 0}
    path.write_text(yaml.safe_dump(run_values(home, output=str(home / "resumed"), training=training)))
    pair = Pair("train", str(path), "--quiet", told=home / "killed.told")
    wait_until((home / "resumed" / "checkpoints" / "current").exists)
    pair.kill()
    assert [process.exitcode for process in pair.processes] == [-signal.SIGKILL] * 2
    done = train_together(path, "--resume", "--quiet")
    assert done.returncode == 0, done.stderr
    close_to(home / "resumed", whole.folder)
    assert "Resumed" in (home / "resumed" / "events.jsonl").read_text()
    assert not [path for path in (home / "resumed").glob("*/.*") if path.is_dir()]


@pytest.mark.usefixtures("alone")
def test_after_every_step_processes_have_the_same(home: Path) -> None:
    """On GPUs sums come out otherwise in their last bits, in what is measured of the weights too."""
    path = home / "disturbed.yaml"
    values = run_values(home, output=str(home / "disturbed"), strategies=["spg"], training=PLAIN)
    path.write_text(yaml.safe_dump(values))
    train_disturbed(path, home / "disturbed.told")
    for step in (1, 2):
        main, other = (torch.load(home / "disturbed.told" / f"{rank}-{step}.pt") for rank in (0, 1))
        assert any(name.startswith("spg/") for name in main)
        assert main.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in main.items())
    saved = load_model(home / "disturbed" / "steps" / "02").state_dict()
    assert all(torch.equal(tensor, main[name]) for name, tensor in saved.items())
