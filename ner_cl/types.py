"""The basic value types used throughout: spans, sentences, entities."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from ner_cl.errors import DataError

__all__ = ["Entity", "Sentence", "Span"]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A typed mention: words `start` (inclusive) to `end` (exclusive) of a sentence, counted from 0."""

    start: int
    end: int
    type: str

    def overlaps(self, other: "Span") -> bool:
        """Whether the two spans share a word."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words, typed spans over them, and the types for which the annotation is complete.

    `annotated_types` is the heart of the data model. A word outside every span is *not* an entity of these types; it
    may be one of any other type. `O` therefore means "none of these types", never "no entity".

    Attributes:
        words: the words, in order.
        spans: sorted by position; spans of different types may overlap (nested annotation).
        annotated_types: the types for which the absence of a span means "no entity of this type".
        text: the text the words come from, if known.
        offsets: code-point offsets `(start, end)` of each word in `text`, if known.
        source: `file:line` the sentence was read from, or "".
    """

    words: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    annotated_types: frozenset[str] = frozenset()
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Sorts the spans; rejects words that are none, and spans that do not fit the words or the annotated types."""
        for name in ("words", "annotated_types"):
            if isinstance(getattr(self, name), str):
                raise DataError(f"{self.where}{name} is the text {getattr(self, name)!r}; give a list of them")
        object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "annotated_types", frozenset(self.annotated_types))
        object.__setattr__(self, "spans", tuple(sorted(self.spans)))
        if "" in self.words:
            raise DataError(f"{self.where}word {self.words.index('')} is empty; leave it out")
        for span in self.spans:
            if not 0 <= span.start < span.end <= len(self.words):
                what = f"span {span.start}..{span.end} {span.type}"
                raise DataError(f"{self.where}{what} lies outside the {len(self.words)} words; check its offsets")
            if span.type not in self.annotated_types:
                known = ", ".join(sorted(self.annotated_types)) or "none"
                raise DataError(
                    f"{self.where}a span has type {span.type}, which is not annotated here (types: {known})"
                )
        if self.offsets is not None and len(self.offsets) != len(self.words):
            raise DataError(f"{self.where}{len(self.words)} words but {len(self.offsets)} offsets")

    @property
    def where(self) -> str:
        """`"file:line: "` for error messages, or "" if the source is unknown."""
        return f"{self.source}: " if self.source else ""

    def restrict(self, types: Collection[str]) -> "Sentence":
        """The same words annotated for `types` only; other types are removed from spans and `annotated_types`."""
        wanted = frozenset(types)
        return replace(
            self,
            spans=tuple(span for span in self.spans if span.type in wanted),
            annotated_types=self.annotated_types & wanted,
        )

    def with_spans(self, spans: Iterable[Span], annotated_types: Collection[str]) -> "Sentence":
        """The same words with another annotation."""
        return replace(self, spans=tuple(spans), annotated_types=frozenset(annotated_types))


@dataclass(frozen=True, slots=True)
class Entity:
    """A predicted mention in a text.

    Attributes:
        start: first code point of the mention in the text.
        end: one past its last code point.
        type: the entity type.
        text: `text[start:end]`.
        score: probability of exactly this span and type under the model, in [0, 1].
        step: the step (from 1) that taught the model this type.
    """

    start: int
    end: int
    type: str
    text: str
    score: float
    step: int
