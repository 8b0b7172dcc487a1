"""Sentences from memory: the same as from a file that holds them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

import ner_cl
from ner_cl.data.readers import read_sentences, sentences_of
from ner_cl.data.writers import write_sentences
from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TRAINING, tiny_model, toy_sentences

RECORDS: list[dict[str, Any]] = [
    {"text": "Ada took aspirin.", "spans": [{"start": 9, "end": 16, "label": "DRUG"}], "annotated_types": ["DRUG"]},
    {"tokens": ["Bob", "left"], "ner_tags": ["B-PER", "O"]},
    {"text": "", "spans": []},
]


def plain(sentences: list[Sentence]) -> list[tuple[Any, ...]]:
    return [(s.words, s.spans, s.annotated_types, s.text) for s in sentences]


@pytest.mark.parametrize("options", [{}, {"types": ["DRUG", "PER"]}])
def test_records_are_read_as_from_a_file(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert plain(sentences_of(RECORDS, **options)) == plain(read_sentences(path, **options))
    assert plain(sentences_of(str(path), **options)) == plain(read_sentences(path, **options))
    assert [s.source for s in sentences_of(RECORDS)] == ["record:1", "record:2"]


def test_a_data_set_is_read_with_its_class_names(tmp_path: Path) -> None:
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER", "I-PER"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    rows = {"tokens": [["Ada", "Smith", "left"], ["Bob"]], "ner_tags": [[1, 2, 0], [1]]}
    data_set = datasets.Dataset.from_dict(rows, features=features)
    found = sentences_of(data_set)
    assert [(s.words, s.spans) for s in found] == [
        (("Ada", "Smith", "left"), (Span(0, 2, "PER"),)),
        (("Bob",), (Span(0, 1, "PER"),)),
    ]


def test_sentences_are_returned_as_they_are() -> None:
    given = toy_sentences(3)
    assert sentences_of(given) == list(given)
    assert sentences_of([]) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([RECORDS[0], 3], "item 2 is a int; give each as a ner_cl.Sentence or as a record"),
        ([toy_sentences(1)[0], "text"], "item 2 is a str; give each"),
        ([RECORDS[0], {"spans": []}], "record:2: has no text; write"),
    ],
)
def test_what_is_no_sentence_is_refused_by_its_number(data: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sentences_of(data)


def test_a_model_learns_from_and_is_scored_on_records(tmp_path: Path) -> None:
    sentences = toy_sentences(60, seed=9, types=("ORG",))
    write_sentences(tmp_path / "orgs.jsonl", sentences)
    records = [json.loads(line) for line in (tmp_path / "orgs.jsonl").read_text().splitlines()]
    model = tiny_model(tmp_path / "encoder")
    one, two = (
        ner_cl.learn(model, data, types=["ORG"], dev=data, training=TOY_TRAINING).model
        for data in (records, tmp_path / "orgs.jsonl")
    )
    assert ner_cl.score(one, records) == ner_cl.score(two, sentences)
