"""The resolver of AddNER's heads against the truth table, worked sentences, and a slow implementation."""

import math
from collections.abc import Sequence
from random import Random
from typing import Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.model.decode import orphans
from ner_cl.model.resolve import resolve

Vote = tuple[str, float]
Continuation = Literal["wins", "compare"]

HEADS = [["LOC"], ["ORG"]]
JOINT = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
OUT: Vote = ("O", 0.9)


def block_of(votes: Sequence[Vote], types: Sequence[str]) -> Tensor:
    """One head's log-probabilities, each word giving the voted tag its probability and the others equal shares.

    A voted tag keeps the highest score even below an equal share, as only votes and their scores matter.
    """
    names = ["O", *(f"{prefix}-{type_}" for type_ in types for prefix in "BI")]
    scores = torch.zeros(len(votes), len(names), dtype=torch.float64)
    for word, (tag, probability) in enumerate(votes):
        scores[word] = min((1 - probability) / (len(names) - 1), 0.99 * probability)
        scores[word, names.index(tag)] = probability
    return scores.log()[None]


def read(words: Sequence[tuple[Vote, Vote]], continuation: Continuation = "wins") -> list[str]:
    blocks = [block_of([word[head] for word in words], types) for head, types in enumerate(HEADS)]
    tags = resolve(blocks, torch.ones(1, len(words), dtype=torch.bool), continuation=continuation)
    return [JOINT[tag] for tag in tags[0].tolist()]


BEFORE: dict[str, list[tuple[Vote, Vote]]] = {  # words that leave the given tag as the previous output
    "start": [],
    "O": [(OUT, OUT)],
    "B-LOC": [(("B-LOC", 0.9), OUT)],
    "I-LOC": [(("B-LOC", 0.9), OUT), (("I-LOC", 0.9), OUT)],
    "B-ORG": [(OUT, ("B-ORG", 0.9))],
}


@pytest.mark.parametrize(
    ("before", "loc", "org", "expected"),
    [
        ("O", OUT, OUT, "O"),
        ("O", ("B-LOC", 0.6), OUT, "B-LOC"),
        ("O", OUT, ("B-ORG", 0.6), "B-ORG"),
        ("O", ("B-LOC", 0.6), ("B-ORG", 0.7), "B-ORG"),
        ("O", ("B-LOC", 0.7), ("B-ORG", 0.6), "B-LOC"),
        ("B-LOC", ("I-LOC", 0.6), OUT, "I-LOC"),
        ("B-LOC", ("I-LOC", 0.51), ("B-ORG", 0.99), "I-LOC"),
        ("B-ORG", ("I-LOC", 0.9), ("I-ORG", 0.4), "I-ORG"),
        ("B-ORG", ("I-LOC", 0.9), OUT, "O"),
        ("B-ORG", ("I-LOC", 0.9), ("B-ORG", 0.5), "B-ORG"),
        ("start", ("I-LOC", 0.9), ("B-ORG", 0.3), "B-ORG"),
        ("start", ("I-LOC", 0.9), ("I-ORG", 0.9), "O"),
        ("I-LOC", OUT, ("I-ORG", 0.8), "O"),
        ("I-LOC", ("I-LOC", 0.8), OUT, "I-LOC"),
        ("B-LOC", ("B-LOC", 0.5), ("B-ORG", 0.5), "B-LOC"),
        ("B-ORG", ("B-LOC", 0.5), ("B-ORG", 0.5), "B-LOC"),
    ],
)
def test_truth_table(before: str, loc: Vote, org: Vote, expected: str) -> None:
    tags = read([*BEFORE[before], (loc, org)])
    if before != "start":
        assert tags[-2] == before
    assert tags[-1] == expected


