"""HTTP/1.1 connections as uvicorn handles them, plus a time limit on unfinished request heads."""

import asyncio
from typing import Any, final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ner_cl_serve.problems import Problem, problem_response

__all__ = ["Connection"]

_MESSAGE = "this is not a request of HTTP/1.1, or its head is larger than 64 KiB"
_REFUSAL = problem_response(Problem(400, "not_http", _MESSAGE, {"Connection": "close"}))


@final
class Connection(H11Protocol):
    """A connection that is closed if a request head does not arrive within the keep-alive timeout.

    It extends the one of uvicorn's two protocols that limits the size of a head and reads the body of a request that
    offers an upgrade to HTTP/2. Java's built-in client makes that offer with every request; it is never accepted.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts waiting for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handles bytes and updates the deadline."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the deadline."""
        super().connection_lost(exc)
        self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """Refuses an invalid request with the same error shape as everywhere else."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # not in the middle of a response
            head = h11.Response(status_code=400, reason=b"Bad Request", headers=_REFUSAL.raw_headers)
            for event in (head, h11.Data(data=bytes(_REFUSAL.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Always false: uvicorn would log a warning for every offer."""
        return False

    def _watch(self) -> None:
        """Starts the deadline for a request head, unless it is running already; more bytes do not extend it."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
