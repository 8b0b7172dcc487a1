"""Finished runs on the toy corpus: one with three seeds, made once."""

from pathlib import Path

import pytest

from ner_cl.train.run import run_stream
from tests.train.toy_runs import run_config

STEPS = [["PER"], ["LOC"]]


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a run that forgets: plain fine-tuning."""
    home = tmp_path_factory.mktemp("evidence")
    for seed in (1, 2):
        output = str(home / "finetune" / f"seed-{seed}")
        run_stream(run_config(home, seed=seed, strategies=["finetune"], output=output, training={"epochs": 4}))
    return home / "finetune"
