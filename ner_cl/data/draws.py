"""Random draws that depend on nothing but a seed and what they are for."""

import numpy as np

from ner_cl.errors import ConfigError

__all__ = ["generator"]


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return a random generator: the same seed and purpose give the same draws, other purposes independent ones.

    Raises:
        ConfigError: if the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}; choose a whole number from 0 upward")
    return np.random.default_rng([seed, *purpose.encode()])
