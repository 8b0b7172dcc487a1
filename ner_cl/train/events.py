"""Training events: the loop yields them, the command line shows them, and a log file keeps them."""

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ner_cl.files import read_json_lines

__all__ = ["EpochDone", "Event", "EventLog", "Note", "Resumed", "RunDone", "StepDone", "StepStarted", "UpdateDone"]


@dataclass(frozen=True, kw_only=True)
class StepStarted:
    """A stage of a step begins, with `updates` per epoch over `sentences` of `words` words; `strategies` are names."""

    step: int
    types: tuple[str, ...]
    sentences: int
    words: int
    updates: int
    epochs: int
    strategies: tuple[str, ...]
    stage: int = 0


@dataclass(frozen=True, kw_only=True)
class Note:
    """A one-line note on something in a step that the user may not expect."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Training resumes from a checkpoint, after `update` updates of `epoch`."""

    step: int
    epoch: int
    update: int


@dataclass(frozen=True, kw_only=True)
class UpdateDone:
    """An update is done; `skipped` if the gradient was not finite and nothing was changed."""

    step: int
    epoch: int
    update: int
    losses: dict[str, float]
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch is done: mean `losses` of its updates, dev `score` (F1, 0 to 1), training `seconds` in the step."""

    step: int
    epoch: int
    losses: dict[str, float]
    score: float | None
    best: bool
    seconds: float
    sentences: int
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A step is trained and evaluated; F1 from 0 to 1, `peak_memory` in bytes of the main process or its GPU.

    `train_seconds` counts training only, `seconds` everything; if the step was interrupted, both include the training
    of earlier processes up to their last checkpoint. `falls` has the drop of each old type whose F1 fell in this step.
    """

    step: int
    types: tuple[str, ...]
    best_epoch: int
    micro_f1: float | None
    macro_f1: float | None
    f1: dict[str, float | None]
    train_seconds: float
    seconds: float
    sentences_per_second: float
    peak_memory: int = 0
    falls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunDone:
    """All steps are done; `seconds` counts only the process that did the last ones."""

    metrics: dict[str, float | None]
    seconds: float


Event = StepStarted | Note | Resumed | UpdateDone | EpochDone | StepDone | RunDone


@dataclass
class EventLog:
    """Appends events to a JSONL file, one line each with the event's name and the time, except for `UpdateDone`.

    Args:
        path: the file; None disables the log.
    """

    path: Path | None

    def write(self, event: Event) -> None:
        """Appends one event."""
        if self.path is None or isinstance(event, UpdateDone):
            return
        record = {"event": type(event).__name__, "time": round(time.time(), 3), **dataclasses.asdict(event)}
        line = f"{json.dumps(record, ensure_ascii=False)}\n".encode()
        with self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # left unfinished by a killed process
                    line = b"\n" + line
            file.write(line)

    def read(self) -> list[dict[str, Any]]:
        """The events so far, as written; a line that a killed process left unfinished is skipped."""
        if self.path is None or not self.path.is_file():
            return []
        return read_json_lines(self.path, skip_broken=True)
