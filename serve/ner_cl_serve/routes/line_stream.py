"""A response of JSON objects, one per line, produced while it is sent."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import final

import anyio
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

__all__ = ["NDJSON", "LineStream"]

NDJSON = "application/x-ndjson"


@final
class LineStream(StreamingResponse):
    """A stream that releases its resources however it ends, even if it never starts or the client stops reading.

    Args:
        lines: the lines to send.
        held: resources to close at the end.
        seconds: how long the client may take per line.
    """

    def __init__(self, lines: AsyncIterator[bytes], held: AsyncExitStack, *, seconds: float) -> None:
        super().__init__(lines, media_type=NDJSON)
        self._held, self._seconds = held, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, then closes `held`."""

        async def send_in_time(message: Message) -> None:
            try:
                with anyio.fail_after(self._seconds):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None  # or as good as gone

        async with self._held:
            await super().__call__(scope, receive, send_in_time)
