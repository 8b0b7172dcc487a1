"""Nearest neighbours, and what a student says of words wherever they stand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ner_cl.strategies import neighbours
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.neighbours import Neighbours, nearest
from ner_cl.strategies.step_words import StepWords
from tests.tiny import tiny_model, toy_context, toy_sentences

TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(12, seed=3, types=("PER", "LOC")))


@pytest.mark.parametrize("candidates", [0, 7, 2])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_nearest_are_those_a_search_finds(candidates: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_CHUNK", 5)
    vectors = torch.randn(13, 4, generator=torch.Generator().manual_seed(1))
    found = nearest(vectors, count, candidates=candidates)
    pool = vectors.numpy()[: candidates or 13]
    assert found.shape == (13, min(count, len(pool) - 1))
    for place, vector in enumerate(vectors.numpy()):
        distances = [(np.linalg.norm(vector - other), at) for at, other in enumerate(pool) if at != place]
        assert found[place].tolist() == [at for _, at in sorted(distances)[: found.shape[1]]]


def test_nobody_is_its_own_neighbour_even_among_twins() -> None:
    twins = torch.ones(6, 3)
    found = nearest(twins, 3)
    assert not (found == torch.arange(6).unsqueeze(1)).any()


@pytest.mark.parametrize("others", [0, 1, 2])
def test_where_there_are_few_words_there_are_few_neighbours(others: int) -> None:
    found = nearest(torch.randn(others, 3), 5)
    assert found.shape == (others, max(0, others - 1))


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    """Of a step whose sentences are mostly read in several windows."""
    model = tiny_model(tmp_path, steps=[["PER"], ["LOC"]], max_pieces=14, window_overlap=4)
    return toy_context(model, ["LOC"], train=TRAIN)


def words_of(context: StepContext) -> StepWords:
    assert context.encoded is not None
    return StepWords.of(context.encoded, torch.device("cpu"))


def test_words_of_a_kind_are_neighbours_of_each_other(context: StepContext) -> None:
    """Lengths of vectors do not count: the second is twice the first but for a little, the fourth is far."""
    near = Neighbours(words_of(context), 2)
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.1], [1.0, 0.4], [0.0, 9.0]])
    near.add(torch.tensor([4, 8, 15, 16]), vectors, candidates=0)
    near.add(torch.tensor([23, 42]), vectors[:2], candidates=0)
    assert near.table[[4, 8, 15, 16]].tolist() == [[8, 15], [4, 15], [8, 4], [15, 8]]
    assert near.table[[23, 42]].tolist() == [[42, -1], [23, -1]]
    assert int((near.table >= 0).any(dim=-1).sum()) == 6


@pytest.mark.parametrize("tokens", [16, 4096])
def test_a_word_is_asked_about_where_it_stands(context: StepContext, tokens: int) -> None:
    context.eval_batch_tokens = tokens
    near = torch.tensor([[5, 90, -1], [90, 31, 5], [0, -1, -1]])
    logits, real = Neighbours(words_of(context), 3).ask(context, near)
    assert real.tolist() == (near >= 0).tolist()
    assert context.encoded is not None
    batch = context.encoded.batch(range(len(context.encoded)))
    with torch.no_grad():
        everything = context.model(batch).flat()
    by_number = {int(number): everything[at] for at, number in _numbered(batch.word_numbers, batch.word_mask)}
    for place in real.nonzero().tolist():
        torch.testing.assert_close(logits[tuple(place)], by_number[int(near[tuple(place)])])


def _numbered(numbers: torch.Tensor, mask: torch.Tensor) -> list[tuple[tuple[int, int], int]]:
    return [((row, word), int(numbers[row, word])) for row, word in mask.nonzero().tolist()]


def test_asking_leaves_no_trace_in_the_student(context: StepContext) -> None:
    """Neither its modes nor the stream of its dropout, and no gradient."""
    model = context.model.train()
    model.encoder.eval()
    state = torch.get_rng_state()
    logits, _ = Neighbours(words_of(context), 1).ask(context, torch.tensor([[3], [7]]))
    assert not logits.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    model.train()
    again, _ = Neighbours(words_of(context), 1).ask(context, torch.tensor([[3], [7]]))
    assert torch.equal(again, logits)  # without dropout