@pytest.mark.parametrize(
    ("inside", "begin", "wins", "compare"),
    [(0.51, 0.99, "I-LOC", "B-ORG"), (0.75, 0.5, "I-LOC", "I-LOC"), (0.5, 0.5, "I-LOC", "I-LOC")],
)
def test_a_continuation_wins_or_is_compared(inside: float, begin: float, wins: str, compare: str) -> None:
    words = [*BEFORE["B-LOC"], (("I-LOC", inside), ("B-ORG", begin))]
    assert read(words)[-1] == wins
    assert read(words, "compare")[-1] == compare


def test_comparing_sets_a_continuation_against_begins_only() -> None:
    assert read([*BEFORE["B-LOC"], (("I-LOC", 0.5), ("O", 0.99))], "compare")[-1] == "I-LOC"
    assert read([*BEFORE["B-LOC"], (("I-LOC", 0.5), ("I-ORG", 0.99))], "compare")[-1] == "I-LOC"


@pytest.mark.parametrize(
    ("new_as_place", "expected"),
    [
        (0.60, ["B-ORG", "I-ORG", "I-ORG", "O", "O", "B-LOC"]),
        (0.85, ["B-LOC", "I-LOC", "O", "O", "O", "B-LOC"]),
    ],
)
def test_new_york_times_opened_in_rome(new_as_place: float, expected: list[str]) -> None:
    """One early probability decides the whole span."""
    words: list[tuple[Vote, Vote]] = [
        (("B-LOC", new_as_place), ("B-ORG", 0.80)),
        (("I-LOC", 0.70), ("I-ORG", 0.55)),
        (OUT, ("I-ORG", 0.95)),
        (OUT, OUT),
        (OUT, OUT),
        (("B-LOC", 0.99), OUT),
    ]
    assert read(words) == expected


