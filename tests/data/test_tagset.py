"""The tag vocabulary: ids that never change, and spans that survive the way to tags and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, Entities

from ner_cl.data.tagset import Tagset, spans_of_tags
from ner_cl.errors import DataError, ModelError
from ner_cl.types import Span

TYPES = ("PER", "LOC", "ORG", "MISC")
TAGSET = Tagset((TYPES[:1], TYPES[1:3], TYPES[3:]))
NAMES = st.lists(st.text("abcXYZ-./", min_size=1, max_size=4), min_size=1, max_size=8, unique=True)


@st.composite
def step_lists(draw: st.DrawFn) -> list[list[str]]:
    names = draw(NAMES)
    cuts = sorted(draw(st.sets(st.integers(1, len(names)))) | {len(names)})
    return [names[start:end] for start, end in zip([0, *cuts[:-1]], cuts, strict=True)]


@st.composite
def flat_spans(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Spans that do not overlap, and the length of their sentence."""
    spans, position = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = position + draw(st.integers(0, 2))
        position = start + draw(st.integers(1, 3))
        spans.append(Span(start, position, draw(st.sampled_from(TYPES))))
    return spans, position + draw(st.integers(0, 2))


@given(step_lists())
def test_growing_never_changes_an_old_id(steps: list[list[str]]) -> None:
    tagset = Tagset()
    for number, types in enumerate(steps, start=1):
        grown = tagset.grow(types)
        assert grown.tags[: len(tagset)] == tagset.tags
        assert len(grown) == len(grown.tags) == len(tagset) + 2 * len(types)
        assert [grown.step_of(type_) for type_ in types] == [number] * len(types)
        assert grown.types[grown.type_offset(number) :] == tuple(types)
        tagset = grown
    assert Tagset(tagset.steps) == tagset


def test_tags_by_id() -> None:
    assert TAGSET.tags == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-MISC", "I-MISC")
    assert [TAGSET.type_offset(step) for step in (1, 2, 3, 4)] == [0, 1, 3, 4]
    assert Tagset().tags == ("O",)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([], "a step must learn at least one type"),
        (["ORG"], "type ORG was already learned in step 2"),
        (["DATE", "DATE"], "type DATE is named twice"),
    ],
)
def test_growing_refuses(types: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TAGSET.grow(types)


@pytest.mark.parametrize(("tagset", "known"), [(TAGSET, "PER, LOC, ORG, MISC"), (Tagset(), "no type yet")])
def test_an_unknown_type_is_refused_with_the_known_ones(tagset: Tagset, known: str) -> None:
    with pytest.raises(ModelError, match=f"unknown type DATE; this model knows {known}"):
        tagset.step_of("DATE")


@given(flat_spans())
def test_spans_survive_tags(case: tuple[list[Span], int]) -> None:
    spans, length = case
    ids = TAGSET.encode(spans, length)
    assert len(ids) == length
    assert TAGSET.decode(ids) == spans


@given(st.lists(st.integers(0, len(TAGSET) - 1), max_size=12))
def test_reading_tags_agrees_with_seqeval_strict(ids: list[int]) -> None:
    expected = Entities([[TAGSET.tags[id_] for id_ in ids]], IOB2).entities[0]
    assert TAGSET.decode(ids) == [Span(entity.start, entity.end, entity.tag) for entity in expected]


def test_spans_of_unknown_types_are_left_out() -> None:
    assert TAGSET.encode([Span(0, 2, "DATE"), Span(1, 2, "LOC")], 3) == [0, 3, 0]


@pytest.mark.parametrize("other", [Span(1, 3, "LOC"), Span(0, 2, "ORG"), Span(1, 2, "PER")])
def test_overlapping_spans_of_known_types_are_refused(other: Span) -> None:
    with pytest.raises(DataError, match="overlaps another span"):
        TAGSET.encode([Span(0, 2, "PER"), other], 4)


def test_touching_spans_of_one_type_stay_two() -> None:
    spans = [Span(0, 1, "PER"), Span(1, 3, "PER")]
    assert TAGSET.encode(spans, 3) == [1, 1, 2]
    assert spans_of_tags([1, 1, 2], ["PER"]) == spans


@pytest.mark.parametrize("name", ["O", "", "  ", "PER\tX", "a\nb"])
def test_a_name_that_would_break_files_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name of a type"):
        Tagset().grow([name])
