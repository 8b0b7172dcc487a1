"""Output files and folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ner_cl.errors import DataError

__all__ = ["new_folder", "replace_file"]


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end, if nothing went wrong."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` at the end, if nothing went wrong; DataError where there is one already."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{path}: exists already; choose another folder, or delete it first")
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.mkdir()
    try:
        yield draft
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
