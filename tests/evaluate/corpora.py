"""Small annotated sentences for the tests of the scores, made at random or by hand."""

from collections.abc import Iterable

from hypothesis import strategies as st

from ner_cl.data.tagset import Tagset
from ner_cl.types import Sentence, Span

TYPES = ("PER", "LOC", "ORG")


def sentence(length: int, *spans: Span) -> Sentence:
    """Nameless words with these spans, annotated for all types."""
    return Sentence(("word",) * length, spans, frozenset(TYPES))


def iob2(spans: Iterable[Span], length: int) -> list[str]:
    """The tags of spans that do not overlap."""
    tagset = Tagset((TYPES,))
    return [tagset.tags[tag] for tag in tagset.encode(spans, length)]


@st.composite
def flat_spans(draw: st.DrawFn, length: int) -> list[Span]:
    """Spans over `length` words that do not overlap but may touch."""
    cuts = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
    kinds = draw(st.lists(st.sampled_from([None, *TYPES]), min_size=len(cuts), max_size=len(cuts)))
    stretches = zip(cuts, cuts[1:], kinds, strict=False)
    return [Span(start, end, type_) for start, end, type_ in stretches if type_ is not None]


Drawn = list[tuple[int, list[Span], list[Span]]]
"""For each sentence its length, gold spans and predicted spans."""


def corpus(drawn: Drawn) -> tuple[list[Sentence], list[list[Span]]]:
    """Gold sentences and predictions (made outside the strategy, as run-time type checks draw random numbers)."""
    return [sentence(length, *gold) for length, gold, _ in drawn], [predicted for _, _, predicted in drawn]


@st.composite
def annotations(draw: st.DrawFn) -> Drawn:
    """Lengths, gold and predicted spans of some sentences; many predictions start from the gold."""
    drawn = []
    for length in draw(st.lists(st.integers(0, 7), max_size=5)):
        gold = draw(flat_spans(length))
        kept = draw(st.one_of(st.just(gold), st.just(gold[1:]), flat_spans(length)))
        drawn.append((length, gold, kept))
    return drawn
