"""One-line error messages for invalid configurations."""

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ner_cl.errors import ConfigError

__all__ = ["first_problem", "validate"]

Section = TypeVar("Section", bound=BaseModel)

# Instead of pydantic's own messages, which speak of Python.
_PLAINER = {
    "missing": "this key is required",
    "model_type": "write a mapping of keys to values",
    "tuple_type": "write a list",
    "list_type": "write a list",
}

_NO_NUMBER = re.compile(r"(\w+): (\w+ is no number)")
# Pydantic's names of type alternatives, which are no keys.
_CHOICE = re.compile(r"(constrained-|function-|literal\[|union\[|tuple\[|(int|float|str)$)")


def validate(model: type[Section], values: Any, source: str) -> Section:
    """Runs `model.model_validate(values)`, turning pydantic's error into a one-line ConfigError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from error


def _key_of(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"] if not _CHOICE.match(str(part)))


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's errors with its key, what else that allows, and how many further keys have errors."""
    first, *others = error.errors()
    # Of the alternatives that a key allows, the one that the value came closest to.
    same = [one for one in others if f"{_key_of(one)}.".startswith(f"{_key_of(first)}.".lstrip("."))]
    problem = max([first, *same], key=lambda one: (not one["type"].endswith("_type"), len(one["loc"])))
    where = _key_of(problem)
    message = problem["msg"].removeprefix("Value error, ")
    message = _PLAINER.get(problem["type"], message)
    if problem["type"] == "tuple_type" and "steps" in problem["loc"]:
        message += "; steps are lists of types, such as [[PERSON], [LOCATION, ORGANIZATION]]"
    beside = [one for one in [first, *same] if one is not problem and _key_of(one) == where]
    message = ", or ".join([message, *(one["ctx"]["expected"] for one in beside if one["type"] == "literal_error")])
    if found := _NO_NUMBER.fullmatch(message):  # raised for the whole section
        where, message = ".".join(filter(None, [where, found[1]])), found[2]
    further = {_key_of(one) for one in others if one not in same}
    more = f" (and {len(further)} more)" if further else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"
