"""Kronecker factors against dense matrices, and the Fisher information against automatic differentiation."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.importance import sampled_loss
from ner_cl.strategies.kronecker import (
    Diagonal,
    Kronecker,
    fisher,
    kronecker_sum,
    scaled_identity,
    with_ones,
)
from ner_cl.strategies.linear_layers import input_groups, linear_layers, real_pieces, tap, top_layer_names
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_sentences

LAST = "encoder.backbone.encoder.layer.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def model(folder: Path) -> NerModel:
    return tiny_model(folder, steps=[["PER"], ["LOC"]])


def psd(side: int, seed: int) -> Tensor:
    root = torch.randn(side, side + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def some(seed: int) -> Kronecker:
    return Kronecker(psd(4, seed), psd(3, seed + 100))


def dense(kronecker: Kronecker) -> np.ndarray:
    """The matrix that acts on the rows of a weight, one after the other."""
    return np.kron(kronecker.outputs.numpy(), kronecker.inputs.numpy())


def test_n6_products_and_lengths_equal_the_dense_ones() -> None:
    kronecker, matrix = some(0), torch.randn(3, 4, dtype=torch.float64)
    expected = dense(kronecker) @ matrix.flatten().numpy()
    np.testing.assert_allclose(kronecker.times(matrix).flatten().numpy(), expected)
    length = (matrix * kronecker.times(matrix)).sum()
    np.testing.assert_allclose(length.item(), matrix.flatten().numpy() @ expected)


def test_a7_length_and_sum() -> None:
    precision = Kronecker(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[2.0]]))
    moved = torch.tensor([[1.0, 0.0]])
    assert (moved * precision.times(moved)).sum() == 8
    one = Kronecker(torch.diag(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([1.0, 3.0])))
    total = kronecker_sum(one, Kronecker(torch.eye(2), 2 * torch.eye(2)))
    torch.testing.assert_close(total.inputs, torch.diag(torch.tensor([3.0, 1.0])))
    torch.testing.assert_close(total.outputs, torch.diag(torch.tensor([3.0, 5.0])))


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_inverse_is_that_of_the_damped_dense_matrix(damping: float) -> None:
    kronecker = some(1)
    damped = kronecker
    if damping:
        identity = Kronecker(damping * torch.eye(4, dtype=torch.float64), damping * torch.eye(3, dtype=torch.float64))
        damped = kronecker_sum(kronecker, identity)
    np.testing.assert_allclose(dense(kronecker.inverse(damping=damping)), np.linalg.inv(dense(damped)))
    if damping:
        kronecker = some(2)
        wide = np.linalg.eigvalsh(dense(kronecker.inverse())).max()
        assert np.linalg.eigvalsh(dense(kronecker.inverse(damping=damping))).max() < wide


def test_the_inverse_of_a_factor_that_rounding_left_indefinite_is_finite() -> None:
    broken = Kronecker(torch.diag(torch.tensor([1.0, -1e-9])), torch.eye(1))
    assert (broken.inverse().inputs.diagonal() > 0).all()


def test_n7_adding_nothing_changes_nothing_and_order_does_not_matter() -> None:
    one, other = some(3), some(4)
    nothing = Kronecker(torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64))
    assert kronecker_sum(one, nothing) is one
    assert kronecker_sum(nothing, one) is one
    np.testing.assert_allclose(dense(kronecker_sum(one, other)), dense(kronecker_sum(other, one)))


def test_n5_factors_stay_positive_and_grow() -> None:
    total = some(5)
    for seed in range(6, 10):
        grown = kronecker_sum(total, some(seed))
        for name in ("inputs", "outputs"):
            factor = getattr(grown, name)
            torch.testing.assert_close(factor, factor.T)
            assert torch.linalg.eigvalsh(factor).min() > 0
            assert factor.trace() > getattr(total, name).trace()
        total = grown


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_the_nearest_sum_is_the_best_rank_one_rearrangement(seed: int) -> None:
    one, other = some(seed), some(seed + 7)
    target = dense(one) + dense(other)
    nearest = kronecker_sum(one, other, how="nearest")
    rearranged = target.reshape(3, 4, 3, 4).transpose(0, 2, 1, 3).reshape(9, 16)
    left_out = np.sqrt((np.linalg.svd(rearranged, compute_uv=False)[1:] ** 2).sum())
    error = np.linalg.norm(dense(nearest) - target)
    np.testing.assert_allclose(error, left_out, rtol=1e-6, atol=1e-9)
    assert error <= np.linalg.norm(dense(kronecker_sum(one, other)) - target)
    assert torch.linalg.eigvalsh(nearest.inputs).min() > -1e-9
    assert torch.linalg.eigvalsh(nearest.outputs).min() > -1e-9


def test_a_scaled_identity_is_one_in_either_form() -> None:
    matrix, vector = torch.randn(3, 4), torch.randn(5)
    torch.testing.assert_close(scaled_identity((3, 4), 0.25).times(matrix), 0.25 * matrix)
    torch.testing.assert_close(scaled_identity((5,), 0.25).times(vector), 0.25 * vector)
    torch.testing.assert_close(Diagonal(torch.tensor([2.0])).inverse(damping=1.0).values, torch.tensor([1 / 3]))


def word_sentences(model: NerModel) -> list[Sentence]:
    """Sentences of one word of one piece, for which the Kronecker product of a word is exact."""
    return [Sentence((word,), (), frozenset({"PER", "LOC"})) for word in ("Ada", "Rome", "met", "the", "Acme")]


def layers_of(model: NerModel) -> dict[str, nn.Linear | nn.LayerNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm) and name.startswith((LAST, "head."))
    }


@pytest.mark.parametrize("head", ["extendner", "addner"])
def test_factors_of_single_words_are_the_squares_of_per_sample_gradients(folder: Path, head: str) -> None:
    """Where nothing but one position reaches a layer's output, `A ⊗ G` is `vec(∇)vec(∇)ᵀ`, with the bias as column."""
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    layers = layers_of(model)
    exact = [f"{LAST}.output.dense", f"{LAST}.intermediate.dense", "head.blocks.0", "head.blocks.1"]
    for sentence in word_sentences(model):
        batch = model.encode([sentence]).batch([0])
        found = fisher(model, [batch], layers, seed=5)
        loss = sampled_loss(model.head.decisions(model(batch)), generator=torch.Generator().manual_seed(5))
        names = [f"{name}.{kind}" for name in exact for kind in ("weight", "bias")]
        norms = [f"{LAST}.output.LayerNorm.{kind}" for kind in ("weight", "bias")]
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, [parameters[name] for name in [*names, *norms]])
        for name, weight, bias in zip(exact, gradients[:-2:2], gradients[1:-2:2], strict=True):
            vector = torch.cat([weight, bias[:, None]], dim=1).flatten()
            kronecker = found[name]
            assert isinstance(kronecker, Kronecker)
            product = torch.kron(kronecker.outputs, kronecker.inputs)
            torch.testing.assert_close(product, torch.outer(vector, vector), rtol=1e-4, atol=1e-7)
        for name, gradient in zip(norms, gradients[-2:], strict=True):
            diagonal = found[name]
            assert isinstance(diagonal, Diagonal)
            torch.testing.assert_close(diagonal.values, gradient.square(), rtol=1e-4, atol=1e-8)


