"""Health, metrics, headers and logs."""

import asyncio
import json
import logging
from collections.abc import Callable

import pytest

from ner_cl_serve.logs import JsonFormatter, configure_logs
from tests.serve.conftest import TEXT, Running, assert_eventually
from tests.serve.test_entities import assert_refused


def test_a_service_that_runs_is_alive_and_ready(running: Running) -> None:
    assert running.client.get("/healthz").json() == {"status": "ok"}
    ready = running.client.get("/readyz").json()
    assert ready == {"status": "ready", "model": running.service.publisher.current.version}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/model", "/", "/openapi.json"])
def test_what_can_be_read_can_be_asked_for_its_head(running: Running, path: str) -> None:
    whole, head = running.client.get(path), running.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_a_service_that_stops_is_alive_but_not_ready(serving: Callable[..., Running]) -> None:
    running = serving()
    running.service.draining.begun = True
    assert_refused(running.client.get("/readyz"), 503, "not_ready")
    response = running.find("Ada")
    assert response.status_code == 200
    assert response.headers["connection"] == "close"
    assert running.client.get("/healthz").status_code == 200


def test_the_model_tells_its_types_and_its_history(running: Running) -> None:
    model = running.client.get("/v1/model").json()
    assert model["types"] == [{"type": "PER", "step": 1}, {"type": "LOC", "step": 2}]
    assert [step["f1"] for step in model["history"]] == [{"PER": 0.9}, {"PER": 0.8, "LOC": None}]
    assert model["history"][1]["measured"] == {"PER": "gold"}
    assert model["folder"] == "step2"
    assert "/" not in model["encoder"]


def test_metrics_count_what_happened(serving: Callable[..., Running]) -> None:
    running = serving()
    found = running.find(TEXT, "Oslo").json()["documents"]
    running.find()
    running.client.get("/v1/nothing")
    running.publish(model="nothing")
    requests = running.service.metrics.requests
    assert_eventually(lambda: requests.labels("/v1/model", "POST", "404")._value.get() == 1)
    text = running.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['ner_cl_requests_total{method="POST",route="/v1/entities",status="200"}'] == "1.0"
    assert lines['ner_cl_requests_total{method="POST",route="/v1/entities",status="422"}'] == "1.0"
    assert lines['ner_cl_requests_total{method="GET",route="none",status="404"}'] == "1.0"
    assert lines["ner_cl_texts_total"] == "2.0"
    assert lines["ner_cl_characters_total"] == str(float(len(TEXT) + 4))
    locations = [e for document in found for e in document["entities"] if e["type"] == "LOC"]
    assert lines['ner_cl_entities_total{type="LOC"}'] == str(float(len(locations)))
    assert lines['ner_cl_publications_total{outcome="model_not_found"}'] == "1.0"
    assert lines[f'ner_cl_model{{version="{running.service.publisher.current.version}"}}'] == "1.0"


def test_every_response_has_security_headers_and_an_id(running: Running) -> None:
    for path in ("/", "/page/page.css", "/healthz", "/v1/model", "/v1/nothing"):
        headers = running.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert len(headers["x-request-id"]) == 16
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("a" * 65, False), ("a b", False), ('"', False)])
def test_a_plain_request_id_is_kept(running: Running, given: str, kept: bool) -> None:
    answered = running.client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert (answered == given) is kept


def test_logs_are_json_and_hold_no_text(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ner_cl_serve")
    running.find("Secretive Ada", "Bob")
    running.find("Secretive\0")
    running.client.get("/Secretive?q=Secretive")
    assert_eventually(lambda: len(caplog.records) >= 3)
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert len(lines) == 3
    assert not any("Secretive" in line for line in lines)
    first = json.loads(lines[0])
    assert (first["event"], first["status"], first["texts"], first["characters"]) == ("request", 200, 2, 16)


def test_everything_that_is_logged_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logs()
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=ValueError("Secretive Ada"))
        logging.getLogger("uvicorn.error").info("not of interest")
        logging.getLogger("uvicorn.error").error("recorded by the envelope", exc_info=asyncio.CancelledError())
        logging.getLogger("ner_cl_serve").info("serving")
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["Task exception was never retrieved", "serving"]
    assert "Secretive" not in lines[0]


def test_what_fails_is_logged_without_its_message(
    serving: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = serving()

    def fail(*args: object, **options: object) -> None:
        raise ValueError("about Secretive Ada")

    monkeypatch.setattr(type(running.service.publisher.current.model), "predict", fail)
    response = running.find("Secretive Ada")
    assert_refused(response, 500, "internal_error")
    monkeypatch.undo()
    assert running.find("Bob").status_code == 200
    lines = [JsonFormatter().format(record) for record in caplog.records if record.exc_info]
    assert len(lines) == 1
    told = json.loads(lines[0])
    assert (told["error"], told["request_id"]) == ("ValueError", response.headers["x-request-id"])
    assert any("served.py" in place for place in told["trace"])
    assert "Secretive" not in lines[0]
