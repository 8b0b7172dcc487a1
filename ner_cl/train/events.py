"""What happens while learning, as values: the loop yields them, the command line shows them, a file keeps them."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["EpochDone", "Event", "EventLog", "Note", "Resumed", "RunDone", "StepDone", "StepStarted", "UpdateDone"]


@dataclass(frozen=True, kw_only=True)
class StepStarted:
    """A stage of a step begins: `updates` an epoch, over `sentences` with `words` words; `strategies` by name."""

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
    """Something about a step that its user may not expect, in one line."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Training goes on from a checkpoint, after `update` updates of `epoch`."""

    step: int
    epoch: int
    update: int


@dataclass(frozen=True, kw_only=True)
class UpdateDone:
    """The optimizer has made an update; `skipped` if the gradient was not finite and nothing was changed."""

    step: int
    epoch: int
    update: int
    losses: dict[str, float]
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch is over: mean `losses` of its updates, dev `score` (F1, 0 to 1), `seconds` of training in the step."""

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
    """A step is learned and evaluated; F1 from 0 to 1, `peak_memory` in bytes of the main process or its GPU.

    `train_seconds` counts training only, and `seconds` everything; of a step that was interrupted, both hold the
    training of earlier processes up to their last checkpoint. `falls` says how far F1 of old types fell in this step,
    of those whose F1 did.
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
    """All steps are learned; `seconds` of the process that did the last ones."""

    metrics: dict[str, float | None]
    seconds: float


Event = StepStarted | Note | Resumed | UpdateDone | EpochDone | StepDone | RunDone


@dataclass
class EventLog:
    """Appends events to a JSONL file, a line each with the event's name and the time; updates are left to their epoch.

    Args:
        path: the file; None keeps nothing.
    """

    path: Path | None
    clock: Any = field(default=time.time)

    def write(self, event: Event) -> None:
        """Appends one event."""
        if self.path is None or isinstance(event, UpdateDone):
            return
        record = {"event": type(event).__name__, "time": round(self.clock(), 3), **dataclasses.asdict(event)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
