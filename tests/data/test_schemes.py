from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from ner_cl.data.schemes import SCHEMES, Tag, TagTable, check_scheme, spans_of_tags, tags_of_spans
from ner_cl.errors import ConfigError, DataError
from ner_cl.types import Span

TYPES = ("PER", "event-attack/battle", "PER.NOM", "GPE_LOC", "I-95 road")


@st.composite
def flat_spans(draw: st.DrawFn) -> tuple[list[Span], int]:
    length = draw(st.integers(1, 12))
    borders = sorted(draw(st.sets(st.integers(0, length))))
    spans = [Span(start, end, draw(st.sampled_from(TYPES))) for start, end in pairwise(borders) if draw(st.booleans())]
    return spans, length


def read(tags: list[str], scheme: str = "auto") -> list[Span]:
    table = TagTable.of([tags], scheme)
    assert not table.refused
    return spans_of_tags([table.tags[tag] for tag in tags], table.scheme)[0]


@given(flat_spans(), st.sampled_from(["iob1", "iob2", "bioes"]))
def test_spans_survive_every_scheme(case: tuple[list[Span], int], scheme: str) -> None:
    spans, length = case
    tags = tags_of_spans(spans, length, scheme)
    assert read(tags, scheme) == spans
    assert read(tags) == spans
    assert TagTable.of([tags], scheme).scheme == scheme


@given(flat_spans(), st.sampled_from([("iob1", IOB1), ("iob2", IOB2), ("bioes", IOBES)]))
def test_seqeval_reads_what_we_write(case: tuple[list[Span], int], scheme: tuple[str, type]) -> None:
    spans, length = case
    # seqeval parts a type at its last hyphen in one place and its first in another: plain names only
    spans = [Span(span.start, span.end, span.type.replace("-", "")) for span in spans]
    entities = Entities([tags_of_spans(spans, length, scheme[0])], scheme[1]).entities[0]
    assert [Span(entity.start, entity.end, entity.tag) for entity in entities] == spans


@given(st.lists(st.sampled_from([Tag("O", "")] + [Tag(p, t) for p in "BIESLUM" for t in ("X", "Y")])))
def test_any_tags_give_spans_that_do_not_overlap_and_cover_every_tagged_word(tags: list[Tag]) -> None:
    for scheme in SCHEMES:
        spans, _ = spans_of_tags(tags, scheme)
        covered = {word: span.type for span in spans for word in range(span.start, span.end)}
        assert sum(span.end - span.start for span in spans) == len(covered)
        assert covered == {word: type_ for word, (prefix, type_) in enumerate(tags) if prefix != "O"}


def test_io_merges_touching_spans_and_will_not_be_written_so() -> None:
    assert read(["I-A", "I-A", "O", "I-B"]) == [Span(0, 2, "A"), Span(3, 4, "B")]
    with pytest.raises(DataError, match="touch at word 1"):
        tags_of_spans([Span(0, 1, "A"), Span(1, 2, "A")], 2, "io")
    assert tags_of_spans([Span(0, 1, "A"), Span(1, 2, "B")], 2, "io") == ["I-A", "I-B"]


def test_overlapping_spans_cannot_be_tags() -> None:
    with pytest.raises(DataError, match=r"1\.\.2 B overlaps"):
        tags_of_spans([Span(0, 2, "A"), Span(1, 2, "B")], 3, "iob2")


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        ([["B-A", "I-A", "O"]], "iob2"),
        ([["B-A", "O", "I-A"]], "iob2"),  # an orphan I- does not make it IOB1: B- stands where IOB1 has none
        ([["I-A", "B-A", "O"], ["I-A", "I-B"]], "iob1"),
        ([["I-A", "I-A", "O"]], "io"),
        ([["B-A", "E-A", "S-A"]], "bioes"),
        ([["B-A", "I-A", "L-A", "U-A"]], "bioes"),
        ([["S-A", "O"]], "bioes"),
        ([["person", "O", "art-other"]], "io"),
        ([["O", "O"]], "iob2"),
        ([], "iob2"),
    ],
)
def test_scheme_is_found(sentences: list[list[str]], scheme: str) -> None:
    table = TagTable.of(sentences)
    assert (table.scheme, dict(table.refused)) == (scheme, {})


