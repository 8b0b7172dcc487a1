"""Strategies on encoders that are built otherwise than BERT."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ner_cl.config import HeadOptions, parse_strategies
from ner_cl.errors import ModelError, NerClError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.gpm import Gpm, GpmOptions
from ner_cl.train.learner import Learner
from tests.strategies.test_das import KINDS, of_kind
from tests.tiny import tiny_encoder, toy_context, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, weights_of

STREAM = toy_stream(steps=(("PER",), ("LOC",)), train=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def gpt2(folder: Path) -> NerModel:
    return of_kind(folder, transformers.GPT2Config(vocab_size=300, n_embd=24, n_layer=2, n_head=3, n_positions=64))


def learner_of(model: NerModel, *strategies: Any) -> Learner:
    return Learner(model, parse_strategies(list(strategies)), SHORT_TRAINING)


@pytest.mark.parametrize("kind", ["deberta-v2", "deberta-v3", "electra"])
@pytest.mark.parametrize("name", ["gpm", "ncl", "ogd"])
def test_layers_that_read_more_than_pieces_are_held_too(folder: Path, kind: str, name: str) -> None:
    """DeBERTa's keys and queries also read relative positions, which no sentence is part of."""
    model = of_kind(folder, KINDS[kind]())
    learner = learner_of(model, "distill", name)
    list(learner.learn_step(STREAM.steps[0]))
    kept, before = dict(model.strategy_state[name]), weights_of(model)
    list(learner.learn_step(STREAM.steps[1]))
    state, after = model.strategy_state[name], weights_of(model)
    assert state
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    if name == "gpm":
        held = [(f"{layer}.weight", basis) for layers, basis in kept.items() for layer in layers.split()]
        assert len(held) > 4
        for layer, basis in held:
            change = after[layer] - before[layer]
            assert float((change @ basis).abs().max()) <= 1e-4 * float(change.abs().max()) + 1e-7, layer


@pytest.mark.parametrize("name", ["gpm", "ncl"])
def test_an_encoder_without_linear_layers_is_refused(folder: Path, name: str) -> None:
    model = gpt2(folder)
    before = weights_of(model)
    with pytest.raises(ModelError, match=f"has no linear layers that {name} could hold"):
        list(learner_of(model, "distill", name).learn_step(STREAM.steps[0]))
    assert all(torch.equal(before[key], tensor) for key, tensor in weights_of(model).items())


@pytest.mark.parametrize("options", [{"size": 8}, {"kind": "adapter", "layers": 1, "size": 8}])
def test_modules_refuse_an_encoder_before_step_1_is_paid_for(folder: Path, options: dict[str, Any]) -> None:
    model = NerModel.from_parts(gpt2(folder).encoder, HeadOptions(name="addner"))
    with pytest.raises(NerClError, match="cannot be run on their own"):
        list(learner_of(model, {"name": "modules", **options}).learn_step(STREAM.steps[0]))
    assert model.types == ()


@pytest.mark.parametrize("kind", ["deberta-v3", "electra"])
def test_what_gpm_measures_does_not_depend_on_how_sentences_are_batched(folder: Path, kind: str) -> None:
    """DeBERTa's relative positions are read once in every batch."""
    model = of_kind(folder, KINDS[kind](), steps=[["PER"]])
    found = []
    for tokens in (16, 2000):
        context = toy_context(model, ["PER"], train=STREAM.steps[0].train)
        context.batch_tokens = tokens
        strategy = Gpm(GpmOptions(threshold=0.9))
        strategy.end_step(context)
        found.append(strategy.state_dict())
    assert found[0].keys() == found[1].keys()
    for names, basis in found[0].items():
        torch.testing.assert_close(basis @ basis.T, found[1][names] @ found[1][names].T, rtol=0, atol=1e-3)