def test_factors_equal_those_of_a_phantom_added_to_what_a_layer_says(model: NerModel) -> None:
    """The gradient with respect to a zero added to the outputs is that of the outputs; words and pieces counted."""
    name = f"{LAST}.attention.self.query"
    sentences = toy_sentences(6, seed=3)
    batch = model.encode([*sentences, Sentence(("xyz", "met"), (), frozenset({"PER"}))]).batch(range(7))
    pieces = real_pieces(model, batch)
    assert int(pieces.sum()) == int(batch.word_mask.sum()) + 2  # xyz is three pieces
    changed = copy.deepcopy(model)
    phantom = torch.zeros(*batch.piece_ids.shape, 32, requires_grad=True)
    seen: list[Tensor] = []
    handle = changed.get_submodule(name).register_forward_hook(
        lambda _layer, inputs, outputs: seen.append(inputs[0]) or outputs + phantom
    )
    loss = sampled_loss(changed.head.decisions(changed(batch)), generator=torch.Generator().manual_seed(9))
    handle.remove()
    [slopes] = torch.autograd.grad(loss, [phantom])
    words = int(batch.word_mask.sum())
    layer = linear_layers(model)[name]
    inputs = with_ones(layer, seen[0][pieces].detach())
    found = fisher(model, [batch], {name: layer}, seed=9)[name]
    assert isinstance(found, Kronecker)
    positions = len(inputs)
    root = (positions / words) ** 0.5
    torch.testing.assert_close(found.inputs, inputs.T @ inputs / positions * root)
    torch.testing.assert_close(
        found.outputs, slopes[pieces].T @ slopes[pieces] / positions * root, rtol=1e-4, atol=1e-9
    )


