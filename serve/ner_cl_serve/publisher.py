"""Holds the model in service and replaces it without interrupting requests."""

import asyncio
import logging
import time
from typing import final

import anyio.to_thread

from ner_cl.errors import NerClError
from ner_cl_serve.batcher import Batcher
from ner_cl_serve.fair_queue import Kind
from ner_cl_serve.memory import give_back_memory
from ner_cl_serve.model_root import ModelRoot
from ner_cl_serve.probe import compare
from ner_cl_serve.problems import Problem
from ner_cl_serve.schemas import Probe, PublishRequest, PublishResponse
from ner_cl_serve.served import ServedModel, load_served
from ner_cl_serve.settings import Settings
from ner_cl_serve.state import Published, State, StateFile

__all__ = ["Publisher"]

_log = logging.getLogger("ner_cl_serve")


@final
class Publisher:
    """Holds the model in service.

    A request reads `current` once and uses that model to its end, so a replaced model finishes its open requests and is
    then freed.

    Args:
        current: the model to start with.
        state: the remembered models.
        file: where they are remembered.
        settings: of the service.
        probe: texts that a new model is tried on.
        batcher: runs models on those texts.
    """

    def __init__(
        self,
        current: ServedModel,
        state: State,
        file: StateFile,
        *,
        settings: Settings,
        probe: list[str],
        batcher: Batcher,
    ) -> None:
        self.current = current
        self._state, self._file = state, file
        self._root = ModelRoot(settings.model_root)
        self._settings, self._probe, self._batcher = settings, probe, batcher
        self._busy = asyncio.Lock()

    @property
    def previous(self) -> Published | None:
        """The model before the one in service."""
        return self._state.previous

    async def publish(self, request: PublishRequest) -> PublishResponse:
        """Loads a model, tries it out, and puts it in service; on any failure the old one stays.

        Raises:
            Problem: if it is not published, and why.
        """
        if self._busy.locked():
            raise Problem(409, "busy", "another model is being published; wait until that is done, then try again")
        async with self._busy:
            started = time.monotonic()
            folder = self._wanted(request)
            new = await self._load(folder, expected=self.previous if request.previous else None)
            old = self.current
            probe = await self._try(old, new)
            self._check(probe, request.min_agreement)
            persisted = self._remember(new)
            self.current = new
            changed = PublishResponse(
                model=new.version,
                replaced=old.version,
                types_added=[type_ for type_ in new.types if type_ not in old.types],
                types_removed=[type_ for type_ in old.types if type_ not in new.types],
                probe=probe,
                persisted=persisted,
                seconds=round(time.monotonic() - started, 3),
            )
        del old
        await anyio.to_thread.run_sync(give_back_memory)
        return changed

    def _wanted(self, request: PublishRequest) -> str:
        if request.model is not None:
            return request.model
        if self.previous is None:
            raise Problem(409, "no_previous_model", "no other model was published before this one; name a folder")
        return self.previous.folder

    async def _load(self, folder: str, *, expected: Published | None) -> ServedModel:
        path = self._root.find(folder)
        try:
            new = await anyio.to_thread.run_sync(load_served, path, self._settings)
        except NerClError as error:
            message = str(error).replace(str(self._root.path), "…")
            raise Problem(422, "model_refused", f"the model was not published: {message}") from error
        if expected is not None and new.digest != expected.digest:
            message = f"{folder} is not what it was when it served; publish it by its name if that is meant"
            raise Problem(409, "model_changed", message)
        return new

    async def _try(self, old: ServedModel, new: ServedModel) -> Probe:
        """Runs both models on the probe texts, which also warms up the new one."""
        try:
            found = await self._batcher.find(Kind(new), self._probe, bounded=False)
        except Exception as error:
            _log.exception("probe")
            message = f"the model was not published: it fails on the probe texts with {type(error).__name__}"
            raise Problem(422, "model_refused", message) from error
        before = await self._batcher.find(Kind(old), self._probe, bounded=False)
        return compare([type_ for type_ in old.types if type_ in new.types], before, found)

    @staticmethod
    def _check(probe: Probe, least: float | None) -> None:
        if least is None:
            return
        if probe.f1 is None:
            raise Problem(
                409,
                "nothing_compared",
                "of the types that both models know, neither finds one in the probe texts, so nothing was compared; "
                "give others with --probe, or leave min_agreement out",
            )
        if probe.f1 >= least:
            return
        worst = min((row.f1, type_) for type_, row in probe.types.items() if row.f1 is not None)
        raise Problem(
            409,
            "agreement_too_low",
            f"the models agree with an F1 of {probe.f1:.3f} on {probe.texts} probe texts, less than {least:g}"
            f" (worst type: {worst[1]}, {worst[0]:.3f}); the old one goes on serving",
        )

    def _remember(self, new: ServedModel) -> bool:
        """Saves the new model as published before it serves; after a crash in between, a restart serves it."""
        published = Published(new.folder, new.digest)
        before = self._state.previous if published == self._state.model else self._state.model
        state = State(self._state.started_with, published, before)
        try:
            persisted = self._file.write(state)
        except OSError as error:
            message = f"the model was not published: its name cannot be written down ({error.strerror})"
            raise Problem(503, "not_persisted", message) from error
        self._state = state
        return persisted
