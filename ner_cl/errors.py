"""Errors that `ner_cl` raises deliberately.

    NerClError
    ├── ConfigError      a configuration file, key or value is wrong
    ├── DataError        a corpus, a sentence or a stream is wrong
    ├── ModelError       a model folder, encoder or label set is wrong
    ├── TrainingError    training cannot continue (a non-finite loss, a damaged checkpoint)
    ├── CheckFailed      a check requested by the user failed (the forgetting gate)
    └── MissingExtra     an optional dependency is not installed

Every message is one line that says what is wrong, where (file:line or key path) and what to do. The command line
exits with code 1 on `CheckFailed` and with code 2 on all others.
"""

__all__ = [
    "CheckFailed",
    "ConfigError",
    "DataError",
    "MissingExtra",
    "ModelError",
    "NerClError",
    "TrainingError",
    "first_line",
    "many",
]


class NerClError(Exception):
    """Base class of all errors that `ner_cl` raises deliberately; catch it to catch them all."""


class ConfigError(NerClError):
    """A configuration file, key or value is wrong; the message names the key path."""


class DataError(NerClError):
    """A corpus, a sentence or a stream is wrong; the message names file and line if known."""


class ModelError(NerClError):
    """A model folder, an encoder or a label set cannot be used as requested."""


class TrainingError(NerClError):
    """Training cannot continue, for instance because a loss is not finite."""


class CheckFailed(NerClError):
    """A check requested by the user failed, such as the forgetting gate `--max-drop`."""


class MissingExtra(NerClError):
    """An optional dependency is not installed; the message says which `pip install` to run."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, short enough for a message: its first line, else the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()[:160]


def many(count: int, noun: str) -> str:
    """A number of things, for a message: `1 mention`, `2 mentions`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
