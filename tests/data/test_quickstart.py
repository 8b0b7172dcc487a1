"""The quickstart corpus: readable without repairs, complete, split without leaks, and free of repeated frames."""

import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ner_cl.data.check import check
from ner_cl.data.readers import read_sentences, read_with_report
from ner_cl.data.words import split_words
from ner_cl.types import Sentence

SPLITS = ("train", "dev", "test")
TYPES = ("DATE", "LOCATION", "MEDICATION", "MONEY", "ORGANIZATION", "PERSON", "PRODUCT")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "data" / "quickstart"


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[str, list[Record]]:
    """The lines of each split as plain JSON, so that the readers are not their own oracle."""
    texts = {split: (folder / f"{split}.jsonl").read_text(encoding="utf-8") for split in SPLITS}
    return {split: [json.loads(line) for line in text.splitlines()] for split, text in texts.items()}


@pytest.fixture(scope="module")
def sentences(folder: Path) -> dict[str, list[Sentence]]:
    return {split: read_sentences(folder / f"{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def everything(records: dict[str, list[Record]]) -> list[Record]:
    return [record for split in SPLITS for record in records[split]]


def frame(record: Record, mark: str | None = None) -> str:
    """The text without its mentions: `mark`, or else the type, stands where one was."""
    text: str = record["text"]
    for span in sorted(record["spans"], key=lambda span: span["start"], reverse=True):
        text = text[: span["start"]] + (mark or span["label"]) + text[span["end"] :]
    return text.casefold()


def mentions(records: list[Record]) -> Counter[str]:
    return Counter(span["label"] for record in records for span in record["spans"])


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_reads_strictly_and_without_repairs(folder: Path, split: str) -> None:
    read, report = read_with_report(folder / f"{split}.jsonl")

    assert read
    assert report.format == "jsonl"
    assert not report.repairs
    assert not report.problems


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_read_is_what_stands_in_the_file(
    records: dict[str, list[Record]], sentences: dict[str, list[Sentence]], split: str
) -> None:
    for record, sentence in zip(records[split], sentences[split], strict=True):
        assert sentence.offsets is not None
        in_characters = [
            {"start": sentence.offsets[span.start][0], "end": sentence.offsets[span.end - 1][1], "label": span.type}
            for span in sentence.spans
        ]
        assert in_characters == record["spans"]
        assert sentence.annotated_types == frozenset(TYPES)


def test_spans_begin_and_end_at_word_borders_and_do_not_overlap(everything: list[Record]) -> None:
    for record in everything:
        words = split_words(record["text"])
        starts, ends = {start for start, _ in words}, {end for _, end in words}
        assert all(span["start"] in starts and span["end"] in ends for span in record["spans"]), record
        pairs = zip(record["spans"], record["spans"][1:], strict=False)
        assert all(first["end"] <= second["start"] for first, second in pairs), record


def test_every_line_has_the_same_shape(everything: list[Record]) -> None:
    for record in everything:
        assert list(record) == ["text", "spans", "annotated_types", "meta"]
        assert record["annotated_types"] == list(TYPES)
        assert all(list(span) == ["start", "end", "label"] and span["label"] in TYPES for span in record["spans"])


def test_text_is_plain(everything: list[Record]) -> None:
    for record in everything:
        text = record["text"]
        assert text == unicodedata.normalize("NFC", text)
        assert not set(text) & set("\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb[]"), text
        assert text == " ".join(text.split()), text  # plain single spaces, none at the ends
        assert not set(text) & set("\u00ad\u200b\u200c\u200d\u2060\ufeff"), text


def test_mentions_leave_out_articles_titles_and_possessives(everything: list[Record]) -> None:
    outside = re.compile(r"(the|dr|mr|mrs|ms|uncle|aunt|coach)\b", re.IGNORECASE)
    for record in everything:
        for span in record["spans"]:
            surface = record["text"][span["start"] : span["end"]]
            assert not outside.match(surface), surface
            assert not (span["label"] == "PERSON" and surface.endswith("'s")), surface


def test_it_is_large_enough_to_learn_and_to_measure(records: dict[str, list[Record]], everything: list[Record]) -> None:
    assert len(everything) >= 800
    assert len(mentions(everything)) >= 6
    assert min(mentions(records["test"])[type_] for type_ in TYPES) >= 40
    assert min(mentions(records["dev"])[type_] for type_ in TYPES) >= 25
    empty = sum(not record["spans"] for record in everything) / len(everything)
    assert 0.1 < empty < 0.25


def test_every_split_has_every_domain_in_the_same_share(records: dict[str, list[Record]]) -> None:
    domains = {split: Counter(record["meta"]["domain"] for record in records[split]) for split in SPLITS}
    total = domains["train"] + domains["dev"] + domains["test"]

    assert len(total) == 12
    for domain, count in total.items():
        assert domains["test"][domain] / count == pytest.approx(0.18, abs=0.02)
        assert domains["dev"][domain] / count == pytest.approx(0.12, abs=0.02)


def test_the_readme_tells_the_right_counts(folder: Path, records: dict[str, list[Record]]) -> None:
    rows = re.findall(r"^\| ([\w ]+?) \|((?: *[\d,]+ \|)+)$", (folder / "README.md").read_text("utf-8"), re.MULTILINE)
    told = {name: [int(cell.replace(",", "")) for cell in cells.split("|")[:-1]] for name, cells in rows}

    counted = {"sentences": [len(records[split]) for split in SPLITS]}
    counted["without a mention"] = [sum(not record["spans"] for record in records[split]) for split in SPLITS]
    counted |= {type_: [mentions(records[split])[type_] for split in SPLITS] for type_ in TYPES}
    counted["all mentions"] = [mentions(records[split]).total() for split in SPLITS]
    assert told == {name: [*cells, sum(cells)] for name, cells in counted.items()}


def test_no_sentence_occurs_twice(everything: list[Record]) -> None:
    bare = Counter(re.sub(r"\W+", " ", record["text"]).strip().casefold() for record in everything)

    assert [text for text, count in bare.items() if count > 1] == []


def test_no_two_sentences_share_a_frame(everything: list[Record]) -> None:
    for mark in (None, "#"):
        frames = Counter(frame(record, mark) for record in everything)
        assert [text for text, count in frames.items() if count > 1] == []


def test_no_two_frames_are_nearly_the_same(everything: list[Record]) -> None:
    """Of the three-word sequences around mentions, no two sentences share two that make up two in five of either."""
    shingles: list[frozenset[tuple[str, ...]]] = []
    for record in everything:
        words = re.findall(r"[\w']+|#", frame(record, "#"))
        triples = zip(words, words[1:], words[2:], strict=False)
        shingles.append(frozenset(triple for triple in triples if triple.count("#") < 2))
    where: dict[tuple[str, ...], list[int]] = {}
    for number, own in enumerate(shingles):
        for triple in own:
            where.setdefault(triple, []).append(number)
    together = Counter(pair for numbers in where.values() for pair in combinations(numbers, 2))

    near = [pair for pair, shared in together.items() if shared > 0.4 * min(len(shingles[number]) for number in pair)]
    assert [[everything[number]["text"] for number in pair] for pair in near if together[pair] > 1] == []


def test_the_corpus_check_finds_nothing(folder: Path) -> None:
    report = check({split: folder / f"{split}.jsonl" for split in SPLITS})

    assert report.ok
    assert report.notes == ()
