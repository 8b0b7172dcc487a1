"""Reports training events to an experiment tracker, as numbers along the epochs of the whole run."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from ner_cl.config import Config
from ner_cl.errors import ConfigError
from ner_cl.train.engine import Engine
from ner_cl.train.events import EpochDone, Event, RunDone, StepDone

__all__ = ["Tracking", "tracking"]


@final
class Tracking:
    """Sends the numbers of events to a tracker.

    Args:
        engine: the engine whose tracker was started; without a tracker, nothing is sent.
        epochs: epochs already done by earlier processes of the same run.
    """

    def __init__(self, engine: Engine, *, epochs: int = 0) -> None:
        self._engine = engine
        self._epochs = epochs

    def write(self, event: Event) -> None:
        """Sends the numbers of one event."""
        if isinstance(event, EpochDone):
            self._epochs += 1
        if values := _values(event):
            self._engine.track(values, at=self._epochs)


@contextmanager
def tracking(engine: Engine, config: Config, folder: Path) -> Iterator[Tracking]:
    """Starts the configured tracker with the run's settings, and stops it on exit.

    Raises:
        ConfigError: if the tracker cannot be started, for instance without a login or a server.
    """
    if config.tracker is None:
        yield Tracking(engine)
        return
    events = folder / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
    try:
        engine.start_tracking(folder.name, _flat(config.model_dump(mode="json")))
    except Exception as error:  # each tracker has its own errors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"tracker: {config.tracker} cannot be started ({reason}); set it up as its documentation says, or leave "
            "tracker out"
        ) from error
    try:
        yield Tracking(engine, epochs=sum('"event": "EpochDone"' in line for line in lines))
    finally:
        engine.stop_tracking()


def _values(event: Event) -> dict[str, float]:
    """The numbers of an event by curve name; undefined ones are left out."""
    found: dict[str, float | None] = {}
    match event:
        case EpochDone():
            found = {f"loss/{name}": value for name, value in event.losses.items()}
            found["dev/f1"] = event.score
        case StepDone():
            found = {f"test/f1/{_plain(type_)}": score for type_, score in event.f1.items()}
            found |= {"test/micro_f1": event.micro_f1, "test/macro_f1": event.macro_f1, "test/step": event.step}
            found |= {"cost/seconds": event.seconds, "cost/peak_memory": event.peak_memory}
        case RunDone():
            found = dict(event.metrics)
    return {name: float(value) for name, value in found.items() if value is not None}


def _plain(type_: str) -> str:
    """A type's name in characters that all trackers accept (MLflow accepts the fewest)."""
    return re.sub(r"[^\w./: -]", "_", type_)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens settings to key paths; values that are not scalars are written as JSON, and None is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            single = value is None or isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if single else json.dumps(value)
    return {key: value for key, value in flat.items() if value is not None}
