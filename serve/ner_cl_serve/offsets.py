"""Offsets as other programming languages count them."""

from collections.abc import Sequence
from itertools import accumulate

from ner_cl.types import Entity

__all__ = ["utf16_spans"]

_TWO_UNITS = 0x10000


def utf16_spans(text: str, entities: Sequence[Entity]) -> list[tuple[int, int]]:
    """Start and end of each entity in UTF-16 code units, as JavaScript, Java and C# index strings."""
    if text.isascii() or all(ord(character) < _TWO_UNITS for character in text):
        return [(entity.start, entity.end) for entity in entities]
    units = [0, *accumulate(2 if ord(character) >= _TWO_UNITS else 1 for character in text)]
    return [(units[entity.start], units[entity.end]) for entity in entities]
