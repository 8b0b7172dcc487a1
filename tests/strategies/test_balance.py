"""How gold and teacher are weighed."""

import pytest
import torch

from ner_cl.config import HeadOptions
from ner_cl.strategies.balance import BalanceOptions, teacher_weight, word_factors
from ner_cl.strategies.heads_needed import why_not_one_softmax


def options(**values: object) -> BalanceOptions:
    return BalanceOptions(name="any", **values)


def test_a11_the_weight_of_the_teacher() -> None:
    assert teacher_weight(options(), old=5, new=2) == pytest.approx(2.828427, abs=1e-6)
    assert teacher_weight(options(balance="none"), old=5, new=2) == 2.0
    assert teacher_weight(options(strength=0.5), old=3, new=2) == 0.5
    assert teacher_weight(options(strength=0), old=5, new=2) == 0.0


@pytest.mark.parametrize("pays", [[1, 4, 5], [2], []])
def test_the_mean_over_all_words_gets_the_scale_of_the_reduction(pays: list[int]) -> None:
    """Over all batches of the step, of whatever sizes, the mean is that over the words that pay."""
    own = torch.tensor([True] * 6 + [False] * 2)
    paying = torch.zeros(8, dtype=torch.bool)
    paying[pays] = True
    costs = torch.arange(1.0, 9.0)
    each, summed = (word_factors(name, paying, own) * costs for name in ("mean_each", "sum_then_mean"))
    assert not each[~paying].any()
    torch.testing.assert_close(summed, torch.where(paying, costs, 0.0))
    if pays:
        torch.testing.assert_close(each[own].mean(), costs[paying].mean())
        batches = (each[:2], each[2:6])
        torch.testing.assert_close(sum(len(part) * part.mean() for part in batches) / 6, costs[paying].mean())


def test_heads_without_one_softmax_are_refused_with_a_way_out() -> None:
    assert why_not_one_softmax(HeadOptions(name="extendner")) == ""
    assert "head addner has not; use head extendner" in why_not_one_softmax(HeadOptions(name="addner"))
