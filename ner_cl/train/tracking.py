"""Reports training events to an experiment tracker, as numbers along the epochs of the whole run."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from ner_cl.config import Config, flatten
from ner_cl.errors import ConfigError, first_line
from ner_cl.train.engine import Engine
from ner_cl.train.events import EpochDone, Event, EventLog, RunDone, StepDone

__all__ = ["Tracking", "tracking"]


@final
class Tracking:
    """Sends the numbers of events to a tracker.

    Args:
        engine: the engine whose tracker was started; without a tracker, nothing is sent.
        log: the events of earlier processes of the same run, as in `events.jsonl`.
    """

    def __init__(self, engine: Engine, *, log: Iterable[Mapping[str, Any]] = ()) -> None:
        self._engine = engine
        self._stage = 0
        self._epochs: list[tuple[int, int, int]] = []
        self._works = True
        for values in log:
            self._count(values["event"], values)

    def write(self, event: Event) -> str:
        """Sends the numbers of one event; returns why that failed the first time, and sends nothing from then on."""
        self._count(type(event).__name__, vars(event))
        values = _values(event)
        if not values or not self._works:
            return ""
        try:
            self._engine.track(values, at=len(self._epochs))
        except Exception as error:  # each tracker has its own errors, and none of them may end a training
            self._works = False
            return f"the tracker failed and gets nothing more of this run ({first_line(error)}); training goes on"
        return ""

    def _count(self, name: str, event: Mapping[str, Any]) -> None:
        """Records an epoch.

        If it repeats an earlier one (a resumed run), that one and all later ones are dropped, because the process that
        made them was killed before it saved them.
        """
        if name == "StepStarted":
            self._stage = event.get("stage", 0)
        elif name == "EpochDone":
            epoch = (event["step"], self._stage, event["epoch"])
            self._epochs = [*(earlier for earlier in self._epochs if earlier < epoch), epoch]


@contextmanager
def tracking(engine: Engine, config: Config, folder: Path) -> Iterator[Tracking]:
    """Starts the configured tracker with the run's settings, and stops it on exit.

    Raises:
        ConfigError: if the tracker cannot be started, for instance without a login or a server.
    """
    if config.tracker is None:
        yield Tracking(engine)
        return
    log = EventLog(folder / "events.jsonl").read()
    try:
        engine.start_tracking(_name_of(folder), _settings(config))
    except Exception as error:  # each tracker has its own errors
        raise ConfigError(
            f"tracker: {config.tracker} cannot be started ({first_line(error)}); set it up as its documentation says, "
            "or leave tracker out"
        ) from error
    try:
        yield Tracking(engine, log=log)
    finally:
        with suppress(Exception):  # what is lost is the end of a curve, not the run
            engine.stop_tracking()


def _name_of(folder: Path) -> str:
    """A name for a run: its folder's, with that of the method if the folder is one of several seeds or orders."""
    parts = folder.absolute().parts
    first = len(parts) - 1
    while first > 1 and re.fullmatch(r"(seed|order)-\d+", parts[first]):
        first -= 1
    return "/".join(parts[first:])


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


def _settings(config: Config) -> dict[str, Any]:
    """Settings by key path; values that are not scalars are written as JSON, and None is left out."""
    flat = flatten(config.model_dump(mode="json"))
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat.items()
        if value is not None
    }
