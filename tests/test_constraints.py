"""constraints.txt pins everything that pyproject.toml asks for, in its ranges."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def _asked_for() -> list[Requirement]:
    """What the package and its extras ask for, without the extras that name other extras."""
    asked_for = [Requirement(text) for text in requires("ner-cl") or []]
    return [r for r in asked_for if canonicalize_name(r.name) != "ner-cl"]


def _pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.14"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_every_dependency_has_one_tested_version(version: str, system: str) -> None:
    environment = default_environment() | {
        "python_version": version,
        "python_full_version": f"{version}.1",
        "sys_platform": system,
    }
    pins = [p for p in _pins() if p.marker is None or p.marker.evaluate(environment)]
    extras = {
        extra for r in _asked_for() if r.marker for extra in re.findall(r'extra == [\'"](.+?)[\'"]', str(r.marker))
    }
    for requirement in _asked_for():
        marker = requirement.marker
        if marker and not any(marker.evaluate(environment | {"extra": extra}) for extra in ["", *extras]):
            continue
        name = canonicalize_name(requirement.name)
        versions = [str(p.specifier).removeprefix("==") for p in pins if canonicalize_name(p.name) == name]
        assert len(versions) == 1, f"{name} has {versions or 'no version'} in constraints.txt"
        assert requirement.specifier.contains(versions[0]), f"{requirement} is not met by {versions[0]}"
