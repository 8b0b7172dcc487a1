"""Errors that `ner_cl` raises on purpose.

    NerClError
    ├── ConfigError      a configuration file, key or value is wrong
    ├── DataError        a corpus, a sentence or a stream is wrong
    ├── ModelError       a model folder, encoder or label set is wrong
    ├── TrainingError    training cannot go on (a non-finite loss, a broken checkpoint)
    ├── CheckFailed      a check asked for by the user failed (the forgetting gate)
    └── MissingExtra     an optional dependency is not installed

Every message is one line that says what is wrong, where (file:line or key path) and what to do. The command line
turns a `CheckFailed` into exit code 1 and every other one into exit code 2.
"""

__all__ = ["CheckFailed", "ConfigError", "DataError", "MissingExtra", "ModelError", "NerClError", "TrainingError"]


class NerClError(Exception):
    """Base of all errors that `ner_cl` raises on purpose; catch it to catch them all."""


class ConfigError(NerClError):
    """A configuration file, key or value is wrong; the message names the key path."""


class DataError(NerClError):
    """A corpus, a sentence or a stream is wrong; the message names file and line where there is one."""


class ModelError(NerClError):
    """A model folder, an encoder or a label set cannot be used as asked."""


class TrainingError(NerClError):
    """Training cannot go on, for instance because a loss is not finite."""


class CheckFailed(NerClError):
    """A check that the user asked for did not hold, such as the forgetting gate `--max-drop`."""


class MissingExtra(NerClError):
    """An optional dependency is not installed; the message says which `pip install` to run."""
