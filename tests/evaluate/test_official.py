import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ner_cl.data.tagset import Tagset
from ner_cl.errors import DataError
from ner_cl.evaluate.counts import count_spans
from ner_cl.evaluate.official import official_report, official_report_of_tags
from ner_cl.types import Sentence, Span
from tests.evaluate.corpora import TYPES, Drawn, annotations, corpus, sentence

NOTHING = {"precision": None, "recall": None, "f1": None, "support": 0}


@given(annotations())
@settings(max_examples=100)
def test_both_readings_agree_on_spans(drawn: Drawn) -> None:
    gold, predicted = corpus(drawn)
    strict = official_report(gold, predicted, TYPES, mode="strict")
    lenient = official_report(gold, predicted, TYPES, mode="lenient")
    assert lenient == {**strict, "mode": "lenient"}
    assert json.loads(json.dumps(strict)) == strict


TAGSET = Tagset((TYPES,))
RAW = st.lists(st.lists(st.tuples(*[st.integers(0, len(TAGSET) - 1)] * 2), max_size=7), max_size=4)


@given(RAW)
@settings(max_examples=150)
def test_strict_reading_of_any_tags_is_that_of_the_tagset(words: list[list[tuple[int, int]]]) -> None:
    ids = [[[pair[side] for pair in line] for line in words] for side in (0, 1)]
    gold_tags, predicted_tags = ([[TAGSET.tags[tag] for tag in line] for line in side] for side in ids)
    gold = [sentence(len(line), *TAGSET.decode(line)) for line in ids[0]]
    counts = count_spans(gold, [TAGSET.decode(line) for line in ids[1]], TYPES)
    report = official_report_of_tags(gold_tags, predicted_tags, TYPES)
    assert {type_: scores["f1"] for type_, scores in report["types"].items()} == {
        type_: pytest.approx(cell.f1) for type_, cell in counts.items()
    }


def test_the_readings_differ_on_illegal_tags() -> None:
    gold, predicted = [["B-PER", "I-PER"]], [["I-PER", "I-PER"]]
    assert official_report_of_tags(gold, predicted, TYPES, mode="strict")["micro"]["f1"] == 0.0
    assert official_report_of_tags(gold, predicted, TYPES, mode="lenient")["micro"]["f1"] == 1.0


@pytest.mark.parametrize("mode", ["strict", "lenient"])
@pytest.mark.parametrize("predicted", ["O", "B-PER", "I-PER"])
def test_gold_without_entities_is_undefined(mode: str, predicted: str) -> None:
    report = official_report_of_tags([["O"]], [[predicted]], TYPES, mode=mode)
    assert report["types"]["LOC"] == report["macro"] == NOTHING
    assert report["micro"]["f1"] is report["types"]["PER"]["f1"] is None


def test_macro_is_over_the_types_with_gold_not_over_the_predicted_ones() -> None:
    gold = [["B-PER", "O", "B-LOC"]]
    predicted = [["B-PER", "B-ORG", "B-LOC"]]
    report = official_report_of_tags(gold, predicted, TYPES)
    assert report["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}
    assert report["micro"]["precision"] == pytest.approx(2 / 3)


def test_other_types_and_unannotated_types_are_left_out() -> None:
    half = Sentence(("Ada", "in", "Rome"), (Span(0, 1, "PER"),), frozenset({"PER"}))
    report = official_report([half], [[Span(0, 1, "PER"), Span(2, 3, "LOC")]], ["PER", "LOC"])
    assert report["micro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    narrow = official_report_of_tags([["B-PER", "B-LOC"]], [["B-PER", "O"]], ["PER"])
    assert set(narrow["types"]) == {"PER"}
    assert narrow["micro"]["f1"] == 1.0


def test_type_names_with_hyphens_and_slashes() -> None:
    types = ["art-broadcast/x", "product-car"]
    tags = [["B-art-broadcast/x", "I-art-broadcast/x", "B-product-car"]]
    assert official_report_of_tags(tags, tags, types)["macro"]["f1"] == 1.0


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="differ in number"):
        official_report_of_tags([["O", "O"]], [["O"]], TYPES)
    with pytest.raises(DataError, match="1 gold sentences but 0 predictions"):
        official_report([sentence(1)], [], TYPES)
