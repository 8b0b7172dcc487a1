"""Registries of interchangeable parts (strategies, heads, readers …), which third parties extend by entry points."""

import difflib
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from ner_cl.errors import ConfigError

__all__ = ["Registry", "heads", "nearest", "readers", "strategies", "subnetworks"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to parts; the built-in modules are imported at the first look-up, not at import time.

    Args:
        kind: what the parts are, for messages ("strategy").
        modules: modules that register the built-in parts when imported.
        group: entry point group for third-party parts.
    """

    def __init__(self, kind: str, *, modules: tuple[str, ...], group: str) -> None:
        self.kind = kind
        self._modules = modules
        self._group = group
        self._parts: dict[str, T] = {}
        self._loaded = self._loading = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers a part as `name`; ConfigError if another part has that name."""

        def add(part: T) -> T:
            if name in self._parts and _place(part) != _place(self._parts[name]):  # a module may be imported again
                raise ConfigError(f"{self.kind} {name!r} is registered twice; choose another name")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        """Returns the part called `name`; ConfigError suggesting the closest valid name if there is none."""
        self._load()
        if name not in self._parts:
            raise ConfigError(
                f"unknown {self.kind} {name!r}{nearest(name, self._parts)}; known: {', '.join(sorted(self._parts))}"
            )
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        """Whether a part with that name exists."""
        self._load()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        """Iterates over the sorted names."""
        self._load()
        return iter(sorted(self._parts))

    def _load(self) -> None:
        """Imports all parts once; concurrent threads wait for the first one.

        A failed import is tried again at the next look-up.
        """
        with self._lock:
            if self._loaded or self._loading:  # a look-up during loading sees the parts loaded so far
                return
            self._loading = True
            try:
                for module in self._modules:
                    import_module(module)
                for entry in entry_points(group=self._group):
                    try:
                        entry.load()
                    except Exception as error:
                        raise ConfigError(
                            f"{self.kind} {entry.name!r} of {entry.value} cannot be imported ({error}); update or "
                            "uninstall the package it is from"
                        ) from error
                self._loaded = True
            finally:
                self._loading = False


def _place(part: object) -> tuple[str, str]:
    """Module and qualified name of a part."""
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", repr(part))


def nearest(name: str, valid: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the closest valid name, or ""."""
    by_sound = {each.casefold(): each for each in valid}
    close = difflib.get_close_matches(name.casefold(), list(by_sound), n=1, cutoff=0.5)
    return f", did you mean {by_sound[close[0]]!r}?" if close else ""


strategies: Registry[type] = Registry("strategy", modules=("ner_cl.strategies",), group="ner_cl.strategies")
heads: Registry[type] = Registry("head", modules=("ner_cl.model.heads",), group="ner_cl.heads")
readers: Registry[object] = Registry("format", modules=("ner_cl.data.readers",), group="ner_cl.readers")
subnetworks: Registry[type] = Registry(
    "kind of sub-networks", modules=("ner_cl.model.subnetworks",), group="ner_cl.subnetworks"
)
