"""The tag vocabulary, which grows only by appending."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from ner_cl.errors import DataError, ModelError
from ner_cl.types import Span

__all__ = ["Tagset", "spans_of_tags", "tags_of_spans"]


@dataclass(frozen=True, slots=True)
class Tagset:
    """Maps entity types, in learning order, to IOB2 tag ids and back.

    Id 0 is `O`; type number i (from 0) has ids `1 + 2i` (`B-`) and `2 + 2i` (`I-`). `grow` returns a new tagset that
    keeps every old id, so the existing output columns of a head keep their meaning.

    Attributes:
        steps: the types that each step taught.
        types: all types, in learning order.

    Example:
        >>> tagset = Tagset().grow(["PER"]).grow(["LOC", "ORG"])
        >>> tagset.types, tagset.step_of("ORG"), tagset.tags[:3]
        (('PER', 'LOC', 'ORG'), 2, ('O', 'B-PER', 'I-PER'))
    """

    steps: tuple[tuple[str, ...], ...] = ()
    types: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _first_ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        types = tuple(chain.from_iterable(self.steps))
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "_first_ids", {type_: 1 + 2 * index for index, type_ in enumerate(types)})

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, in order of their ids."""
        return ("O", *(f"{prefix}-{type_}" for type_ in self.types for prefix in "BI"))

    @property
    def prefixes(self) -> tuple[int, ...]:
        """0 for the tag `O`, 1 for each `B-` tag and 2 for each `I-` tag."""
        return (0, *(1, 2) * ((len(self) - 1) // 2))

    def __len__(self) -> int:
        """Number of tags, `1 + 2 · types`."""
        return 1 + 2 * sum(len(step) for step in self.steps)

    def grow(self, types: Sequence[str]) -> "Tagset":
        """Return a tagset with `types` added as one more step.

        Raises:
            ModelError: if `types` is empty, repeats a type or names one already learned; or if a name is `O`, blank or
                not printable.
        """
        if not types:
            raise ModelError("a step must learn at least one type; name the new types")
        known = dict(zip(self.types, (self.step_of(type_) for type_ in self.types), strict=True))
        for index, type_ in enumerate(types):
            if type_ == "O" or not type_.strip() or not type_.isprintable():
                raise ModelError(f"{type_!r} cannot be the name of a type; rename it in the data")
            if type_ in known:
                raise ModelError(f"type {type_} was already learned in step {known[type_]}; name new types only")
            if type_ in types[:index]:
                raise ModelError(f"type {type_} is named twice in one step; name it once")
        return Tagset((*self.steps, tuple(types)))

    def step_of(self, type_: str) -> int:
        """Return the step, from 1, that taught `type_`; ModelError for an unknown type."""
        for number, step in enumerate(self.steps, start=1):
            if type_ in step:
                return number
        raise ModelError(f"unknown type {type_}; this model knows {', '.join(self.types) or 'no type yet'}")

    def type_offset(self, step: int) -> int:
        """Return the number of types taught before `step` (from 1), which is the index of its first type."""
        return sum(len(types) for types in self.steps[: step - 1])

    def types_of(self, tag_ids: Iterable[int]) -> list[str]:
        """The types of some tags other than `O`, each once, in their order."""
        return list(dict.fromkeys(self.types[(tag - 1) // 2] for tag in tag_ids))

    def encode(self, spans: Iterable[Span], length: int) -> list[int]:
        """Convert spans to the tag ids of `length` words; spans of unknown types are left out.

        Raises:
            DataError: if two spans of known types share a word, which a flat tag sequence cannot express.
        """
        return tags_of_spans(spans, length, self._first_ids)

    def decode(self, tag_ids: Sequence[int]) -> list[Span]:
        """Convert IOB2 tag ids to spans; an `I-` that continues no span is ignored."""
        return spans_of_tags(tag_ids, self.types)


def tags_of_spans(spans: Iterable[Span], length: int, first_id: dict[str, int]) -> list[int]:
    """Convert spans to the IOB2 ids of `length` words; `first_id[type]` is a type's `B-` id, the next its `I-` id."""
    ids = [0] * length
    for span in spans:
        begin = first_id.get(span.type)
        if begin is None:
            continue
        if any(ids[span.start : span.end]):
            raise DataError(
                f"the span {span.type} of words {span.start}..{span.end} overlaps another span, and a word has one "
                "tag; keep the longest (on_overlap: longest), or use head spankl"
            )
        ids[span.start] = begin
        for position in range(span.start + 1, span.end):
            ids[position] = begin + 1
    return ids


def spans_of_tags(tag_ids: Sequence[int], types: Sequence[str]) -> list[Span]:
    """Read IOB2 strictly: `B-` opens a span, `I-` of the same type continues it; any other `I-` is ignored."""
    spans: list[Span] = []
    start, open_type = 0, -1
    for position, tag in enumerate([*tag_ids, 0]):
        inside = tag > 0 and tag % 2 == 0 and (tag - 2) // 2 == open_type
        if open_type >= 0 and not inside:
            spans.append(Span(start, position, types[open_type]))
            open_type = -1
        if tag % 2 == 1:
            start, open_type = position, (tag - 1) // 2
    return spans
