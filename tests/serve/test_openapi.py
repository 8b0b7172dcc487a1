"""The description of the interface is kept: schemathesis asks whatever it allows, and much that it does not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from ner_cl_serve.app import create_app
from ner_cl_serve.service import open_service
from ner_cl_serve.settings import Settings
from tests.serve.conftest import Running, listening


@pytest.fixture(scope="module")
def service(model_root: Path, token_file: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    opened = open_service(model_root / "step2", Settings(model_root=model_root, tokens=token_file[0], access="token"))
    with listening(opened, {"Authorization": f"Bearer {token_file[1]['admin']}"}) as running:
        yield running


@pytest.fixture(scope="module")
def description(service: Running) -> Any:
    return schemathesis.openapi.from_dict(create_app(service.service).openapi())


OPERATIONS = [
    "GET /healthz",
    "GET /metrics",
    "GET /readyz",
    "GET /v1/model",
    "POST /v1/entities",
    "POST /v1/model",
]
# They are asked nothing, so that nothing wrong can be asked.
_IMPOSSIBLE = {("GET /healthz", "negative"), ("GET /readyz", "negative")}
# Which types the model knows shows at run time only: what the description allows may be refused all the same.
_UNKNOWN = {"POST /v1/entities": [schemathesis.checks.positive_data_acceptance]}


def operations(description: Any) -> dict[str, Any]:
    return {operation.ok().label: operation.ok() for operation in description.get_all_operations()}


def test_all_operations_are_described_and_tested(description: Any) -> None:
    assert sorted(operations(description)) == OPERATIONS


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, mode) for label in OPERATIONS for mode in ("positive", "negative") if (label, mode) not in _IMPOSSIBLE],
)
def test_every_response_is_as_described(description: Any, service: Running, label: str, mode: str) -> None:
    operation = operations(description)[label]
    headers = {"Authorization": service.client.headers["Authorization"]}

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    @settings(max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=service.url, headers=headers, excluded_checks=_UNKNOWN.get(label, []))

    ask()


def test_an_open_service_says_that_only_publishing_needs_a_token(serving: Callable[..., Running]) -> None:
    paths = serving(access="open").client.get("/openapi.json").json()["paths"]
    protected = {
        (path, method) for path, there in paths.items() for method, one in there.items() if one.get("security")
    }
    assert protected == {("/v1/model", "post")}


def test_examples_are_answered(service: Running) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    body = paths["/v1/entities"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for example in body["examples"]:
        assert service.client.post("/v1/entities", json=example).status_code == 200
    body = paths["/v1/model"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for example in body["examples"]:
        assert service.client.post("/v1/model", json={**example, "min_agreement": None}).status_code == 200
