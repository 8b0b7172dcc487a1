from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.readers import Reader, detect_format, longest_spans, read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.errors import ConfigError, DataError
from ner_cl.registry import readers
from ner_cl.types import Sentence, Span

ONE = Sentence(("Ada", "came"), (Span(0, 1, "PER"),), frozenset({"PER"}))


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("x.conll", "conll"),
        ("x.iob2", "conll"),
        ("x.BIO", "conll"),
        ("x.tsv", "conll"),
        ("x.jsonl", "jsonl"),
        ("x.json", "jsonl"),
        ("x.spacy", "docbin"),
        ("x.parquet", "hub"),
        ("x.parquet#test", "hub"),
        ("x.arrow", "hub"),
        ("conll2003#train", "hub"),
        ("owner/data-1.0#train", "hub"),
    ],
)
def test_format_by_ending(name: str, format_: str) -> None:
    assert detect_format(name) == format_


@pytest.mark.parametrize("format_", ["conll", "jsonl", "docbin"])
@pytest.mark.parametrize("name", ["data", "data.txt", "a#b"])
def test_format_by_content(tmp_path: Path, name: str, format_: str) -> None:
    write_sentences(tmp_path / name, [ONE], format=format_)
    assert detect_format(tmp_path / name) == format_
    (sentence,) = read_sentences(tmp_path / name)
    assert (sentence.words, sentence.spans) == (ONE.words, ONE.spans)


@pytest.mark.parametrize("content", ["[\tO\n", "{\tO\n", "[ O\nx O\n", '"\tO\n'])
def test_brackets_as_words_are_no_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "x").write_text(content)
    assert detect_format(tmp_path / "x") == "conll"
    assert read_sentences(tmp_path / "x")[0].words[0] == content[0]


def test_every_registered_reader_is_a_reader() -> None:
    assert {"conll", "docbin", "hub", "jsonl"} <= set(readers)
    assert all(isinstance(readers[name], type) and issubclass(readers[name], Reader) for name in readers)


def test_a_registered_part_must_be_a_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(readers._parts, "odd", object())
    with pytest.raises(ConfigError, match="'odd' is registered without a Reader class"):
        read_sentences(tmp_path / "x", format="odd")


@pytest.mark.parametrize("format_", ["conll", "jsonl", "docbin", "hub"])
def test_every_reader_says_what_is_missing(tmp_path: Path, format_: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_sentences(tmp_path / "none.xyz", format=format_)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.sampled_from("XY")), max_size=8))
def test_longest_spans_are_flat_and_each_dropped_one_meets_one_as_long(parts: list[tuple[int, int, str]]) -> None:
    spans = [Span(start, start + length, type_) for start, length, type_ in parts]
    kept = longest_spans(spans)
    assert kept == sorted(kept)
    assert not any(a.overlaps(b) for a in kept for b in kept if a is not b)
    assert all(any(s.overlaps(k) and k.end - k.start >= s.end - s.start for k in kept) for s in spans)
