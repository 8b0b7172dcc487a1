"""SEQ*: after the warm-up of step 1 nothing moves but each step's new block."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ner_cl.config import HeadOptions, OptimizerOptions, check_head, parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.trunk import all_layers
from ner_cl.strategies.frozen import Frozen, FrozenOptions
from ner_cl.train.events import EpochDone, Event
from ner_cl.train.learner import Learner
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
# As hostile as can be: decay and momentum move parameters that have no gradient, if they are let.
OPTIMIZERS = [
    OptimizerOptions(lr=5e-3, head_lr=2e-2, weight_decay=0.5),
    OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1, momentum=0.9, weight_decay=0.1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def learn(
    model: NerModel,
    step: Step,
    *,
    optimizer: OptimizerOptions,
    warmup_epochs: int = 3,
    epochs: int = 2,
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    training = TOY_TRAINING.model_copy(update={"epochs": epochs, "optimizer": optimizer})
    for event in Learner(model, [FrozenOptions(warmup_epochs=warmup_epochs)], training).learn_step(step):
        on_event(event)


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(before: dict[str, Tensor], module: torch.nn.Module) -> list[str]:
    after = module.state_dict()
    return [name for name, tensor in before.items() if torch.equal(after[name], tensor)]


@BOTH
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options.name)
@pytest.mark.parametrize("new_rows", [["LOC"], ["LOC", "ORG"]], ids=len)
def test_a_later_step_changes_nothing_but_its_block(
    folder: Path, head: str, optimizer: OptimizerOptions, new_rows: list[str]
) -> None:
    model = tiny_model(folder, head, steps=[["PER"], ["MISC"]])
    encoder, old_head = snapshot(model.encoder), snapshot(model.head)
    probe = model.encode(toy_sentences(10, seed=5)).batch(range(10))
    with torch.no_grad():
        before = model(probe).flat()
    train = tuple(sentence.restrict(new_rows) for sentence in toy_sentences(30, seed=1))
    first_draw: list[Tensor] = []

    def watch(event: Event) -> None:
        first_draw[:] = first_draw or [model.head.new_block().weight.clone()]

    learn(model, Step(3, tuple(new_rows), train, ()), optimizer=optimizer, on_event=watch)
    assert unchanged(encoder, model.encoder) == list(encoder)
    assert unchanged(old_head, model.head) == list(old_head)
    with torch.no_grad():
        assert torch.equal(model(probe).flat()[..., : before.shape[-1]], before)
    assert not torch.equal(model.head.new_block().weight, first_draw[0])
    assert all(parameter.requires_grad for parameter in model.parameters())  # thawed for whoever comes next


@BOTH
def test_step_one_trains_the_encoder_in_its_first_epochs_only(folder: Path, head: str) -> None:
    model = tiny_model(folder, head)
    states = [snapshot(model.encoder)]
    heads: list[dict[str, Tensor]] = []

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            states.append(snapshot(model.encoder))
            heads.append(snapshot(model.head))

    step = toy_stream(steps=(("PER",), ("LOC",)), train=40).steps[0]
    learn(model, step, optimizer=OPTIMIZERS[0], warmup_epochs=2, epochs=4, on_event=watch)
    moved = [any(not torch.equal(before[name], after[name]) for name in before) for before, after in pairwise(states)]
    assert moved == [True, True, False, False]
    assert not any(torch.equal(heads[2][name], heads[3][name]) for name in heads[2])  # the block goes on learning


@BOTH
def test_without_warm_up_the_encoder_never_moves(folder: Path, head: str) -> None:
    model = tiny_model(folder, head)
    encoder = snapshot(model.encoder)
    step = toy_stream(train=40).steps[0]
    learn(model, step, optimizer=OPTIMIZERS[0], warmup_epochs=0)
    assert unchanged(encoder, model.encoder) == list(encoder)


def test_a_frozen_encoder_has_no_dropout(folder: Path) -> None:
    model = tiny_model(folder, "addner", steps=[["PER"], ["LOC"]])
    context = toy_context(model, ["LOC"], train=toy_sentences(4, types=("LOC",)))
    model.train()
    assert context.encoded is not None
    batch = context.encoded.batch(range(4))
    assert not torch.equal(model(batch).flat(), model(batch).flat())
    context.epoch = 1
    Frozen(FrozenOptions()).begin_epoch(context)
    assert torch.equal(model(batch).flat(), model(batch).flat())


@BOTH
def test_in_the_warm_up_everything_is_trained(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"]])
    context = toy_context(model, ["PER"], train=toy_sentences(4, types=("PER",)))
    model.train()
    for epoch, trained in ((1, True), (3, True), (4, False)):
        context.epoch = epoch
        Frozen(FrozenOptions(warmup_epochs=3)).begin_epoch(context)
        assert {parameter.requires_grad for parameter in model.encoder.parameters()} == {trained}
        assert {parameter.requires_grad for parameter in model.head.parameters()} == {True}


def test_the_warm_up_of_a_small_step_is_as_much_longer_as_the_step(folder: Path) -> None:
    model = tiny_model(folder)
    step = toy_stream(steps=(("PER",), ("LOC",)), train=5).steps[0]
    training = TOY_TRAINING.model_copy(update={"epochs": "auto", "batch_tokens": 4096})
    learner = Learner(model, [FrozenOptions(warmup_epochs=1)], training)
    before, moved = snapshot(model.encoder), 0
    for event in learner.learn_step(Step(1, step.types, step.train, ())):
        if isinstance(event, EpochDone):
            now = snapshot(model.encoder)
            moved += any(not torch.equal(weight, before[name]) for name, weight in now.items())
            before = now
    assert moved == 10  # of 100 epochs with one update each, where others have ten epochs


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_frozen_blocks_have_nothing_to_replay(head: str) -> None:
    strategies = parse_strategies(["frozen", "replay"])
    check_head(strategies, HeadOptions(name="extendner"))
    with pytest.raises(ConfigError, match=f"frozen and replay cannot be combined with head {head}: the blocks"):
        check_head(strategies, HeadOptions(name=head))


@BOTH
def test_after_its_warm_up_the_encoder_runs_once_over_the_sentences(folder: Path, head: str) -> None:
    model = tiny_model(folder, head)
    runs: list[int] = []
    seen: list[int] = []
    last = all_layers(model.encoder)[-1]
    hook = last.register_forward_hook(lambda module, given, output: runs.append(int(torch.is_grad_enabled())))

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            seen.append(sum(runs))
            runs.clear()

    step = toy_stream(steps=(("PER",), ("LOC",)), train=40).steps[0]
    learn(model, step, optimizer=OPTIMIZERS[0], warmup_epochs=2, epochs=4, on_event=watch)
    hook.remove()
    assert seen[0] == seen[1] > 0
    assert seen[2:] == [0, 0]
