import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.words import cut_mentions, is_invisible, sentence_of_text, split_words, with_text
from ner_cl.types import Sentence, Span


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada took aspirin in London.", ["Ada", "took", "aspirin", "in", "London", "."]),
        ("snake_case 3.5% H2O x²", ["snake_case", "3", ".", "5", "%", "H2O", "x²"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("서울 시", ["서울", "시"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("র\u200cয", ["র\u200cয"]),  # a joiner that is spelling stays inside its word
        ("ന്\u200d x", ["ന്\u200d", "x"]),
        ("Chris\xadtian", ["Chris\xadtian"]),
        ("watched\u200bwas", ["watched", "was"]),  # a zero-width space parts two words
        ("\ufeffawh Dubbz\ufeff", ["awh", "Dubbz"]),
        ("a\x85b\u2028c\xa0d", ["a", "b", "c", "d"]),
        ("👨\u200d👩\u200d👧 👍🏽 🇩🇪 #️⃣", ["👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "#️⃣"]),
        ("\ue401\ufffd", ["\ue401", "\ufffd"]),
        ("\u200b \xad \ufeff \x08 \x91", []),
        ("", []),
    ],
)
def test_words_of_real_text(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_are_ordered_and_cover_all_that_is_visible(text: str) -> None:
    borders = split_words(text)
    end_before = 0
    rest = []
    for start, end in borders:
        assert end_before <= start < end <= len(text)
        assert not is_invisible(text[start:end])
        rest.append(text[end_before:start])
        end_before = end
    rest.append(text[end_before:])
    assert all(is_invisible(piece) for piece in rest)


@given(st.text(), st.text())
def test_whitespace_always_parts_words(left: str, right: str) -> None:
    assert words(f"{left} {right}") == words(left) + words(right)


@pytest.mark.parametrize("unit", ["a", "a\u200d", "\u200d", "👍\u200d", "🇩", "\u0301", "東", ".", " ", "a. "])
def test_time_is_linear(unit: str) -> None:
    def seconds(repeats: int) -> float:
        start = time.process_time()
        split_words(unit * repeats)
        return time.process_time() - start

    seconds(1000)
    # A quadratic scan would take 64 times as long for 8 times the text, and minutes for a megabyte.
    assert seconds(400_000) < 32 * seconds(50_000) + 0.5


def test_mentions_with_words_that_would_be_cut_are_told() -> None:
    def of(*words: str, mention: int = 0) -> Sentence:
        return Sentence(words, (Span(mention, mention + 1, "LOC"),), frozenset({"LOC"}))

    assert cut_mentions([]) == cut_mentions([of("Rome"), of("Oslo", "U.S.")]) == ""  # outside mentions it is all one
    assert cut_mentions([of("Rome"), of("U.S."), of("New-York"), of("U.S.")]).startswith(
        "3 of 4 mentions hold words that `predict` cuts where it reads text, such as 'U.S.'; give it such words whole"
    )
    assert cut_mentions([of("U.S."), *[of("Rome")] * 99]) != ""
    assert cut_mentions([of("U.S."), *[of("Rome")] * 100]) == ""


def test_a_sentence_gets_a_text_that_its_words_are_in() -> None:
    sentence = with_text(Sentence(("Ada", "l.", "in"), (Span(0, 1, "PER"),), frozenset({"PER"})))
    assert (sentence.text, sentence.offsets) == ("Ada l. in", ((0, 3), (4, 6), (7, 9)))
    assert sentence.spans == (Span(0, 1, "PER"),)
    assert with_text(sentence) is sentence
    assert sentence_of_text("Ada l.").words == ("Ada", "l", ".")
    assert sentence_of_text("Ada l.", [(0, 3), (4, 6)]).words == ("Ada", "l.")
