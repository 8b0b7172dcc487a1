"""Compares a new model with the one in service on the same texts."""

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ner_cl.errors import ConfigError
from ner_cl.types import Entity
from ner_cl_serve.schemas import Agreement, Probe

__all__ = ["compare", "read_probe"]

_MOST_TEXTS = 1000


def read_probe(path: Path | None) -> list[str]:
    """The texts to try models on: the lines of a file, or the package's own texts.

    Raises:
        ConfigError: if the file holds no text or cannot be read.
    """
    source = files("ner_cl_serve") / "probe.txt" if path is None else path
    try:
        lines = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--probe {path}: cannot be read as UTF-8 text ({error}); give a text a line") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"--probe {path}: holds no text; give a text a line")
    return texts[:_MOST_TEXTS]


def compare(types: Sequence[str], old: Sequence[Sequence[Entity]], new: Sequence[Sequence[Entity]]) -> Probe:
    """Counts the spans of `types` on which two models agree.

    Args:
        types: types that both models know.
        old: what the model in service found in each text.
        new: what the new one found.
    """
    both, only_old, only_new = (Counter[str]() for _ in range(3))
    for before, after in zip(old, new, strict=True):
        was, now = ({(e.start, e.end, e.type) for e in entities} for entities in (before, after))
        both.update(type_ for _, _, type_ in was & now)
        only_old.update(type_ for _, _, type_ in was - now)
        only_new.update(type_ for _, _, type_ in now - was)
    rows = {type_: _agreement(both[type_], only_old[type_], only_new[type_]) for type_ in types}
    total = _agreement(*(sum(counts[type_] for type_ in types) for counts in (both, only_old, only_new)))
    return Probe(texts=len(old), f1=total.f1, types=rows)


def _agreement(both: int, only_old: int, only_new: int) -> Agreement:
    total = 2 * both + only_old + only_new
    return Agreement(both=both, only_old=only_old, only_new=only_new, f1=2 * both / total if total else None)
