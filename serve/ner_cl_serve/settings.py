"""What a service may be told when it starts: limits, batching, who may do what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Access", "Batching", "Limits", "Settings"]

Access = Literal["local", "open", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a single request may ask for.

    Attributes:
        body_bytes: of a request's body.
        body_seconds: how long a client may take to send it.
        texts: of one request.
        characters: code points of one text.
        answer_seconds: after which a request that still waits is given up with 503. A stream has no such end.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 10.0
    texts: int = 1024
    characters: int = 100_000
    answer_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How texts of different requests are computed together.

    Attributes:
        batch_tokens: word pieces computed at once, as estimated from the texts; a text above it is read in passes.
        wait_seconds: how long a text may be held back for company, where there was some a moment ago.
        queue_requests: requests that may be open at once; the next one is refused with 429.
        queue_tokens: word pieces that may wait, of short texts and of long ones; a request that does not fit in any
            more is refused with 429. Of a large request only a part waits at a time.
    """

    batch_tokens: int = 1024
    wait_seconds: float = 0.002
    queue_requests: int = 256
    queue_tokens: int = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a service is told.

    Attributes:
        model_root: folder that holds every model that may be served; none outside it is opened for a client.
        state: file that remembers which model is published; None to forget.
        tokens: file of hashed tokens; without one nobody may publish a model.
        access: `token` asks for one wherever it is not about the service's health; `open` only to publish a model;
            `local` is open under a name of this machine, so that no web page elsewhere can give it one of its own.
        probe: file of texts that a new model is tried on; the package's own by default.
        device: where models compute, such as `cpu` or `cuda:0`; `auto` is a GPU where there is one.
        drain_seconds: how long requests are still accepted after SIGTERM, while `/readyz` already says no.
        stop_seconds: how long accepted requests may take after that.
        limits: of a single request.
        batching: of texts.
    """

    model_root: Path
    state: Path | None = None
    tokens: Path | None = None
    access: Access = "local"
    probe: Path | None = None
    device: str = "cpu"
    drain_seconds: float = 1.0
    stop_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
