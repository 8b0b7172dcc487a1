"""Curves in an experiment tracker, and a run that a tracker changes nothing about."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from ner_cl.errors import ConfigError, MissingExtra
from ner_cl.evaluate.matrix import Matrix
from ner_cl.train.engine import Engine
from ner_cl.train.events import EpochDone, Event, Note, RunDone, StepDone
from ner_cl.train.run import run_stream
from ner_cl.train.tracking import Tracking, _name_of
from tests.train.toy_runs import Interrupted, interrupt_at, run_config, run_values, step_files


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tracker" / "ner_cl"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_epoch_and_step(home: Path) -> None:
    pytest.importorskip("tensorboard")
    plain = run_stream(run_config(home, output=str(home / "plain")))
    tracked = run_stream(run_config(home, output=str(home / "tracked"), tracker="tensorboard"))
    assert step_files(tracked.folder) == step_files(plain.folder)
    drawn = curves(tracked.folder)
    assert [at for at, _ in drawn["loss/ce"]] == [1, 2, 3, 4]
    matrix = Matrix.load(tracked.folder)
    assert drawn["test/micro_f1"] == [(2, pytest.approx(matrix.micro_f1[0])), (4, pytest.approx(matrix.micro_f1[1]))]
    assert drawn["test/f1/LOC"] == [(4, pytest.approx((matrix.f1[1] or {})["LOC"]))]
    assert drawn["final/micro_f1"] == [(4, pytest.approx(matrix.micro_f1[1]))]


def points_of_mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient()
    [experiment] = (found for found in client.search_experiments() if found.name == "ner_cl")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == folder.name
    assert run.data.params["seed"] == "13"
    return {
        key: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics
    }


def points_of_trackio(folder: Path) -> dict[str, list[tuple[int, float]]]:
    database = folder.parent / "ner_cl.db"
    found: dict[str, list[tuple[int, float]]] = {}
    with closing(sqlite3.connect(database)) as connection:
        for name, step, values in connection.execute("select run_name, step, metrics from metrics order by step, id"):
            assert name == folder.name
            for key, value in json.loads(values).items():
                found.setdefault(key, []).append((step, value))
    return found


def points_of_wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    [log] = folder.parent.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    for data in logged(log.read_bytes()[7:], first_block=32768 - 7):
        record = records.Record()
        record.ParseFromString(data)
        values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        for key, value in values.items():
            if not key.startswith("_"):
                found.setdefault(key, []).append((values["_step"], value))
    return found


def logged(data: bytes, *, first_block: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KB; parts with checksum, length and kind."""
    at, end, record = 0, first_block, b""
    while at < len(data):
        if end - at < 7:  # too little for a part: filled with zeros
            at, end = end, end + 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""
        if at >= end:
            end += 32768


@pytest.mark.parametrize("tracker", ["mlflow", "trackio", "wandb"])
@pytest.mark.filterwarnings("ignore")
def test_other_trackers_get_the_same_curves(home: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine alone: MLflow and Trackio in a database, Weights & Biases offline."""
    pytest.importorskip(tracker)
    config = home / f"{tracker}.yaml"
    config.write_text(yaml.safe_dump(run_values(home, output=str(home / tracker), tracker=tracker)))
    places = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "TRACKIO_DIR": str(home),
        "WANDB_DIR": str(home),
        "WANDB_MODE": "offline",
    }
    command = [sys.executable, "-m", "ner_cl", "train", str(config), "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, **places}, timeout=300)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", places["MLFLOW_TRACKING_URI"])
    read = {"mlflow": points_of_mlflow, "trackio": points_of_trackio, "wandb": points_of_wandb}[tracker]
    folder = home / tracker
    drawn = read(folder)
    matrix = Matrix.load(folder)
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    losses = [event["losses"]["ce"] for event in events if event["event"] == "EpochDone"]
    assert drawn["loss/ce"] == [(at, pytest.approx(loss)) for at, loss in enumerate(losses, start=1)]
    assert len(losses) == 4
    assert drawn["test/micro_f1"] == [(2, pytest.approx(matrix.micro_f1[0])), (4, pytest.approx(matrix.micro_f1[1]))]
    assert drawn["test/f1/LOC"] == [(4, pytest.approx((matrix.f1[1] or {})["LOC"]))]
    assert drawn["test/step"] == [(2, 1), (4, 2)]
    assert drawn["final/micro_f1"] == [(4, pytest.approx(matrix.micro_f1[1]))]


def test_a_tracker_that_cannot_be_started_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def refuse(*given: object, **named: object) -> None:
        raise RuntimeError("no login\nmore")

    monkeypatch.setattr("ner_cl.train.engine.Engine.start_tracking", refuse)
    with pytest.raises(ConfigError, match=r"tracker: tensorboard cannot be started \(no login\); set it up"):
        run_stream(run_config(home, output=str(home / "refused"), tracker="tensorboard"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_goes_on_with_its_curves_and_may_leave_its_tracker(home: Path) -> None:
    pytest.importorskip("tensorboard")
    config = run_config(home, output=str(home / "stopped"), tracker="tensorboard", training={"checkpoint_seconds": 0})
    with pytest.raises(Interrupted):
        run_stream(config, on_event=interrupt_at(5))
    run_stream(config, resume=True)
    assert [at for at, _ in curves(home / "stopped")["dev/f1"]][-2:] == [3, 4]
    assert run_stream(config.model_copy(update={"tracker": None}), resume=True).matrix.counts


class Kept(GeneralTracker):
    """Keeps what it is told."""

    name = "kept"
    requires_logging_directory = False
    newest: ClassVar["Kept"]

    def __init__(self, project: str) -> None:
        super().__init__()
        Kept.newest = self
        self.project = project
        self.points: list[tuple[dict[str, Any], int | None]] = []
        self.settings: dict[str, Any] = {}
        self.finished = False

    @property
    def tracker(self) -> "Kept":
        return self

    def start(self) -> None:
        """Nothing to open."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.points.append((values, step))

    def finish(self) -> None:
        self.finished = True


def epoch_line(step: int, epoch: int) -> dict[str, Any]:
    return {"event": "EpochDone", "step": step, "epoch": epoch}


def kept_engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("ner_cl.train.engine.get_available_trackers", lambda: ["kept"])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "kept", Kept)
    engine = Engine(tracker="kept")
    engine.start_tracking("run", {"seed": 1})
    return engine


