"""Connections: HTTP/1.1 as uvicorn reads it, with an end to what a client may leave unfinished."""

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
    """A connection on which the head of a request arrives within the time that an idle one is kept, or never.

    Of uvicorn's two protocols it is the one that bounds the size of a head, and that reads the body of a request which
    offers to go on in HTTP/2: Java's own client makes that offer with every request. It is not taken up.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        super().connection_lost(exc)
        self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no request, in the shape of every other error."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # and not in the middle of a response
            head = h11.Response(status_code=400, reason=b"Bad Request", headers=_REFUSAL.raw_headers)
            for event in (head, h11.Data(data=bytes(_REFUSAL.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Never; uvicorn would warn of it each time."""
        return False

    def _watch(self) -> None:
        """Waits for the rest of a head from its first byte, whatever arrives of it meanwhile."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
