"""Read runs from their folders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ner_cl.config import Config, validate
from ner_cl.errors import DataError
from ner_cl.evaluate.matrix import Matrix
from ner_cl.files import read_json_lines
from ner_cl.train.environment import ENVIRONMENT_KEYS

__all__ = ["RunRecord", "StepCost", "find_runs", "load_run", "method_of"]


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of a step: seconds in updates and in total, sentences per second in updates, peak bytes if known."""

    step: int
    train_seconds: float
    seconds: float
    sentences_per_second: float
    peak_memory: int | None


@dataclass(frozen=True)
class RunRecord:
    """A run with at least one finished step.

    Attributes:
        folder: the run folder.
        config: the resolved configuration.
        matrix: exact counts of every type after every step.
        environment: versions and machine; None for unknown values.
        costs: costs of the finished steps.
        seconds: total time of all steps, without reading data and models; None if a step was not timed.
        data: training data fingerprint of every step in the history of the newest model.
        dev: the same for dev sentences, `none` without any; lacks steps of runs that did not record it.
        published: whether there is a model of the last step, which the forgetting gate may have refused.
        besides: fingerprints of what strategies read besides the step's sentences, by step and by what it is.
    """

    folder: Path
    config: Config
    matrix: Matrix
    environment: dict[str, Any]
    costs: tuple[StepCost, ...]
    seconds: float | None
    data: dict[int, str]
    dev: dict[int, str]
    published: bool
    besides: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder after that of its parent, such as `distill/seed-1`."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """The types of each step, in learning order."""
        return self.matrix.steps

    @property
    def is_done(self) -> bool:
        """Whether every step was learned, and the last one was not refused by the forgetting gate."""
        return len(self.matrix.counts) == len(self.steps) and self.published

    @property
    def pair(self) -> tuple[int, tuple[tuple[str, ...], ...]]:
        """Seed and order of steps, which runs of two methods must share to be compared one to one."""
        return self.config.seed, self.steps


def find_runs(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run folder, else the run folders inside it, sorted.

    Raises:
        DataError: if there is no run.
    """
    if (folder / "matrix.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.rglob("matrix.json") if (path.parent / "events.jsonl").is_file())
    if not found:
        raise DataError(f"{folder}: holds no finished run (no matrix.json); give a folder that `ner-cl train` wrote")
    return found


def load_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ConfigError: if its configuration is not valid in this installation.
        DataError: if files are missing or damaged, or no step is finished.
    """
    path = folder / "config.resolved.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a folder that `ner-cl train` wrote")
    config = validate(Config, _yaml(path), str(path))
    matrix = Matrix.load(folder)
    if not matrix.counts:
        raise DataError(f"{folder}: no step is done yet")
    events = _lines(folder / "events.jsonl")
    done = {event["step"]: event for event in events if event["event"] == "StepDone"}
    learned = [step for step, row in enumerate(matrix.counts, start=1) if row is not None]
    history = _history(folder, len(matrix.counts))
    return RunRecord(
        folder=folder,
        config=config,
        matrix=matrix,
        environment=_environment(folder / "env.json"),
        costs=tuple(_cost(event) for _, event in sorted(done.items())),
        seconds=sum(event["seconds"] for event in done.values()) if done and done.keys() >= set(learned) else None,
        data={record["step"]: record["data"] for record in history if record.get("data")},
        dev={record["step"]: record["dev"] or "none" for record in history if "dev" in record},
        besides={record["step"]: record.get("besides", {}) for record in history},
        published=bool(learned) and (learned[-1] in done or (folder / "steps" / f"{learned[-1]:02d}").is_dir()),
    )


def method_of(config: Config) -> str:
    """List the strategies with their non-default options, in one line."""
    names = []
    for options in config.strategies:
        defaults = type(options)(name=options.name).model_dump(mode="json")
        given = options.model_dump(mode="json")
        changed = [f"{key} {value}" for key, value in given.items() if value != defaults[key]]
        names.append(f"{options.name} ({', '.join(changed)})" if changed else options.name)
    return " + ".join(names) or "default"


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not readable as YAML ({reason}); restore the folder") from error


def _environment(path: Path) -> dict[str, Any]:
    """Read versions and machine of the run, with None for unknown values."""
    if not path.is_file():
        return dict.fromkeys(ENVIRONMENT_KEYS)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}); restore the folder") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object; restore the folder")
    return {**dict.fromkeys(ENVIRONMENT_KEYS), **found}


def _cost(event: dict[str, Any]) -> StepCost:
    numbers = (event["train_seconds"], event["seconds"], event["sentences_per_second"])
    return StepCost(event["step"], *numbers, event.get("peak_memory") or None)


def _history(folder: Path, steps: int) -> Sequence[dict[str, Any]]:
    """Read the history of the newest model, a record for each step."""
    for step in range(steps, 0, -1):
        if history := _lines(folder / "steps" / f"{step:02d}" / "history.jsonl"):
            return history
    return []


def _lines(path: Path) -> Sequence[dict[str, Any]]:
    """Read the objects of a JSON Lines file; none if it is missing; invalid lines (half-written ones) are skipped."""
    return read_json_lines(path, skip_broken=True) if path.is_file() else []