def test_n5_measured_factors_are_symmetric_and_positive(model: NerModel) -> None:
    batches = [model.encode(toy_sentences(20, seed=1)).batch(range(20))]
    for precision in fisher(model, batches, layers_of(model), seed=1).values():
        if isinstance(precision, Diagonal):
            assert (precision.values >= 0).all()
            continue
        for factor in (precision.inputs, precision.outputs):
            torch.testing.assert_close(factor, factor.T)
            assert torch.linalg.eigvalsh(factor.double()).min() > -1e-6 * factor.trace()


def test_factors_do_not_depend_on_padding_and_batches(model: NerModel) -> None:
    """T6: the inputs' factor, in which nothing is drawn, is that of sentences alone."""
    encoded = model.encode([*toy_sentences(8, seed=1), Sentence(("Ada",) * 30, (), frozenset({"PER"}))])
    whole = fisher(model, [encoded.batch(range(9))], layers_of(model), seed=0)
    alone = fisher(model, [encoded.batch([row]) for row in range(9)], layers_of(model), seed=0)
    for name, precision in whole.items():
        if isinstance(precision, Kronecker):
            other = alone[name]
            assert isinstance(other, Kronecker)
            torch.testing.assert_close(precision.inputs, other.inputs, rtol=1e-4, atol=1e-6)


def test_tags_are_drawn_from_the_model(model: NerModel) -> None:
    """The mean slope of the drawn loss is zero, as for no other labels: many draws of one word."""
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure.head.blocks[0].bias.copy_(torch.tensor([0.0, 1.5, -1.0]))
    batch = sure.encode([Sentence(("met",) * 40, (), frozenset({"PER"}))] * 40).batch(range(40))
    emissions = sure(batch)
    loss = sampled_loss(sure.head.decisions(emissions), generator=torch.Generator().manual_seed(0))
    [slopes] = torch.autograd.grad(loss, [emissions.blocks[0]])
    assert slopes.mean(dim=(0, 1)).abs().max() < 0.03


def test_special_pieces_and_padding_are_left_out(model: NerModel) -> None:
    batch = model.encode([Sentence(("Ada", "met"), (), frozenset()), Sentence(("the",), (), frozenset())]).batch([0, 1])
    assert real_pieces(model, batch).tolist() == [[False, True, True, False], [False, True, False, False]]


def test_layers_that_read_the_same_tensor_are_grouped(model: NerModel) -> None:
    layers = linear_layers(model)
    with tap(layers) as calls:
        model(model.encode(toy_sentences(2)).batch([0, 1]))
    attention = f"{LAST}.attention.self"
    groups = input_groups(calls)
    assert (f"{attention}.query", f"{attention}.key", f"{attention}.value") in groups
    assert ("head.blocks.0", "head.blocks.1") in groups
    assert sorted(name for group in groups for name in group) == sorted(layers)
    assert top_layer_names(model, 1) == [LAST]
    model(model.encode(toy_sentences(2)).batch([0, 1]))
    assert len(calls) == len(layers)  # the hooks are gone
