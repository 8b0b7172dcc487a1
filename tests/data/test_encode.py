"""Words to windows of pieces: no word lost, none twice, none in the wrong place, none too long."""

import copy
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from ner_cl.data.encode import PieceEncoder, Window
from ner_cl.errors import ModelError
from tests.tiny import tiny_encoder

# A letter repeated is as many pieces; "\u200b" has no piece; "é" and a word of over 100 letters are one unknown piece.
WORD = st.one_of(
    st.builds(str.__mul__, st.sampled_from("abcdefgh"), st.integers(1, 12)),
    st.sampled_from(["\u200b", "\ufeff", "é", "z" * 101, "the"]),
)
PROPERTY = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_encoder(tmp_path_factory.mktemp("encoder")))


def spelled(tokenizer: Any, word: str) -> list[int]:
    """The pieces of a word on its own, or the unknown piece where it has none."""
    pieces: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    return pieces or [tokenizer.unk_token_id]


def stretch(tokenizer: Any, encoder: PieceEncoder, words: list[str], window: Window) -> tuple[int, int]:
    """The words whose pieces the window holds, found by trying all places where its first own word may lie."""
    longest = max(1, encoder.capacity // 4)
    pieces = [spelled(tokenizer, word)[:longest] for word in words]
    start, position = window.first_word, window.word_pieces[0] - 1
    while position > 0:
        start -= 1
        position -= len(pieces[start])
    assert position == 0, "the window does not begin with a whole word"
    inside, end = window.piece_ids[1:-1], start
    while inside:
        assert inside[: len(pieces[end])] == pieces[end]
        inside, end = inside[len(pieces[end]) :], end + 1
    return start, end


@given(words=st.lists(WORD, max_size=60), max_pieces=st.integers(6, 40), data=st.data())
@PROPERTY
def test_windows_hold_every_word_once_in_order_and_where_it_is_most_central(
    tokenizer: Any, words: list[str], max_pieces: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, (max_pieces - 2) // 2))
    encoder = PieceEncoder(tokenizer, max_pieces=max_pieces, overlap=overlap)
    windows = encoder.windows([words])
    answered = [window.first_word + k for window in windows for k in range(len(window.word_pieces))]
    assert answered == list(range(len(words)))
    longest = max(1, encoder.capacity // 4)
    for window in windows:
        assert len(window.piece_ids) <= max_pieces
        assert (window.piece_ids[0], window.piece_ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        for offset, place in enumerate(window.word_pieces):
            own = spelled(tokenizer, words[window.first_word + offset])[:longest]
            assert window.piece_ids[place : place + len(own)] == own
    if not words:
        return
    bounds = [stretch(tokenizer, encoder, words, window) for window in windows]
    assert (bounds[0][0], bounds[-1][1]) == (0, len(words))
    for (before_start, before_end), (after_start, after_end), window in zip(
        bounds, bounds[1:], windows[1:], strict=False
    ):
        assert before_start < after_start <= before_end < after_end
        for word in range(after_start, before_end):
            to_end, to_start = before_end - 1 - word, word - after_start
            assert to_start >= to_end if word >= window.first_word else to_end >= to_start


@given(words=st.lists(WORD, min_size=1, max_size=60), overlap=st.integers(0, 8))
@PROPERTY
def test_neighbouring_windows_share_the_asked_overlap(tokenizer: Any, words: list[str], overlap: int) -> None:
    encoder = PieceEncoder(tokenizer, max_pieces=18, overlap=overlap)
    windows = encoder.windows([words])
    bounds = [stretch(tokenizer, encoder, words, window) for window in windows]
    lengths = [min(len(spelled(tokenizer, word)), 4) for word in words]
    for (before_start, before_end), (after_start, _) in pairwise(bounds):
        shared = sum(lengths[after_start:before_end])
        assert shared >= overlap or after_start == before_start + 1
        assert shared < overlap + 4  # no word more than needed


def test_a_sentence_that_fits_is_one_window(tokenizer: Any) -> None:
    encoder = PieceEncoder(tokenizer, max_pieces=12, overlap=4)
    words = ["the", "ab", "\u200b", "Rome"]
    [window] = encoder.windows([words])
    ids = tokenizer.convert_tokens_to_ids(["[CLS]", "the", "a", "##b", "[UNK]", "Rome", "[SEP]"])
    assert window == Window(sentence=0, first_word=0, piece_ids=ids, word_pieces=[1, 2, 4, 5])


def test_a_long_word_is_its_first_pieces(tokenizer: Any) -> None:
    encoder = PieceEncoder(tokenizer, max_pieces=18, overlap=4)
    [window] = encoder.windows([["a" * 50, "the"]])
    expected = ["[CLS]", "a", "##a", "##a", "##a", "the", "[SEP]"]  # a quarter of the 16 pieces between the specials
    assert tokenizer.convert_ids_to_tokens(window.piece_ids) == expected


@given(st.lists(st.lists(WORD, max_size=20), max_size=5))
@PROPERTY
def test_sentences_do_not_influence_each_other(tokenizer: Any, sentences: list[list[str]]) -> None:
    encoder = PieceEncoder(tokenizer, max_pieces=12, overlap=3)
    together = encoder.windows(sentences)
    alone = [encoder.windows([words]) for words in sentences]
    expected = [
        Window(index, window.first_word, window.piece_ids, window.word_pieces)
        for index, windows in enumerate(alone)
        for window in windows
    ]
    assert together == expected


def test_an_empty_sentence_is_one_window_without_words(tokenizer: Any) -> None:
    encoder = PieceEncoder(tokenizer, max_pieces=12, overlap=3)
    assert encoder.windows([[]]) == [Window(0, 0, [tokenizer.cls_token_id, tokenizer.sep_token_id], [])]
    assert encoder.windows([]) == []


@pytest.mark.parametrize(("max_pieces", "overlap"), [(5, 0), (12, 6), (40, 20)])
def test_a_window_needs_room(tokenizer: Any, max_pieces: int, overlap: int) -> None:
    with pytest.raises(ModelError, match=f"max_pieces {max_pieces} with window_overlap {overlap} leaves no room"):
        PieceEncoder(tokenizer, max_pieces=max_pieces, overlap=overlap)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="no fast tokenizer"):
        PieceEncoder(SimpleNamespace(is_fast=False), max_pieces=64, overlap=8)


def with_template(folder: str, template: str) -> Any:
    """The tiny tokenizer with other special pieces."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    specials = [(piece, tokenizer.convert_tokens_to_ids(piece)) for piece in ("[CLS]", "[MASK]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    return tokenizer


def test_special_pieces_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    lopsided = with_template(tokenizer.name_or_path, "[CLS] [MASK] $A")
    [window] = PieceEncoder(lopsided, max_pieces=12, overlap=3).windows([["the"]])
    assert lopsided.convert_ids_to_tokens(window.piece_ids) == ["[CLS]", "[MASK]", "the"]
    assert window.word_pieces == [2]


class TwoLetters:
    """A tokenizer that puts a special piece in the middle of the text."""

    is_fast = True
    all_special_ids = (1, 2, 3)

    def __len__(self) -> int:
        return 10

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, 7, 2, 9, 3] if add_special_tokens else [7, 9]}


def test_special_pieces_inside_the_text_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot find the special pieces"):
        PieceEncoder(TwoLetters(), max_pieces=64, overlap=8)


def test_a_lone_surrogate_is_read_as_a_question_mark(tokenizer: Any) -> None:
    pieces = PieceEncoder(tokenizer, max_pieces=32, overlap=4)
    odd, plain = pieces.windows([["\ud800x"]]), pieces.windows([["?x"]])
    assert odd[0].piece_ids == plain[0].piece_ids


def test_words_are_cut_once_and_alike_wherever_they_stand(tokenizer: Any) -> None:
    sentences = [["the", "abc", "\u200b"], [], ["abc", "é", "the", "the"], ["\ud800", "abc"]]
    encoder = PieceEncoder(tokenizer, max_pieces=12, overlap=2)
    together = encoder.windows(sentences)
    calls: list[list[str]] = []
    cut = encoder._word_pieces
    encoder._word_pieces = lambda words: calls.append(list(words)) or cut(words)  # type: ignore[method-assign,func-returns-value]
    assert encoder.windows(sentences) == together  # and nothing was cut again
    assert calls == []
    fresh = [PieceEncoder(tokenizer, max_pieces=12, overlap=2).windows([words]) for words in sentences]
    assert [(w.first_word, w.piece_ids, w.word_pieces) for w in together] == [
        (w.first_word, w.piece_ids, w.word_pieces) for windows in fresh for w in windows
    ]


def test_remembered_words_take_bounded_memory(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ner_cl.data.encode._MOST_CHARACTERS", 100)
    encoder = PieceEncoder(tokenizer, max_pieces=12, overlap=2)
    for number in range(50):
        encoder.windows([[f"word{number}", "the"]])
        assert sum(map(len, encoder._known)) < 120
    encoder.windows([["the", "the"]])
    assert copy.deepcopy(encoder)._known == {}


def test_the_share_of_words_that_are_unknown(tokenizer: Any) -> None:
    encoder = PieceEncoder(tokenizer, max_pieces=20, overlap=4)
    assert encoder.share_unknown([]) == encoder.share_unknown([["the", "abc"]]) == 0.0
    assert encoder.share_unknown([["the", "é", "é"], ["abc", "\u200b"]]) == 3 / 5
