"""A text of several lines is read line by line, except where a line was only wrapped."""

from dataclasses import replace
from textwrap import wrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.lines import by_lines, line_starts, parts_of
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.data.words import sentence_of_text
from ner_cl.types import Sentence, Span

PROSE = (
    "The committee that met in Rotterdam last week has asked Ada Lovelace and her colleagues in the city council "
    "for a report on the bridges over the Nieuwe Maas which the ministry wants to see before the summer begins"
)


def _lines(text: str) -> list[str]:
    sentence = sentence_of_text(text)
    return [" ".join(sentence.words[first:last]) for first, last in parts_of(sentence)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\r\n \t\r\n", "\x0b", "\x0c", "\u2028", "\u2029", "\x85"])
def test_each_line_of_a_list_is_read_by_itself(end: str) -> None:
    assert _lines(end.join(["Alice Jones", "Bob Smith", "Paris"])) == ["Alice Jones", "Bob Smith", "Paris"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_wrapped_prose_stays_whole(width: int) -> None:
    assert line_starts("\n".join(wrap(PROSE, width))) == []


def test_a_blank_line_ends_a_paragraph_however_its_lines_are_wrapped() -> None:
    first, second = "\n".join(wrap(PROSE, 50)), "\n".join(wrap(PROSE, 50))
    assert line_starts(f"{first}\n\n{second}") == [len(first) + 2]


def test_a_line_that_ends_a_sentence_or_has_room_left_is_not_wrapped() -> None:
    wide = "x" * 60
    for line in (f"{wide[:50]} end.", "Dear Ms Lovelace", f"{wide[:50]} says:", f'{wide[:50]} "so."'):
        assert line_starts(f"{line}\nLongish {wide}") == [len(line) + 1]
    assert line_starts(f"{wide[:55]}\nLong {wide[:55]}") == [56]  # with the next word, 60 of 60 characters
    assert line_starts(f"{wide[:56]}\nLong {wide[:55]}") == []  # with the next word, 61


def test_a_long_line_elsewhere_does_not_hide_that_a_paragraph_is_wrapped() -> None:
    paragraph, link = "\n".join(wrap(PROSE, 60)), f"https://example.org/{'x' * 200}"
    assert line_starts(f"{paragraph}\n\n{link}") == [len(paragraph) + 2]


def test_one_line_is_one_part() -> None:
    for text in ("", " ", "Ada met Bob.", "\nAda met Bob.\n\n"):
        sentence = sentence_of_text(text)
        assert parts_of(sentence) == [(0, len(sentence.words))]
    assert parts_of(Sentence(("Ada", "met", "Bob"))) == [(0, 3)]


@given(st.lists(st.text(st.sampled_from("ab .\n\r\u2029"), max_size=30), max_size=4))
def test_no_word_is_lost_and_every_part_is_as_in_the_text(texts: list[str]) -> None:
    whole = [sentence_of_text(text) for text in texts]
    parts = by_lines(whole)
    assert [w for s in parts for w in s.words] == [w for s in whole for w in s.words]
    for part in parts:
        if len(part.words) and part not in whole:
            assert part.text is not None
            assert part.offsets is not None
            assert tuple(part.text[start:end] for start, end in part.offsets) == part.words


def test_a_part_keeps_its_mentions_and_its_annotated_types() -> None:
    text = "Ada\nBob Hill lives in\nNew York\nsaid Eve"
    sentence = sentence_of_text(text)
    spans = [Span(0, 1, "PER"), Span(1, 3, "PER"), Span(5, 7, "LOC"), Span(8, 9, "PER")]
    annotated = replace(sentence.with_spans(spans, ["PER", "LOC"]), source="a.jsonl:3")
    first, second, third, last = by_lines([annotated])
    assert (first.words, first.spans) == (("Ada",), (Span(0, 1, "PER"),))
    assert (second.text, second.spans) == ("Bob Hill lives in", (Span(0, 2, "PER"),))
    assert (third.words, third.spans, third.offsets) == (("New", "York"), (Span(0, 2, "LOC"),), ((0, 3), (4, 8)))
    assert last.spans == (Span(1, 2, "PER"),)
    assert {part.source for part in (first, second, third, last)} == {"a.jsonl:3"}
    assert {part.annotated_types for part in (first, last)} == {frozenset({"PER", "LOC"})}


def test_no_mention_is_cut() -> None:
    sentence = sentence_of_text("Ada went to New\nYork\nwith Bob").with_spans([Span(3, 5, "LOC")], ["LOC"])
    assert [part.words for part in by_lines([sentence])] == [("Ada", "went", "to", "New", "York"), ("with", "Bob")]


def test_raw_texts_are_read_by_lines_too() -> None:
    annotated = sentence_of_text("Ada\nBob").with_spans([Span(0, 2, "PER")], ["PER"])
    texts = read_unlabeled(["Ada met\nBob", "Eve", {"text": "in\n\nRome"}, annotated])
    assert [text.words for text in texts] == [
        (*w.split(),) for w in ("Ada met", "Bob", "Eve", "in", "Rome", "Ada", "Bob")
    ]
