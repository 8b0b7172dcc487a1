"""Atomic writing of files and folders: complete, or not at all."""

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ner_cl.errors import ConfigError, DataError

__all__ = [
    "new_folder",
    "publish_folder",
    "read_json_lines",
    "recover_folders",
    "replace_file",
    "replace_text",
    "set_aside",
    "sole_writer",
    "write_json",
]


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file that replaces `path` on success.

    The permissions of an existing file are kept, and a symbolic link keeps pointing at its file. Pipes and devices
    cannot be replaced and are written to directly.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes UTF-8 text to `path` atomically, without translating line ends."""
    with replace_file(path) as file:
        file.write(text.encode("utf-8"))


def read_json_lines(path: Path, *, skip_broken: bool = False) -> list[Any]:
    """Reads a value from each line that is not blank.

    Args:
        path: a UTF-8 file.
        skip_broken: leave out what is no JSON, such as a line that a killed process did not finish.

    Raises:
        ValueError: if a line is no JSON.
    """
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # `splitlines` also splits where strings may
        with suppress(ValueError) if skip_broken else nullcontext():
            found += [json.loads(line)] if line.strip() else []
    return found


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` on success; DataError if `path` exists and is not empty."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{path}: exists already; choose another folder, or delete it first")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)  # left by a process of the same number
    draft.mkdir()
    try:
        yield draft
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder, then renames it to `folder`: readers see it complete or not at all.

    An existing folder is renamed away first, so for a moment there is none; a process killed in that moment leaves it
    under the name that `set_aside` finds.

    Args:
        folder: destination; an existing folder is replaced, and a symbolic link keeps pointing at its folder.
        write: fills the folder it is given.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.draft-{os.getpid()}"
    replaced = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    _put_back(replaced, folder)  # left by a killed process of the same number
    shutil.rmtree(replaced, ignore_errors=True)
    draft.mkdir()
    try:
        write(draft)
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes files that other users, such as a server's, cannot read
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            folder.rename(replaced)
        draft.rename(folder)
    finally:
        _put_back(replaced, folder)  # the second rename failed
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def sole_writer(folder: Path, option: str, *, advice: str = "wait for it, or use --output") -> Iterator[None]:
    """Keeps other processes from writing a folder, which need not exist yet; it is free again however this one ends.

    Drafts of the folder that a killed process left are deleted.

    Args:
        folder: the folder, by whatever name.
        option: what names the folder, for messages.
        advice: what to do if another process is writing it.

    Raises:
        ConfigError: if another process is writing the folder, or it is not writable.
    """
    folder = Path(os.path.realpath(folder))  # unlike `resolve`, it does not fail on links that lead nowhere
    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{option}: another run is writing to {folder}; {advice}") from None
        except OSError as error:
            raise ConfigError(f"{option}: {folder} cannot be written ({error.strerror}); use --output") from None
        for draft in folder.parent.glob(f".{glob.escape(folder.name)}.draft-*"):
            shutil.rmtree(draft, ignore_errors=True)
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    finally:
        with suppress(OSError):  # those in which something was written stay
            for parent in missing:
                parent.rmdir()


def _put_back(replaced: Path, folder: Path) -> None:
    """Renames a folder that was set aside back, unless there is another in its place."""
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)


def set_aside(folder: Path) -> Path | None:
    """Returns the old contents of `folder` that a process killed inside `publish_folder` set aside; None if none."""
    folder = folder.resolve()
    return next(iter(sorted(folder.parent.glob(f".{glob.escape(folder.name)}.replaced-*"))), None)


def recover_folders(parent: Path) -> None:
    """Cleans up after processes that were killed inside `publish_folder`, for all folders in `parent`.

    A folder that was set aside but not yet replaced is restored; drafts are deleted. Nothing may be publishing there.
    """
    for replaced in parent.glob(".*.replaced-*"):
        folder = parent / replaced.name[1:].rpartition(".replaced-")[0]
        _put_back(replaced, folder)
    for leftover in (*parent.glob(".*.draft-*"), *parent.glob(".*.replaced-*")):
        shutil.rmtree(leftover)


def write_json(path: Path, values: Any) -> None:
    """Writes indented UTF-8 JSON with a final newline."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
