"""Remembers which model is published, so that a restart serves it again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from ner_cl.errors import ConfigError
from ner_cl.files import replace_file

__all__ = ["Published", "State", "StateFile"]


@dataclass(frozen=True, slots=True)
class Published:
    """A model that was published: its folder below the model root, and the digest of its files."""

    folder: str
    digest: str


@dataclass(frozen=True, slots=True)
class State:
    """What a service remembers.

    Attributes:
        started_with: the model named on the command line. If a restart names another one, that one is served.
        model: the model in service.
        previous: the model before it.
    """

    started_with: str
    model: Published
    previous: Published | None = None


@final
class StateFile:
    """A JSON file that is always replaced as a whole.

    Args:
        path: the file; None to remember nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the file: two services would overwrite what the other published.

        Raises:
            ConfigError: if another one holds the lock.
        """
        if self.path is None or self.path.is_dir():
            yield
            return
        lock = FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{self.path}: another service remembers there what it published; give this one a --state of its own"
            ) from None
        except OSError:  # not writable, which the first write will report
            yield
            return
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def read(self) -> State | None:
        """The remembered state, or None if there is none.

        Raises:
            ConfigError: if the file is damaged.
        """
        if self.path is None:
            return None
        try:
            values: Any = json.loads(self.path.read_text(encoding="utf-8"))
            before = values["previous"]
            return State(
                str(values["started_with"]),
                Published(**values["model"]),
                None if before is None else Published(**before),
            )
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            raise ConfigError(f"{self.path}: is a folder; name a file in it, which need not exist yet") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: cannot be read as the state of a service ({error}); delete it") from error

    def write(self, state: State) -> bool:
        """Writes the state, safe from crashes; returns False if there is no file to write to.

        Raises:
            OSError: if the file cannot be written.
        """
        if self.path is None:
            return False
        with replace_file(self.path) as file:
            file.write(json.dumps(asdict(state), indent=2, ensure_ascii=False).encode())
        return True
