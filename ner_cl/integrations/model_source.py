"""A model that is read when it is first needed, and that travels between processes as a path or as bytes."""

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, final

from ner_cl.errors import ModelError

if TYPE_CHECKING:  # transformers takes seconds to import, which a pipeline that is only described need not wait for
    from ner_cl.model.ner_model import NerModel

__all__ = ["ModelSource"]

_STRATEGY = "strategy"


@final
class ModelSource:
    """A model folder, the files of one, or a model at hand: whichever of the three it is, the same questions.

    Safe to use from several threads. In a worker process torch is limited to one thread: OpenMP cannot start threads
    in a process forked from one that ran some, and workers that each take all cores slow one another down.

    Args:
        folder: a model folder; it is not looked at before the model is needed.
        files: contents of the files of a model folder, by relative path.
        model: a model at hand.
        device: where the model computes, such as `cpu` or `cuda:0`; `auto` is a GPU where there is one.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        files: Mapping[str, bytes] | None = None,
        model: "NerModel | None" = None,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self._folder = None if folder is None else folder.absolute()
        self._files = files
        self._model = model
        self._placed = False
        self._process = os.getpid()
        self._lock = threading.RLock()

    @contextmanager
    def borrow(self) -> Iterator["NerModel"]:
        """The model, to one thread at a time: tokenizers refuse to be used by two while they set themselves up.

        The weights are read if they were not read in this process yet.

        Raises:
            ModelError: if there is no model, or it cannot be read.
            ConfigError: if there is no such device.
        """
        if self._process != os.getpid():  # forked; another thread may have held the lock at that moment
            self._process, self._lock, self._placed = os.getpid(), threading.RLock(), False
            _limit_threads()
        with self._lock:
            yield self._load()

    def _load(self) -> "NerModel":
        if not self._placed:
            if multiprocessing.parent_process() is not None:
                _limit_threads()
            self._model = _to_device(self._model or self._read(), self.device)
            self._files, self._placed = None, True  # a folder is kept: its path is what travels
        assert self._model is not None
        return self._model

    @property
    def types(self) -> tuple[str, ...]:
        """The types the model knows, without reading weights; none if there is no readable model."""
        if self._model is not None:
            return self._model.types
        try:
            if self._files is not None:
                text = self._files["labels.json"]
            elif self._folder is not None:
                text = (self._folder / "labels.json").read_bytes()
            else:
                return ()
            return tuple(str(type_) for type_ in json.loads(text)["types"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def files(self) -> Mapping[str, bytes]:
        """The contents of the files of the model folder, by relative path; see `write` for errors."""
        if self._files is not None:
            return self._files
        if self._folder is not None:
            return {_relative(path, self._folder): path.read_bytes() for path in _model_files(self._folder)}
        with TemporaryDirectory() as folder:
            self.write(copy := Path(folder) / "model")
            return {_relative(path, copy): path.read_bytes() for path in _model_files(copy)}

    def write(self, folder: Path) -> None:
        """Writes the model folder, whole or not at all; an existing folder is replaced.

        Raises:
            ModelError: if there is no model, or the folder holds something else or cannot be written.
        """
        from ner_cl.files import publish_folder
        from ner_cl.model.store import save_model

        if self._folder is not None:
            paths, origin = _model_files(self._folder), self._folder
            if folder.absolute().resolve() != origin.resolve():
                _refuse_foreign(folder)
                publish_folder(folder, lambda draft: _copy(paths, origin, draft))
        elif self._files is not None:
            files = self._files
            _refuse_foreign(folder)
            publish_folder(folder, lambda draft: _unpack(files, draft))
        elif self._model is not None:
            save_model(self._model, folder)
        else:
            raise _no_model()

    def _read(self) -> "NerModel":
        from ner_cl.model.store import load_model

        if self._folder is not None:
            return load_model(self._folder)
        if self._files is None:
            raise _no_model()
        with TemporaryDirectory() as folder:
            _unpack(self._files, Path(folder))
            model = load_model(folder)
            # Read when asked for, otherwise; this folder will be gone by then.
            model.strategy_state, model.kept_sentences = dict(model.strategy_state), dict(model.kept_sentences)
            return model

    def __getstate__(self) -> dict[str, Any]:
        files = None if self._folder is not None or (self._files is None and self._model is None) else self.files()
        return {"folder": self._folder, "files": files, "device": self.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], files=state["files"], device=state["device"])


def _no_model() -> ModelError:
    return ModelError(
        'the component has no model; give it one: nlp.add_pipe("ner_cl", config={"model": "a model folder"})'
    )


def _limit_threads() -> None:
    import torch

    torch.set_num_threads(1)


def _to_device(model: "NerModel", device: str) -> "NerModel":
    from ner_cl.model.precision import resolve_device

    return model.to(resolve_device(device))


def _model_files(folder: Path) -> list[Path]:
    if not (folder / "labels.json").is_file():
        raise ModelError(f"{folder}: no such model folder; give the folder of a trained model")
    own = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return sorted(own) + sorted(path for path in (folder / _STRATEGY).glob("*") if path.is_file())


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _copy(paths: list[Path], origin: Path, folder: Path) -> None:
    for path in paths:
        target = folder / path.relative_to(origin)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        parts = PurePosixPath(name).parts
        # The bytes may come from anywhere: they must not be able to write outside the folder.
        if not (len(parts) == 1 or (len(parts) == 2 and parts[0] == _STRATEGY)) or parts[-1] in ("", "..", "/"):
            raise ModelError(f"a model holds no file {name!r}; the bytes are damaged or not of a model")
        target = folder / parts[0] / Path(*parts[1:])
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "labels.json").is_file():
        raise ModelError(f"{folder}: exists and is not a model folder; choose another folder")
