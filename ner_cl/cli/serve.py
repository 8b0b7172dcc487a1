"""`ner-cl serve`: run the tagger as an HTTP service."""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ner_cl.cli.console import talk
from ner_cl.errors import ConfigError, MissingExtra

__all__ = ["serve"]

_STATE = ".ner-cl-serve.json"
_ACCESS = ("local", "open", "token")

Model: TypeAlias = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder to start with.")]
Host: TypeAlias = Annotated[str, typer.Option("--host", help="Address to listen on.")]
Port: TypeAlias = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free one.")]
Root: TypeAlias = Annotated[
    Path | None,
    typer.Option("--model-root", metavar="DIR", help="Folder to publish models from; that of MODEL by default."),
]
State: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--state", metavar="FILE|none", help=f"Records the published model; {_STATE} in --model-root by default."
    ),
]
Tokens: TypeAlias = Annotated[
    Path | None, typer.Option("--tokens", metavar="FILE", help="File of hashed tokens; without it nobody may publish.")
]
Who: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--access",
        metavar="local|open|token",
        help="Whose queries are answered: local (requests to a local host name), open (all), token (all with a token). "
        "By default local on 127.0.0.1, else token. Publishing always needs a token.",
    ),
]
Probe: TypeAlias = Annotated[
    Path | None, typer.Option("--probe", metavar="TXT", help="Texts that a new model is compared on, one per line.")
]
Device: TypeAlias = Annotated[str, typer.Option("--device", help="cpu, cuda:0, or auto for a GPU if there is one.")]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Number of threads for prediction on a CPU.")
]
BatchTokens: TypeAlias = Annotated[
    int, typer.Option("--batch-tokens", min=16, help="Maximum number of word pieces per batch.")
]
WaitMs: TypeAlias = Annotated[
    float, typer.Option("--wait-ms", min=0, max=1000, help="Milliseconds a text may wait for others to join.")
]
QueueRequests: TypeAlias = Annotated[
    int, typer.Option("--queue-requests", min=1, help="Maximum number of open requests; beyond it, 429.")
]
QueueTokens: TypeAlias = Annotated[
    int, typer.Option("--queue-tokens", min=1, help="Maximum number of waiting word pieces; beyond it, 429.")
]
MaxBytes: TypeAlias = Annotated[
    int, typer.Option("--max-body-bytes", min=1, help="Maximum size of a request, in bytes.")
]
MaxTexts: TypeAlias = Annotated[int, typer.Option("--max-texts", min=1, help="Maximum number of texts per request.")]
MaxCharacters: TypeAlias = Annotated[
    int, typer.Option("--max-characters", min=1, help="Maximum number of characters per text.")
]
AnswerSeconds: TypeAlias = Annotated[
    float, typer.Option("--answer-seconds", min=0.1, max=86400, help="Seconds after which a waiting request gets 503.")
]
DrainSeconds: TypeAlias = Annotated[
    float,
    typer.Option(
        "--drain-seconds", min=0, max=3600, help="Seconds for which requests are still accepted after SIGTERM."
    ),
]
StopSeconds: TypeAlias = Annotated[
    float, typer.Option("--stop-seconds", min=0, max=3600, help="Seconds that accepted requests may take after that.")
]


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model_root: Root = None,
    state: State = None,
    tokens: Tokens = None,
    access: Who = None,
    probe: Probe = None,
    device: Device = "auto",
    threads: Threads = None,
    batch_tokens: BatchTokens = 1024,
    wait_ms: WaitMs = 2.0,
    queue_requests: QueueRequests = 256,
    queue_tokens: QueueTokens = 65536,
    max_body_bytes: MaxBytes = 1048576,
    max_texts: MaxTexts = 1024,
    max_characters: MaxCharacters = 100000,
    answer_seconds: AnswerSeconds = 60.0,
    drain_seconds: DrainSeconds = 1.0,
    stop_seconds: StopSeconds = 30.0,
) -> None:
    """Serve a model over HTTP, with a page at /.

    Needs the extra serve: pip install "ner-cl[serve]". Logs are JSON lines on stderr. After SIGTERM, requests already
    accepted are still answered, and the exit code is 0.
    """
    root = model_root if model_root is not None else model.absolute().parent
    protected = _access(access, host, tokens)
    _prepare_torch(threads)
    settings, run = _service()
    chosen = settings.Settings(
        model_root=root,
        state=None if state == "none" else root / _STATE if state is None else Path(state),
        tokens=tokens,
        access=protected,
        probe=probe,
        device=device,
        drain_seconds=drain_seconds,
        stop_seconds=stop_seconds,
        limits=settings.Limits(
            body_bytes=max_body_bytes, texts=max_texts, characters=max_characters, answer_seconds=answer_seconds
        ),
        batching=settings.Batching(
            batch_tokens=batch_tokens,
            wait_seconds=wait_ms / 1000,
            queue_requests=queue_requests,
            queue_tokens=queue_tokens,
        ),
    )
    run(model, chosen, host=host, port=port, quiet=talk.quiet)


def _service() -> Any:
    """Import the settings module and the function that serves."""
    try:
        from ner_cl_serve import settings
        from ner_cl_serve.server import run
    except ModuleNotFoundError as error:
        raise MissingExtra(f'serve needs {error.name}; install it with: pip install "ner-cl[serve]"') from error
    return settings, run


def _access(given: str | None, host: str, tokens: Path | None) -> str:
    """Return the access mode; a service that others can reach is open only if that is asked for explicitly."""
    if given not in (None, *_ACCESS):
        raise ConfigError(f"--access {given!r}: is none of {', '.join(_ACCESS)}")
    access = given or ("local" if _is_loopback(host) else "token")
    if access == "token" and tokens is None:
        what = "--access token" if given == "token" else f"--host {host} lets others reach the service, which"
        raise ConfigError(
            f"{what} needs --tokens FILE; make one with: python -m ner_cl_serve.tokens FILE NAME"
            f"{'' if given == 'token' else ' (or let everybody in with --access open)'}"
        )
    return access


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _prepare_torch(threads: int | None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a service reads only the folders it is given
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
