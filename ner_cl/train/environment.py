"""The machine and software that a run was made with."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = ["ENVIRONMENT_KEYS", "environment"]

PACKAGES = ("ner-cl", "torch", "transformers", "tokenizers", "accelerate", "spacy", "datasets", "seqeval", "numpy")
ENVIRONMENT_KEYS = ("python", "packages", "platform", "cpu", "cores", "threads", "gpu", "git")


def environment() -> dict[str, Any]:
    """Collects versions, machine and source revision for `env.json`."""
    return {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_revision(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The Git revision of the working directory, if it is a checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
