"""The base class of all configuration sections."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from ner_cl.registry import nearest

__all__ = ["Options"]


class Options(BaseModel):
    """Base of all configuration sections: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    known = ", ".join(cls.model_fields)
                    deeper = [path for path in _paths(cls) if path.endswith(f".{key}")]
                    hint = f", did you mean {deeper[0]}?" if deeper else nearest(str(key), cls.model_fields)
                    raise ValueError(f"unknown key {str(key)!r}{hint}; known: {known}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _refuse_yes_as_a_number(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and key in cls.model_fields:
                kinds = set(_alternatives(cls.model_fields[key].annotation))
                if kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{key}: {str(value).lower()} is no number")
        return values

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the options that differ from their defaults.

        Configurations are written out with all options, so one that equals its default was not necessarily chosen.
        """
        fields = type(self).model_fields.items()
        return tuple(n for n, field in fields if getattr(self, n) != field.get_default(call_default_factory=True))


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for alternative in get_args(annotation):
            yield from _alternatives(alternative)
    else:
        yield annotation


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The key paths of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, f"{prefix}{name}.")
