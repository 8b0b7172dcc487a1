"""A response of JSON objects, one a line, that is made while it is sent."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import final

import anyio
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

__all__ = ["NDJSON", "LineStream"]

NDJSON = "application/x-ndjson"


@final
class LineStream(StreamingResponse):
    """A stream that lets go of what it holds however it ends: also if it never began, or its reader stops reading.

    Args:
        lines: what is sent.
        held: left at the end.
        seconds: that the reader may take for a line.
    """

    def __init__(self, lines: AsyncIterator[bytes], held: AsyncExitStack, *, seconds: float) -> None:
        super().__init__(lines, media_type=NDJSON)
        self._held, self._seconds = held, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""

        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(self._seconds):
                await send(message)

        async with self._held:
            await super().__call__(scope, receive, send_in_time)
