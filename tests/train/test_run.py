"""Whole runs: the folder they leave, going on after an interruption, and what is refused."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
import yaml

import ner_cl
from ner_cl.config import Config, load_config, parse_config, parse_strategies
from ner_cl.data.readers import read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.errors import CheckFailed, ConfigError, DataError, ModelError, TrainingError
from ner_cl.evaluate.matrix import Matrix
from ner_cl.files import publish_folder, recover_folders
from ner_cl.model.kept import forget_sentences
from ner_cl.model.store import load_model
from ner_cl.train.environment import ENVIRONMENT_KEYS, environment
from ner_cl.train.events import Event, StepDone, StepStarted, UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.run import Run, open_stream, run_stream, stream_events
from tests.train.toy_runs import (
    GOOD_TRAINING,
    Interrupted,
    f1_after,
    interrupt_at,
    run_config,
    run_values,
    same_weights,
    step_files,
    toy_encoder,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and a corpus."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(home: Path) -> Run:
    """A run that nothing interrupted."""
    return run_stream(run_config(home, output=str(home / "whole")))


def test_a_run_leaves_everything_in_its_folder(whole: Run) -> None:
    names = {path.name for path in whole.folder.iterdir()}
    assert {"config.resolved.yaml", "env.json", "events.jsonl", "steps", "matrix.json", "matrix.csv"} <= names
    assert "checkpoints" not in names
    assert sorted(path.name for path in (whole.folder / "steps").iterdir()) == ["01", "02"]
    assert parse_config(yaml.safe_load((whole.folder / "config.resolved.yaml").read_text())) == whole.config
    events = [json.loads(line)["event"] for line in (whole.folder / "events.jsonl").read_text().splitlines()]
    assert events == [*["StepStarted", "EpochDone", "EpochDone", "StepDone"] * 2, "RunDone"]
    assert whole.matrix == Matrix.load(whole.folder)
    first, second = (load_model(whole.folder / "steps" / name) for name in ("01", "02"))
    assert (first.types, second.types) == (("PER",), ("PER", "LOC"))
    assert [record["types"] for record in second.history] == [["PER"], ["LOC"]]
    assert second.history[0] == first.history[0]
    assert second.history[1]["f1_before"].keys() == {"PER"}
    assert second.history[1]["f1_after"] == whole.matrix.f1[1]


def test_the_matrix_is_that_of_the_published_models(whole: Run, home: Path) -> None:
    from ner_cl.evaluate.counts import count_spans
    from ner_cl.model.predict import predict_sentences

    stream = open_stream(whole.config)
    for step, row in zip(stream.steps, whole.matrix.counts, strict=True):
        model = load_model(whole.folder / "steps" / f"{step.number:02d}")
        test = stream.test_at(step.number)
        assert count_spans(test, predict_sentences(model, test, precision="fp32"), stream.seen(step.number)) == row


def test_the_same_configuration_gives_the_same_bytes_and_another_seed_does_not(whole: Run, home: Path) -> None:
    again = run_stream(run_config(home, output=str(home / "again")))
    assert step_files(again.folder) == step_files(whole.folder)
    other = run_stream(run_config(home, output=str(home / "other"), seed=14))
    assert step_files(other.folder).keys() == step_files(whole.folder).keys()
    assert step_files(other.folder) != step_files(whole.folder)


def test_a_file_for_each_step_gives_the_run_of_slices_that_they_hold(whole: Run, home: Path, tmp_path: Path) -> None:
    """Interrupted once, and with the files somewhere else afterwards."""
    steps = open_stream(whole.config).steps
    values = run_values(home, output=str(tmp_path / "run"))
    for folder in ("here", "there"):
        for part in ("train", "dev"):
            files = [str(tmp_path / folder / f"{part}-{step.number}.jsonl") for step in steps]
            for path, step in zip(files, steps, strict=True):
                Path(path).parent.mkdir(exist_ok=True)
                write_sentences(path, getattr(step, part))
            values["stream"]["corpus"] |= {"format": "auto", part: files}
        config = parse_config(values)
        if folder == "here":
            with pytest.raises(Interrupted):
                run_stream(config, on_event=interrupt_at(4))
    found = run_stream(config, resume=True)
    assert found.config.stream.protocol == "files"
    assert step_files(found.folder) == step_files(whole.folder)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_checkpoints_change_nothing_and_are_taken_up(home: Path, optimizer: str) -> None:
    training = {"epochs": 3, "optimizer": {"name": optimizer, "lr": 5e-3, "head_lr": 5e-2, "momentum": 0.9}}
    without = run_stream(
        run_config(home, output=str(home / f"{optimizer}-without"), training={**training, "checkpoint_seconds": 9999})
    )
    assert not (without.folder / "checkpoints").exists()
    config = run_config(home, output=str(home / f"{optimizer}-with"), training={**training, "checkpoint_seconds": 0})
    with pytest.raises(Interrupted):
        run_stream(config, on_event=interrupt_at(4))
    told: list[object] = []
    resumed = run_stream(config, resume=True, on_event=told.append)
    # The update that was interrupted is the one that no checkpoint holds yet.
    assert [(type(e).__name__, e.epoch, e.update) for e in told[1:3]] == [("Resumed", 2, 1), ("UpdateDone", 2, 2)]
    assert step_files(resumed.folder) == step_files(without.folder)


def test_a_resumed_step_counts_the_time_of_earlier_processes(home: Path) -> None:
    config = run_config(home, output=str(home / "timed"), training={"checkpoint_seconds": 0})
    with pytest.raises(Interrupted):
        run_stream(config, on_event=interrupt_at(3))
    progress = home / "timed" / "checkpoints" / "current" / "progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "train_seconds": 1000.0}))
    told: list[Event] = []
    run_stream(config, resume=True, on_event=told.append)
    first, second = (event for event in told if isinstance(event, StepDone))
    assert 1000 < first.train_seconds < first.seconds
    assert second.train_seconds < second.seconds < 1000


def test_the_checkpoint_of_another_seed_is_not_taken(home: Path, whole: Run) -> None:
    training = {"checkpoint_seconds": 0}
    stopped = run_config(home, output=str(home / "seeded"), seed=99, training=training)
    with pytest.raises(Interrupted):
        run_stream(stopped, on_event=interrupt_at(3))
    config = run_config(home, output=str(home / "unseeded"), training=training)
    shutil.copytree(home / "seeded" / "checkpoints", home / "unseeded" / "checkpoints")
    run = run_stream(config, resume=True)
    assert step_files(run.folder) == step_files(whole.folder)


def test_a_checkpoint_is_not_taken_when_remembered_sentences_were_deleted(home: Path) -> None:
    """Its batches had rows that are gone."""
    config = run_config(home, strategies=[{"name": "replay", "budget": 20}], output=str(home / "forgotten"))
    config = config.model_copy(update={"training": config.training.model_copy(update={"checkpoint_seconds": 0.0})})
    stopped = Path(config.output)

    def interrupt(event: Event) -> None:
        if isinstance(event, UpdateDone) and (event.step, event.update) == (2, 3):
            raise Interrupted

    with pytest.raises(Interrupted):
        run_stream(config, on_event=interrupt)
    assert forget_sentences(stopped / "steps" / "01") == 20
    resumed = []
    run_stream(config, resume=True, on_event=lambda event: resumed.append(type(event).__name__))
    assert "Resumed" not in resumed


def test_what_a_strategy_kept_is_checked_before_it_is_used(home: Path, whole: Run) -> None:
    model = load_model(whole.folder / "steps" / "02")
    states = {"weight is not finite": {"weight": torch.tensor([torch.nan])}, "ValueError": {"x": torch.ones(1)}}
    for said, state in states.items():
        model.strategy_state = {"ncl": state}
        with pytest.raises(
            ModelError, match=f"what ncl kept of earlier steps is damaged .*{said}.*; restore strategy/ncl"
        ):
            Learner(model, parse_strategies(["ncl"]), GOOD_TRAINING)


def test_a_full_disk_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    config = run_config(home, output=str(home / "full"), training={"checkpoint_seconds": 0})
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(TrainingError, match=r"checkpoints/current: .*No space left.*make room .* --resume goes on"):
        run_stream(config)


def test_a_damaged_checkpoint_is_told(home: Path) -> None:
    config = run_config(home, output=str(home / "damaged"), training={"checkpoint_seconds": 0})
    with pytest.raises(Interrupted):
        run_stream(config, on_event=interrupt_at(3))
    student = home / "damaged" / "checkpoints" / "current" / "student.safetensors"
    student.write_bytes(student.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"checkpoints/current: damaged checkpoint .*; delete it to start the step"):
        run_stream(config, resume=True)


def test_a_finished_run_resumes_to_itself(whole: Run) -> None:
    before = step_files(whole.folder)
    told: list[str] = []
    run = run_stream(whole.config, resume=True, on_event=lambda event: told.append(type(event).__name__))
    assert told == ["RunDone"]
    assert run.matrix == whole.matrix
    assert step_files(whole.folder) == before


def test_a_row_that_was_not_written_any_more_is_written_on_resume(home: Path, whole: Run) -> None:
    copy = home / "unwritten"
    shutil.copytree(whole.folder, copy)
    for name in ("matrix.json", "matrix.csv"):
        (copy / name).unlink()
    run = run_stream(whole.config.model_copy(update={"output": str(copy)}), resume=True)
    assert run.matrix == whole.matrix
    assert (copy / "matrix.csv").read_bytes() == (whole.folder / "matrix.csv").read_bytes()


def test_a_step_whose_event_was_not_written_any_more_is_told_on_resume(home: Path, whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    written = [json.loads(line) for line in log.read_text().splitlines()]
    done = next(event for event in written if event["event"] == "StepDone" and event["step"] == 2)
    log.write_text(
        "".join(f"{json.dumps(event)}\n" for event in written if event["event"] != "RunDone" and event != done)
    )
    config = whole.config.model_copy(update={"output": str(tmp_path / "run")})
    for _ in range(2):
        run_stream(config, resume=True)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        [again] = [event for event in events if event["event"] == "StepDone" and event["step"] == 2]
        for key in ("types", "best_epoch", "f1", "micro_f1", "macro_f1", "falls"):
            assert again[key] == done[key]
        assert again["train_seconds"] == pytest.approx(done["train_seconds"], abs=0.01)


def test_a_folder_that_holds_something_else_is_refused(home: Path, whole: Run) -> None:
    taken = home / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match=r"taken exists and is no run folder"):
        run_stream(whole.config.model_copy(update={"output": str(taken)}))
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_the_folder_of_another_run_is_refused(home: Path, whole: Run) -> None:
    with pytest.raises(ConfigError, match=r"output: .*whole holds a run already; use --resume"):
        run_stream(whole.config)
    for changes in ({"seed": 14}, {"training": {"epochs": 3}}, {"strategies": ["finetune"]}):
        with pytest.raises(ConfigError, match=r"config.resolved.yaml: was written by another configuration"):
            run_stream(run_config(home, output=str(whole.folder), **changes), resume=True)
    for changes, said in (
        ({"seed": 14}, "in which seed is 13, not 14; resume"),
        (
            {"strategies": [{"name": "distill", "alpha": 0.7}, "frozen_trunk", "slda"]},
            r"strategies\.distill\.alpha is auto, not 0.7;",
        ),
        ({"strategies": ["distill", "slda"]}, r"configuration, with strategies\.frozen_trunk; resume"),
        ({"strategies": ["distill", "frozen_trunk", "slda", "spg"]}, r"configuration, without strategies\.spg; resume"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_stream(run_config(home, output=str(whole.folder), **changes), resume=True)
    often = run_config(home, output=str(whole.folder), training={"checkpoint_seconds": 1}, gate={"max_drop": 0.9})
    assert run_stream(often, resume=True).matrix == whole.matrix


@pytest.mark.parametrize("strategies", [["slda", "frozen_trunk", "distill"], ["frozen_trunk", "slda"], []])
def test_neither_the_order_of_strategies_nor_an_implied_one_matters(
    home: Path, whole: Run, strategies: list[str]
) -> None:
    assert (
        run_stream(run_config(home, output=str(whole.folder), strategies=strategies), resume=True).matrix
        == whole.matrix
    )


def test_a_run_goes_on_from_another_working_directory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder's folder and the corpus are found beside the configuration, and again from what the run keeps."""
    home = Path(shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("run*", "whole")))
    values = run_values(home)
    values["encoder"]["name"] = "encoder"
    values["stream"]["corpus"] |= {part: f"corpus/{part}.conll" for part in ("train", "dev", "test")}
    (home / "config.yaml").write_text(yaml.safe_dump(values))
    first = run_stream(load_config(home / "config.yaml"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept = first.folder / "config.resolved.yaml"
    assert run_stream(load_config(kept), resume=True).matrix == first.matrix
    # An earlier version kept paths as they were given.
    kept.write_text(kept.read_text().replace(f"{home}/encoder", "encoder").replace(f"{home}/corpus", "corpus"))
    assert run_stream(load_config(home / "config.yaml"), resume=True).matrix == first.matrix
    monkeypatch.chdir(home)
    assert run_stream(load_config("config.yaml"), resume=True).matrix == first.matrix
    shutil.copytree(home / "encoder", tmp_path / "other" / "encoder")
    with pytest.raises(ConfigError, match=r"in which encoder\.name is encoder, not \S+other/encoder"):
        run_stream(load_config("config.yaml", overrides=[f"encoder.name={tmp_path}/other/encoder"]), resume=True)


def with_corpus(home: Path, folder: Path, output: Path) -> Config:
    """The run's configuration with a copy of its corpus in `folder`."""
    shutil.copytree(home / "corpus", folder)
    values = run_values(home, output=str(output))
    values["stream"]["corpus"] |= {part: str(folder / f"{part}.conll") for part in ("train", "dev", "test")}
    return parse_config(values)


def test_the_corpus_may_be_somewhere_else(home: Path, whole: Run, tmp_path: Path) -> None:
    assert run_stream(with_corpus(home, tmp_path / "moved", whole.folder), resume=True).matrix == whole.matrix


@pytest.mark.parametrize(("part", "named"), [("train", "training"), ("dev", "dev"), ("test", "test")])
def test_a_run_does_not_go_on_with_other_data(home: Path, whole: Run, tmp_path: Path, part: str, named: str) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    config = with_corpus(home, tmp_path / "corpus", tmp_path / "run")
    file = tmp_path / "corpus" / f"{part}.conll"
    file.write_text("\n\n".join(file.read_text().split("\n\n")[:-4]))
    before = step_files(tmp_path / "run")
    with pytest.raises(DataError, match=rf"run: step 1 was learned with other {named} sentences than are there now"):
        run_stream(config, resume=True)
    assert step_files(tmp_path / "run") == before


@pytest.mark.parametrize("strategy", ["joint", "distill"])
def test_a_run_does_not_go_on_with_other_earlier_data_or_raw_text(home: Path, tmp_path: Path, strategy: str) -> None:
    """What a step reads besides its own sentences is checked too."""
    values = run_values(home, output=str(tmp_path / "run"), strategies=[strategy])
    raw = tmp_path / "raw.txt"
    raw.write_text("Ada was there.\nIt rained in Rome.\n")
    files = [tmp_path / f"{number}.jsonl" for number in (1, 2)]
    for path, step in zip(files, open_stream(parse_config(values)).steps, strict=True):
        write_sentences(path, step.train)
    values["stream"]["corpus"] |= {"format": "auto", "train": [str(path) for path in files], "dev": None}
    if strategy == "distill":
        values["stream"]["corpus"]["unlabeled"] = str(raw)
    run_stream(parse_config(values))
    if strategy == "distill":
        raw.write_text("Ada was there.\n")
    else:  # what step 1 says of LOC is part of what step 2 reads
        sentences = read_sentences(files[0])
        write_sentences(files[0], [s.with_spans(s.spans, {"PER", "LOC"}) for s in sentences])
    with pytest.raises(DataError, match=r"step . was learned with other earlier or raw sentences than are there now"):
        run_stream(parse_config(values), resume=True)


def test_a_checkpoint_of_joint_is_not_taken_when_earlier_data_changed(home: Path, tmp_path: Path) -> None:
    values = run_values(home, strategies=[{"name": "joint", "last_only": True}], training={"checkpoint_seconds": 0})
    files = [tmp_path / f"{number}.jsonl" for number in (1, 2)]
    for path, step in zip(files, open_stream(parse_config(values)).steps, strict=True):
        write_sentences(path, step.train)
    values["stream"]["corpus"] |= {"format": "auto", "train": [str(path) for path in files], "dev": None}
    stopped = parse_config(values | {"output": str(tmp_path / "stopped")})
    with pytest.raises(Interrupted):
        run_stream(stopped, on_event=interrupt_at(3))
    write_sentences(files[0], read_sentences(files[0])[:-4])
    run_stream(stopped, resume=True)
    run_stream(whole := parse_config(values | {"output": str(tmp_path / "whole")}))
    assert step_files(Path(stopped.output)) == step_files(Path(whole.output))


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_one_goes_on(home: Path) -> None:
    config = run_config(home, output=str(home / "shared"))
    first = stream_events(config)
    assert isinstance(next(first), StepStarted)
    with pytest.raises(ConfigError, match=r"output: another run is writing to .*shared; wait for it, or use --output"):
        next(stream_events(config, resume=True))
    with pytest.raises(ConfigError, match=r"another run is writing to|holds a run already"):
        next(stream_events(config))
    assert (home / "shared" / "config.resolved.yaml").is_file()
    first.close()
    run_stream(config, resume=True)


def test_a_run_that_fails_before_it_begins_leaves_no_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(home, output=str(home / "gone"))
    there = home / "was_there"
    there.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("ner_cl.train.run._start", Mock(side_effect=ModelError("no encoder")))
        for output in (home / "gone", there):
            with pytest.raises(ModelError, match="no encoder"):
                run_stream(config.model_copy(update={"output": str(output)}))
    assert not (home / "gone").exists()
    assert list(there.iterdir()) == []  # so that the corrected run can begin


def test_a_run_where_nothing_can_be_written_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="output: /proc/none/run cannot be written"):
        run_stream(run_config(home, output="/proc/none/run"))


def test_the_forgetting_gate_stops_a_run_before_the_step_is_published(tmp_path: Path) -> None:
    toy_encoder(tmp_path / "encoder", hidden=64)
    from tests.train.toy_runs import write_corpus

    write_corpus(tmp_path / "corpus", train=200)
    training = GOOD_TRAINING.model_dump(mode="json")
    values = run_values(tmp_path, strategies=["finetune"], gate={"max_drop": 0.2}, training=training)
    with pytest.raises(CheckFailed, match=r"step 2: F1 of PER fell by \d+\.\d points, more than gate.max_drop 20.0"):
        run_stream(parse_config(values))
    run = tmp_path / "run"
    assert [path.name for path in (run / "steps").iterdir()] == ["01"]
    rows = f1_after(run)
    assert len(rows) == 2
    assert rows[1]["PER"] < rows[0]["PER"] - 0.2
    with pytest.raises(CheckFailed):
        run_stream(parse_config(values), resume=True)
    kept = {**values, "strategies": ["distill"], "output": str(tmp_path / "kept")}
    assert len(run_stream(parse_config(kept)).matrix.counts) == 2


def test_the_upper_bound_may_be_trained_at_the_last_step_alone(home: Path) -> None:
    every = run_stream(run_config(home, strategies=["joint"], output=str(home / "every")))
    options = [{"name": "joint", "last_only": True}]
    last = run_stream(run_config(home, strategies=options, output=str(home / "last")))
    assert last.matrix.counts == (None, every.matrix.counts[1])
    assert [path.name for path in (last.folder / "steps").iterdir()] == ["02"]
    models = [load_model(run.folder / "steps" / "02") for run in (every, last)]
    assert models[0].tagset == models[1].tagset
    assert same_weights(*models)
    told: list[str] = []
    again = run_stream(last.config, resume=True, on_event=lambda event: told.append(type(event).__name__))
    assert told == ["RunDone"]
    assert again.matrix == last.matrix


def test_what_a_killed_process_left_is_put_right(tmp_path: Path) -> None:
    steps = tmp_path / "steps"

    def publish(name: str) -> None:
        publish_folder(steps / name, lambda draft: (draft / "file").write_text(name) and None)

    publish("01")
    publish("02")
    (steps / ".02.draft-123").mkdir()
    (steps / ".02.draft-123" / "file").write_text("half")
    (steps / "02").rename(steps / ".02.replaced-123")  # killed between the two renamings
    shutil.copytree(steps / "01", steps / ".01.replaced-77")  # killed before the old one was deleted
    recover_folders(steps)
    assert sorted(path.name for path in steps.iterdir()) == ["01", "02"]
    assert (steps / "02" / "file").read_text() == "02"
    assert (steps / "01" / "file").read_text() == "01"
    recover_folders(tmp_path / "nowhere")


def test_publishing_replaces_a_folder_whole_or_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    publish_folder(folder, lambda draft: (draft / "old").write_text("old") and None)

    def fail(draft: Path) -> None:
        (draft / "new").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_folder(folder, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in folder.iterdir()] == ["old"]
    publish_folder(folder, lambda draft: (draft / "new").write_text("new") and None)
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_run_starts_clean_where_a_killed_one_left_drafts(home: Path, whole: Run) -> None:
    copy = home / "littered"
    shutil.copytree(whole.folder, copy)
    (copy / "steps" / ".03.draft-5").mkdir()
    (copy / "checkpoints").mkdir(exist_ok=True)
    (copy / "checkpoints" / ".current.replaced-5").mkdir()
    run_stream(whole.config.model_copy(update={"output": str(copy)}), resume=True)
    assert not list(copy.glob("*/.*"))


def test_the_public_api_runs_a_stream(home: Path) -> None:
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(run_values(home, output=str(home / "public"))))
    run = ner_cl.run_stream(ner_cl.load_config(config, overrides=["training.epochs=1"], environment={}))
    assert run.config.training.epochs == 1
    assert len(run.matrix.counts) == 2
    assert isinstance(ner_cl.load(run.folder / "steps" / "02"), ner_cl.NerModel)
    assert torch.get_default_dtype() == torch.float32


def test_an_environment_has_the_keys_it_says() -> None:
    assert tuple(environment()) == ENVIRONMENT_KEYS
