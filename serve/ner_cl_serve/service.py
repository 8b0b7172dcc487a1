"""The parts that make up a service."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fastapi import Request

from ner_cl.errors import ConfigError
from ner_cl.model.precision import resolve_device
from ner_cl_serve.batcher import Batcher
from ner_cl_serve.envelope import Draining
from ner_cl_serve.guard import Guard
from ner_cl_serve.metrics import Metrics
from ner_cl_serve.probe import read_probe
from ner_cl_serve.publisher import Publisher
from ner_cl_serve.restore import restore
from ner_cl_serve.settings import Settings
from ner_cl_serve.state import State, StateFile
from ner_cl_serve.tokens import Tokens

__all__ = ["Service", "open_service", "service_of"]

_log = logging.getLogger("ner_cl_serve")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Service:
    """The parts of a service, created before the first request."""

    settings: Settings
    metrics: Metrics
    batcher: Batcher
    publisher: Publisher
    guard: Guard
    draining: Draining


def open_service(model: Path, settings: Settings) -> Service:
    """Reads the model and all files that the settings name.

    Args:
        model: the model to start with, unless another one was published since.
        settings: of the service.

    Raises:
        ConfigError: if a file that the settings name cannot be used.
        ModelError: if the model cannot be read.
    """
    resolve_device(settings.device)  # fails early, before a model is read
    tokens = Tokens() if settings.tokens is None else Tokens.read(settings.tokens)
    probe = read_probe(settings.probe)
    file = StateFile(settings.state)
    served, state, kept = restore(model, settings, file)
    _write_first(file, kept)
    metrics = Metrics()
    metrics.show_model(served.version)
    batcher = Batcher(settings.batching, metrics)
    publisher = Publisher(served, state, file, settings=settings, probe=probe, batcher=batcher)
    return Service(
        settings=settings,
        metrics=metrics,
        batcher=batcher,
        publisher=publisher,
        guard=Guard(tokens, settings.access),
        draining=Draining(),
    )


def service_of(request: Request) -> Service:
    """The service that received a request."""
    service: Service = request.app.state.service
    return service


def _write_first(file: StateFile, state: State) -> None:
    """Writes the state at startup, so that an unwritable file shows before the first publication."""
    try:
        file.write(state)
    except OSError as error:
        raise ConfigError(
            f"{file.path}: cannot be written ({error.strerror}); give another --state, or --state none to forget what "
            "is published when the service stops"
        ) from error
