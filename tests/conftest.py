"""Fixtures shared by all tests."""

import os

# Before torch is imported, here and in the processes that tests start: several test processes share the machine, and
# threads that wait for a core they do not get make tiny tensors ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

from tests.checked import checked

# What the import hook decorates ner_cl with (`--jaxtyping-packages`); it looks the name up as modules are imported.
jaxtyping.jaxtyped = checked

# A machine that does other things beside tests makes no test wrong.
settings.register_profile("ner_cl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ner_cl")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora that do not ship with the project; tests that need them skip where they are absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real corpora are not at hand: ../shared/data is absent")
    return folder
