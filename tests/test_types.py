"""The plain values: what they refuse, what they sort, what they hide."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.errors import DataError
from ner_cl.types import Entity, Sentence, Span

WORDS = ("Ada", "Lovelace", "met", "Babbage", "in", "London")
PER, LATE_PER, LOC = Span(0, 2, "PER"), Span(3, 4, "PER"), Span(5, 6, "LOC")
SENTENCE = Sentence(WORDS, (LOC, LATE_PER, PER), frozenset({"PER", "LOC", "ORG"}))


@st.composite
def any_spans(draw: st.DrawFn) -> Span:
    start = draw(st.integers(0, 8))
    return Span(start, draw(st.integers(start + 1, 10)), draw(st.sampled_from("AB")))


def test_spans_are_sorted_by_position() -> None:
    assert SENTENCE.spans == (PER, LATE_PER, LOC)
    assert Sentence(WORDS, (PER, LATE_PER, LOC), SENTENCE.annotated_types) == SENTENCE


@given(any_spans(), any_spans())
def test_spans_overlap_exactly_if_they_share_a_word(left: Span, right: Span) -> None:
    shared = set(range(left.start, left.end)) & set(range(right.start, right.end))
    assert left.overlaps(right) is right.overlaps(left) is bool(shared)


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (0, 7), (2, 2), (3, 2), (6, 7)])
def test_a_span_must_lie_inside_the_words(start: int, end: int) -> None:
    message = rf"^x\.conll:7: span {start}\.\.{end} PER lies outside the 6 words; check its offsets$"
    with pytest.raises(DataError, match=message):
        Sentence(WORDS, (Span(start, end, "PER"),), frozenset({"PER"}), source="x.conll:7")


def test_a_span_needs_an_annotated_type() -> None:
    with pytest.raises(DataError, match=r"type LOC, which is not annotated here \(types: PER\)"):
        Sentence(WORDS, (LOC,), frozenset({"PER"}))


def test_every_word_needs_its_offset() -> None:
    with pytest.raises(DataError, match="6 words but 1 offsets"):
        Sentence(WORDS, offsets=((0, 3),))


def test_nested_spans_are_allowed() -> None:
    nested = (Span(0, 2, "PER"), Span(0, 1, "LOC"))
    assert Sentence(WORDS, nested, frozenset({"PER", "LOC"})).spans == (Span(0, 1, "LOC"), Span(0, 2, "PER"))


def test_where_names_the_source_or_nothing() -> None:
    assert Sentence(WORDS, source="a.jsonl:3").where == "a.jsonl:3: "
    assert Sentence(WORDS).where == ""


def test_restrict_hides_spans_and_says_so() -> None:
    restricted = SENTENCE.restrict(["LOC", "DATE"])
    assert restricted.spans == (LOC,)
    assert restricted.annotated_types == {"LOC"}  # DATE was never annotated, and ORG is not wanted
    assert restricted.words == WORDS


@given(st.sets(st.sampled_from(["PER", "LOC", "ORG", "X"])), st.sets(st.sampled_from(["PER", "LOC", "ORG", "X"])))
def test_restricting_twice_is_restricting_to_both(one: set[str], other: set[str]) -> None:
    assert SENTENCE.restrict(one).restrict(other) == SENTENCE.restrict(one & other)


def test_with_spans_keeps_everything_but_the_annotation() -> None:
    sentence = Sentence(("Ada",), text=" Ada", offsets=((1, 4),), source="a:1")
    changed = sentence.with_spans([Span(0, 1, "PER")], ["PER"])
    assert (changed.text, changed.offsets, changed.source) == (" Ada", ((1, 4),), "a:1")
    assert (changed.spans, changed.annotated_types) == ((Span(0, 1, "PER"),), {"PER"})


@pytest.mark.parametrize(
    ("value", "field"), [(PER, "end"), (SENTENCE, "words"), (Entity(0, 3, "PER", "Ada", 0.5, 1), "score")]
)
def test_values_are_frozen_and_hashable(value: object, field: str) -> None:
    hash(value)
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, None)


_GIVEN = """
from ner_cl import DataError, Sentence, Span
for words, types in (("Take x", {"DRUG"}), (("Take", "x"), "DRUG"), (("Take", "", "x"), {"DRUG"})):
    try:
        Sentence(words, (), types)
    except DataError as error:
        print(error)
given = Sentence(["Take", "x"], [Span(1, 2, "DRUG")], ["DRUG", "DRUG"])
print(given == Sentence(("Take", "x"), (Span(1, 2, "DRUG"),), frozenset({"DRUG"})), isinstance(hash(given), int))
"""


def test_what_are_no_words_or_types_is_refused_and_lists_will_do() -> None:
    """In a process whose types nobody checks, as those of users are."""
    found = subprocess.run([sys.executable, "-c", _GIVEN], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.splitlines() == [
        "words is the text 'Take x'; give a list of them",
        "annotated_types is the text 'DRUG'; give a list of them",
        "word 1 is empty; leave it out",
        "True True",
    ]
