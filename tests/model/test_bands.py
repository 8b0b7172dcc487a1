"""Scores of spans and what is read off them, against a search through all pairs of words."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.model.bands import crossing, non_maximum_suppression, span_band, tags_of_disjoint, within
from ner_cl.model.decode import orphans, spans_of_rows

SEEDS = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=60)
SPAN = st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(1, 5), st.integers(0, 2))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS, words=st.integers(0, 14), longest=st.integers(1, 16), types=st.integers(1, 3))
@PROPERTY
def test_a_band_is_the_product_of_every_pair_of_words(seed: int, words: int, longest: int, types: int) -> None:
    starts, ends = normal(seed, 2, words, types, 4), normal(seed + 1, 2, words, types, 4)
    band = span_band(starts, ends, longest=longest)
    every = torch.einsum("bitd,bjtd->bijt", starts, ends) / math.sqrt(4)
    assert band.shape == (2, words, min(longest, max(words, 1)), types)
    assert band.shape[:3] == within(torch.ones(2, words, dtype=torch.bool), longest).shape
    for first in range(words):
        for more in range(min(band.shape[2], words - first)):
            torch.testing.assert_close(band[:, first, more], every[:, first, first + more], atol=1e-5, rtol=1e-5)


def test_gradients_of_a_band_are_those_of_the_pairs() -> None:
    def slopes(banded: bool) -> tuple[Tensor, ...]:
        starts, ends = normal(0, 1, 7, 2, 3).requires_grad_(), normal(1, 1, 7, 2, 3).requires_grad_()
        if banded:
            inside = within(torch.ones(1, 7, dtype=torch.bool), 3)
            total = span_band(starts, ends, longest=3)[inside].square().sum()
        else:
            pairs = torch.einsum("bitd,bjtd->bijt", starts, ends) / math.sqrt(3)
            near = torch.ones(7, 7).tril(2).triu().bool()
            total = pairs[:, near].square().sum()
        return torch.autograd.grad(total, [starts, ends])

    torch.testing.assert_close(slopes(banded=True), slopes(banded=False))


@pytest.mark.parametrize(("words", "longest", "spans"), [(200, 200, 20_100), (200, 32, 5_904), (5, 32, 15), (1, 1, 1)])
def test_sk4_how_many_spans_there_are(words: int, longest: int, spans: int) -> None:
    """All n(n + 1) / 2 where the limit allows it."""
    assert int(within(torch.ones(1, words, dtype=torch.bool), longest).sum()) == spans


def test_spans_end_within_their_row() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    expected = [[[True, True], [True, True], [True, False]], [[True, False]] + [[False] * 2] * 2, [[False] * 2] * 3]
    assert within(mask, 2).tolist() == expected


@given(seed=SEEDS, words=st.integers(1, 9), longest=st.integers(1, 9))
@PROPERTY
def test_what_crosses_a_border(seed: int, words: int, longest: int) -> None:
    longest = min(longest, words)
    inside = within(torch.ones(2, words, dtype=torch.bool), longest)
    band = normal(seed, 2, words, longest).masked_fill(~inside, -torch.inf)
    found = crossing(band)
    for row in range(2):
        for border in range(words):
            over = [
                band[row, first, more].item()
                for first in range(border)
                for more in range(longest)
                if first + more >= border
            ]
            assert found[row, border].item() == max(over, default=-math.inf)


def one_by_one(spans: list[list[int]], scores: list[float]) -> list[bool]:
    """The best first, the first among equals; what shares a word with a span that was taken is left."""
    kept = [False] * len(spans)
    for index in sorted(range(len(spans)), key=lambda index: -scores[index]):
        row, start, end, _ = spans[index]
        taken = [other for other, keep in zip(spans, kept, strict=True) if keep and other[0] == row]
        kept[index] = all(end <= other[1] or other[2] <= start for other in taken)
    return kept


@given(drawn=st.lists(st.tuples(SPAN, st.integers(0, 6)), max_size=25))
@settings(max_examples=200)
def test_taking_many_at_once_is_taking_them_one_by_one(drawn: list[tuple[tuple[int, int, int, int], int]]) -> None:
    spans = [[row, start, start + length, type_] for (row, start, length, type_), _ in drawn]
    scores = [float(score) for _, score in drawn]
    tensor = torch.tensor(spans, dtype=torch.long).view(-1, 4)
    kept = non_maximum_suppression(tensor, torch.tensor(scores))
    assert kept.tolist() == one_by_one(spans, scores)
    # What is left can be told in tags, and read again.
    mask = torch.ones(2, 15, dtype=torch.bool)
    tags = tags_of_disjoint(tensor[kept], mask)
    assert not orphans(tags).any()
    assert sorted(spans_of_rows(tags).tolist()) == sorted(tensor[kept].tolist())


def test_a_chain_of_ever_better_spans_keeps_every_other_one() -> None:
    """Each overlaps the next, better one: as many rounds as there can be."""
    spans = torch.tensor([[0, place, place + 2, 0] for place in range(9)])
    kept = non_maximum_suppression(spans, torch.arange(9.0))
    assert kept.nonzero().flatten().tolist() == [0, 2, 4, 6, 8]
