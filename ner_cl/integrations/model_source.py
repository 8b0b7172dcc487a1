"""A lazily loaded model that is passed between processes as a path or as bytes."""

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias, final

from ner_cl.errors import ModelError

if TYPE_CHECKING:  # importing transformers takes seconds; a pipeline that does not run yet should not wait for it
    from ner_cl.model.ner_model import NerModel

__all__ = ["ModelSource"]

_STRATEGY = "strategy"
# What `ner_cl.load` needs, written here again because importing it takes seconds.
_NEEDED = (
    "config.json",
    "labels.json",
    "metrics.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]


@final
class ModelSource:
    """One interface to a model folder, the files of a model folder, or a loaded model.

    Thread-safe. In a worker process torch is limited to one thread: OpenMP cannot start threads in a process forked
    from a multithreaded one, and workers that each use all cores slow one another down.

    Args:
        folder: a model folder; it is not read before the model is needed.
        files: contents of the files of a model folder, by relative path.
        model: a loaded model.
        device: where the model runs, such as `cpu` or `cuda:0`; `auto` is a GPU if there is one.
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
        self._read_as: _Signature | None = None
        self._placed = False
        self._process = os.getpid()
        self._lock = threading.RLock()

    @classmethod
    def of_files(cls, files: Any, *, device: str) -> "ModelSource":
        """The same for files that may come from an untrusted source.

        Raises:
            ModelError: if they are something else, not those of a model, or a name leads outside the folder.
        """
        if not isinstance(files, Mapping) or not all(
            isinstance(name, str) and isinstance(content, bytes) for name, content in files.items()
        ):
            raise ModelError("these bytes hold no files of a model; make them with to_bytes")
        for name in files:
            parts = PurePosixPath(name).parts
            if not (len(parts) == 1 or (len(parts) == 2 and parts[0] == _STRATEGY)) or parts[-1] in ("", "..", "/"):
                raise ModelError(f"a model holds no file {name!r}; the bytes are damaged or not of a model")
        if "labels.json" not in files:
            raise ModelError("these bytes hold no labels.json, so no model; make them with to_bytes")
        return cls(files=files, device=device)

    @contextmanager
    def borrow(self) -> Iterator["NerModel"]:
        """Lends the model to one thread at a time, because tokenizers cannot be initialised by two at once.

        Reads the weights on the first call in this process.

        Raises:
            ModelError: if there is no model, or it cannot be read.
            ConfigError: if the device does not exist.
        """
        if self._process != os.getpid():  # forked, perhaps while another thread held the lock
            self._process, self._lock, self._placed = os.getpid(), threading.RLock(), False
            _limit_threads()
        with self._lock:
            yield self._load()

    def _load(self) -> "NerModel":
        if not self._placed:
            if multiprocessing.parent_process() is not None:
                _limit_threads()
            self._model = _to_device(self._model or self._read(), self.device)
            self._files, self._placed = None, True  # the folder is kept: it is passed on while it holds this model
        assert self._model is not None
        return self._model

    def hold_to(self) -> None:
        """Keeps to the model that the folder holds now: if another one is there when it is read, that is an error.

        Raises:
            ModelError: if there is no model, or a file is missing.
        """
        assert self._folder is not None
        if not (self._folder / "labels.json").is_file():
            raise ModelError(f"{self._folder}: holds no model; save the pipeline again with nlp.to_disk")
        if missing := [name for name in _NEEDED if not (self._folder / name).is_file()]:
            raise ModelError(f"{self._folder}: lacks {', '.join(missing)}; save the pipeline again with nlp.to_disk")
        self._read_as = _signature(self._folder)

    @property
    def types(self) -> tuple[str, ...]:
        """The entity types of the model, without reading weights; empty if there is no readable model."""
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
        """Returns the contents of the model folder's files, by relative path; see `write` for errors."""
        if self._files is not None:
            return self._files
        if (origin := self._origin()) is not None:
            return {_relative(path, origin): path.read_bytes() for path in _model_files(origin)}
        with TemporaryDirectory() as folder:
            self.write(copy := Path(folder) / "model")
            return {_relative(path, copy): path.read_bytes() for path in _model_files(copy)}

    def write(self, folder: Path) -> None:
        """Writes the model folder atomically; an existing model folder is replaced.

        Raises:
            ModelError: if there is no model, or the folder holds something else or cannot be written.
        """
        from ner_cl.model.store import publish_model, save_model

        if (origin := self._origin()) is not None:
            paths = _model_files(origin)
            if folder.absolute().resolve() != origin.resolve():
                publish_model(folder, lambda draft: _copy(paths, origin, draft))
        elif self._files is not None:
            files = self._files
            publish_model(folder, lambda draft: _unpack(files, draft))
        elif self._model is not None:
            save_model(self._model, folder)
        else:
            raise _no_model()

    def _read(self) -> "NerModel":
        from ner_cl.model.store import load_model

        if self._folder is not None:
            self._origin()  # refuses another model than the one held to
            self._read_as = _signature(self._folder)
            return load_model(self._folder)
        if self._files is None:
            raise _no_model()
        with TemporaryDirectory() as folder:
            _unpack(self._files, Path(folder))
            model = load_model(folder)
            # These would be read lazily, but the temporary folder will be gone by then.
            model.strategy_state, model.kept_sentences = dict(model.strategy_state), dict(model.kept_sentences)
            return model

    def _origin(self) -> Path | None:
        """The folder, unless it holds another model by now than the one that was read from it.

        Raises:
            ModelError: if it holds another model than the one to be read.
        """
        if self._folder is None or (self._model is None and self._read_as is None):
            return self._folder
        if _signature(self._folder) == self._read_as:
            return self._folder
        if self._model is None:
            raise ModelError(
                f"{self._folder}: was deleted or replaced after the pipeline was loaded, before its model was read; "
                'load it again, and call nlp.get_pipe("ner_cl").load() at once if the folder will not stay'
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        origin = self._origin()
        files = None if origin is not None or (self._files is None and self._model is None) else self.files()
        return {"folder": origin, "files": files, "device": self.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], files=state["files"], device=state["device"])


def _signature(folder: Path) -> _Signature | None:
    """Tells whether a model folder was replaced, by the inodes, sizes and times of its files; None without files."""
    try:
        found = [(path.name, path.stat()) for path in _model_files(folder)]
    except (OSError, ModelError):
        return None
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)


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
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
