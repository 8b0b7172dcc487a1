"""Finished runs on the toy corpus: one with three seeds, made once."""

from pathlib import Path

import pytest

from ner_cl.train.run import run_stream
from tests.train.toy_runs import run_config

# Enough to learn a type, and with plain fine-tuning to forget the one before.
WELL = {"epochs": 8, "batch_tokens": 128}


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a run that forgets: plain fine-tuning."""
    home = tmp_path_factory.mktemp("evidence")
    for seed in (1, 2):
        output = str(home / "finetune" / f"seed-{seed}")
        run_stream(run_config(home, seed=seed, strategies=["finetune"], output=output, training=WELL))
    return home / "finetune"