def slow_resolve(blocks: Sequence[Tensor], length: int, row: int, continuation: Continuation) -> list[int]:
    """The rules word by word and head by head, with tags as (prefix, type) and no tensors in the decisions."""
    first_type = [sum(block.shape[2] // 2 for block in blocks[:head]) for head in range(len(blocks))]
    output: list[tuple[str, int]] = []
    for word in range(length):
        votes: list[tuple[str, int, float]] = []
        for head, block in enumerate(blocks):
            values = block[row, word].tolist()
            best = values.index(max(values))
            prefix = "O" if best == 0 else "B" if best % 2 else "I"
            votes.append((prefix, first_type[head] + (best - 1) // 2 if best else -1, values[best]))
        open_type = output[-1][1] if output and output[-1][0] != "O" else None
        valid = [vote for vote in votes if vote[0] == "I" and vote[1] == open_type]
        begins = [vote for vote in votes if vote[0] == "B"]
        best_begin = None
        for vote in begins:
            if best_begin is None or vote[2] > best_begin[2]:
                best_begin = vote
        assert len(valid) <= 1
        chosen = valid[0] if valid else best_begin
        if valid and best_begin and continuation == "compare" and best_begin[2] > valid[0][2]:
            chosen = best_begin
        output.append((chosen[0], chosen[1]) if chosen else ("O", -1))
    return [0 if prefix == "O" else 2 * type_ + (1 if prefix == "B" else 2) for prefix, type_ in output]


@st.composite
def problems(draw: st.DrawFn, *, heads: int = 4) -> tuple[list[Tensor], Tensor]:
    """Blocks of random widths; on a coarse grid, so that ties within and across heads are common, or continuous."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    types = draw(st.lists(st.integers(1, 3), min_size=1, max_size=heads))
    rows, words, coarse = draw(st.integers(1, 3)), draw(st.integers(0, 8)), draw(st.booleans())
    blocks = []
    for count in types:
        shape = (rows, words, 1 + 2 * count)
        values = torch.randint(-3, 0, shape, generator=generator).float() if coarse else None
        blocks.append(values if values is not None else (2 * torch.randn(shape, generator=generator)).log_softmax(-1))
    lengths = torch.tensor(draw(st.lists(st.integers(0, words), min_size=rows, max_size=rows)))
    return blocks, torch.arange(words) < lengths[:, None]


@given(problems(), st.sampled_from(["wins", "compare"]))
@settings(max_examples=300)
def test_equals_the_slow_implementation_and_is_legal(problem: tuple[list[Tensor], Tensor], rule: Continuation) -> None:
    blocks, mask = problem
    dirty = [block.masked_fill(~mask[..., None], math.nan) for block in blocks]
    tags = resolve(dirty, mask, continuation=rule)
    assert not orphans(tags).any()
    assert not tags[~mask].any()
    for row, length in enumerate(mask.sum(1).tolist()):
        assert tags[row, :length].tolist() == slow_resolve(blocks, length, row, rule)


@given(problems(heads=1))
@settings(max_examples=100)
def test_one_head_is_its_argmax_without_the_insides_that_continue_nothing(problem: tuple[list[Tensor], Tensor]) -> None:
    blocks, mask = problem
    for row, plain in enumerate(blocks[0].argmax(-1).masked_fill(~mask, 0).tolist()):
        kept = [0]
        for tag in plain:
            kept.append(0 if tag and tag % 2 == 0 and kept[-1] not in (tag, tag - 1) else tag)
        assert resolve(blocks, mask)[row].tolist() == kept[1:]


@given(problems(), st.randoms(use_true_random=False), st.sampled_from(["wins", "compare"]))
@settings(max_examples=100)
def test_the_order_of_the_heads_matters_only_for_ties(
    problem: tuple[list[Tensor], Tensor], random: Random, rule: Continuation
) -> None:
    blocks, mask = problem
    best = torch.stack([block.max(-1).values for block in blocks], dim=-1)
    assume(all(len(set(values)) == len(values) for values in best.flatten(0, 1).tolist()))
    order = random.sample(range(len(blocks)), len(blocks))
    new_id = {0: 0}  # joint id in the first order → joint id in the second
    first = [1 + sum(block.shape[2] - 1 for block in blocks[:head]) for head in range(len(blocks))]
    for place, head in enumerate(order):
        start = 1 + sum(blocks[before].shape[2] - 1 for before in order[:place])
        new_id |= {first[head] + local: start + local for local in range(blocks[head].shape[2] - 1)}
    expected = [[new_id[tag] for tag in row] for row in resolve(blocks, mask, continuation=rule).tolist()]
    assert resolve([blocks[head] for head in order], mask, continuation=rule).tolist() == expected


@given(problems(), st.sampled_from(["wins", "compare"]))
@settings(max_examples=100)
def test_resolving_the_resolved_changes_nothing(problem: tuple[list[Tensor], Tensor], rule: Continuation) -> None:
    blocks, mask = problem
    tags = resolve(blocks, mask, continuation=rule)
    again, first = [], 1
    for block in blocks:
        width = block.shape[2] - 1
        own = (tags >= first) & (tags < first + width)
        local = torch.where(own, tags - first + 1, 0)
        again.append(torch.nn.functional.one_hot(local, width + 1).float().log())
        first += width
    assert torch.equal(resolve(again, mask, continuation=rule), tags)


@given(problems(), st.sampled_from(["wins", "compare"]))
@settings(max_examples=100)
def test_what_comes_later_never_changes_what_was_given(
    problem: tuple[list[Tensor], Tensor], rule: Continuation
) -> None:
    blocks, mask = problem
    whole = resolve(blocks, mask, continuation=rule)
    for words in range(mask.shape[1]):
        part = resolve([block[:, :words] for block in blocks], mask[:, :words], continuation=rule)
        assert torch.equal(part, whole[:, :words])


def test_no_heads_and_heads_without_words() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert resolve([], mask).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert resolve([torch.zeros(2, 0, 3)], mask[:, :0]).shape == (2, 0)
    assert resolve([torch.zeros(0, 3, 3)], mask[:0]).shape == (0, 3)
