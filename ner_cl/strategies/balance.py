"""Balance of gold for new types and the teacher for old ones, in CFNER (Zheng et al. 2022) and its successors."""

from math import sqrt
from typing import Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ner_cl.config import StrategyOptions

__all__ = ["BalanceOptions", "teacher_weight", "word_factors"]


class BalanceOptions(StrategyOptions):
    """Weights of the loss terms, and which rows of the head are trained.

    Attributes:
        strength: weight of the terms in which the student imitates the teacher.
        balance: `root` multiplies that weight by √((C_old - 1) / (C_new - C_old)), where C_old and C_new are the
            numbers of columns of the head before and after the step; `none` does not.
        reduction: `mean_each` gives each term the scale of a mean over the words that contribute to it, counted over
            the whole step so that the rest of a batch does not matter; `sum_then_mean` takes one mean over all words.
        freeze_old_rows: keep the rows of `O` and of old types fixed after their own step, as in the authors' code.
    """

    strength: float = Field(2.0, ge=0)
    balance: Literal["root", "none"] = "root"
    reduction: Literal["mean_each", "sum_then_mean"] = "mean_each"
    freeze_old_rows: bool = False


def teacher_weight(options: BalanceOptions, *, old: int, new: int) -> float:
    """The weight of the terms in which the student imitates the teacher.

    Args:
        options: strength and balance.
        old: number of columns of the head before the step, including `O`.
        new: number of columns that the step adds.
    """
    return options.strength * (sqrt((old - 1) / new) if options.balance == "root" else 1.0)


def word_factors(
    reduction: Literal["mean_each", "sum_then_mean"], counted: Bool[Tensor, " word"], own: Bool[Tensor, " word"]
) -> Float[Tensor, " word"]:
    """Per-word factors that turn a mean over all own words of the step into the mean that `reduction` names.

    `sum_then_mean`: 1 for counted words, else 0. `mean_each`: additionally times (own words / counted words), so that
    the term becomes a mean over the counted words only.

    Args:
        reduction: see `BalanceOptions`.
        counted: which words contribute to the term; others get 0.
        own: which words the mean is taken over.
    """
    if reduction == "sum_then_mean":
        return counted.float()
    return counted * (own.sum() / counted.sum().clamp(min=1))
