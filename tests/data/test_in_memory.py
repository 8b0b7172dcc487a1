"""Sentences from memory: the same as from a file that holds them."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
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


def test_records_may_hold_what_numpy_makes() -> None:
    array = np.array
    words = {"tokens": array(["Ada", "left"]), "ner_tags": array(["B-PER", "O"])}
    text = {"text": "Ada left", "spans": [{"start": np.int64(0), "end": np.int64(3), "label": "PER"}]}
    cut = {"text": "Ada left", "word_offsets": array([[0, 3], [4, 8]]), "spans": [[np.int32(0), 3, "PER"]]}
    for sentence in sentences_of([words, text, cut]):
        assert (sentence.words, sentence.spans) == (("Ada", "left"), (Span(0, 1, "PER"),))
    with pytest.raises(DataError, match="write whole numbers"):
        sentences_of([{"text": "Ada left", "spans": [[np.False_, np.int64(3), "PER"]]}])


def test_sentences_are_returned_as_they_are() -> None:
    given = toy_sentences(3)
    assert sentences_of(given) == list(given)
    assert sentences_of([]) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([RECORDS[0], 3], "item 2 is a int; give each as a ner_cl.Sentence or as a record"),
        ([toy_sentences(1)[0], "text"], "item 2 is a str; give each"),
        ([RECORDS[0], toy_sentences(1)[0]], "item 2 is a Sentence and others are records; give either"),
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


TAGS = datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER"]))
FEATURES = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": TAGS})
ROWS = {"tokens": [["Ada", "Smith", "left"], ["Bob"]], "ner_tags": [[1, 2, 0], [1]]}
FOUND = [(("Ada", "Smith", "left"), (Span(0, 2, "PER"),)), (("Bob",), (Span(0, 1, "PER"),))]


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow", None])
def test_a_data_set_is_read_whatever_its_format(form: str | None) -> None:
    data_set = datasets.Dataset.from_dict(ROWS, features=FEATURES).with_format(form)
    assert [(s.words, s.spans) for s in sentences_of(data_set)] == FOUND


def test_a_stream_is_read_though_it_does_not_know_its_columns() -> None:
    data_set = datasets.Dataset.from_dict(ROWS, features=FEATURES)
    assert [(s.words, s.spans) for s in sentences_of(data_set.to_iterable_dataset())] == FOUND
    names = FEATURES["ner_tags"].feature.names
    named = [
        {"tokens": words, "ner_tags": [names[tag] for tag in tags]} for words, tags in zip(*ROWS.values(), strict=True)
    ]
    stream = datasets.IterableDataset.from_generator(lambda: iter(named))
    assert stream.features is None
    assert [(s.words, s.spans) for s in sentences_of(stream)] == FOUND


def test_class_labels_of_spans_are_named() -> None:
    label = datasets.ClassLabel(names=["PERSON", "LOCATION"])
    spans = [{"start": 0, "end": 3, "label": 0}, {"start": 13, "end": 17, "label": 1}]
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "entities": [{"start": datasets.Value("int32"), "end": datasets.Value("int32"), "label": label}],
        }
    )
    data_set = datasets.Dataset.from_dict({"text": ["Ada lives in Rome"], "entities": [spans]}, features=features)
    [sentence] = sentences_of(data_set)
    assert [span.type for span in sentence.spans] == ["PERSON", "LOCATION"]


def test_pairs_as_spacy_has_them_are_read() -> None:
    pair = ("Ada lives", {"entities": [(0, 3, "PER")]})
    assert sentences_of([pair])[0].spans == (Span(0, 1, "PER"),)
    assert plain(sentences_of([pair])) == plain(sentences_of([["Ada lives", {"entities": [[0, 3, "PER"]]}]]))
    assert sentences_of([{"tokens": ("Ada",), "ner_tags": ("B-PER",)}])[0].spans == (Span(0, 1, "PER"),)


def test_the_longest_of_overlapping_spans_is_kept_of_sentences_too() -> None:
    spans = (Span(0, 1, "LOC"), Span(0, 2, "ORG"), Span(2, 3, "PER"))
    nested = Sentence(("Rome", "Bank", "Ada"), spans, frozenset({"LOC", "ORG", "PER"}))
    assert sentences_of([nested]) == sentences_of([nested], on_overlap="keep") == [nested]
    (flat,) = sentences_of([nested], on_overlap="longest")
    assert (flat.spans, flat.annotated_types) == (spans[1:], nested.annotated_types)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_dict(ROWS)), r"have the splits train; give one of them"),
        (RECORDS[0], "are one record with text, spans, annotated_types; give a list of records"),
        (ROWS, "are one record with tokens, ner_tags; give a list"),
        ({}, "are one record with no key"),
        (datasets.Dataset.from_dict(ROWS).to_pandas(), r"are a table; give its rows, such as table\.to_dict"),
        (datasets.Dataset.from_dict(ROWS), r"record:1: has numbers in ner_tags; write the names .*cast_column"),
    ],
)
def test_what_holds_sentences_otherwise_is_refused_with_the_way(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        sentences_of(data)


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="on_overlp"):
        sentences_of(RECORDS, on_overlp="keep")  # type: ignore[call-arg]
