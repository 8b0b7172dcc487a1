"""A corpus of three files has one set of types, unless a file says otherwise."""

import json
from pathlib import Path

import pytest

from ner_cl.config import CorpusOptions
from ner_cl.data.corpus import load_corpus
from ner_cl.errors import DataError
from ner_cl.types import Sentence


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


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", record(0, "PER"))
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file; set NER_CL_DATA"):
        load_corpus(CorpusOptions(train=train, test=str(tmp_path / "nowhere.jsonl")))
