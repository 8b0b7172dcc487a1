"""A model that answers requests, and where it came from."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from ner_cl.errors import ModelError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.types import Entity
from ner_cl_serve.model_root import ModelRoot
from ner_cl_serve.schemas import StepRecord
from ner_cl_serve.settings import Settings

__all__ = ["ServedModel", "digest_of", "load_served", "version_of"]

_DIGITS = 12
_READ = (".json", ".safetensors", ".onnx", ".txt", ".model")
_SHORTER_PASSES = 4  # divides the passes over a long text, so that short texts wait less


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ServedModel:
    """A model in memory; it never changes, so a response can name the version that made it.

    Attributes:
        model: the tagger.
        folder: its path below the model root, with slashes.
        digest: of its files; see `digest_of`.
        history: a record per step.
        batch_tokens: word pieces of one pass through the encoder.
        loaded: when it was loaded, in UTC.
    """

    model: NerModel
    folder: str
    digest: str
    history: tuple[StepRecord, ...]
    batch_tokens: int
    loaded: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def version(self) -> str:
        """The model's name in responses and logs, such as `step2@1f0c52d3a9be`."""
        return version_of(self.folder, self.digest)

    @property
    def types(self) -> tuple[str, ...]:
        """The types the model knows, in learning order."""
        return self.model.types

    def find(
        self,
        texts: Sequence[str],
        *,
        types: Sequence[str] | None = None,
        nested: bool = False,
        between: Callable[[], None] | None = None,
    ) -> list[list[Entity]]:
        """The entities of each text; `between`, if given, is called before every pass through the encoder."""
        watched: AbstractContextManager[Any] = nullcontext()
        batch_tokens = self.batch_tokens
        if between is not None:
            watched = self.model.register_forward_pre_hook(lambda *_: between())
            batch_tokens //= _SHORTER_PASSES
        with watched:
            return list(self.model.predict(texts, types=types, nested=nested, batch_tokens=batch_tokens))


def version_of(folder: str, digest: str) -> str:
    """The name of a version: the folder's name and the start of the digest."""
    return f"{folder.rpartition('/')[2]}@{digest[:_DIGITS]}"


def load_served(path: Path, settings: Settings) -> ServedModel:
    """Reads a model folder.

    Args:
        path: the model folder.
        settings: the device, the batch size and the model root.

    Raises:
        ModelError: if it cannot be read, knows no type, has a damaged history, or changed meanwhile.
    """
    digest = digest_of(path)
    model = load_model(path, device=settings.device)
    model.check_types(None)
    model.strategy_state, model.kept_sentences = {}, {}  # needed only for training, and may hold sentences
    if digest_of(path) != digest:
        raise ModelError(f"{path}: changed while it was read; publish it again when it is complete")
    return ServedModel(
        model=model,
        folder=ModelRoot(settings.model_root).name_of(path),
        digest=digest,
        history=_history(path, model),
        batch_tokens=settings.batching.batch_tokens,
    )


def digest_of(path: Path) -> str:
    """SHA-256 over the names and contents of the files that predictions depend on.

    Raises:
        ModelError: if the folder cannot be read.
    """
    found = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()):
            if file.suffix in _READ and file.is_file():
                with file.open("rb") as opened:
                    found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
                    while block := opened.read(1 << 20):
                        found.update(block)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return found.hexdigest()


def _history(path: Path, model: NerModel) -> tuple[StepRecord, ...]:
    """One record per step, even for steps that the model's own history does not cover."""
    told: dict[Any, dict[str, Any]] = {record.get("step"): record for record in model.history}
    found = []
    for number, types in enumerate(model.tagset.steps, start=1):
        record = told.get(number, {})
        try:
            found.append(
                StepRecord(
                    step=number,
                    types=list(types),
                    sentences=record.get("sentences"),
                    finished=record.get("finished"),
                    f1=record.get("f1_after", {}),
                    measured=record.get("measured", {}),
                )
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ModelError(
                f"{path / 'history.jsonl'}: step {number}: {place}: {first['msg']}; the file is damaged"
            ) from None
    return tuple(found)
