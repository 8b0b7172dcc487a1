"""Sentences with marked mentions."""

from ner_cl.report.sentences import Piece, example_of
from ner_cl.types import Sentence, Span

TYPES = frozenset({"PER", "LOC"})


def test_gold_and_found_are_told_apart() -> None:
    sentence = Sentence(("Ada", "saw", "Rome", "today"), (Span(0, 1, "PER"), Span(2, 3, "LOC")), TYPES, source="a/b:7")
    example = example_of(sentence, [Span(0, 1, "PER"), Span(2, 4, "LOC")], focus=Span(2, 3, "LOC"))
    assert example.gold == (
        Piece("Ada", "PER", "right"),
        Piece("saw"),
        Piece("Rome", "LOC", "missed", focus=True),
        Piece("today"),
    )
    assert example.found == (Piece("Ada", "PER", "right"), Piece("saw"), Piece("Rome today", "LOC", "wrong"))
    assert example.source == "b:7"


def test_words_are_written_as_they_were() -> None:
    sentence = Sentence(("Ada", "'", "s"), (Span(0, 1, "PER"),), TYPES, text="Ada's", offsets=((0, 3), (3, 4), (4, 5)))
    assert [piece.text for piece in example_of(sentence, [], focus=Span(0, 1, "PER")).gold] == ["Ada", "'s"]


def test_a_long_sentence_is_cut_around_the_mention() -> None:
    words = tuple(f"w{i}" for i in range(100))
    sentence = Sentence(words, (Span(2, 3, "PER"), Span(50, 51, "LOC")), TYPES)
    gold = example_of(sentence, [], focus=Span(50, 51, "LOC")).gold
    assert [piece.text for piece in gold] == [
        "…",
        " ".join(words[34:50]),
        "w50",
        " ".join(words[51:67]),
        "…",
    ]


def test_found_types_that_the_sentence_is_not_annotated_for_are_not_shown() -> None:
    sentence = Sentence(("Ada", "slept"), (Span(0, 1, "PER"),), frozenset({"PER"}))
    found = example_of(sentence, [Span(1, 2, "LOC")], focus=Span(0, 1, "PER")).found
    assert found == (Piece("Ada slept"),)