def test_an_epoch_that_is_trained_again_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process was killed after the third epoch of the second stage, and its last checkpoint is of the first."""
    engine = kept_engine(monkeypatch)
    log: list[dict[str, Any]] = []
    for stage, epochs in ((0, 2), (1, 3)):
        log.append({"event": "StepStarted", "step": 1, "stage": stage})
        log += [epoch_line(1, epoch) for epoch in range(1, epochs + 1)]
    told = Tracking(engine, log=[*log, {"event": "StepStarted", "step": 1, "stage": 1}])
    told.write(EpochDone(step=1, epoch=2, losses={"ce": 0.5}, score=None, best=True, seconds=1.0, sentences=3))
    assert [at for _, at in Kept.newest.points] == [4]


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_tracker_that_fails_on_the_way_does_not_end_the_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise RuntimeError("server away\nmore")

    monkeypatch.setattr("ner_cl.train.engine.get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", type("Broken", (Kept,), {broken: refuse}))
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            told.append(event.text)

    run = run_stream(run_config(home, output=str(home / broken), tracker="tensorboard"), on_event=listen)
    assert len(run.matrix.counts) == 2
    expected = ["the tracker failed and gets nothing more of this run (server away); training goes on"]
    assert [text for text in told if "tracker" in text] == (expected if broken == "log" else [])


@pytest.mark.parametrize(
    ("folder", "name"), [("runs/a", "a"), ("runs/a/seed-1", "a/seed-1"), ("runs/a/order-2/seed-1", "a/order-2/seed-1")]
)
def test_a_run_is_named_after_its_method(folder: str, name: str) -> None:
    assert _name_of(Path(folder)) == name


def test_undefined_scores_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = kept_engine(monkeypatch)
    kept = Kept.newest
    assert kept.project == "ner_cl"
    told = Tracking(engine, log=[epoch_line(0, number) for number in range(1, 8)])
    told.write(EpochDone(step=1, epoch=8, losses={"ce": 0.5}, score=None, best=True, seconds=1.0, sentences=3))
    told.write(
        StepDone(
            step=1,
            types=("PER",),
            best_epoch=1,
            micro_f1=0.5,
            macro_f1=None,
            f1={"PER": None, "C++": 0.25},
            train_seconds=1.0,
            seconds=2.0,
            sentences_per_second=3.0,
            peak_memory=4,
        )
    )
    told.write(RunDone(metrics={"bwt/final": None}, seconds=1.0))
    assert kept.points == [
        ({"loss/ce": 0.5}, 8),
        (
            {"test/f1/C__": 0.25, "test/micro_f1": 0.5, "test/step": 1.0, "cost/seconds": 2.0, "cost/peak_memory": 4.0},
            8,
        ),
    ]
    assert kept.settings == {"seed": 1}
    engine.stop_tracking()
    assert kept.finished


def test_a_tracker_that_is_not_installed_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ner_cl.train.engine.get_available_trackers", list)
    with pytest.raises(MissingExtra, match="tracker: wandb is not installed; run: pip install wandb"):
        run_stream(run_config(home, output=str(home / "none"), tracker="wandb"))
    assert not (home / "none").exists()


def test_an_unknown_tracker_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracker: .*'tensorboard'"):
        run_config(home, tracker="clearml")


def test_a_run_of_an_earlier_version_can_be_resumed(home: Path) -> None:
    """Its configuration lacks the keys that there are now."""
    config = run_config(home, output=str(home / "old"))
    run_stream(config)
    resolved = home / "old" / "config.resolved.yaml"
    lines = [line for line in resolved.read_text().splitlines() if not line.startswith("tracker:")]
    resolved.write_text("\n".join(lines))
    assert run_stream(config, resume=True).matrix.counts
