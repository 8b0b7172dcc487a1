"""Trains a whole stream: learns every step, evaluates after each, and keeps everything in one run folder."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ner_cl.config import Config
from ner_cl.data.corpus import load_corpus
from ner_cl.data.stream import Step, Stream, build_stream, fingerprint
from ner_cl.errors import CheckFailed, DataError
from ner_cl.evaluate.counts import Counts, count_spans
from ner_cl.evaluate.matrix import Matrix
from ner_cl.evaluate.predictions import Predictions, predictions_file
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import ScoredSpan, score_sentences
from ner_cl.model.store import load_model
from ner_cl.strategies.base import Strategy
from ner_cl.strategies.build import build_strategies
from ner_cl.train.changes import fell_too_far
from ner_cl.train.checkpoint import Checkpoint
from ner_cl.train.engine import Engine
from ner_cl.train.events import Event, EventLog, Note, RunDone, StepDone
from ner_cl.train.learner import Learner
from ner_cl.train.memory import peak_memory, reset_peak_memory
from ner_cl.train.orders import steps_of
from ner_cl.train.record import Scores, drops, history_record, largest_drop
from ner_cl.train.run_folder import all_or_nothing, check_folder, open_folder
from ner_cl.train.tracking import tracking
from ner_cl.types import Sentence

__all__ = ["Run", "learn_step", "open_stream", "run_stream", "stream_events"]


@dataclass(frozen=True)
class Run:
    """A finished stream.

    Attributes:
        folder: the run folder.
        matrix: exact counts of every type after every step.
        config: the configuration of the run.
    """

    folder: Path
    matrix: Matrix
    config: Config


def run_stream(config: Config, *, resume: bool = False, on_event: Callable[[Event], None] = lambda event: None) -> Run:
    """Trains on a stream step by step and returns the run; everything is stored in `config.output`.

    Args:
        config: a complete configuration.
        resume: continue the run in the output folder; the result is that of an uninterrupted run.
        on_event: called with every event.

    Raises:
        ConfigError: if the output folder holds another run, or this one and `resume` is false.
        DataError: if the corpus cannot be read, or is not the one that the steps so far were trained on.
        CheckFailed: if a step fails the forgetting gate; that step is not published.
    """
    for event in stream_events(config, resume=resume):
        on_event(event)
    return Run(Path(config.output), Matrix.load(Path(config.output) / "matrix.json"), config)


def open_stream(config: Config) -> Stream:
    """Builds the stream of a configuration: reads the corpus and draws the slices."""
    options = config.stream
    corpus = load_corpus(options.corpus, name=options.name, steps=options.steps or ())
    return build_stream(
        corpus, steps_of(options, corpus), protocol=options.protocol, seed=options.seed, dev=options.dev
    )


def stream_events(config: Config, *, resume: bool = False) -> Iterator[Event]:
    """Trains on a stream, yielding events; see `run_stream`."""
    started = time.perf_counter()
    stream = open_stream(config)
    folder = Path(config.output)
    engine = Engine(config.training.precision, tracker=config.tracker, logs=folder / "tracker")
    check_folder(folder, config, resume=resume)
    engine.wait()
    log = EventLog(folder / "events.jsonl" if engine.is_main else None)
    with all_or_nothing(folder) if engine.is_main else nullcontext(), tracking(engine, config, folder) as tracker:
        for event in _learn_stream(config, stream, engine, folder, started):
            log.write(event)
            if problem := tracker.write(event):
                note = Note(step=getattr(event, "step", len(stream.steps)), text=problem)
                log.write(note)
                yield note
            yield event


def _learn_stream(config: Config, stream: Stream, engine: Engine, folder: Path, started: float) -> Iterator[Event]:
    if engine.is_main:
        open_folder(folder, config)
    engine.wait()
    test = fingerprint(stream.test)
    model, matrix = _start(config, stream, folder, test)
    if engine.is_main and matrix.counts:
        matrix.save(folder)  # in case a step was published but the run was killed before its row was saved
    learner = Learner(
        model,
        config.strategies,
        config.training,
        engine=engine,
        seed=config.seed,
        checkpoint=Checkpoint(folder / "checkpoints" / "current"),
    )
    told = {event["step"] for event in EventLog(folder / "events.jsonl").read() if event["event"] == "StepDone"}
    yield from (_done_before(record, matrix) for record in learner.model.history if record["step"] not in told)
    for step in stream.steps[len(matrix.counts) :]:
        step_started = time.perf_counter()
        reset_peak_memory()
        yield from learn_step(learner, step, stream)
        predicted = Predictions.of(step.number, test, _found(learner, stream.test))
        counts = count_spans(stream.test_at(step.number), predicted.spans, stream.seen(step.number))
        matrix = matrix.with_row(counts)
        if engine.is_main:
            predicted.save(predictions_file(folder, step.number))
            matrix.save(folder)
        _check_drop(matrix, step, config)
        _remember(learner, step, matrix, _besides(learner.strategies, step, stream))
        if engine.is_main:
            learner.model.save(folder / "steps" / f"{step.number:02d}")
        engine.wait()
        if learner.isolation is not None and learner.isolation.steps:
            yield Note(step=step.number, text=str(learner.isolation))
        yield _step_done(learner, step, matrix, time.perf_counter() - step_started)
    if engine.is_main:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of no use once its step is published
    yield RunDone(metrics=matrix.metrics, seconds=time.perf_counter() - started)


def learn_step(learner: Learner, step: Step, stream: Stream) -> Iterator[Event]:
    """Trains one step of a stream, with the earlier data if a strategy needs them."""
    if learner.reads_earlier is None:
        return learner.learn_step(step, unlabeled=stream.unlabeled)
    own = learner.reads_earlier == "own"
    return learner.learn_step(
        step,
        old_steps=[earlier.types for earlier in stream.steps[: step.number - 1]],
        earlier=stream.everything_until(step.number, own=own),
        earlier_dev=stream.dev_everything_until(step.number, own=own),
    )


def _found(learner: Learner, sentences: Sequence[Sentence]) -> list[list[ScoredSpan]]:
    """Predicts spans with their probabilities, splitting the sentences over processes."""
    engine = learner.engine
    mine = score_sentences(
        learner.model,
        engine.mine(sentences),
        batch_tokens=learner.training.eval_batch_tokens,
        precision=engine.precision,
    )
    return engine.gather(mine)


def _start(config: Config, stream: Stream, folder: Path, test: str) -> tuple[NerModel, Matrix]:
    """The model to continue with and the matrix rows so far, of published and of skipped steps."""
    matrix = Matrix.start([step.types for step in stream.steps])
    model: NerModel | None = None
    strategies = build_strategies(config.strategies)
    for step in stream.steps:
        if step.number < len(stream.steps) and any(strategy.last_step_only for strategy in strategies):
            matrix = matrix.with_row(None)
            continue
        published = folder / "steps" / f"{step.number:02d}"
        if not published.is_dir():
            break
        model = load_model(published)
        _check_data(model, step, test, folder, _besides(strategies, step, stream))
        row = model.metrics["counts"]
        matrix = matrix.with_row({type_: Counts(**row[type_]) for type_ in stream.seen(step.number)})
    return model or NerModel.from_options(config.encoder, config.head), matrix


def _check_data(model: NerModel, step: Step, test: str, folder: Path, besides: dict[str, str]) -> None:
    """Refuses to go on with other sentences than those that a published step was trained and evaluated on."""
    record, predicted = model.history[-1], predictions_file(folder, step.number)
    parts = {
        "training": record["data"] == step.data_hash,
        "dev": record.get("dev") == (fingerprint(step.dev) if step.dev else None),
        "test": not predicted.is_file() or Predictions.test_of(predicted) in ("", test),
        "earlier or raw": record.get("besides", besides) == besides,
    }
    if changed := [part for part, same in parts.items() if not same]:
        raise DataError(
            f"{folder}: step {step.number} was learned with other {' and '.join(changed)} sentences than are "
            "there now; restore the data, or start again with --output"
        )


def _before_and_after(matrix: Matrix) -> tuple[Scores, Scores]:
    """F1 of every type before and after the last step."""
    before = matrix.f1[-2] if len(matrix.f1) > 1 else None
    return before or {}, matrix.f1[-1] or {}


def _check_drop(matrix: Matrix, step: Step, config: Config) -> None:
    """Applies the forgetting gate."""
    type_, drop = largest_drop(*_before_and_after(matrix))
    limit = config.gate.max_drop
    if limit is not None and fell_too_far(drop, limit):
        raise CheckFailed(
            f"step {step.number}: F1 of {type_} fell by {100 * drop:.1f} points, more than gate.max_drop "
            f"{100 * limit:.1f}; the step's model is not published"
        )


def _besides(strategies: Sequence[Strategy], step: Step, stream: Stream) -> dict[str, str]:
    """Fingerprints of what the strategies read besides the step's own sentences, with all its annotation."""
    read: dict[str, Sequence[Sentence]] = {}
    if any(strategy.reads_earlier for strategy in strategies):
        read["earlier"] = stream.everything_until(step.number)
        read["earlier_dev"] = stream.dev_everything_until(step.number)
    if any(strategy.reads_unlabeled for strategy in strategies):
        read["unlabeled"] = stream.unlabeled
    return {name: fingerprint(sentences) for name, sentences in read.items() if sentences}


