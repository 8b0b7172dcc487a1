"""`POST /v1/entities`: the same as the library says, and every bad request refused with one sentence."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch

from ner_cl.types import Entity
from ner_cl_serve.settings import Batching, Limits
from tests.serve.conftest import TEXT, Running, assert_eventually
from tests.tiny import tiny_model

TEXTS = [TEXT, "", "the report \U0001f600 of Ada Smith", "Oslo", "\u200b", "Bob\tmet\r\nCarla Jones ."]


def expected(running: Running, text: str, **options: object) -> list[dict[str, object]]:
    """What the library finds, as the service writes it."""
    found: list[Entity] = running.service.publisher.current.model.predict(text, **options)  # type: ignore[call-overload]
    return [
        {"start": e.start, "end": e.end, "type": e.type, "text": e.text, "score": pytest.approx(e.score, abs=1e-4)}
        for e in found
    ]


def documents(response: httpx.Response) -> list[list[dict[str, object]]]:
    assert response.status_code == 200
    return [document["entities"] for document in response.json()["documents"]]


def assert_refused(response: httpx.Response, status: int, code: str) -> str:
    """The message of an error of the right shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert response.json().keys() == {"error"}
    assert error.keys() == {"code", "message"}
    assert error["code"] == code
    message = str(error["message"])
    assert "\n" not in message
    assert 10 < len(message) < 300
    return message


# --- what comes back


def test_entities_are_those_of_the_library(running: Running) -> None:
    response = running.find(*TEXTS)
    assert documents(response) == [expected(running, text) for text in TEXTS]
    assert {"Rome North", "Bob", "Oslo"} <= {entity["text"] for entity in documents(response)[0]}
    assert response.json()["model"] == running.service.publisher.current.version
    assert response.json()["offsets"] == "code_points"


def test_a_text_longer_than_a_batch_is_read_as_the_library_reads_it(running: Running) -> None:
    text = f"{TEXT} " * 150
    assert documents(running.find(text)) == [expected(running, text)]


def test_types_and_scores_can_be_asked_for(running: Running) -> None:
    assert documents(running.find(TEXT, types=["LOC"])) == [expected(running, TEXT, types=["LOC"])]
    [everything] = documents(running.find(TEXT))
    scores = sorted(float(str(entity["score"])) for entity in everything)
    least = (scores[0] + scores[1]) / 2
    [probable] = documents(running.find(TEXT, min_score=least))
    assert probable == [entity for entity in everything if float(str(entity["score"])) >= least]
    assert len(probable) == len(everything) - 1


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_nested_entities_can_be_asked_for(head: str, serving: Callable[..., Running], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "encoder", head, steps=[["PER"], ["LOC"], ["ORG"], ["MISC"]])
    with torch.no_grad():
        model.head.blocks[0].weight.mul_(20)  # type: ignore[operator]  # or a new head that scores spans finds none
    model.save(tmp_path / "models" / "both")
    running = serving("both", model_root=tmp_path / "models")
    [flat], [nested] = documents(running.find(TEXT)), documents(running.find(TEXT, nested=True))
    assert flat == expected(running, TEXT)
    assert nested == expected(running, TEXT, nested=True)
    assert len(nested) > len(flat)


def test_offsets_count_utf16_units_where_asked_for(running: Running) -> None:
    text = "\U0001f600\U0001f600 Ada Smith"
    [points], [units] = documents(running.find(text)), documents(running.find(text, offsets="utf16"))
    for point, unit in zip(points, units, strict=True):
        start, end = int(str(unit["start"])), int(str(unit["end"]))
        assert text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le") == point["text"] == unit["text"]
    assert (points[-1]["start"], units[-1]["start"]) == (3, 5)


def test_a_stream_has_a_line_for_every_text_in_order(running: Running) -> None:
    texts = [f"{TEXT} {number}" for number in range(200)]
    with running.client.stream(
        "POST", "/v1/entities", json={"texts": texts}, headers={"Accept": "application/x-ndjson"}
    ) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in response.iter_lines()]
    assert [line["index"] for line in lines] == list(range(200))
    assert {line["model"] for line in lines} == {running.service.publisher.current.version}
    assert [line["entities"] for line in lines] == documents(running.find(*texts))


def test_how_a_stream_is_asked_for_may_be_written_in_any_case(running: Running) -> None:
    accepts = "text/html;q=0.1, APPLICATION/X-NDJSON"
    response = running.client.post("/v1/entities", json={"texts": [TEXT]}, headers={"Accept": accepts})
    assert response.headers["content-type"] == "application/x-ndjson"


