"""The real program: how it starts, how it stops, and what is left after a crash."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from ner_cl.cli.app import main
from ner_cl_serve import server
from ner_cl_serve.service import Service, open_service
from tests.forks import Command
from tests.serve.conftest import TEXT

pytestmark = pytest.mark.slow


class Program:
    """`ner-cl serve` in a process of its own."""

    def __init__(self, model: Path, *flags: str, within: Sequence[str] = ()) -> None:
        words = ("serve", str(model), "--port", "0", *flags)
        self.process: Command | subprocess.Popen[str]
        if within:
            command = [*within, sys.executable, "-m", "ner_cl", *words]
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        else:
            self.process = Command(*words)
        self.lines: list[dict[str, object]] = []
        self._serving = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._serving.wait(90), self.lines
        [serving] = [line for line in self.lines if line["event"] == "serving"]
        self.url = f"http://{serving['host']}:{serving['port']}"
        self.version = str(serving["model"])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == "serving":
                self._serving.set()
        self._serving.set()  # or it never will

    def end(self, number: int) -> int:
        """Sends a signal and waits for the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.join()
        return code

    def join(self) -> None:
        """Waits for the last line of an ended process."""
        self._reader.join(timeout=60)


@pytest.fixture
def start(model_root: Path, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    root = shutil.copytree(model_root, tmp_path / "models")
    started: list[Program] = []

    def run(*flags: str, within: Sequence[str] = ()) -> Program:
        started.append(Program(root / "step2", *flags, within=within))
        return started[-1]

    yield run
    for program in started:
        if program.process.poll() is None:
            program.end(signal.SIGKILL)
        assert program.process.stderr is not None
        program.process.stderr.close()


def test_after_sigterm_everything_that_was_accepted_is_answered(start: Callable[..., Program]) -> None:
    program = start("--drain-seconds", "1")
    outcomes: list[str] = []
    long: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while True:
                try:
                    response = client.post(f"{program.url}/v1/entities", json={"texts": [TEXT] * 5})
                    outcomes.append(str(response.status_code))
                    if response.headers.get("connection") == "close":
                        return  # told to go elsewhere; a connection made as the program ends need not be accepted
                except httpx.ConnectError:  # nobody listens any more: not accepted
                    return
                except httpx.HTTPError as error:
                    outcomes.append(repr(error))

    def ask_much() -> None:
        long.append(httpx.post(f"{program.url}/v1/entities", json={"texts": [f"{TEXT} " * 600]}, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(outcomes) < 12:
        assert time.monotonic() < until
        time.sleep(0.05)
    threads.append(threading.Thread(target=ask_much))
    threads[-1].start()
    time.sleep(0.3)
    before = len(outcomes)
    with httpx.Client(timeout=60) as client:
        assert client.get(f"{program.url}/readyz").status_code == 200
        program.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while (ready := client.get(f"{program.url}/readyz")).status_code == 200:
            assert time.monotonic() < until
    assert (ready.status_code, ready.headers["connection"]) == (503, "close")
    assert program.process.wait(timeout=60) == 0
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"200"}
    assert len(outcomes) > before
    assert long[0].status_code == 200
    assert len(long[0].json()["documents"][0]["entities"]) > 600
    program.join()
    assert [line["event"] for line in program.lines if line["event"] != "request"] == ["serving", "stopping", "stopped"]


@pytest.mark.parametrize(
    ("flags", "signals"),
    [
        pytest.param(["--stop-seconds", "0.1"], [signal.SIGTERM], id="time is up"),
        pytest.param([], [signal.SIGINT, signal.SIGINT], id="Ctrl-C twice"),
    ],
)
def test_what_is_cut_off_gets_an_answer_too(
    start: Callable[..., Program], flags: list[str], signals: list[signal.Signals]
) -> None:
    program = start("--drain-seconds", "0", *flags)
    cut: list[httpx.Response] = []
    body = {"texts": [f"{TEXT} " * 200] * 100}
    asking = threading.Thread(
        target=lambda: cut.append(httpx.post(f"{program.url}/v1/entities", json=body, timeout=60))
    )
    asking.start()
    with httpx.stream(
        "POST", f"{program.url}/v1/entities", json=body, headers={"Accept": "application/x-ndjson"}, timeout=60
    ) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines))["index"] == 0
        for number in signals:
            program.process.send_signal(number)
            time.sleep(0.3)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    asking.join()
    assert program.process.wait(timeout=60) == 0
    program.join()
    assert (cut[0].status_code, cut[0].json()["error"]["code"]) == (503, "stopping")
    requests = [line for line in program.lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [503, 503]
    assert not any("trace" in line for line in program.lines)


def test_after_a_crash_the_last_published_model_comes_back(
    start: Callable[..., Program], token_file: tuple[Path, dict[str, str]]
) -> None:
    path, tokens = token_file
    program = start("--tokens", str(path))
    assert program.version.startswith("step2@")
    headers = {"Authorization": f"Bearer {tokens['admin']}"}
    answer = httpx.post(f"{program.url}/v1/model", json={"model": "step3"}, headers=headers, timeout=60)
    assert program.end(signal.SIGKILL) == -signal.SIGKILL
    again = start("--tokens", str(path))
    assert again.version == answer.json()["model"]
    assert again.version.startswith("step3@")
    found = httpx.post(f"{again.url}/v1/entities", json={"texts": [TEXT]}, timeout=60)
    assert found.json()["model"] == again.version
    assert again.end(signal.SIGINT) == 0


# --- in a container, nearly

# Of the mount namespace that it is run in, everything becomes unwritable but one folder; then all rights are dropped.
_SHUT_IN = """
mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift &&
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@pytest.fixture
def shut_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs a command as a container with a root file system that cannot be written would; `writable` stays so."""
    writable = tmp_path / "writable"
    writable.mkdir()
    command = ["unshare", "--mount", "sh", "-c", _SHUT_IN, "sh", str(writable)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace")
    if not subprocess.run([*command, "touch", str(tmp_path / "other")], capture_output=True).returncode:
        pytest.skip("the folder for tests is on a file system of its own")
    monkeypatch.setenv("TMPDIR", str(writable))
    monkeypatch.setenv("HOME", str(writable))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return command


def test_it_runs_where_nothing_but_its_state_can_be_written(
    start: Callable[..., Program], shut_in: list[str], repository: Path, token_file: tuple[Path, dict[str, str]]
) -> None:
    tokens, secrets = token_file
    state = Path(os.environ["TMPDIR"]) / "published.json"
    program = start("--tokens", str(tokens), "--state", str(state), within=shut_in)
    [check] = re.findall(r"CMD (\[.*/healthz.*\])$", (repository / "serve" / "Dockerfile").read_text(), re.MULTILINE)
    _, *words = json.loads(check.replace("http://127.0.0.1:8000", program.url))
    assert subprocess.run([sys.executable, *words], timeout=30).returncode == 0
    found = httpx.post(f"{program.url}/v1/entities", json={"texts": [TEXT]}, timeout=60)
    assert found.json()["documents"][0]["entities"]
    headers = {"Authorization": f"Bearer {secrets['admin']}"}
    answer = httpx.post(f"{program.url}/v1/model", json={"model": "step3"}, headers=headers, timeout=60)
    assert answer.json()["persisted"] is True
    assert json.loads(state.read_text())["model"]["folder"] == "step3"
    assert program.end(signal.SIGTERM) == 0
    assert subprocess.run([sys.executable, *words], capture_output=True, timeout=30).returncode == 1


# --- what does not start


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Undoes what the program does to the logs of the process it thinks its own."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


@pytest.mark.usefixtures("logs_as_before")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others reach the service"),
        (["--host", "::"], "needs --tokens FILE"),
        (["--access", "token"], "--access token needs --tokens FILE"),
        (["--access", "all"], "none of local, open, token"),
        (["--tokens", "no-tokens.json"], "no-tokens.json: no such file"),
        (["--probe", "no-texts.txt"], "no-texts.txt: cannot be read"),
        (["--model-root", "."], "outside the model root"),
        (["--state", "/proc/no/state.json"], "cannot be written"),
        (["--state", "."], "is a folder"),
        (["--device", "abacus"], "device: 'abacus' cannot be used"),
        (["--stop-seconds", "inf"], "--stop-seconds"),
        (["--drain-seconds", "nan"], "--drain-seconds"),
        (["--host", "no.such.host.invalid", "--access", "open"], "cannot listen there"),
        (["--host", "a..b", "--access", "open"], "cannot listen there"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    model_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", str(model_root / "step2"), "--port", "0", "--state", "none", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ner-cl: error: ")
    assert said in line


@pytest.mark.usefixtures("logs_as_before")
def test_a_port_that_is_taken_is_told_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path / "no-model"), "--port", port]) == 2
    assert f"--port {port}: cannot listen there" in capsys.readouterr().err


@pytest.mark.usefixtures("logs_as_before")
def test_a_port_that_is_taken_while_the_model_is_read_is_told_too(
    model_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sockets may be bound to one port, as long as neither listens."""
    with server._bound("127.0.0.1", 0) as rival:
        port = str(rival.getsockname()[1])

        def read(*given: Any) -> Service:
            rival.listen()
            return open_service(*given)

        monkeypatch.setattr(server, "open_service", read)
        assert main(["serve", str(model_root / "step2"), "--port", port, "--state", "none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--port {port}: cannot listen there" in line


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('fastapi', name='fastapi')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "ner_cl", "serve", "no-model"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == 'ner-cl: error: serve needs fastapi; install it with: pip install "ner-cl[serve]"\n'


@pytest.mark.usefixtures("logs_as_before")
def test_two_services_do_not_forget_what_the_other_one_published(
    start: Callable[..., Program], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = start()
    assert httpx.get(f"{program.url}/readyz").status_code == 200
    model = tmp_path / "models" / "step2"
    assert main(["serve", str(model), "--port", "0"]) == 2
    assert "another service remembers there what it published" in capsys.readouterr().err
    other = start("--state", str(tmp_path / "other.json"))
    assert httpx.get(f"{other.url}/readyz").status_code == 200
