"""The process: uvicorn around the application, and a stop that loses no request."""

import asyncio
import contextlib
import functools
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, final

import uvicorn
from prometheus_client import disable_created_metrics

from ner_cl.errors import ConfigError
from ner_cl_serve.app import create_app
from ner_cl_serve.connection import Connection
from ner_cl_serve.logs import configure_logs
from ner_cl_serve.service import Service, open_service
from ner_cl_serve.settings import Settings
from ner_cl_serve.state import StateFile

__all__ = ["run"]

_log = logging.getLogger("ner_cl_serve")
_KEEP_ALIVE_SECONDS = 65  # longer than proxies keep theirs, so that it is they who close
_LAST_REQUESTS_SECONDS = 1.0
_STUCK_SECONDS = 60  # that a client may take no more of a response, which waits for it in memory
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(model: Path, settings: Settings, *, host: str, port: int, quiet: bool = False) -> None:
    """Serves until SIGTERM or SIGINT, and returns when every accepted request is answered.

    Args:
        model: the model to begin with, unless another one was published since.
        settings: of the service.
        host: address to listen at.
        port: port to listen at; 0 for any that is free, which the log names.
        quiet: whether to log warnings and errors only.

    Raises:
        ConfigError: if a setting cannot be used, or the port is taken.
        ModelError: if the model cannot be read.
    """
    configure_logs(logging.WARNING if quiet else logging.INFO)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each
    with (
        _bound(host, port) as listening,
        StateFile(settings.state).held(),
    ):  # before a model is read, which takes a while
        service = open_service(model, settings)
        config = uvicorn.Config(
            create_app(service),
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.stop_seconds),
        )
        _Server(config, service).run(sockets=[listening])
        _log.info("stopped")


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, which does not listen yet."""
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # of every connection that is accepted
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _STUCK_SECONDS)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error
    return bound


@final
class _Server(uvicorn.Server):
    """Stops in three stages: says that it is not ready, stops accepting, and finishes what it accepted."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says where it listens, once it does."""
        await super().startup(sockets)
        for listening in sockets or ():
            address, port = listening.getsockname()[:2]
            facts = {"host": address, "port": port, "model": self._service.publisher.current.version}
            _log.info("serving", extra={"facts": facts})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers on for a while, so that whoever sends requests here learns to send them elsewhere."""
        self._service.draining.begun = True
        _log.info("stopping")
        await self._pause(self._service.settings.drain_seconds)
        for listening in sockets or ():
            await self._take_in(listening)
        for server in self.servers:
            server.close()
        # uvicorn is about to close every connection without a request: also those whose request is on its way.
        await self._pause(_LAST_REQUESTS_SECONDS, while_connected=True)
        await super().shutdown(sockets)

    async def _take_in(self, listening: socket.socket) -> None:
        """Accepts the connections that wait for it: closing the socket would reset them."""
        loop = asyncio.get_running_loop()
        protocol: Any = functools.partial(
            cast(Any, self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        listening.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                await loop.connect_accepted_socket(protocol, listening.accept()[0])

    async def _pause(self, seconds: float, *, while_connected: bool = False) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.force_exit:
            if while_connected and not self.server_state.connections:
                break
            await asyncio.sleep(0.02)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Lets SIGTERM end the process in peace, with exit code 0: uvicorn would raise it once more at the end."""
        if sys.platform == "win32":
            with super().capture_signals():
                yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
