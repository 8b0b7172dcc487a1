"""Tests see wrong types and shapes: ner_cl is instrumented, and what instruments it misses nothing."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from ner_cl.model.losses import kd_sub, masked_mean
from ner_cl.types import Sentence, Span
from tests.checked import checked

Rows = Float[Tensor, "row word"]
check = checked(typechecker=beartype)


@check
def total(one: Rows, other: Rows) -> Float[Tensor, " row"]:
    return (one + other).sum(1)


@check
def transposed(rows: Rows) -> Rows:
    return rows.T


@check
def first_row(rows: Rows) -> Iterator[Float[Tensor, " word"]]:
    yield rows[0]


@check
def applied(rows: Rows, function: Callable[[Rows], Tensor]) -> Tensor | list[Rows]:
    return [function(rows)]


@check
@dataclass(frozen=True)
class Pair:
    rows: Rows
    names: tuple[str, ...] = ()

    @check
    def __len__(self) -> int:
        return len(self.rows)

    @property
    @check
    def name(self) -> str:
        return self.names[0] if self.names else None  # type: ignore[return-value]

    @classmethod
    @check
    def of(cls, rows: Rows) -> "Pair":
        return cls(rows)

    @check
    @staticmethod
    def width(rows: Rows) -> int:
        return rows.shape[1]


ROWS = torch.zeros(2, 3)


def test_what_is_right_passes() -> None:
    assert total(ROWS, ROWS).shape == (2,)
    assert transposed(torch.zeros(2, 2)).shape == (2, 2)
    assert [row.shape for row in first_row(ROWS)] == [(3,)]
    assert len(applied(ROWS, torch.relu)) == 1
    assert len(Pair.of(ROWS)) == 2
    assert (Pair.width(ROWS), Pair(ROWS, ("A",)).name) == (3, "A")


@pytest.mark.parametrize(
    "call",
    [
        lambda: total(ROWS, torch.zeros(2, 4)),  # one name, two sizes among the arguments
        lambda: total(ROWS, ROWS[0]),
        lambda: total(ROWS, ROWS.int()),
        lambda: total(ROWS, [0.0]),
        lambda: transposed(ROWS),  # one name, two sizes in argument and result
        lambda: list(first_row(ROWS[0])),
        lambda: applied(ROWS[0], torch.relu),
        lambda: applied(ROWS, torch.sum),
        lambda: Pair(ROWS[0]),
        lambda: Pair(ROWS, ["A"]),
        lambda: Pair(ROWS).name,
        lambda: Pair.of(ROWS[0]),
        lambda: Pair.width(ROWS[0]),
        # Of ner_cl itself.
        lambda: masked_mean(ROWS, torch.ones(3, 2, dtype=torch.bool)),
        lambda: masked_mean(ROWS, ROWS),
        lambda: kd_sub(ROWS, ROWS[0], temperature=1.0),
        lambda: kd_sub(ROWS, ROWS, temperature="hot"),
        lambda: Span("0", 1, "PER"),
        lambda: Sentence(("Ada",), (), frozenset()).restrict(5),
    ],
)
def test_what_is_wrong_fails(call: Callable[[], Any]) -> None:
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        call()


def test_sizes_of_one_call_are_not_those_of_the_next_or_of_an_inner_one() -> None:
    @check
    def outer(rows: Rows) -> Rows:
        assert total(torch.zeros(4, 5), torch.zeros(4, 5)).shape == (4,)
        return rows

    assert outer(ROWS).shape == (2, 3)
    assert outer(torch.zeros(7, 8)).shape == (7, 8)


def test_the_arguments_of_what_is_wrapped_can_be_asked_for() -> None:
    """spaCy asks the wrapper, not what it wraps."""

    def plain(one: int, *, two: str) -> int:
        return one

    def shaped(one: Float[Tensor, " word"], *, two: str) -> Float[Tensor, " word"]:
        return one

    for function in (plain, shaped):
        asked = inspect.getfullargspec(checked(function, typechecker=beartype))
        assert (asked.args, asked.kwonlyargs) == (["one"], ["two"])
