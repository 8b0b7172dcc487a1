"""Two tiny models in a folder, and services that run in a thread of the test."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from ner_cl_serve.app import create_app
from ner_cl_serve.connection import Connection
from ner_cl_serve.service import Service, open_service
from ner_cl_serve.settings import Settings
from ner_cl_serve.tokens import add_token
from tests.tiny import ALIKE, trained_model

TEXT = "Ada Smith visited Rome North and Bob saw Oslo ."


@dataclass(frozen=True)
class Running:
    """A service that listens, and a client of it."""

    service: Service
    client: httpx.Client
    url: str

    def find(self, *texts: str, **options: object) -> httpx.Response:
        """Asks for the entities of some texts."""
        return self.client.post("/v1/entities", json={"texts": list(texts), **options})

    def publish(self, **body: object) -> httpx.Response:
        """Asks for another model."""
        return self.client.post("/v1/model", json=body)


def assert_eventually(holds: Callable[[], bool]) -> None:
    """Waits for what the service does after its response has arrived."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`step2` has learned PER and LOC; `step3` knows ORG besides, untaught."""
    root = tmp_path_factory.mktemp("models")
    model = trained_model(tmp_path_factory.mktemp("encoder"), strategies=[ALIKE])
    model.history = [
        {
            "step": 1,
            "types": ["PER"],
            "sentences": 100,
            "finished": "2026-01-01T00:00:00+00:00",
            "f1_after": {"PER": 0.9},
        },
        {
            "step": 2,
            "types": ["LOC"],
            "sentences": 100,
            "f1_after": {"PER": 0.8, "LOC": None},
            "measured": {"PER": "gold"},
        },
    ]
    model.save(root / "step2")
    model.grow(["ORG"], generator=torch.Generator().manual_seed(1))
    model.save(root / "step3")
    return root


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of tokens, and the tokens by role."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    return path, {"admin": add_token(path, "Ada", "admin"), "client": add_token(path, "Bob")}


@contextmanager
def listening(service: Service, headers: dict[str, str] | None = None, *, idle_seconds: int = 65) -> Iterator[Running]:
    """Runs a service in a thread, at a port that is free."""
    config = uvicorn.Config(
        create_app(service),
        http=Connection,
        port=0,
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=idle_seconds,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.005)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            yield Running(service, client, url)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture
def serving(model_root: Path, token_file: tuple[Path, dict[str, str]]) -> Iterator[Callable[..., Running]]:
    """Starts a service with some settings; its client is an admin."""
    with ExitStack() as stack:

        def start(model: str | Path = "step2", **settings: Any) -> Running:
            path, tokens = token_file
            chosen = Settings(**{"model_root": model_root, "tokens": path, **settings})
            service = open_service(chosen.model_root / model, chosen)
            headers = {"Authorization": f"Bearer {tokens['admin']}"}
            return stack.enter_context(listening(service, headers))

        yield start


@pytest.fixture(scope="module")
def running(model_root: Path, token_file: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    """A service for tests that leave it as it is."""
    path, tokens = token_file
    service = open_service(model_root / "step2", Settings(model_root=model_root, tokens=path))
    with listening(service, {"Authorization": f"Bearer {tokens['admin']}"}) as found:
        yield found
