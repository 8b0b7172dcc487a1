"""Attention maps: those that the layers use, without a change of what they compute."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from ner_cl.config import EncoderOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.attention import (
    AttentionRecorder,
    attention_maps,
    pooled_distance,
    pooled_over_heads,
    pooled_over_queries,
)
from ner_cl.model.encoder import Encoder
from ner_cl.model.ner_model import NerModel
from tests.tiny import SENTENCES, tiny_encoder, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 64},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(folder: Path) -> NerModel:
    return tiny_model(folder, steps=[["PER"]])


def rows(model: NerModel, *numbers: int) -> Batch:
    return model.encode(SENTENCES).batch(numbers)


def encoder_of(folder: Path, kind: str) -> Encoder:
    """A random encoder of two layers with the tiny tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**sizes, **KINDS.get(kind, {})})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = transformers.AutoModel.from_config(config)
    return Encoder(backbone.eval(), tokenizer, EncoderOptions(name=str(folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_those_of_eager_attention(folder: Path, model: NerModel, kind: str) -> None:
    """The oracle computes attention step by step, in a way that the encoder is never asked for otherwise."""
    encoder, batch = encoder_of(folder, kind), rows(model, 0, 1, 3)
    maps = attention_maps(encoder, batch)
    assert encoder.config._attn_implementation == "sdpa"
    oracle: Any = copy.deepcopy(encoder.backbone)
    oracle.set_attn_implementation("eager")
    expected = oracle(input_ids=batch.piece_ids, attention_mask=batch.piece_mask, output_attentions=True).attentions
    assert len(maps) == len(expected) == 2
    real = batch.piece_mask[:, None, :, None] > 0
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(torch.where(real, found, 0.0), torch.where(real, wanted, 0.0))


def test_a_map_is_the_softmax_of_products(model: NerModel) -> None:
    batch = rows(model, 0, 1)
    layer: Any = model.encoder.backbone.encoder.layer[0].attention.self  # type: ignore[union-attr, index]
    hidden: Tensor = model.encoder.backbone.embeddings(batch.piece_ids)  # type: ignore[operator]
    query, key = layer.query(hidden).detach().numpy(), layer.key(hidden).detach().numpy()
    found = attention_maps(model.encoder, batch)[0]
    for row, pieces in enumerate(batch.piece_mask.sum(dim=1).tolist()):
        for head in range(2):
            for piece in range(pieces):
                part = slice(16 * head, 16 * head + 16)
                scores = np.array([query[row, piece, part] @ key[row, k, part] / 4 for k in range(pieces)])
                weights = np.exp(scores) / np.exp(scores).sum()
                np.testing.assert_allclose(found[row, head, piece, :pieces].detach().numpy(), weights, atol=1e-6)
                assert not found[row, head, piece, pieces:].any()


def test_watching_changes_no_bit(model: NerModel) -> None:
    """In training, with dropout, and in prediction; forward and backward."""
    batch = rows(model, 0, 1, 2)

    def passes() -> list[Tensor]:
        model.train().zero_grad()
        torch.manual_seed(5)
        scores = model(batch).flat()
        scores.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        with torch.inference_mode():
            return [scores.detach(), *gradients, model.eval()(batch).flat()]

    usual = passes()
    recorder = AttentionRecorder(model.encoder)
    watched = passes()
    recorder.close()
    for before, during, after in zip(usual, watched, passes(), strict=True):
        assert torch.equal(before, during)
        assert torch.equal(before, after)
    backbone = model.encoder.backbone
    assert not backbone._forward_hooks
    assert not backbone._forward_pre_hooks
    assert backbone.config._attn_implementation == "sdpa"


def test_maps_are_those_before_dropout_and_have_gradients(model: NerModel) -> None:
    recorder, batch = AttentionRecorder(model.encoder), rows(model, 0, 1)
    model.train()(batch)
    maps = recorder.of(batch)
    torch.testing.assert_close(maps[1].sum(dim=-1), torch.ones(maps[1].shape[:-1]))
    maps[0][0, 0, 0, 0].backward()
    query = model.encoder.backbone.get_parameter("encoder.layer.0.attention.self.query.weight")
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


def test_a_recorder_has_the_maps_of_the_batch_it_is_asked_for(model: NerModel) -> None:
    """Of the last pass with gradients where that read it; a pass without gradients in between does no harm."""
    recorder, batch, other = AttentionRecorder(model.encoder), rows(model, 0, 1), rows(model, 2, 3)
    passes: list[torch.Tensor] = []
    model.encoder.backbone.register_forward_pre_hook(
        lambda module, given, named: passes.append(named["input_ids"]), with_kwargs=True
    )
    model(batch)
    with torch.no_grad():
        model(other)
    maps = recorder.of(batch)
    assert [a is b.piece_ids for a, b in zip(passes, (batch, other), strict=True)] == [True, True]
    passes.clear()
    with torch.no_grad():
        others = recorder.of(other)
    assert [found is other.piece_ids for found in passes] == [True]
    for read, found in ((batch, maps), (other, others)):
        for layer, expected in zip(found, attention_maps(model.encoder, read), strict=True):
            assert torch.equal(layer, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_pass_leaves_no_trace_in_the_next(model: NerModel, error: type[BaseException]) -> None:
    """`torch` does not call hooks after an interrupt from the keyboard."""
    recorder, batch = AttentionRecorder(model.encoder), rows(model, 0)
    expected = model(batch).flat()

    def stop(module: Any, given: Any) -> None:
        raise error

    hook = model.encoder.backbone.get_submodule("encoder").register_forward_pre_hook(stop)
    with pytest.raises(error):
        model(batch)
    hook.remove()
    with torch.no_grad():
        assert torch.equal(model(batch).flat(), expected)
    assert model.encoder.config._attn_implementation == "sdpa"
    assert len(recorder.of(batch)) == 2


def test_a_model_can_be_copied_while_it_is_watched(model: NerModel) -> None:
    recorder, batch = AttentionRecorder(model.encoder), rows(model, 0)
    model(batch)
    copied = model.copy().eval()
    assert torch.equal(copied(batch).flat(), model(batch).flat())
    assert len(recorder.of(batch)) == 2


def test_an_encoder_that_does_not_show_its_attention_is_refused(folder: Path, model: NerModel) -> None:
    encoder = encoder_of(folder, "deberta-v2")
    for ask in (lambda: attention_maps(encoder, rows(model, 0)), lambda: AttentionRecorder(encoder)):
        with pytest.raises(ModelError, match="a deberta-v2 encoder does not tell what its attention looks at"):
            ask()


def random_maps(seed: int, pieces: tuple[int, ...] = (5, 3)) -> tuple[Tensor, Tensor]:
    """Maps of three heads, and which pieces are real."""
    real = torch.arange(max(pieces)) < torch.tensor(pieces).unsqueeze(1)
    scores = torch.randn(len(pieces), 3, max(pieces), max(pieces), generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(~real[:, None, None, :], -1e9).softmax(dim=-1), real


def test_the_distance_is_what_loops_over_the_formula_say() -> None:
    (maps, real), (others, _) = random_maps(1), random_maps(2)
    found = pooled_distance(maps, others, real)
    for row, pieces in enumerate((5, 3)):
        a, b = (x[row, :, :pieces, :pieces].numpy().astype(np.float64) for x in (maps, others))
        heads = np.mean([(a[:, q, k].mean() - b[:, q, k].mean()) ** 2 for q in range(pieces) for k in range(pieces)])
        queries = np.mean([(a[h, :, k].mean() - b[h, :, k].mean()) ** 2 for h in range(3) for k in range(pieces)])
        assert found[row].item() == pytest.approx(heads + queries, rel=1e-5)
        keys = np.mean([(a[h, q].mean() - b[h, q].mean()) ** 2 for h in range(3) for q in range(pieces)])
        assert keys < 1e-14  # the third pooling of the paper compares 1 / pieces with itself


def test_the_distance_is_zero_for_the_same_maps_alone() -> None:
    maps, real = random_maps(1)
    assert not pooled_distance(maps, maps.clone(), real).any()
    assert (pooled_distance(maps, random_maps(2)[0], real) > 0).all()


def test_the_order_of_heads_matters_to_one_of_two_poolings() -> None:
    maps, real = random_maps(1)
    permuted = maps[:, [2, 0, 1]]
    torch.testing.assert_close(pooled_over_heads(permuted, real), pooled_over_heads(maps, real))
    torch.testing.assert_close(pooled_over_queries(permuted, real), pooled_over_queries(maps, real)[:, [2, 0, 1]])
    other, _ = random_maps(2)
    torch.testing.assert_close(pooled_distance(permuted, other[:, [2, 0, 1]], real), pooled_distance(maps, other, real))


def test_t6_padding_does_not_change_the_distance() -> None:
    """T6, whatever padding itself looks at."""
    (maps, real), (others, _) = random_maps(1), random_maps(2)
    whole = pooled_distance(maps, others, real)
    alone = pooled_distance(maps[1:, :, :3, :3], others[1:, :, :3, :3], real[1:, :3])
    torch.testing.assert_close(whole[1:], alone)
    maps[1, :, 3:] = 0.7
    torch.testing.assert_close(pooled_distance(maps, others, real), whole)
