"""The search space of a sweep: one dimension per configuration key."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, TypeAlias

import yaml

from ner_cl.errors import ConfigError

__all__ = ["Dimension", "check_values", "parse_search", "read_search"]

Value: TypeAlias = bool | int | float | str | None

# What a sweep opens once for all trials, or does not use.
_FIXED = ("gate", "output", "stream", "sweep", "tracker", "training.precision")
_MOST_COMBINATIONS = 1000

_RANGE = re.compile(r"\s*(?P<low>\S+?)\s*\.\.\s*(?P<high>[^\s:]+)\s*(?P<log>:\s*log)?\s*")


@dataclass(frozen=True, slots=True)
class Dimension:
    """The possible values of one key: a range of numbers, or a list.

    Attributes:
        key: key path in the configuration, such as `training.optimizer.lr`.
        low: smallest value of a range.
        high: largest value of a range.
        log: whether a range is searched on a logarithmic scale.
        choices: the values of a list; empty for a range.
    """

    key: str
    low: int | float = 0.0
    high: int | float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether a range consists of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


def read_search(items: Sequence[str]) -> dict[str, Any]:
    """Converts `key=low..high`, `key=low..high:log` and `key=[a, b]` to the form used in a configuration.

    Raises:
        ConfigError: if an item has no `=`, or its values are not valid YAML.
    """
    search = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--search {item}: write it as key=low..high, key=low..high:log or key=[a, b]")
        search[key.strip()] = _yaml(text, item)
    return search


def parse_search(search: Mapping[str, Any]) -> list[Dimension]:
    """Parses and checks the dimensions, in the order given.

    Raises:
        ConfigError: naming the key and how to write its values.

    Example:
        >>> parse_search({"training.epochs": "2..8", "head.name": ["addner", "extendner"]})[0].whole
        True
    """
    if not search:
        raise ConfigError(
            "sweep.search: names no key to search; give for instance --search training.optimizer.lr=1e-5..1e-3:log"
        )
    for key in search:
        for fixed in _FIXED:
            if key == fixed or key.startswith(f"{fixed}."):
                raise ConfigError(
                    f"sweep.search.{key}: every trial has the same {fixed}; search options of the encoder, the head, "
                    "the strategies or training"
                )
    return [_dimension(key, value) for key, value in search.items()]


def check_values(dimensions: Sequence[Dimension], valid: Callable[[Mapping[str, Value]], object]) -> None:
    """Checks that each value of a list, and both ends of a range, are part of some valid combination.

    Args:
        dimensions: the search space.
        valid: raises ConfigError for a combination that is not valid.

    Raises:
        ConfigError: what is wrong with the first value that is not.
    """
    values = [dimension.choices or (dimension.low, dimension.high) for dimension in dimensions]
    wrong: dict[tuple[str, Value], ConfigError] = {}
    found: set[tuple[str, Value]] = set()
    for combination in islice(product(*values), _MOST_COMBINATIONS):
        items = [(dimension.key, value) for dimension, value in zip(dimensions, combination, strict=True)]
        try:
            valid(dict(items))
            found.update(items)
        except ConfigError as error:
            for item in items:
                wrong.setdefault(item, error)
    for item, why in wrong.items():
        if item not in found:
            raise why


def _dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, list):
        if not value or any(isinstance(item, list | dict) for item in value):
            raise ConfigError(f"sweep.search.{key}: a list holds single values, such as [adamw, sgd]")
        return Dimension(key, choices=tuple(value))
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"sweep.search.{key}: {value!r} is no range; write low..high, low..high:log, or a list")
    low, high = (_number(match[name], key) for name in ("low", "high"))
    if low >= high or (match["log"] and low <= 0):
        raise ConfigError(f"sweep.search.{key}: {value} is empty; the lower end comes first, above 0 for :log")
    return Dimension(key, low, high, log=match["log"] is not None)


def _number(text: str, key: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    except ValueError:
        raise ConfigError(f"sweep.search.{key}: {text!r} is no number") from None


def _yaml(text: str, item: str) -> Any:
    """Parses YAML, so that a list becomes a list and a range stays text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--search {item}: the values are not valid YAML") from None
