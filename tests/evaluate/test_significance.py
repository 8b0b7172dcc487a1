"""Paired tests, against scipy's and against exact counts."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import count_spans, macro_f1, micro_f1
from ner_cl.evaluate.significance import Average, paired_bootstrap, sentence_counts, sign_flip_test
from tests.evaluate.corpora import TYPES, Drawn, annotations, corpus


def tables(seed: int, sentences: int = 60, types: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, size=(sentences, types, 3)).astype(np.int32)


def micro(table: np.ndarray) -> float:
    tp, fp, fn = table.sum((0, 1))
    return float(2 * tp / (2 * tp + fp + fn))


@given(annotations())
@settings(max_examples=30)
def test_sentence_counts_add_up_to_count_spans(drawn: Drawn) -> None:
    gold, found = corpus(drawn)
    table = sentence_counts(gold, found, TYPES)
    whole = count_spans(gold, found, TYPES)
    assert table.sum(0).tolist() == [[whole[t].tp, whole[t].fp, whole[t].fn] for t in TYPES]


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_the_difference_is_that_of_the_scores(average: Average) -> None:
    from ner_cl.evaluate.counts import Counts

    first, second = tables(1), tables(2)
    score = micro_f1 if average == "micro" else macro_f1
    values = [score({str(i): Counts(*map(int, row)) for i, row in enumerate(t.sum(0))}) for t in (first, second)]
    found = paired_bootstrap([(first, second)], average=average, resamples=50)
    assert found.difference == pytest.approx(values[1] - values[0])
    assert found.low <= found.difference <= found.high


def test_the_interval_is_that_of_scipy() -> None:
    first, second = tables(3, 200), tables(4, 200)
    ours = paired_bootstrap([(first, second)], resamples=4000, seed=1)
    indices = np.arange(200)
    theirs = scipy.stats.bootstrap(
        (indices,),
        lambda drawn: micro(second[drawn]) - micro(first[drawn]),
        n_resamples=4000,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_a_run_does_not_differ_from_itself() -> None:
    found = paired_bootstrap([(tables(1), tables(1))], resamples=100)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_better_in_every_sentence_is_better_in_every_draw() -> None:
    worse = np.tile(np.array([[[1, 1, 1]]], dtype=np.int32), (50, 1, 1))
    better = np.tile(np.array([[[2, 0, 0]]], dtype=np.int32), (50, 1, 1))
    found = paired_bootstrap([(worse, better)], resamples=999)
    assert (found.difference, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.p == pytest.approx(2 / 1000)


def test_pairs_are_drawn_together_and_averaged() -> None:
    pairs = [(tables(1), tables(2)), (tables(5), tables(6))]
    each = [paired_bootstrap([pair], resamples=10).difference for pair in pairs]
    assert paired_bootstrap(pairs, resamples=10).difference == pytest.approx(sum(each) / 2)


def test_a_type_without_gold_in_a_draw_is_left_out_of_its_macro_f1() -> None:
    table = np.zeros((4, 2, 3), dtype=np.int32)
    table[:, 0, 0] = 1  # found in every sentence
    table[0, 1, 2] = 1  # missed, in the first one only: a draw without it has nothing to miss
    found = paired_bootstrap([(table, table)], average="macro", resamples=20)
    assert np.isfinite([found.low, found.high]).all()


def test_other_test_sets_and_no_pair_are_refused() -> None:
    with pytest.raises(DataError, match="different test sets"):
        paired_bootstrap([(tables(1), tables(1, 59))])
    with pytest.raises(DataError, match="no pair of runs"):
        paired_bootstrap([])


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=9))
@settings(max_examples=40)
def test_the_exact_test_is_that_of_scipy(differences: list[float]) -> None:
    found = sign_flip_test(differences)
    assert found is not None
    theirs = scipy.stats.permutation_test(
        (np.array(differences), np.zeros(len(differences))),
        lambda x, y: abs(np.mean(x - y)),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
        vectorized=False,
    )
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.smallest == 2 / 2 ** len(differences)


def test_many_pairs_are_drawn() -> None:
    found = sign_flip_test([0.1] * 20, resamples=500)
    assert found is not None
    assert found.p == pytest.approx(1 / 501)
    assert sign_flip_test([]) is None
