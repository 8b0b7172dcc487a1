import copy

import pytest

from ner_cl.evaluate import metrics
from ner_cl.evaluate.counts import Counts
from ner_cl.evaluate.matrix import Matrix

PUBLISHED = [[80.0, 70.0, 65.0], [60.0, 66.0], [90.0]]
"""A worked example in percent: a step's score after it was taught and after each later step."""


def _percent(score: int) -> Counts:
    return Counts(tp=score, fp=100 - score, fn=100 - score)


@pytest.fixture
def published() -> Matrix:
    matrix = Matrix.start([["A"], ["B"], ["C"]])
    for row in ({"A": 80}, {"A": 70, "B": 60}, {"A": 65, "B": 66, "C": 90}):
        matrix = matrix.with_row({type_: _percent(score) for type_, score in row.items()})
    return matrix


def test_published_vector_on_histories() -> None:
    assert metrics.bwt_final(PUBLISHED) == pytest.approx(-4.5)
    assert metrics.max_drop(PUBLISHED) == pytest.approx(7.5)
    assert metrics.max_drop_earlier(PUBLISHED) == pytest.approx(4.5)
    assert metrics.first_drop(PUBLISHED) == pytest.approx(4.5)
    assert metrics.bwt_lower_triangle(PUBLISHED) == pytest.approx((-10 - 15 + 6) / 3)


def test_published_vector_on_a_matrix(published: Matrix) -> None:
    scores = {key: None if value is None else 100 * value for key, value in published.metrics.items()}
    assert scores["average/macro_f1"] == pytest.approx(72.888889)
    assert scores["final/macro_f1"] == pytest.approx(73.666667)
    assert scores["bwt/final"] == pytest.approx(-4.5)
    assert scores["forgetting/max_drop"] == pytest.approx(7.5)
    assert scores["forgetting/max_drop_earlier"] == pytest.approx(4.5)


def test_units_agree_where_each_step_teaches_one_type(published: Matrix) -> None:
    scores = published.metrics
    assert scores["bwt/step_final"] == scores["bwt/final"]
    assert scores["forgetting/step_max_drop"] == scores["forgetting/max_drop"]
    assert scores["average/step_mean_f1"] == pytest.approx(scores["average/macro_f1"])


def test_one_step_forgets_nothing_because_nothing_is_old() -> None:
    scores = Matrix.start([["A"], ["B"]]).with_row({"A": _percent(80)}).metrics
    assert scores["average/micro_f1"] == scores["final/macro_f1"] == scores["learning/new_f1_mean"] == 0.8
    undefined = {key for key, value in scores.items() if value is None}
    assert undefined == {key for key in scores if key.split("/")[0] in {"forgetting", "bwt", "old", "new"}}


def test_no_row_no_score() -> None:
    assert set(Matrix.start([["A"]]).metrics.values()) == {None}


def test_a_run_evaluated_at_its_end_has_final_scores_only(published: Matrix) -> None:
    last = Matrix(published.types, published.steps, (None, None, published.counts[2]))
    for key, value in last.metrics.items():
        assert value == (published.metrics[key] if key.startswith("final/") else None)
    unfinished = Matrix(published.types, published.steps, (published.counts[0], None))
    assert set(unfinished.metrics.values()) == {None}


def test_types_without_gold_are_left_out() -> None:
    assert metrics.max_drop([[None, None], [0.9, 0.8]]) == pytest.approx(0.1)
    assert metrics.bwt_final([[0.9, None, 0.8], [0.5, 0.5, 0.6]]) == pytest.approx(0.1)
    assert metrics.max_drop([[None, None]]) is None
    assert metrics.mean([None, 0.5]) == 0.5


def test_scores_against_another_run_are_none_where_it_was_not_evaluated(published: Matrix) -> None:
    joint = Matrix.start([published.types])
    assert metrics.comparison(published, joint=joint) == {"intransigence/joint": None, "gap/joint_micro_f1": None}
    assert metrics.comparison(published) == {}
    assert metrics.fwt_from_scratch(published, {"B": 0.5}) == pytest.approx(0.1)


def test_nothing_is_changed_by_scoring(published: Matrix) -> None:
    before, histories = copy.deepcopy(published), copy.deepcopy(PUBLISHED)
    metrics.summary(published)
    metrics.comparison(published, joint=published, scratch={"A": 0.1})
    for score in (metrics.max_drop, metrics.max_drop_earlier, metrics.first_drop, metrics.bwt_lower_triangle):
        score(PUBLISHED)
    assert published == before
    assert histories == PUBLISHED
