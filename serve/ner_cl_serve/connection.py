"""HTTP/1.1 connections as uvicorn handles them, plus limits on request heads and a close that loses no response."""

import asyncio
from collections.abc import Callable
from typing import Any, cast, final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ner_cl_serve.envelope import HEAD_BYTES, NOT_HTTP, add_headers, facts_of, record
from ner_cl_serve.problems import problem_response

__all__ = ["Connection"]

_LINGER_SECONDS = 10
_LINGER_BYTES = 32 << 20


@final
class _Lingering:
    """A transport that hears its client out, within limits, before it is closed.

    To close a socket with unread input resets the connection, and a client that is still sending never sees the
    response (RFC 9112, 9.6).

    Args:
        transport: the transport.
        unread: whether the client may be sending something that nobody will read.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        self._transport, self._unread = transport, unread
        self._left = _LINGER_BYTES
        self._end: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def lingers(self) -> bool:
        """Whether it only waits for the client to end."""
        return self._end is not None

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Ends the response; closes the transport now or when the client is done."""
        if self.is_closing():
            return
        if not self._unread():
            self._transport.close()
            return
        self._end = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.close)
        self._transport.write_eof()
        self._transport.resume_reading()

    def discard(self, data: bytes) -> None:
        """Takes what nobody will read."""
        self._left -= len(data)
        if self._left < 0:
            self._transport.close()

    def lost(self) -> None:
        """Waits no longer."""
        if self._end is not None:
            self._end.cancel()


@final
class Connection(H11Protocol):
    """A connection that is closed if a request head does not arrive within the keep-alive timeout.

    It extends the one of uvicorn's two protocols that limits the size of a head and reads the body of a request that
    offers an upgrade to HTTP/2. Java's built-in client makes that offer with every request; it is never accepted.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = h11.Connection(h11.SERVER, HEAD_BYTES)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts waiting for the first request."""
        self._lingering = _Lingering(transport, self._is_cut_short)
        super().connection_made(cast(asyncio.Transport, self._lingering))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handles bytes and updates the deadline."""
        if self._lingering.lingers:
            self._lingering.discard(data)
            return
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the deadline."""
        super().connection_lost(exc)
        self._lingering.lost()
        self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """Refuses an invalid request with the same error shape as everywhere else."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # not in the middle of a response
            response = problem_response(NOT_HTTP)
            add_headers(response.headers, self._record_refusal())
            head = h11.Response(status_code=400, reason=b"Bad Request", headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _record_refusal(self) -> str:
        """Records that a request was refused, and returns its id."""
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if cycle is None or cycle.response_complete:
            scope: Any = {"type": "http", "method": "", "headers": [], "client": self.client}
            facts = facts_of(scope)
            record(self.app_state["metrics"], scope, NOT_HTTP.status, 0.0)
        else:  # the application has a request whose body is broken: it is to stop waiting, and records this itself
            scope = cycle.scope
            facts = facts_of(scope)
            scope["state"]["refused"] = NOT_HTTP.status
            cycle.disconnected = True
            cycle.message_event.set()
        return str(facts["request_id"])

    def _is_cut_short(self) -> bool:
        """Whether the response is complete, but not the request."""
        return self.conn.our_state in (h11.MUST_CLOSE, h11.CLOSED) and self.conn.their_state in (
            h11.SEND_BODY,
            h11.ERROR,
        )

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
