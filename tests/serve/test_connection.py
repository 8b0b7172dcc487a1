"""What arrives before there is a request: offers of another protocol, heads without an end, and what is no HTTP."""

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ner_cl_serve import server
from ner_cl_serve.service import open_service
from ner_cl_serve.settings import Settings
from tests.serve.conftest import TEXT, Running, listening

BODY = json.dumps({"texts": [TEXT]}).encode()
ASK = b"POST /v1/entities HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
# What the client of Java's own library sends with every request to an address without TLS.
HTTP2_OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.fixture
def client(running: Running) -> Iterator[socket.socket]:
    with connected(running) as found:
        yield found


def connected(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=30)


def response(client: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next response."""
    with client.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        length = 0
        while (line := lines.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, lines.read(length) if length else lines.read()


def trickle(client: socket.socket) -> None:
    """Goes on with a path, a letter at a time, for much longer than anybody should listen."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        client.sendall(b"a")
        time.sleep(0.1)


def test_an_offer_of_http2_is_passed_over_and_the_body_is_read(client: socket.socket) -> None:
    for _ in range(2):
        client.sendall(ASK % (HTTP2_OFFER, len(BODY), BODY))
        status, body = response(client)
        assert (status, len(json.loads(body)["documents"])) == (200, 1)


def test_an_offer_of_a_websocket_is_passed_over(client: socket.socket) -> None:
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert response(client)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: here\r\nX: " + b"a" * 100_000, id="head without an end"),
        pytest.param(b"GET /" + b"a" * 100_000, id="path without an end"),
        pytest.param(
            b"POST /v1/entities HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            id="broken body",
        ),
    ],
)
def test_what_is_no_request_is_refused_like_any_other(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    status, body = response(client)
    assert status == 400
    assert json.loads(body)["error"]["code"] == "not_http"
    with contextlib.suppress(ConnectionResetError):  # it was closed before all was read
        assert client.recv(1) == b""


def test_a_request_whose_end_is_ambiguous_is_refused_and_the_connection_closed(client: socket.socket) -> None:
    chunked = b"Transfer-Encoding: chunked\r\n"
    client.sendall(ASK % (chunked, len(BODY), b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)))
    status, body = response(client)
    assert (status, json.loads(body)["error"]["code"]) == (400, "two_lengths")
    assert client.recv(1) == b""


def test_a_head_that_does_not_end_is_not_waited_for(model_root: Path) -> None:
    service = open_service(model_root / "step2", Settings(model_root=model_root))
    with listening(service, idle_seconds=1) as running, connected(running) as silent, connected(running) as slow:
        slow.sendall(b"GET /")
        with pytest.raises(ConnectionError):
            trickle(slow)
        assert silent.recv(1) == b""
        assert running.client.get("/healthz").status_code == 200


def test_a_connection_serves_one_request_after_another_beyond_that_time(model_root: Path) -> None:
    service = open_service(model_root / "step2", Settings(model_root=model_root))
    with listening(service, idle_seconds=1) as running, connected(running) as client:
        for _ in range(4):
            client.sendall(ASK % (b"", len(BODY), BODY))
            assert response(client)[0] == 200
            time.sleep(0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a connection for that")
def test_a_response_that_nobody_takes_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_STUCK_SECONDS", 1)
    with server._bound("127.0.0.1", 0) as bound, socket.socket() as client:
        bound.listen()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(bound.getsockname())
        connection, _ = bound.accept()
        with connection, pytest.raises(OSError, match="timed out"):
            connection.sendall(b"x" * 20_000_000)