@pytest.mark.parametrize(
    ("tags", "refused", "why"),
    [
        (["B-A", "I-A", "PROT"], "PROT", "neither O nor a prefix"),
        (["B-A", "X-A", "I-A"], "X-A", "neither O nor a prefix"),
        (["B-A", "B-"], "B-", "neither O nor a prefix"),
        (["B-A", "o"], "o", "neither O nor a prefix"),
        (["person", "_"], "_", "neither O nor a prefix"),
        (["B-A", "I-A", "B-B", "S-A"], "S-A", "is not iob2"),
        (["B-A", "E-A", "S-S-A"], "S-S-A", "two prefixes"),
        (["S-A", "S-APT\xa0is"], "S-APT\xa0is", "holds whitespace"),
        (["person", "person", "B-person"], "B-person", "most tags of the file are bare"),
    ],
)
def test_tags_without_one_reading_are_refused(tags: list[str], refused: str, why: str) -> None:
    table = TagTable.of([tags])
    assert list(table.refused) == [refused]
    assert why in table.refused[refused]


def test_types_that_look_like_prefixed_tags_are_types_if_the_scheme_is_named() -> None:
    tags = [["T-cell", "B-cell", "O", "T-cell"]]
    assert set(TagTable.of(tags).refused) == {"T-cell", "B-cell"}
    table = TagTable.of(tags, "io")
    assert dict(table.refused) == {}
    assert {tag: parts.type for tag, parts in table.tags.items()} == {"O": "", "T-cell": "T-cell", "B-cell": "B-cell"}
    assert set(TagTable.of([["T-cell", "T-cell", "I-cell"]], "io").refused) == {"I-cell"}


def test_a_named_scheme_is_held_to() -> None:
    assert "is not io," in TagTable.of([["B-A", "I-A"]], "io").refused["B-A"]
    assert "E-A" in TagTable.of([["B-A", "E-A"]], "iob2").refused
    assert TagTable.of([["S-S-A", "S-A"]], "bioes").tags["S-S-A"] == Tag("S", "S-A")


def test_faults_are_counted_where_the_scheme_does_not_allow_them() -> None:
    def tags(*texts: str) -> list[Tag]:
        return [Tag(text[0], text[2:]) for text in texts]

    assert spans_of_tags(tags("O", "I-A"), "iob2") == (
        [Span(1, 2, "A")],
        [(1, "I- tag that continues nothing opened a span")],
    )
    assert spans_of_tags(tags("O", "I-A"), "iob1") == ([Span(1, 2, "A")], [])
    spans, faults = spans_of_tags(tags("B-A", "E-B", "B-A", "O"), "bioes")
    assert spans == [Span(0, 1, "A"), Span(1, 2, "B"), Span(2, 3, "A")]
    assert [word for word, _ in faults] == [0, 1, 2]


def test_scheme_names() -> None:
    assert [check_scheme(name) for name in ("BILOU", "bio", "IOB1", "auto")] == ["bioes", "iob2", "iob1", "auto"]
    with pytest.raises(ConfigError, match="unknown tag scheme 'iob3', did you mean"):
        check_scheme("iob3")


def test_an_unknown_prefix_is_no_type() -> None:
    table = TagTable.of([["Q-PER", "O", "Z-LOC"]])
    assert set(table.refused) == {"Q-PER", "Z-LOC"}
    assert "unknown prefix" in table.refused["Q-PER"]
    named = TagTable.of([["Q-PER", "O", "Z-LOC"]], "io")
    assert not named.refused
    assert {parts.type for parts in named.tags.values()} == {"", "Q-PER", "Z-LOC"}
    assert not TagTable.of([["art-film", "O", "product-car"]]).refused


@pytest.mark.parametrize(
    ("tags", "meant"),
    [
        (["b-PER", "i-PER", "b-LOC"], "B-LOC"),
        (["B_PER", "I_PER", "B_LOC"], "B-LOC"),
        (["PER-B", "PER-I", "LOC-B"], "B-LOC"),
        (["PER_B", "PER_I", "LOC_B"], "B-LOC"),
    ],
)
def test_tags_written_otherwise_are_no_types(tags: list[str], meant: str) -> None:
    table = TagTable.of([[*tags, "O"]])
    assert set(table.refused) == set(tags)
    assert f"looks like {meant}; write it so, or name the scheme io" in table.refused[tags[-1]]
    assert not TagTable.of([tags], "io").refused
    assert not TagTable.of([["B_cell", "T_cell", "vitamin-B", "vitamin-E", "i-phone"]]).refused


def test_the_marks_of_two_schemes_do_not_mix() -> None:
    table = TagTable.of([["B-PER", "E-PER", "S-LOC", "O"], ["U-LOC", "S-PER"]])
    assert set(table.refused) == {"U-LOC"}
    assert "mixes" in table.refused["U-LOC"]
