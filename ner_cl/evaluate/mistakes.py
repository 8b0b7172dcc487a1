"""Mentions that a tagger lost over the steps, and those it made up: counted by their words, most frequent first."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import TypeAlias

from ner_cl.evaluate.counts import Counts
from ner_cl.types import Sentence, Span

__all__ = ["Mistake", "Occurrence", "Outcomes", "invented_mentions", "lost_mentions", "most_frequent", "outcomes"]

Found: TypeAlias = Sequence[Sequence[Span]]
"""The predicted spans of each sentence."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One wrong mention in one sentence.

    Attributes:
        sentence: index of the sentence in the test set, from 0.
        span: the lost gold mention, or the made-up one.
        instead: what the other side (prediction or gold) has there: a type, `other borders`, or `O`.
    """

    sentence: int
    span: Span
    instead: str


@dataclass(frozen=True, slots=True)
class Mistake:
    """All wrong mentions with the same words and type.

    Attributes:
        text: the words of the mention.
        type: its type.
        count: number of occurrences.
        instead: how often the other side has each type, `other borders` or `O` there.
        example: the first occurrence.
    """

    text: str
    type: str
    count: int
    example: Occurrence
    instead: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes of the gold mentions of some types, and errors among the predicted mentions of these types.

    Attributes:
        right: gold mentions found with the right boundaries and type.
        other_type: gold mentions found with the right boundaries but another type.
        other_borders: gold mentions that a prediction of any type only overlaps.
        missed: gold mentions where nothing was predicted.
        wrong_type: predictions for which gold has another type with the same boundaries.
        wrong_borders: predictions that only overlap a gold mention of any type.
        made_up: predictions where gold has nothing.
        later_type: the part of `other_type` found as a type that a later step taught, so lost to new types.
    """

    right: int = 0
    other_type: int = 0
    other_borders: int = 0
    missed: int = 0
    wrong_type: int = 0
    wrong_borders: int = 0
    made_up: int = 0
    later_type: int = 0

    @classmethod
    def total(cls, parts: Iterable["Outcomes"]) -> "Outcomes":
        """Return the sum of several outcomes."""
        columns = zip(*(astuple(part) for part in parts), strict=True)
        return cls(*map(sum, columns))

    @property
    def gold(self) -> int:
        """Number of gold mentions."""
        return self.right + self.other_type + self.other_borders + self.missed

    @property
    def found(self) -> int:
        """Number of predicted mentions."""
        return self.right + self.wrong_type + self.wrong_borders + self.made_up

    @property
    def counts(self) -> Counts:
        """The counts from which precision and recall are computed."""
        return Counts(self.right, self.found - self.right, self.gold - self.right)


def outcomes(
    gold: Sequence[Sentence], found: Found, types: Iterable[str], *, learned: Mapping[str, int] | None = None
) -> dict[str, Outcomes]:
    """Return the outcomes of each type in the sentences annotated for it.

    Each mention is compared with the mentions of all `types` on the other side. `missed` and `made_up` correspond to
    missing and spurious in MUC scoring.

    Args:
        gold: the annotated sentences.
        found: the predicted spans of each sentence.
        types: the types to evaluate.
        learned: the step that taught each type; needed only for `later_type`.
    """
    wanted = tuple(types)
    tallies: dict[str, Counter[str]] = {type_: Counter() for type_ in wanted}
    for sentence, spans in zip(gold, found, strict=True):
        asked = sentence.annotated_types.intersection(wanted)
        there, said = ([span for span in side if span.type in asked] for side in (sentence.spans, spans))
        for span in there:
            distance = _distance(span, said)
            tallies[span.type][("right", "other_type", "other_borders", "missed")[distance]] += 1
            if learned is not None and distance == 1:
                tallies[span.type]["later_type"] += learned[_instead(span, said)] > learned[span.type]
        for span in said:
            if distance := _distance(span, there):
                tallies[span.type][("wrong_type", "wrong_borders", "made_up")[distance - 1]] += 1
    return {type_: Outcomes(**tally) for type_, tally in tallies.items()}


def lost_mentions(
    gold: Sequence[Sentence], after: Mapping[int, Found], *, learned: Mapping[str, int]
) -> Iterator[Occurrence]:
    """Yield gold mentions that were found right after the step that taught their type but not after the last step.

    Args:
        gold: the test set, annotated for all types.
        after: predictions by step; types whose step is missing are left out.
        learned: the step that taught each gold type.
    """
    last = max(after)
    for number, sentence in enumerate(gold):
        for span in sentence.spans:
            step = learned[span.type]
            was_found = step in after and step != last and span in after[step][number]
            if was_found and span not in after[last][number]:
                yield Occurrence(number, span, _instead(span, after[last][number]))


def invented_mentions(gold: Sequence[Sentence], found: Found, types: Iterable[str]) -> Iterator[Occurrence]:
    """Yield predicted mentions of the given types that are not in gold, in sentences annotated for their type."""
    wanted = frozenset(types)
    for number, (sentence, spans) in enumerate(zip(gold, found, strict=True)):
        for span in spans:
            if span.type in wanted & sentence.annotated_types and span not in sentence.spans:
                yield Occurrence(number, span, _instead(span, sentence.spans))


def most_frequent(gold: Sequence[Sentence], occurrences: Iterable[Occurrence], *, limit: int = 20) -> list[Mistake]:
    """Group occurrences by words and type, most frequent first, ties in sentence order."""
    groups: dict[tuple[str, str], list[Occurrence]] = defaultdict(list)
    for item in occurrences:
        words = gold[item.sentence].words[item.span.start : item.span.end]
        groups[item.span.type, " ".join(words)].append(item)
    ranked = sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[1][0].sentence))[:limit]
    return [
        Mistake(text, type_, len(items), items[0], dict(Counter(item.instead for item in items).most_common()))
        for (type_, text), items in ranked
    ]


def _distance(span: Span, others: Iterable[Span]) -> int:
    """Return 0 if `span` is among `others`, 1 if one has the same boundaries, 2 if one overlaps it, else 3."""
    overlapping = [other for other in others if other.overlaps(span)]
    if span in overlapping:
        return 0
    same_place = any((other.start, other.end) == (span.start, span.end) for other in overlapping)
    return 1 if same_place else 2 if overlapping else 3


def _instead(span: Span, others: Iterable[Span]) -> str:
    """Describe what `others` has in place of `span`: a type, `other borders` or `O`."""
    overlapping = [other for other in others if other.overlaps(span)]
    same_place = [other.type for other in overlapping if (other.start, other.end) == (span.start, span.end)]
    if same_place:
        return same_place[0]
    if any(other.type == span.type for other in overlapping):
        return "other borders"
    return overlapping[0].type if overlapping else "O"
