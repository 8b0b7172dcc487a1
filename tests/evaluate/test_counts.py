import pytest
from hypothesis import given, settings

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import Counts, count_spans, macro_f1, micro_f1, word_confusion
from ner_cl.evaluate.official import official_report
from ner_cl.types import Sentence, Span
from tests.evaluate.corpora import TYPES, Drawn, annotations, corpus, iob2, sentence


@given(annotations())
@settings(max_examples=150)
def test_ours_equals_seqeval_strict(drawn: Drawn) -> None:
    gold, predicted = corpus(drawn)
    counts = count_spans(gold, predicted, TYPES)
    report = official_report(gold, predicted, TYPES)
    for type_, cell in counts.items():
        official = report["types"][type_]
        ours = {"precision": cell.precision, "recall": cell.recall, "f1": cell.f1, "support": cell.gold}
        assert official == pytest.approx(ours)
    assert report["micro"]["f1"] == pytest.approx(micro_f1(counts))
    assert report["macro"]["f1"] == pytest.approx(macro_f1(counts))


@given(annotations())
@settings(max_examples=150)
def test_ours_equals_nervaluate_strict(drawn: Drawn) -> None:
    nervaluate = pytest.importorskip("nervaluate", reason="nervaluate needs Python 3.11")
    gold_tags = [iob2(gold, length) for length, gold, _ in drawn]
    predicted_tags = [iob2(predicted, length) for length, _, predicted in drawn]
    report = nervaluate.Evaluator(gold_tags, predicted_tags, tags=list(TYPES), loader="list").evaluate()
    for type_, cell in count_spans(*corpus(drawn), TYPES).items():
        if type_ not in report["entities"]:  # nervaluate leaves out types that occur on neither side
            assert cell == Counts()
            continue
        strict = report["entities"][type_]["strict"]
        assert (strict.correct, strict.actual, strict.possible) == (cell.tp, cell.tp + cell.fp, cell.gold)


GOLD = [sentence(6, Span(0, 2, "PER"), Span(3, 4, "LOC")), sentence(4, Span(1, 3, "PER"))]


def test_perfect_prediction_scores_one() -> None:
    counts = count_spans(GOLD, [list(item.spans) for item in GOLD], TYPES)
    assert micro_f1(counts) == macro_f1(counts) == 1.0


def test_shift_by_one_word_scores_zero() -> None:
    moved = [[Span(span.start + 1, span.end + 1, span.type) for span in item.spans] for item in GOLD]
    counts = count_spans(GOLD, moved, TYPES)
    assert micro_f1(counts) == 0.0
    assert counts["PER"] == Counts(tp=0, fp=2, fn=2)


def test_swapped_types_score_zero() -> None:
    swap = {"PER": "LOC", "LOC": "PER"}
    swapped = [[Span(span.start, span.end, swap[span.type]) for span in item.spans] for item in GOLD]
    counts = count_spans(GOLD, swapped, TYPES)
    assert counts["PER"] == Counts(tp=0, fp=1, fn=2)
    assert counts["LOC"] == Counts(tp=0, fp=2, fn=1)


def test_spans_are_compared_within_their_sentence() -> None:
    assert count_spans(GOLD, [[Span(1, 3, "PER")], []], ["PER"])["PER"] == Counts(tp=0, fp=1, fn=2)


def test_micro_weighs_spans_and_macro_weighs_types() -> None:
    counts = {"PER": Counts(tp=9, fp=1, fn=1), "LOC": Counts(tp=0, fp=0, fn=1)}
    assert micro_f1(counts) == pytest.approx(18 / 21)
    assert macro_f1(counts) == pytest.approx(0.45)


def test_types_outside_the_asked_ones_are_ignored_on_both_sides() -> None:
    predicted = [[Span(0, 2, "PER"), Span(3, 4, "LOC"), Span(4, 6, "ORG")], []]
    assert count_spans(GOLD, predicted, ["PER"]) == {"PER": Counts(tp=1, fp=0, fn=1)}


def test_prediction_of_a_type_without_gold_is_spurious() -> None:
    counts = count_spans(GOLD, [[Span(4, 6, "ORG")], []], ["PER", "ORG"])
    assert counts["ORG"] == Counts(tp=0, fp=1, fn=0)
    assert counts["ORG"].f1 is None
    assert counts["ORG"].precision == 0.0
    assert micro_f1({"PER": Counts(tp=1), "ORG": counts["ORG"]}) == pytest.approx(2 / 3)


def test_types_a_sentence_is_not_annotated_for_do_not_count() -> None:
    half = Sentence(("Ada", "in", "Rome"), (Span(0, 1, "PER"),), frozenset({"PER"}))
    counts = count_spans([half], [[Span(0, 1, "PER"), Span(2, 3, "LOC")]], ["PER", "LOC"])
    assert counts == {"PER": Counts(tp=1), "LOC": Counts()}


def test_nested_spans_and_repeated_predictions() -> None:
    nested = sentence(4, Span(0, 3, "ORG"), Span(1, 2, "LOC"))
    counts = count_spans([nested], [[Span(1, 2, "LOC"), Span(1, 2, "LOC"), Span(0, 3, "ORG")]], ["ORG", "LOC"])
    assert counts == {"ORG": Counts(tp=1), "LOC": Counts(tp=1)}


def test_scores_without_gold_or_prediction() -> None:
    assert (Counts().precision, Counts().recall, Counts().f1) == (None, None, None)
    assert (Counts(fn=2).precision, Counts(fn=2).recall, Counts(fn=2).f1) == (0.0, 0.0, 0.0)
    assert micro_f1({}) is None
    assert macro_f1({"PER": Counts(fp=1)}) is None


@given(annotations())
@settings(max_examples=50)
def test_counts_of_parts_add_up(drawn: Drawn) -> None:
    whole = count_spans(*corpus(drawn), TYPES)
    parts = [count_spans(*corpus([item]), TYPES) for item in drawn]
    assert whole == {type_: sum((part[type_] for part in parts), start=Counts()) for type_ in TYPES}


def test_a_missing_prediction_is_refused() -> None:
    with pytest.raises(DataError, match="2 gold sentences but 1 predictions"):
        count_spans(GOLD, [[]], TYPES)


def test_word_confusion() -> None:
    gold = [sentence(8, Span(0, 4, "PER"), Span(4, 6, "LOC"))]
    predicted = [[Span(0, 1, "PER"), Span(1, 2, "LOC"), Span(4, 5, "LOC"), Span(6, 7, "LOC")]]
    rates = word_confusion(gold, predicted, old=["PER"], new=["LOC"])
    assert rates == {
        "confusion/old_to_o": 2 / 4,
        "confusion/old_to_new": 1 / 4,
        "confusion/o_to_new": 1 / 2,
        "confusion/new_to_o": 1 / 2,
    }
    partly = [gold[0].restrict(["PER"])]
    assert set(word_confusion(partly, predicted, old=["PER"], new=["LOC"]).values()) == {None}
