"""A corpus of three files has one set of types, unless a file says otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from datasets import Dataset, DatasetDict
from spacy.tokens import DocBin
from spacy.tokens import Span as DocSpan

from ner_cl.config import CorpusOptions
from ner_cl.data.corpus import load_corpus
from ner_cl.data.stream import build_stream
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.errors import DataError
from ner_cl.types import Sentence

NLP = spacy.blank("en")


def write(path: Path, *records: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def record(start: int, label: str, **more: object) -> dict[str, object]:
    return {"text": "Ada saw Rome", "spans": [{"start": start, "end": start + 3, "label": label}], **more}


def test_a_part_that_lacks_a_type_is_annotated_for_it_all_the_same(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    test = write(tmp_path / "test.jsonl", record(4, "VERB"))
    corpus = load_corpus(CorpusOptions(train=train, test=test))
    assert corpus.train[0].annotated_types == corpus.test[0].annotated_types == {"PER", "VERB"}
    assert corpus.dev == ()


def test_a_file_that_says_its_types_is_taken_at_its_word(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"), record(4, "VERB"))
    dev = write(tmp_path / "dev.jsonl", record(0, "PER", annotated_types=["PER"]))
    corpus = load_corpus(CorpusOptions(train=train, dev=dev, test=train))
    assert corpus.dev[0].annotated_types == {"PER"}
    assert corpus.train[0].annotated_types == {"PER", "VERB"}


def test_raw_text_is_read_without_annotation(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    (tmp_path / "raw.txt").write_text("Ada was there.\n\nIt rained.\n", encoding="utf-8")
    corpus = load_corpus(CorpusOptions(train=train, test=train, unlabeled=str(tmp_path / "raw.txt")))
    assert corpus.unlabeled == (Sentence(("Ada", "was", "there", ".")), Sentence(("It", "rained", ".")))
    corpus = load_corpus(CorpusOptions(train=train, test=train, unlabeled=train))
    assert corpus.unlabeled == (Sentence(("Ada", "saw", "Rome")),)
    assert load_corpus(CorpusOptions(train=train, test=train)).unlabeled == ()


def test_sentences_with_words_that_nobody_annotated_stay_annotated_for_nothing(tmp_path: Path) -> None:
    whole, partly, never = NLP("Ada met Rome"), NLP("Bob met Carl"), NLP("Dora sleeps")
    whole.set_ents([DocSpan(whole, 0, 1, "PER"), DocSpan(whole, 2, 3, "LOC")])
    partly.set_ents([DocSpan(partly, 0, 1, "PER")], default="missing")
    DocBin(docs=[whole, partly, never]).to_disk(tmp_path / "train.spacy")
    plain = NLP("it rained")
    plain.set_ents([])
    DocBin(docs=[plain]).to_disk(tmp_path / "test.spacy")
    corpus = load_corpus(CorpusOptions(train=str(tmp_path / "train.spacy"), test=str(tmp_path / "test.spacy")))
    assert [sentence.annotated_types for sentence in corpus.train] == [{"PER", "LOC"}, set(), set()]
    assert corpus.test[0].annotated_types == {"PER", "LOC"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("raw.TXT", "Ada saw Rome\n\nIt\u2028rained\n"),
        ("raw", "Ada saw Rome\nIt\u2028rained\n"),
        ("raw.jsonl", '{"text": "Ada saw Rome"}\n{"text": "It\\u2028rained", "spans": [[0, 1, "X"]]}\n'),
        ("raw.json", json.dumps([{"text": "Ada saw Rome", "spans": []}, {"text": "It\u2028rained", "spans": []}])),
        ("raw.conll", "Ada B-PER\nsaw O\nRome O\n\nIt O\nrained O\n"),
    ],
)
def test_raw_text_comes_in_any_form(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    second = [("It", "rained")] if name == "raw.conll" else [("It",), ("rained",)]  # a text is read by lines
    expected = [Sentence(words) for words in (("Ada", "saw", "Rome"), *second)]
    assert read_unlabeled(tmp_path / name) == expected
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    options = CorpusOptions(train=train, test=train, unlabeled=str(tmp_path / name))
    assert list(load_corpus(options).unlabeled) == expected


def test_raw_text_has_the_words_that_its_record_says(tmp_path: Path) -> None:
    text, offsets = "New\tYork is -DOCSTART-", [[0, 8], [9, 11], [12, 22]]
    raw = write(tmp_path / "raw.jsonl", {"text": text, "word_offsets": offsets})
    assert read_unlabeled(raw) == [Sentence(("New\tYork", "is", "-DOCSTART-"))]


def test_raw_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unlabeled: item 1: is of type int; give a text, a list of words, or"):
        read_unlabeled(["Ada", 3])
    with pytest.raises(DataError, match=r"unlabeled: item 0: has neither text nor tokens"):
        read_unlabeled([{"title": "Ada"}])
    with pytest.raises(DataError, match=r"unlabeled: item 0: holds a word that is no string or empty"):
        read_unlabeled([["Ada", ""]])
    with pytest.raises(DataError, match="the data have the splits train; give one of them"):
        read_unlabeled(DatasetDict({"train": Dataset.from_dict({"text": ["Ada"]})}))
    (tmp_path / "raw.csv").write_text("text,label\nAda saw Rome,1\n")
    with pytest.raises(DataError, match=r"raw\.csv: is a CSV file, whose header and commas would be read as text"):
        read_unlabeled(tmp_path / "raw.csv")


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["Ada saw Rome", "It rained"]},
        {"tokens": [["Ada", "saw", "Rome"], ["It", "rained"]], "ner_tags": [[1, 0, 2], [0, 0]]},
    ],
    ids=["text", "tokens"],
)
def test_raw_text_may_be_a_data_set(tmp_path: Path, columns: dict[str, Any]) -> None:
    data = Dataset.from_dict(columns)
    data.to_parquet(tmp_path / "raw.parquet")
    expected = [Sentence(("Ada", "saw", "Rome")), Sentence(("It", "rained"))]
    for raw in (tmp_path / "raw.parquet", data, list(data), data[next(iter(columns))], expected):
        assert read_unlabeled(raw) == expected


def test_raw_text_need_not_have_the_format_of_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Ada B-PER\nsaw O\nRome O\n", encoding="utf-8")
    train = str(tmp_path / "train.conll")
    texts = write(tmp_path / "texts.jsonl", {"text": "Ada saw Rome"})
    annotated = write(tmp_path / "annotated.jsonl", record(0, "VERB"))
    (tmp_path / "columns.data").write_text("Ada B-PER\nsaw O\nRome O\n", encoding="utf-8")
    for raw in (texts, annotated, str(tmp_path / "columns.data")):
        corpus = load_corpus(CorpusOptions(format="conll", train=train, test=train, unlabeled=raw))
        assert corpus.unlabeled == (Sentence(("Ada", "saw", "Rome")),)


def test_raw_text_says_nothing_of_which_types_there_are(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    raw = write(tmp_path / "raw.jsonl", record(4, "VERB"))
    corpus = load_corpus(CorpusOptions(train=train, test=train, unlabeled=raw))
    assert corpus.types == ("PER",)
    assert corpus.train[0].annotated_types == {"PER"}


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_raw_text_without_a_word_is_refused(tmp_path: Path, text: str) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    (tmp_path / "raw.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"raw\.txt: holds no text; give one text a line"):
        load_corpus(CorpusOptions(train=train, test=train, unlabeled=str(tmp_path / "raw.txt")))
    with pytest.raises(DataError, match="unlabeled: none of the texts holds a word; give some"):
        read_unlabeled([text])


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file; set NER_CL_DATA"):
        load_corpus(CorpusOptions(train=train, test=str(tmp_path / "nowhere.jsonl")))


def test_a_file_of_one_step_is_annotated_for_its_types_and_those_it_mentions(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", record(0, "PER"), record(4, "VERB"))
    two = write(
        tmp_path / "two.jsonl", record(4, "LOC", annotated_types=["LOC"]), record(4, "VERB", annotated_types=["VERB"])
    )
    three = write(tmp_path / "three.jsonl", record(4, "LOC"))
    test = write(tmp_path / "test.jsonl", record(0, "PER"))
    options = CorpusOptions(train=(one, two), dev=(one, three), test=test)
    corpus = load_corpus(options, steps=[["PER"], ["LOC", "GPE"]])
    assert [sentence.annotated_types for sentence in corpus.train] == [{"PER", "VERB"}] * 2 + [{"LOC"}, {"VERB"}]
    assert [sentence.annotated_types for sentence in corpus.dev] == [{"PER", "VERB"}] * 2 + [{"LOC", "GPE"}]
    assert (corpus.slices, corpus.dev_slices) == (((0, 1), (2, 3)), ((0, 1), (2,)))
    assert corpus.test[0].annotated_types == {"PER", "VERB", "LOC"}


def test_a_file_of_several_steps_is_read_once_and_annotated_for_all_of_them(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", record(0, "PER"), record(4, "LOC"))
    two = write(tmp_path / "two.jsonl", record(4, "ORG"))
    steps = [["PER"], ["ORG"], ["LOC"]]
    corpus = load_corpus(CorpusOptions(train=(one, two, one), dev=(one, two, one), test=two), steps=steps)
    assert (corpus.slices, corpus.dev_slices) == (((0, 1), (2,), (0, 1)),) * 2
    stream = build_stream(corpus, steps, protocol="files")
    assert [sentence.annotated_types for sentence in stream.steps[0].train] == [{"PER"}] * 2
    assert [sentence.annotated_types for sentence in stream.steps[2].train] == [{"LOC"}] * 2
    everything = stream.everything_until(3, own=True)
    assert [sentence.annotated_types for sentence in everything] == [{"PER", "LOC"}] * 2 + [{"ORG"}]
