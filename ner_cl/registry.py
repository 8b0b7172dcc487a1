"""Named tables of exchangeable parts (strategies, heads, readers …), open to third parties by entry points."""

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
    """Maps a name to a part; the built-in modules are imported at the first look-up, not at import time.

    Args:
        kind: what the parts are, for messages ("strategy").
        modules: modules whose import registers the built-in parts.
        group: entry point group that third parties register under.
    """

    def __init__(self, kind: str, *, modules: tuple[str, ...], group: str) -> None:
        self.kind = kind
        self._modules = modules
        self._group = group
        self._parts: dict[str, T] = {}
        self._loaded = self._loading = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a part under `name`; ConfigError if the name is taken by another part."""

        def add(part: T) -> T:
            if name in self._parts and _place(part) != _place(self._parts[name]):  # a module may be imported anew
                raise ConfigError(f"{self.kind} {name!r} is registered twice; choose another name")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        """The part called `name`; ConfigError with the nearest valid name otherwise."""
        self._load()
        if name not in self._parts:
            raise ConfigError(
                f"unknown {self.kind} {name!r}{nearest(name, self._parts)}; known: {', '.join(sorted(self._parts))}"
            )
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        """Whether a part of that name exists."""
        self._load()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        self._load()
        return iter(sorted(self._parts))

    def _load(self) -> None:
        """Imports all parts; of several threads that ask at once, the others wait.

        What fails to be imported fails again at the next look-up.
        """
        with self._lock:
            if self._loaded or self._loading:  # a part that looks up another while it is imported finds what is there
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
    """Where a part is defined."""
    return getattr(part, "__module__", ""), getattr(part, "__qualname__", repr(part))


def nearest(name: str, valid: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the closest valid name, or ""."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


strategies: Registry[type] = Registry("strategy", modules=("ner_cl.strategies",), group="ner_cl.strategies")
heads: Registry[type] = Registry("head", modules=("ner_cl.model.heads",), group="ner_cl.heads")
readers: Registry[object] = Registry("format", modules=("ner_cl.data.readers",), group="ner_cl.readers")
subnetworks: Registry[type] = Registry(
    "kind of sub-networks", modules=("ner_cl.model.subnetworks",), group="ner_cl.subnetworks"
)
