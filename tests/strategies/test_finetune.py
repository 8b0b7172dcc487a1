"""Plain fine-tuning: every `O` is taken at its word, and so old types are lost."""

from pathlib import Path

import pytest
import torch

from ner_cl.strategies.finetune import Finetune, FinetuneOptions
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_extendner_pays_cross_entropy_over_all_columns(folder: Path) -> None:
    model = tiny_model(folder, "extendner", steps=[["PER"], ["LOC"]])
    train = [sentence.restrict({"LOC"}) for sentence in toy_sentences(12, types=("PER", "LOC"))]
    context = toy_context(model, ["LOC"], train=train)
    assert context.encoded is not None
    batch = context.encoded.batch(range(len(context.encoded)))
    emissions = model(batch)
    terms = Finetune(FinetuneOptions()).losses(context, batch, emissions)
    words = batch.word_mask
    expected = torch.nn.functional.cross_entropy(emissions.flat()[words], batch.targets[words])
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], expected)
    terms["ce"].backward()
    assert model.head.blocks[0].weight.grad.abs().sum() > 0  # old columns are pushed down


def test_addner_leaves_old_blocks_to_the_moving_encoder(folder: Path) -> None:
    model = tiny_model(folder, "addner", steps=[["PER"], ["LOC"]])
    train = [sentence.restrict({"LOC"}) for sentence in toy_sentences(12, types=("PER", "LOC"))]
    context = toy_context(model, ["LOC"], train=train)
    assert context.encoded is not None
    batch = context.encoded.batch(range(len(context.encoded)))
    Finetune(FinetuneOptions()).losses(context, batch, model(batch))["ce"].backward()
    assert [block.weight.grad is not None for block in model.head.blocks] == [False, True]
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
