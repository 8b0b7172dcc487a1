"""Settings of a service: limits, batching and access."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Access", "Batching", "Limits", "Settings"]

Access = Literal["local", "open", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a single request.

    Attributes:
        body_bytes: size of the body.
        body_seconds: how long a client may take to send it.
        texts: number of texts.
        characters: code points of one text.
        answer_seconds: longest wait for the answer, or for a stream's first line, before the request fails with 503;
            also how long a client may take to receive each line of a stream.
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
        batch_tokens: word pieces computed at once, estimated from the texts; a longer text is read in several passes.
        wait_seconds: how long a text may wait for others to join its batch, if the last batch mixed several requests.
        queue_requests: requests that may be open at once; further ones are refused with 429.
        queue_tokens: word pieces that may wait, for short and for long texts each; a request that does not fit is
            refused with 429. Only part of a large request waits at a time.
    """

    batch_tokens: int = 1024
    wait_seconds: float = 0.002
    queue_requests: int = 256
    queue_tokens: int = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a service.

    Attributes:
        model_root: folder that holds every model that may be served; clients cannot load any other.
        state: file that remembers which model is published; None to remember nothing.
        tokens: file of hashed tokens; without one, nobody may publish a model.
        access: `token` requires a token except for health checks, `/openapi.json` and the web page; `open` only to
            publish a model; `local` is `open` under local host names only, so that no foreign web page gets access.
        probe: file of texts that a new model is tried on; the package's own by default.
        device: where models compute, such as `cpu` or `cuda:0`; `auto` is a GPU if there is one.
        drain_seconds: how long requests are still accepted after SIGTERM, while `/readyz` already fails.
        stop_seconds: how long accepted requests may take after that.
        limits: of a single request.
        batching: how texts are batched and queued.
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
