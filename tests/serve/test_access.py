"""Who may ask what, and what a file of tokens must be."""

import json
import logging
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ner_cl.errors import ConfigError
from ner_cl_serve.logs import JsonFormatter
from ner_cl_serve.tokens import Tokens, add_token, main
from tests.serve.conftest import Running, assert_eventually
from tests.serve.test_entities import assert_refused

OPEN, PROTECTED, ADMIN = ("/healthz", "/readyz", "/", "/page/page.js"), ("/metrics", "/v1/model"), "/v1/model"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_without_tokens_nobody_may_publish(serving: Callable[..., Running]) -> None:
    running = serving(tokens=None)
    assert running.find("Ada").status_code == 200
    assert "--tokens" in assert_refused(running.publish(model="step3"), 403, "no_admin")


def test_an_open_service_asks_publishers_only(
    serving: Callable[..., Running], token_file: tuple[Path, dict[str, str]]
) -> None:
    running = serving()
    running.client.headers.pop("Authorization")
    assert running.find("Ada").status_code == 200
    assert all(running.client.get(path).status_code == 200 for path in (*OPEN, *PROTECTED))
    response = running.publish(model="step3")
    assert_refused(response, 401, "no_token")
    assert response.headers["www-authenticate"] == "Bearer"
    for token, status, code in (("guess", 401, "wrong_token"), (token_file[1]["client"], 403, "not_admin")):
        answer = running.client.post(ADMIN, json={"model": "step3"}, headers=bearer(token))
        assert_refused(answer, status, code)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("localhost", 200),
        ("tagger.localhost:8000", 200),
        ("ner-cl:8000", 200),
        ("attacker.example", 421),
        ("localhost.attacker.example:8000", 421),
        ("127.0.0.1.attacker.example", 421),
        ("localhost.", 421),
        ("[::1", 421),
    ],
)
def test_a_page_from_elsewhere_cannot_give_this_machine_a_name_of_its_own(
    running: Running, host: str, status: int
) -> None:
    """A name that a web page came from may be pointed to 127.0.0.1 afterwards, and is then the page's own origin."""
    for path in PROTECTED:
        assert running.client.get(path, headers={"Host": host}).status_code == status
    response = running.client.post("/v1/entities", json={"texts": ["Ada"]}, headers={"Host": host})
    assert response.status_code == status
    if status != 200:
        assert_refused(response, 421, "wrong_host")


@pytest.mark.parametrize("access", ["open", "token"])
def test_a_service_for_others_answers_to_any_name(serving: Callable[..., Running], access: str) -> None:
    assert serving(access=access).client.get("/v1/model", headers={"Host": "tagger.example"}).status_code == 200


def test_a_protected_service_asks_everybody(
    serving: Callable[..., Running], token_file: tuple[Path, dict[str, str]]
) -> None:
    running = serving(access="token")
    running.client.headers.pop("Authorization")
    for path in PROTECTED:
        assert_refused(running.client.get(path), 401, "no_token")
        assert running.client.get(path, headers=bearer(token_file[1]["client"])).status_code == 200
    assert all(running.client.get(path).status_code == 200 for path in OPEN)
    # Whoever may not ask learns nothing of what is wrong with the body either.
    assert_refused(running.client.post("/v1/entities", content=b"{"), 401, "no_token")
    assert_refused(running.client.get("/v1/model", headers={"Authorization": "Basic QTpC"}), 401, "no_token")
    strange = running.client.get("/v1/model", headers={"Authorization": b"Bearer \xff\xfe"})
    assert_refused(strange, 401, "wrong_token")


def test_the_log_tells_whose_token_was_used_and_from_where(
    serving: Callable[..., Running], token_file: tuple[Path, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ner_cl_serve")
    running = serving(access="token")
    client, admin = bearer(token_file[1]["client"]), bearer(token_file[1]["admin"])
    for headers in (client, admin, bearer("guess")):
        running.client.post(ADMIN, json={"model": "step2"}, headers=headers)
    running.client.post("/v1/entities", json={"texts": ["Ada"]}, headers=client)
    assert_eventually(lambda: len([record for record in caplog.records if record.message == "request"]) == 4)
    facts = [vars(record)["facts"] for record in caplog.records if record.message == "request"]
    assert [(one["status"], one.get("token")) for one in facts] == [
        (403, "Bob"),
        (200, "Ada"),
        (401, None),
        (200, "Bob"),
    ]
    assert {one["client"] for one in facts} == {"127.0.0.1"}
    lines = "".join(JsonFormatter().format(record) for record in caplog.records)
    assert not any(token in lines for token in token_file[1].values())


def test_tokens_are_kept_as_hashes_only(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens = [add_token(path, "Ada", "admin"), add_token(path, "Bob")]
    assert len(set(tokens)) == 2
    assert all(len(token) >= 43 for token in tokens)  # 256 bits
    assert not any(token in path.read_text() for token in tokens)
    read = Tokens.read(path)
    assert [(entry.name, entry.role) for entry in read.entries] == [("Ada", "admin"), ("Bob", "client")]
    found = read.find(tokens[1])
    assert found is not None
    assert found.name == "Bob"
    assert read.find(tokens[1][:-1]) is None
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH == 0


def test_the_program_adds_a_token_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.json"
    assert main([str(path), "Ada", "--role", "admin"]) == 0
    token = capsys.readouterr().out.strip()
    found = Tokens.read(path).find(token)
    assert found is not None
    assert found.role == "admin"
    assert main([str(path), "Ada"]) == 2
    assert "'Ada' already" in capsys.readouterr().err
    for file, name, said in ((path, " ", "needs a name"), (Path("/dev/null/tokens.json"), "Bob", "cannot be written")):
        assert main([str(file), name]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{}",
        "[]",
        '[{"name": "Ada"}]',
        json.dumps([{"name": "Ada", "role": "king", "sha256": "0" * 64}]),
        json.dumps([{"name": "Ada", "role": "admin", "sha256": 5}]),
    ],
)
def test_a_file_of_tokens_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokens.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"tokens\.json: "):
        Tokens.read(path)
