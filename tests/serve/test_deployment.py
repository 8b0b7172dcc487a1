"""The files that run the service elsewhere agree with the program, and please the tools that are to read them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from ner_cl.cli.app import app
from ner_cl_serve.metrics import Metrics


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """What `ner-cl serve` understands."""
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


@pytest.fixture(scope="module")
def serve(repository: Path) -> Path:
    return repository / "serve"


def flags_in(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def checked(*command: str | Path, text: str | None = None) -> str:
    """What a tool says, if it is content; skips where there is none."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*map(str, command)], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_container_is_started_with_flags_that_exist(serve: Path, flags: set[str]) -> None:
    text = (serve / "Dockerfile").read_text()
    *_, command = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    words = json.loads(command)
    assert flags_in(words) <= flags
    assert "--host" in words
    assert text.splitlines().index("USER 10001:10001") < text.splitlines().index('ENTRYPOINT ["ner-cl", "serve"]')


def test_the_container_has_time_to_answer_what_it_accepted(serve: Path) -> None:
    [seconds] = re.findall(r"--stop-timeout (\d+)", (serve / "Dockerfile").read_text())
    assert int(seconds) > 31  # the defaults of --drain-seconds and --stop-seconds


def test_what_the_container_copies_is_there_and_not_ignored(repository: Path, serve: Path) -> None:
    ignored = (serve / "Dockerfile.dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY ((?!--from).*)$", (serve / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copies for source in line.split()[:-1]]
    assert sources
    for source in sources:
        assert (repository / source).exists()
        assert f"!{source}" in ignored


def test_compose_is_safe_and_its_flags_exist(serve: Path, flags: set[str]) -> None:
    compose = yaml.safe_load((serve / "compose.yaml").read_text())
    service = compose["services"]["ner-cl"]
    assert flags_in(service["command"]) <= flags
    for one in compose["services"].values():
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in one["ports"])
    assert (
        f"./{(serve / 'prometheus.yml').name}:/etc/prometheus/prometheus.yml:ro"
        in compose["services"]["prometheus"]["volumes"]
    )
    assert yaml.safe_load((serve / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"] == [
        {"targets": ["ner-cl:8000"]}
    ]
    volumes = {volume.split(":")[0] for one in compose["services"].values() for volume in one["volumes"]}
    assert set(compose["volumes"]) <= volumes


def test_the_unit_starts_with_flags_that_exist_and_waits_long_enough(serve: Path, flags: set[str]) -> None:
    text = (serve / "ner-cl.service").read_text()
    [command] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert flags_in(command.split()) <= flags
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(seconds) > 31  # the defaults of --drain-seconds and --stop-seconds


def test_hadolint_is_content_with_the_dockerfile(serve: Path) -> None:
    assert checked("hadolint", serve / "Dockerfile") == ""


def test_compose_reads_its_file(serve: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    monkeypatch.setenv("MODELS", str(tmp_path))
    monkeypatch.setenv("MODEL", "step2")
    assert "/models/step2" in checked("docker", "compose", "--file", serve / "compose.yaml", "config")


def test_prometheus_reads_its_file_and_the_metrics(serve: Path) -> None:
    checked("promtool", "check", "config", serve / "prometheus.yml")
    metrics = Metrics()
    metrics.show_model("step2@f3cf71ef8085")
    checked("promtool", "check", "metrics", text=metrics.text().decode())


def test_systemd_reads_the_unit(serve: Path, tmp_path: Path) -> None:
    text = (serve / "ner-cl.service").read_text()
    assert text.count("/opt/ner-cl/bin/ner-cl") == 1
    (tmp_path / "ner-cl.service").write_text(text.replace("/opt/ner-cl/bin/ner-cl", sys.executable))
    checked("systemd-analyze", "verify", tmp_path / "ner-cl.service")
