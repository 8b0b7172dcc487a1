"""ICE: an `O` that is a constant, old columns and an encoder that are too, and what new columns compete with."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ner_cl.config import HeadOptions, OptimizerOptions, check_head, parse_strategies
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.ice import Ice, IceOptions
from ner_cl.train.events import EpochDone, Event
from ner_cl.train.learner import Learner
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learn_all, learner_of

STREAM = toy_stream(steps=(("PER",), ("LOC", "MISC"), ("ORG",)), train=45)
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(12, seed=3, types=("PER", "LOC")))
# As hostile as can be: decay and momentum move parameters that have no gradient, if they are let.
OPTIMIZERS = [
    OptimizerOptions(lr=5e-3, head_lr=2e-2, weight_decay=0.5),
    OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1, momentum=0.9, weight_decay=0.1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def learn(
    model: NerModel,
    number: int,
    options: IceOptions,
    *,
    optimizer: OptimizerOptions = OPTIMIZERS[0],
    epochs: int = 2,
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    training = TOY_TRAINING.model_copy(update={"epochs": epochs, "optimizer": optimizer})
    for event in Learner(model, [options], training).learn_step(STREAM.steps[number - 1]):
        on_event(event)


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before: dict[str, Tensor], module: torch.nn.Module) -> bool:
    after = module.state_dict()
    return all(torch.equal(after[name], tensor) for name, tensor in before.items())


def logits_of(model: NerModel, words: float = 1.0) -> Tensor:
    """Of words unlike any that were trained on."""
    vectors = words * torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        flat: Tensor = model.head(vectors, torch.ones(3, 9, dtype=torch.bool)).flat()
    return flat


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options.name)
@pytest.mark.parametrize("options", [IceOptions(), IceOptions(outside=1.5, previous_logits=True)], ids=["o", "pl&o"])
@pytest.mark.parametrize("new_rows", ["random", "outside"])
def test_the_constant_the_encoder_and_old_columns_never_move(
    folder: Path, optimizer: OptimizerOptions, options: IceOptions, new_rows: str
) -> None:
    model = tiny_model(folder, HeadOptions(name="extendner", new_rows=new_rows))
    learn(model, 1, options, optimizer=optimizer)
    for number in (2, 3):
        encoder, head, before = snapshot(model.encoder), snapshot(model.head), logits_of(model)
        learn(model, number, options, optimizer=optimizer)
        assert same(encoder, model.encoder)
        assert same(head, model.head)
        assert torch.equal(logits_of(model)[..., : before.shape[-1]], before)
        new = model.head.new_block()
        assert new.weight.abs().sum() > 0
        assert not new.bias.any()
    for size in (0.0, 1.0, 1e6):
        assert (logits_of(model, size)[..., 0] == options.outside).all()
    assert model.head.blocks[0].bias.tolist() == [options.outside, 0.0, 0.0]


def test_the_columns_of_step_one_learn_though_that_of_outside_does_not(folder: Path) -> None:
    model = tiny_model(folder)
    weights: list[Tensor] = []

    def watch(event: Event) -> None:
        weights.append(model.head.new_block().weight.detach().clone())

    learn(model, 1, IceOptions(), on_event=watch)
    assert not any(weight[0].any() for weight in weights)
    assert not torch.equal(weights[0][1:], weights[-1][1:])


@pytest.mark.parametrize(("warmup", "moved"), [(2, [True, True, False, False]), (0, [False] * 4)])
def test_step_one_trains_the_encoder_in_its_first_epochs_only(folder: Path, warmup: int, moved: list[bool]) -> None:
    model = tiny_model(folder)
    states = [snapshot(model.encoder)]

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            states.append(snapshot(model.encoder))

    learn(model, 1, IceOptions(warmup_epochs=warmup), epochs=4, on_event=watch)
    assert [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(states)] == moved
    assert all(parameter.requires_grad for parameter in model.parameters())  # thawed for whoever comes next


def test_a_frozen_encoder_has_no_dropout(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    context = toy_context(model, ["LOC"], train=TRAIN)
    assert context.encoded is not None
    batch = context.encoded.batch(range(4))
    model.train()
    assert not torch.equal(model(batch).flat(), model(batch).flat())
    context.epoch = 1
    Ice(IceOptions()).begin_epoch(context)
    assert torch.equal(model(batch).flat(), model(batch).flat())


@pytest.mark.parametrize("previous_logits", [False, True])
def test_the_loss_by_its_formula(folder: Path, previous_logits: bool) -> None:
    """Over `O` and the new columns, or over all, a mean over words; gradients reach the new columns alone."""
    model = tiny_model(folder, steps=[["PER"], ["ORG"], ["LOC"]])
    strategy, context = Ice(IceOptions(previous_logits=previous_logits)), toy_context(model, ["LOC"], train=TRAIN)
    strategy.begin_stage(context)
    assert context.encoded is not None
    batch = context.encoded.batch(range(len(TRAIN)))
    emissions = model(batch)
    loss = strategy.losses(context, batch, emissions)["ce"]
    columns = [*range(7)] if previous_logits else [0, 5, 6]
    costs = []
    for row, word in batch.word_mask.nonzero().tolist():
        logits = emissions.flat()[row, word].detach().double().numpy()
        costs.append(np.log(np.exp(logits[columns]).sum()) - logits[int(batch.targets[row, word])])
    assert loss.item() == pytest.approx(np.mean(costs), rel=1e-5)
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"head.blocks.2.weight"}


def test_t6_t9_the_loss_does_not_depend_on_padding_and_batches(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    strategy, context = Ice(IceOptions()), toy_context(model, ["LOC"], train=TRAIN)
    encoded = context.encoded
    assert encoded is not None

    def cost(rows: Any) -> float:
        batch = encoded.batch(list(rows))
        return strategy.losses(context, batch, model(batch))["ce"].item() * sum(batch.row_words)

    assert sum(cost([row]) for row in range(len(encoded))) == pytest.approx(cost(range(len(encoded))), rel=1e-4)


def test_on_a_model_of_another_strategy_old_columns_stay_as_they_are(folder: Path) -> None:
    learner = learner_of(folder, ["distill"])
    for _ in learner.learn_step(STREAM.steps[0]):
        pass
    model = learner.model
    encoder, head, before = snapshot(model.encoder), snapshot(model.head), logits_of(model)
    learn(model, 2, IceOptions())
    assert same(encoder, model.encoder)
    assert same(head, model.head)
    assert torch.equal(logits_of(model)[..., :3], before)
    assert before[..., 0].std() > 0  # `O` has the column that it was taught


def test_remembered_sentences_teach_new_columns_what_they_are_not(folder: Path) -> None:
    learner = learner_of(folder, ["ice", {"name": "replay", "budget": 10}])
    learn_all(learner, STREAM)
    assert (logits_of(learner.model)[..., 0] == 0).all()
    assert len(learner.model.kept_sentences["replay"]) == 30


def test_what_protects_weights_is_refused_beside_it() -> None:
    with pytest.raises(ConfigError, match="cannot be combined: ice trains nothing but the new block after step 1"):
        build_strategies(parse_strategies(["ice", "spg"]))


def test_a_head_with_several_outsides_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="ice needs one softmax over the tags of all types, which head addner has not"
    ):
        check_head(parse_strategies(["ice"]), HeadOptions(name="addner"))
