"""What arrives before there is a request: offers of another protocol, heads without an end, and what is no HTTP."""

import http.client
import json
import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ner_cl_serve import connection, server
from ner_cl_serve.service import open_service
from ner_cl_serve.settings import Settings
from tests.serve.conftest import TEXT, Running, assert_eventually, listening

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


def trickle(client: socket.socket, piece: bytes = b"a") -> None:
    """Goes on a piece at a time, for much longer than anybody should listen."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        client.sendall(piece)
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
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: here\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", id="large head"),
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
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("sent", "route", "method"),
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", "none", "other", id="no host"),
        pytest.param(
            b"POST /v1/entities HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            "/v1/entities",
            "POST",
            id="broken body",
        ),
    ],
)
def test_what_is_refused_before_it_is_a_request_is_recorded(
    running: Running, client: socket.socket, caplog: pytest.LogCaptureFixture, sent: bytes, route: str, method: str
) -> None:
    caplog.set_level(logging.INFO, "ner_cl_serve")
    counted = running.service.metrics.requests.labels(route, method, "400")
    before = counted._value.get()
    client.sendall(sent)
    answer = client.recv(65536).decode()
    assert_eventually(lambda: counted._value.get() == before + 1)
    [facts] = [vars(record)["facts"] for record in caplog.records if record.message == "request"]
    assert (facts["status"], facts["client"]) == (400, "127.0.0.1")
    assert f"x-request-id: {facts['request_id']}" in answer.lower()
    assert "x-content-type-options: nosniff" in answer.lower()


def test_a_head_may_arrive_in_pieces_and_have_64_kib(client: socket.socket) -> None:
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\nX: " + b"a" * 60_000)
    time.sleep(0.1)
    client.sendall(b"a" * 5_000 + b"\r\n\r\n")
    assert response(client)[0] == 200


def test_a_target_may_be_a_whole_address_whose_host_counts(client: socket.socket) -> None:
    for host, status in ((b"LOCALHOST:8000", 200), (b"attacker.example", 421)):
        client.sendall(b"GET HTTP://%s/v1/%%6Dodel?x=1 HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n" % host)
        assert response(client)[0] == status


def test_a_body_that_is_refused_half_way_may_be_sent_to_its_end(running: Running) -> None:
    """As by Python's own client, which reads no response before that."""
    client = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    for number in range(3):
        client.request("POST", "/v1/entities", b"x" * (8 << 20), {"Content-Type": "application/json"})
        with client.getresponse() as answer:
            assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "body_too_large"), number


def test_nobody_is_heard_out_for_ever(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LINGER_BYTES", 100_000)
    with connected(running) as client:
        client.sendall(ASK % (b"", 100_000_000, b"x"))
        assert response(client)[0] == 413
        with pytest.raises(ConnectionError):
            trickle(client, b"a" * 10_000)


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
