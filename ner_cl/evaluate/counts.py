"""Exact counts of correct, spurious and missed spans, from which all scores are computed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span

__all__ = ["Counts", "check_lengths", "count_spans", "macro_f1", "micro_f1", "word_confusion", "word_table"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of correct (`tp`), spurious (`fp`) and missed (`fn`) spans; counts of parts of a corpus add up.

    Scores are in [0, 1]. F1 and recall are None without gold spans, because they would be meaningless. With gold spans
    but no predictions, precision is 0.

    Example:
        >>> Counts(tp=1, fp=1, fn=2).f1
        0.4
        >>> Counts(fp=3).f1 is None
        True
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Return the sum of both counts."""
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def gold(self) -> int:
        """Number of gold spans."""
        return self.tp + self.fn

    @property
    def precision(self) -> float | None:
        """Share of predicted spans that are correct; None if there is neither a prediction nor a gold span."""
        if self.tp + self.fp:
            return self.tp / (self.tp + self.fp)
        return 0.0 if self.gold else None

    @property
    def recall(self) -> float | None:
        """Share of gold spans that were found; None without gold."""
        return self.tp / self.gold if self.gold else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, `2tp / (2tp + fp + fn)`; None without gold."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.gold else None


def count_spans(
    gold: Sequence[Sentence], predicted: Sequence[Sequence[Span]], types: Sequence[str]
) -> dict[str, Counts]:
    """Count spans per entity type; a span is correct if start, end and type all agree.

    Spans of types not in `types` are ignored on both sides. In a sentence that is not annotated for a type
    (`Sentence.annotated_types`), spans of that type are ignored too, because they might be correct.

    Args:
        gold: the annotated sentences.
        predicted: the predicted spans of each sentence, in word offsets; duplicates count once.
        types: the types to count, in the order of the result.

    Returns:
        One entry per type in `types`, including types that never occur.

    Raises:
        DataError: if the two sequences differ in length.

    Example:
        >>> sentence = Sentence(("Ada", "sang"), (Span(0, 1, "PER"),), frozenset({"PER"}))
        >>> count_spans([sentence], [[Span(0, 1, "PER"), Span(1, 2, "PER")]], ["PER"])
        {'PER': Counts(tp=1, fp=1, fn=0)}
    """
    check_lengths(gold, predicted)
    wanted = frozenset(types)
    golden: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for sentence, guess in zip(gold, predicted, strict=True):
        if not sentence.spans and not guess:
            continue
        counted = wanted & sentence.annotated_types
        gold_spans = {span for span in sentence.spans if span.type in counted}
        guess_spans = {span for span in guess if span.type in counted}
        golden.update(span.type for span in gold_spans)
        guessed.update(span.type for span in guess_spans)
        found.update(span.type for span in gold_spans & guess_spans)
    return {type_: Counts(found[type_], guessed[type_] - found[type_], golden[type_] - found[type_]) for type_ in types}


def micro_f1(counts: Mapping[str, Counts]) -> float | None:
    """Return F1 over the spans of all types together; None without any gold span.

    Predictions of a type without gold count as spurious here.
    """
    return sum(counts.values(), start=Counts()).f1


def macro_f1(counts: Mapping[str, Counts]) -> float | None:
    """Return mean F1 over the types that have gold; None if none has."""
    scores = [score for count in counts.values() if (score := count.f1) is not None]
    return sum(scores) / len(scores) if scores else None


def word_confusion(
    gold: Sequence[Sentence], predicted: Sequence[Sequence[Span]], *, old: Iterable[str], new: Iterable[str]
) -> dict[str, float | None]:
    """Return how often words of old, new and no types are confused, which helps explain a drop in F1.

    Each rate is a share of the words whose gold group is named before `_to_`; None if there is no such word. Only
    sentences annotated for all old and new types count, because elsewhere "no type" is not certain.

    Raises:
        DataError: if the two sequences differ in length.

    Returns:
        `confusion/old_to_o`, `confusion/old_to_new`, `confusion/o_to_new`, `confusion/new_to_o`.
    """
    table = word_table(gold, predicted, old=old, new=new)
    words = {group: sum(row.values()) for group, row in table.items()}
    asked = (("old", "o"), ("old", "new"), ("o", "new"), ("new", "o"))
    return {f"confusion/{a}_to_{b}": table[a][b] / words[a] if words[a] else None for a, b in asked}


def word_table(
    gold: Sequence[Sentence], predicted: Sequence[Sequence[Span]], *, old: Iterable[str], new: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Count words by gold and predicted group of types (`old`, `new`, `o`): `table[gold][found]`.

    Only sentences annotated for all old and new types count, because elsewhere "no type" is not certain.

    Raises:
        DataError: if the two sequences differ in length.
    """
    check_lengths(gold, predicted)
    group = dict.fromkeys(old, "old") | dict.fromkeys(new, "new")
    pairs: Counter[tuple[str, str]] = Counter()
    for sentence, guess in zip(gold, predicted, strict=True):
        if sentence.annotated_types.issuperset(group):
            sides = (_word_groups(spans, len(sentence.words), group) for spans in (sentence.spans, guess))
            pairs.update(zip(*sides, strict=True))
    groups = ("old", "new", "o")
    return {truth: {found: pairs[truth, found] for found in groups} for truth in groups}


def _word_groups(spans: Iterable[Span], length: int, group: Mapping[str, str]) -> list[str]:
    groups = ["o"] * length
    for span in spans:
        if span.type in group:
            for position in range(span.start, min(span.end, length)):
                groups[position] = group[span.type]
    return groups


def check_lengths(gold: Sequence[Sentence], predicted: Sequence[Sequence[Span]]) -> None:
    """Raise DataError unless there is one list of predicted spans for each sentence."""
    if len(gold) != len(predicted):
        raise DataError(f"{len(gold)} gold sentences but {len(predicted)} predictions; give one list of spans each")
