"""Finished runs as their folders tell them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ner_cl.config import Config, validate
from ner_cl.errors import DataError
from ner_cl.evaluate.matrix import Matrix
from ner_cl.train.environment import ENVIRONMENT_KEYS

__all__ = ["RunRecord", "StepCost", "find_runs", "load_run", "method_of"]


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step took: seconds in updates and in all, sentences a second in updates, peak bytes (None: not known)."""

    step: int
    train_seconds: float
    seconds: float
    sentences_per_second: float
    peak_memory: int | None


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        folder: where it is.
        config: what was run.
        matrix: exact counts of every type after every step.
        environment: versions and machine; empty where they were not kept.
        costs: of the steps that were learned.
        seconds: of all steps, reading data and models left out; None where no step was timed.
        data: fingerprint of the training data of every step that the models remember.
    """

    folder: Path
    config: Config
    matrix: Matrix
    environment: dict[str, Any]
    costs: tuple[StepCost, ...]
    seconds: float | None
    data: dict[int, str]

    @property
    def name(self) -> str:
        """The folder's name behind that of the folder it is in, as in `distill/seed-1`."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """The types of each step, in learning order."""
        return self.matrix.steps

    @property
    def is_done(self) -> bool:
        """Whether every step was learned."""
        return len(self.matrix.counts) == len(self.steps)

    @property
    def pair(self) -> tuple[int, tuple[tuple[str, ...], ...]]:
        """What runs of two methods must share to be compared one to one: the seed and the order of steps."""
        return self.config.seed, self.steps


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder of seeds and orders, sorted, or the one folder itself.

    Raises:
        DataError: if there is none.
    """
    if (folder / "matrix.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.rglob("matrix.json") if (path.parent / "events.jsonl").is_file())
    if not found:
        raise DataError(f"{folder}: holds no finished run (no matrix.json); give a folder that `ner-cl train` wrote")
    return found


def load_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        ConfigError: if its configuration names what this installation does not have.
        DataError: if it is not whole.
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
    return RunRecord(
        folder=folder,
        config=config,
        matrix=matrix,
        environment=_environment(folder / "env.json"),
        costs=tuple(_cost(event) for _, event in sorted(done.items())),
        seconds=sum(event["seconds"] for event in done.values()) if done else None,
        data=_data(folder, len(matrix.counts)),
    )


def method_of(config: Config) -> str:
    """The strategies with what was set on them, in one line."""
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
    """Where the run was made, with None for what is not known."""
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


def _data(folder: Path, steps: int) -> dict[int, str]:
    """From the history of the newest model."""
    for step in range(steps, 0, -1):
        if history := _lines(folder / "steps" / f"{step:02d}" / "history.jsonl"):
            return {record["step"]: record["data"] for record in history if record.get("data")}
    return {}


def _lines(path: Path) -> Sequence[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file, and no half-written last one."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
