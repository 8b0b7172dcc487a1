"""Peak memory of a step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ner_cl.train import memory
from ner_cl.train.memory import peak_memory, reset_peak_memory

BYTES = 96 * 2**20

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its own memory is counted")


_MEASURE = f"""
import numpy as np
from ner_cl.train.memory import peak_memory, reset_peak_memory
reset_peak_memory()
print(peak_memory())
block = np.ones({BYTES}, dtype=np.uint8)
del block
print(peak_memory())
reset_peak_memory()
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak begin anew")
def test_the_peak_sees_what_was_let_go_and_begins_anew() -> None:
    """In a process of its own: what other tests left behind would be counted too."""
    found = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True, timeout=300)
    before, after, anew = map(int, found.stdout.split())
    assert after >= before + 0.9 * BYTES
    assert anew < before + 0.5 * BYTES


def test_without_proc_the_peak_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "nowhere" / "clear")
    reset_peak_memory()
    assert peak_memory() > 2**20
