"""The server process: runs the application in uvicorn and stops without losing a request."""

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
_KEEP_ALIVE_SECONDS = 65  # longer than proxies' timeouts, so that proxies close first
_LAST_REQUESTS_SECONDS = 1.0
_STUCK_SECONDS = 60  # how long a client may stop receiving a response, which is held in memory
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(model: Path, settings: Settings, *, host: str, port: int, quiet: bool = False) -> None:
    """Serves until SIGTERM or SIGINT, and returns once every accepted request is answered.

    Args:
        model: the model to start with, unless another one was published since.
        settings: of the service.
        host: address to listen on.
        port: port to listen on; 0 picks a free one, which the log names.
        quiet: whether to log warnings and errors only.

    Raises:
        ConfigError: if a setting cannot be used, or the port is taken.
        ModelError: if the model cannot be read.
    """
    configure_logs(logging.WARNING if quiet else logging.INFO)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # an extra series per metric
    with (
        _bound(host, port) as listening,
        StateFile(settings.state).held(),
    ):  # before the model is read, which takes a while
        service = open_service(model, settings)
        with _told(host, port):  # another program may have begun to listen meanwhile
            listening.listen()
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
    """A socket bound to the address, not yet listening: clients shall not wait until the model is read."""
    with _told(host, port), contextlib.ExitStack() as failing:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = failing.enter_context(socket.socket(family, kind, protocol))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # inherited by every accepted connection
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _STUCK_SECONDS)
        bound.bind(address)
        failing.pop_all()
    return bound


@contextlib.contextmanager
def _told(host: str, port: int) -> Iterator[None]:
    """Says at which address it failed if one cannot listen."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter for a name such as `a..b`
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({reason})") from error


@final
class _Server(uvicorn.Server):
    """Stops in three stages: reports not ready, stops accepting, and finishes accepted requests."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Logs the address once the server is listening."""
        await super().startup(sockets)
        for listening in sockets or ():
            address, port = listening.getsockname()[:2]
            facts = {"host": address, "port": port, "model": self._service.publisher.current.version}
            _log.info("serving", extra={"facts": facts})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Keeps answering for a while first, so that load balancers can redirect requests."""
        self._service.draining.begun = True
        _log.info("stopping")
        await self._pause(self._service.settings.drain_seconds)
        for listening in sockets or ():
            await self._take_in(listening)
        for server in self.servers:
            server.close()
        # uvicorn will close every connection without a request, even if one is on its way: wait for those.
        await self._pause(_LAST_REQUESTS_SECONDS, while_connected=True)
        await super().shutdown(sockets)

    async def _take_in(self, listening: socket.socket) -> None:
        """Accepts the connections still in the backlog: closing the socket would reset them."""
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
        """Lets SIGTERM or SIGINT end the process with exit code 0: uvicorn would raise the signal again at the end."""
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
