"""A stream ends with its reader, whatever that does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest
from starlette.types import Message

from ner_cl_serve.routes.line_stream import LineStream

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}


async def endless() -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0)
        yield b"{}\n"


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def leaves() -> Message:
    return {"type": "http.disconnect"}


async def reads(message: Message) -> None:
    await asyncio.sleep(0)


async def reads_nothing(message: Message) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("receive", "send"), [(leaves, reads), (stays, reads_nothing)])
def test_what_a_stream_holds_is_let_go(receive: object, send: object) -> None:
    ended: list[str] = []

    async def test() -> None:
        held = AsyncExitStack()
        held.callback(ended.append, "request")
        stream = LineStream(endless(), held, seconds=0.1)
        started = time.monotonic()
        with suppress(Exception):  # too slow a reader is an error, so that nobody takes the response for whole
            await asyncio.wait_for(stream(SCOPE, receive, send), 20)  # type: ignore[arg-type]
        assert time.monotonic() - started < 10

    asyncio.run(test())
    assert ended == ["request"]