def _remember(learner: Learner, step: Step, matrix: Matrix, besides: dict[str, str]) -> None:
    """Adds the step to the model's history, which later strategies may read, and its matrix row to the metrics."""
    model = learner.model
    before, after = _before_and_after(matrix)
    record = history_record(learner, step, before=before, after=after) | ({"besides": besides} if besides else {})
    model.history = [*model.history, record]
    model.metrics = {
        "counts": {type_: asdict(count) for type_, count in (matrix.counts[-1] or {}).items()},
        "micro_f1": matrix.micro_f1[-1],
        "macro_f1": matrix.macro_f1[-1],
    }


def _done_before(record: Mapping[str, Any], matrix: Matrix) -> StepDone:
    """The event of a step whose process was killed when it had published the model, before it could write the event.

    Args:
        record: the step's record in the model's history.
        matrix: has the row of the step.
    """
    number, seconds = record["step"], record["train_seconds"]
    falls = drops(record["f1_before"], record["f1_after"])
    return StepDone(
        step=number,
        types=tuple(record["types"]),
        best_epoch=record["best_epoch"],
        micro_f1=matrix.micro_f1[number - 1],
        macro_f1=matrix.macro_f1[number - 1],
        f1=record["f1_after"],
        train_seconds=seconds,
        seconds=seconds,  # what else it spent is not known
        sentences_per_second=record["sentences"] * max(1, record["epochs"]) / max(seconds, 1e-9),
        falls={type_: drop for type_, drop in falls.items() if drop > 0},
    )


def _step_done(learner: Learner, step: Step, matrix: Matrix, seconds: float) -> StepDone:
    progress = learner.progress
    epochs = max(1, progress.epochs_done)
    return StepDone(
        step=step.number,
        types=step.types,
        best_epoch=progress.best_epoch_of_all,
        micro_f1=matrix.micro_f1[-1],
        macro_f1=matrix.macro_f1[-1],
        f1=matrix.f1[-1] or {},
        train_seconds=progress.train_seconds,
        seconds=seconds + learner.carried,
        peak_memory=peak_memory(),
        sentences_per_second=learner.sentences * epochs / max(progress.train_seconds, 1e-9),
        falls={type_: drop for type_, drop in drops(*_before_and_after(matrix)).items() if drop > 0},
    )
