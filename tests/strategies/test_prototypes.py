"""Prototypes: a mean is a mean, however it is cut into batches, and distances only tip a scale."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ner_cl.strategies.prototypes import TagMeans, distances_to, rectified

PROPERTY = settings(max_examples=50)
logits_of = st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4)


def test_a12_a_near_prototype_tips_the_scale() -> None:
    distances = torch.tensor([[2.0, 0.5, 1.0]])
    weights = rectified(torch.zeros(1, 3), distances)
    found = rectified(torch.tensor([[0.6, 0.3, 0.1]]).log(), distances)
    np.testing.assert_allclose(weights[0], (0.121952, 0.546549, 0.331499), atol=1e-6)
    np.testing.assert_allclose(found[0], (0.270717, 0.606635, 0.122648), atol=1e-6)
    assert found.argmax() == 1


@given(logits=logits_of, distances=st.lists(st.floats(0, 100, width=32), min_size=4, max_size=4))
@PROPERTY
def test_weights_and_what_they_make_sum_to_one(logits: list[float], distances: list[float]) -> None:
    for scores in (torch.zeros(1, 4), torch.tensor([logits])):
        torch.testing.assert_close(rectified(scores, torch.tensor([distances])).sum(), torch.tensor(1.0))


@given(logits=logits_of, distance=st.floats(0, 100, width=32))
@PROPERTY
def test_equal_distances_leave_the_probabilities_as_they_are(logits: list[float], distance: float) -> None:
    scores = torch.tensor([logits])
    torch.testing.assert_close(rectified(scores, torch.full((1, 4), distance)), scores.softmax(dim=-1))


def test_a_single_prototype_gets_everything() -> None:
    means = TagMeans(3, 2, torch.device("cpu"))
    means.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1]))
    assert means.known.tolist() == [False, True, False]
    found = rectified(torch.tensor([[9.0, 0.0, 1.0]]), distances_to(means.means, means.known, torch.zeros(1, 2)))
    assert found.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 0, 33]], ids=str)
def test_a_mean_is_over_the_words_of_a_tag_and_not_over_mixed_dimensions(sizes: list[int]) -> None:
    """The authors' code reads the `n · h` numbers of a batch as `h` rows of `n`, right only where `n` is 1."""
    generator = torch.Generator().manual_seed(3)
    vectors, tags = torch.randn(40, 6, generator=generator), torch.randint(0, 4, (40,), generator=generator)
    means = TagMeans(5, 6, torch.device("cpu"))
    for some, chosen in zip(vectors.split(sizes), tags.split(sizes), strict=True):
        means.add(some, chosen)
    for tag in range(4):
        np.testing.assert_allclose(means.means[tag], vectors.double().numpy()[tags == tag].mean(axis=0), rtol=1e-6)
    assert means.known.tolist() == [True] * 4 + [False]
    assert not means.means[4].any()


def test_distances_are_euclidean_and_infinite_to_what_nobody_saw() -> None:
    prototypes = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = distances_to(prototypes, torch.tensor([True, False]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert found.tolist() == [[5.0, torch.inf], [1.0, torch.inf]]