def test_requests_at_the_same_time_get_their_own_answers(running: Running) -> None:
    texts = [f"Ada {number} met Bob in Oslo" for number in range(40)]
    found: dict[str, httpx.Response] = {}
    threads = [threading.Thread(target=lambda text=text: found.update({text: running.find(text)})) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {text: documents(found[text]) for text in texts} == {text: [expected(running, text)] for text in texts}


# --- what is refused

BAD_BODIES = {
    "not JSON": (b"{texts: []}", 400, "invalid_json", "not valid JSON"),
    "nothing": (b"", 400, "invalid_json", "not valid JSON"),
    "a lone surrogate": (b'{"texts": ["\\ud800"]}', 400, "invalid_json", "half of a surrogate pair stands alone"),
    "a lone surrogate in bytes": (b'{"texts": ["\xed\xa0\x80"]}', 400, "invalid_json", "not valid JSON"),
    "Latin-1": ('{"texts": ["Göttingen"]}'.encode("latin-1"), 400, "invalid_json", "not valid JSON"),
    "deep nesting": (b'{"texts": ' + b"[" * 100_000, 400, "invalid_json", "recursion"),
    "10 MB": (b'{"texts": ["' + b"x" * 10_000_000 + b'"]}', 413, "body_too_large", "1048576 bytes"),
    "a list": (b"[]", 422, "invalid_request", "must be an object"),
    "no texts": (b"{}", 422, "invalid_request", "texts is missing"),
    "an empty list": (b'{"texts": []}', 422, "invalid_request", "texts must not be empty"),
    "a string for a list": (b'{"texts": "Ada"}', 422, "invalid_request", "texts must be a list"),
    "a number for a text": (b'{"texts": ["Ada", 1]}', 422, "invalid_request", "texts[1] must be a string"),
    "NUL": (b'{"texts": ["A\\u0000da"]}', 422, "invalid_request", "texts[0] holds a NUL character"),
    "a misspelt key": (b'{"texts": ["Ada"], "tpyes": null}', 422, "invalid_request", "did you mean 'types'"),
    "a string for a score": (b'{"texts": ["Ada"], "min_score": "0"}', 422, "invalid_request", "must be a number"),
    "a score above 1": (b'{"texts": ["Ada"], "min_score": 2}', 422, "invalid_request", "min_score"),
    "a score that is none": (b'{"texts": ["Ada"], "min_score": NaN}', 422, "invalid_request", "finite"),
    "no type": (b'{"texts": ["Ada"], "types": []}', 422, "invalid_request", "types must not be empty"),
    "an unknown type": (b'{"texts": ["Ada"], "types": ["DRUG"]}', 422, "cannot_be_asked", "DRUG"),
    "too long a type": (b'{"texts": ["Ada"], "types": ["' + b"x" * 257 + b'"]}', 422, "invalid_request", "is too long"),
    "unknown offsets": (b'{"texts": ["Ada"], "offsets": "bytes"}', 422, "invalid_request", "offsets"),
    "too many texts": (b'{"texts": [' + b'"",' * 5000 + b'""]}', 422, "too_many_texts", "5001"),
    "too long a text": (b'{"texts": ["' + b"x" * 100_001 + b'"]}', 422, "text_too_long", "100001 characters"),
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_bad_body_is_refused_with_one_sentence(running: Running, kind: str) -> None:
    body, status, code, said = BAD_BODIES[kind]
    response = running.client.post("/v1/entities", content=body, headers={"Content-Type": "application/json"})
    assert said in assert_refused(response, status, code)


def test_a_body_without_a_length_is_cut_off_where_it_gets_too_large(running: Running) -> None:
    sent = 0

    def parts() -> "object":
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 65536

    response = running.client.post(
        "/v1/entities",
        content=parts(),  # type: ignore[arg-type]
        headers={"Content-Type": "application/json"},
    )
    assert_refused(response, 413, "body_too_large")
    assert sent < 1000


def test_only_json_is_read(running: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = running.client.post("/v1/entities", content=b'{"texts": ["Ada"]}', headers={"Content-Type": kind})
        assert "application/json" in assert_refused(response, 415, "not_json")


def test_what_is_nowhere_and_what_is_not_done_there_are_told_in_the_same_shape(running: Running) -> None:
    assert_refused(running.client.get("/v1/nothing"), 404, "not_found")
    assert_refused(running.client.get("/v1/entities/"), 404, "not_found")
    response = running.client.delete("/v1/model")
    assert "GET, POST" in assert_refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"


def test_a_full_queue_is_told_with_the_time_to_wait(serving: Callable[..., Running]) -> None:
    running = serving(batching=Batching(queue_requests=1))
    with running.service.batcher.admit():
        response = running.find("Ada")
        assert_refused(response, 429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
    assert running.find("Ada").status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(serving: Callable[..., Running]) -> None:
    running = serving(limits=Limits(answer_seconds=0.05))
    response = running.find(f"{TEXT} " * 2000)
    assert_refused(response, 503, "too_slow")
    assert int(response.headers["retry-after"]) >= 1


def test_a_body_that_dribbles_in_is_given_up(serving: Callable[..., Running]) -> None:
    running = serving(limits=Limits(body_seconds=0.1))
    with raw_request(running, b'{"texts": ["Ada"]', length=100) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_is_computed_no_further(running: Running) -> None:
    before = running.service.metrics.abandoned._value.get()
    body = json.dumps({"texts": [f"{TEXT} " * 2000]}).encode()
    with raw_request(running, body, length=len(body)):
        time.sleep(0.2)
    assert_eventually(lambda: running.service.metrics.abandoned._value.get() > before)


def test_a_client_that_leaves_while_it_sends_is_no_failure(
    serving: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = serving()
    raw_request(running, b'{"texts": ["Ada"', length=100).close()
    left = running.service.metrics.requests.labels("/v1/entities", "POST", "499")
    assert_eventually(lambda: left._value.get() == 1)
    assert running.find("Ada").status_code == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def raw_request(running: Running, body: bytes, *, length: int) -> socket.socket:
    """A connection on which a request was sent, or a part of one."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = "POST /v1/entities HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return connection
