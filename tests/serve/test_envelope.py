"""What is answered and counted when a request does not come to its end."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from ner_cl_serve.envelope import Draining, Envelope
from ner_cl_serve.metrics import Metrics

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


class Application:
    """Starts its response if asked to, then fails, returns, or waits for ever.

    Args:
        begins: whether the response starts.
        fails: what is raised; None to return.
        waits: whether to wait to be cancelled before that.
    """

    def __init__(self, *, begins: bool, fails: type[Exception] | None = None, waits: bool = False) -> None:
        self.begins, self.fails, self.waits = begins, fails, waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.begins:
            await send(START)
            await send({"type": "http.response.body", "body": b"{}\n", "more_body": True})
        if self.waits:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails


def answered(application: Application) -> tuple[list[Message], dict[str, float]]:
    """What an application sends that is cancelled unless it ends, and how many requests of each status are counted."""
    metrics = Metrics()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    async def ask() -> None:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "raw_path": b"/", "query_string": b"", "headers": []}
        envelope = Envelope(application, metrics=metrics, draining=Draining())
        task = asyncio.create_task(envelope(scope, receive, send))
        await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError, ValueError):
            await task

    asyncio.run(ask())
    samples = [sample for family in metrics.requests.collect() for sample in family.samples]
    return sent, {sample.labels["status"]: sample.value for sample in samples if sample.name.endswith("_total")}


def test_a_request_that_the_stopping_service_cuts_off_is_told_like_any_other_error() -> None:
    (start, body), counted = answered(Application(begins=False, waits=True))
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert headers[b"retry-after"].isdigit()
    assert headers[b"connection"] == b"close"
    assert b"x-request-id" in headers
    assert json.loads(body["body"])["error"]["code"] == "stopping"
    assert counted == {"503": 1}


@pytest.mark.parametrize(
    ("application", "status"),
    [
        pytest.param(Application(begins=True, waits=True), "503", id="the service stops"),
        pytest.param(Application(begins=True), "499", id="the client leaves"),
        pytest.param(Application(begins=True, fails=ClientDisconnect), "499", id="the client takes no more"),
        pytest.param(Application(begins=True, fails=ValueError), "500", id="it fails"),
    ],
)
def test_a_stream_that_is_cut_off_is_not_counted_as_a_success(application: Application, status: str) -> None:
    sent, counted = answered(application)
    assert sent[-1]["more_body"] is True
    assert counted == {status: 1}
