"""What every response gets: an id, security headers, a log line, and an entry in the metrics."""

import asyncio
import logging
import re
import secrets
import time
from typing import Any, final
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ner_cl_serve.metrics import Metrics
from ner_cl_serve.problems import Problem, problem_response

__all__ = ["HEAD_BYTES", "NOT_HTTP", "Draining", "Envelope", "add_headers", "facts_of", "record"]

_log = logging.getLogger("ner_cl_serve")

HEAD_BYTES = 64 << 10
"""Largest request line and headers."""
NOT_HTTP = Problem(
    400,
    "not_http",
    f"this is not a request of HTTP/1.1, or its head is larger than {HEAD_BYTES >> 10} KiB",
    {"Connection": "close"},
)
"""Refuses what is no request."""

_ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TWO_LENGTHS = Problem(
    400,
    "two_lengths",
    "the request has both Content-Length and Transfer-Encoding; send one of them",
    {"Connection": "close"},
)
_STOPPING = Problem(
    503,
    "stopping",
    "the service stopped before it had an answer; send this again, to another one or when it is back",
    {"Connection": "close", "Retry-After": "5"},
)
_GONE = 499  # only for the log and the metrics: the client left before it had its answer
_QUIET = ("/healthz", "/readyz", "/metrics")  # polled every few seconds by machines
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_DEFAULTS = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cache-Control": "no-store"}


@final
class Draining:
    """Whether the service is about to stop: it still answers, but closes connections."""

    def __init__(self) -> None:
        self.begun = False


@final
class Envelope:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        metrics: records every response.
        draining: whether to close connections after the response.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, draining: Draining) -> None:
        self._app, self._metrics, self._draining = app, metrics, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server omits the body
        scope = _in_origin_form(scope)
        started = time.perf_counter()
        facts = facts_of(scope)
        answer = _Answer(send, facts["request_id"], self._draining)
        otherwise = _GONE  # what is recorded if the answer does not get to its end
        try:
            problem = _fault(scope)
            application = self._app if problem is None else problem_response(problem)
            await application(scope, receive, answer)
        except ClientDisconnect:  # nobody to answer, or the connection has done so
            otherwise = scope["state"].get("refused", _GONE)
        except asyncio.CancelledError:  # the server stops, and waits no longer
            otherwise = _STOPPING.status
            if answer.status:
                raise  # too late for an error response: closes the connection, so the client notices
            await problem_response(_STOPPING)(scope, receive, answer)
        except Exception:
            otherwise = 500
            _log.exception("failed", extra={"facts": facts})
            if answer.status:
                raise
            told = f"something failed here; the log tells of request {facts['request_id']}"
            await problem_response(Problem(500, "internal_error", told))(scope, receive, answer)
        finally:
            status = answer.status if answer.complete else otherwise
            record(self._metrics, scope, status, time.perf_counter() - started)


def record(metrics: Metrics, scope: Scope, status: int, seconds: float) -> None:
    """Counts a request and logs it."""
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
    metrics.requests.labels(route, method, str(status)).inc()
    metrics.request_seconds.labels(route).observe(seconds)
    level = logging.DEBUG if route in _QUIET else logging.INFO
    if _log.isEnabledFor(level):
        head = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 1)}
        _log.log(level, "request", extra={"facts": {**head, **facts_of(scope)}})


def facts_of(scope: Scope) -> dict[str, Any]:
    """What the log is to say of a request, with its id and its client's address; the same dictionary every time."""
    facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("facts", {})
    if not facts:
        facts["request_id"] = _request_id(scope)
        if scope.get("client"):
            facts["client"] = scope["client"][0]
    return facts


def add_headers(headers: MutableHeaders, request_id: str) -> None:
    """Adds those that every response has."""
    headers.update(_HEADERS)
    headers["X-Request-Id"] = request_id
    for name, value in _DEFAULTS.items():
        headers.setdefault(name, value)


@final
class _Answer:
    """Sends a response with the headers that all of them have, and remembers how far it got.

    Args:
        send: of the server.
        request_id: for the header that names it.
        draining: whether to close the connection after the response.
    """

    def __init__(self, send: Send, request_id: str, draining: Draining) -> None:
        self._send, self._request_id, self._draining = send, request_id, draining
        self.status = 0  # until it starts
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            add_headers(headers, self._request_id)
            if self._draining.begun:
                headers["Connection"] = "close"
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)


def _in_origin_form(scope: Scope) -> Scope:
    """The request without scheme and host in its target, which then count instead of `Host` (RFC 9112, 3.2.2)."""
    found = _ABSOLUTE.match(scope["raw_path"])
    if found is None:
        return scope
    path = scope["raw_path"][found.end() :] or b"/"
    headers = [(b"host", found[1]), *((name, value) for name, value in scope["headers"] if name != b"host")]
    return {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": headers}


def _fault(scope: Scope) -> Problem | None:
    """What is wrong with a head that could be read."""
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        return _TWO_LENGTHS  # a proxy in front may disagree with the server about the end of the request
    head = len(scope["raw_path"]) + len(scope["query_string"])
    head += sum(len(name) + len(value) for name, value in scope["headers"])
    return NOT_HTTP if head > HEAD_BYTES else None


def _request_id(scope: Scope) -> str:
    """The client's own id if well-formed, else a random one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)
