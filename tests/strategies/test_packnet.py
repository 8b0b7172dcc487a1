"""PackNet: who owns which weight, what is pruned, and that old sub-networks never change by a bit."""

import copy
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, DebertaV2Config, DistilBertConfig, PretrainedConfig, RobertaConfig

from ner_cl.config import OptimizerOptions, StrategyOptions, TrainingOptions, parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import CheckFailed, ConfigError, ModelError, TrainingError
from ner_cl.model.emissions import emissions_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.model.subnetworks.packnet import PackNet, PackNetOptions
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.packnet import PackNetStrategy, PackNetStrategyOptions
from ner_cl.train.checkpoint import Checkpoint
from ner_cl.train.events import Event, Note, Resumed, StepStarted, UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.record import history_record
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TYPES, tiny_encoder, tiny_model, toy_context, toy_sentences
from tests.train.toy_runs import no_dropout, same_weights, weights_of

# As hostile as can be: decay and momentum move parameters that have no gradient, if they are let.
OPTIMIZERS = {
    "adamw": OptimizerOptions(lr=5e-3, head_lr=2e-2, weight_decay=0.5),
    "sgd": OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1, momentum=0.9, weight_decay=0.1),
}
TRAINING = TrainingOptions(
    epochs=1, batch_tokens=128, precision="fp32", train_embeddings=True, optimizer=OPTIMIZERS["adamw"]
)
_SIZE: dict[str, Any] = {"vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 32}
_DEEP: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **_SIZE}
KINDS: dict[str, Callable[[], PretrainedConfig]] = {
    "deberta": lambda: DebertaV2Config(**_DEEP, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "distilbert": lambda: DistilBertConfig(**_SIZE, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "roberta": lambda: RobertaConfig(**_DEEP, pad_token_id=0),
}
QUICK = {"name": "packnet", "retrain_epochs": 1}
TEXT = toy_sentences(12, seed=77)
QUERY = "encoder.backbone.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def step_of(number: int, *, train: int = 18, dev: int = 8) -> Step:
    """A step with one type of its own, T1 and so on, whose mentions look like those of a toy type."""
    look, name = TOY_TYPES[(number - 1) % len(TOY_TYPES)], f"T{number}"

    def named(count: int, seed: int) -> tuple[Sentence, ...]:
        found = toy_sentences(count, seed=seed, types=(look,))
        return tuple(s.with_spans([Span(x.start, x.end, name) for x in s.spans], {name}) for s in found)

    return Step(number, (name,), named(train, number), named(dev, 100 + number))


def learner_of(
    model: NerModel, options: Any = QUICK, training: TrainingOptions = TRAINING, folder: Path | None = None
) -> Learner:
    return Learner(model, parse_strategies([options]), training, checkpoint=Checkpoint(folder))


def untaught(folder: Path) -> NerModel:
    return tiny_model(folder, "addner")


def packed(model: NerModel) -> PackNet:
    assert isinstance(model.subnetworks, PackNet)
    return model.subnetworks


def owners(model: NerModel) -> dict[str, Tensor]:
    return {name: owner.clone() for name, (_, owner) in packed(model).owned(model).items()}


def emissions(model: NerModel, step: int) -> Tensor:
    """What the block of a step emits on some text, when it alone is asked."""
    found = emissions_of(model, model.encode(TEXT), steps=[step], precision="fp32")
    return torch.cat([scores.blocks[step - 1][scores.word_mask] for _, scores in found])


@pytest.fixture(scope="module")
def taught(folder: Path) -> list[NerModel]:
    """One model after each of five steps."""
    learner = learner_of(untaught(folder))
    models = []
    for number in range(1, 6):
        list(learner.learn_step(step_of(number)))
        models.append(copy.deepcopy(learner.model))
    return models


# -- old sub-networks do not change -----------------------------------------------------------------------------------


def test_pk1_a_sub_network_emits_the_same_bits_ever_after(taught: list[NerModel], tmp_path: Path) -> None:
    """PK1, through five steps under AdamW with weight decay, and after saving and loading."""
    taught[-1].save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    for step in range(1, 6):
        expected = emissions(taught[step - 1], step)
        assert expected.isfinite().all()
        for later in (*taught[step:], loaded):
            assert torch.equal(emissions(later, step), expected)
    assert same_weights(loaded, taught[-1])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layers", [0, 1])
def test_a_later_step_moves_its_own_weights_and_block_only(folder: Path, name: str, layers: int) -> None:
    training = TRAINING.model_copy(update={"optimizer": OPTIMIZERS[name]})
    learner = learner_of(untaught(folder), {**QUICK, "layers": layers}, training)
    list(learner.learn_step(step_of(1)))
    before, taken = weights_of(learner.model), {name: owner > 0 for name, owner in owners(learner.model).items()}
    assert len(taken) == (12 if layers == 0 else 6)
    list(learner.learn_step(step_of(2)))
    after = weights_of(learner.model)
    for key, tensor in before.items():
        if key in taken:
            assert torch.equal(after[key][taken[key]], tensor[taken[key]])
            assert not torch.equal(after[key], tensor)
        elif "owner/" not in key:
            assert torch.equal(after[key], tensor), key
    # Those of the last step that were pruned are free, and 0 to the last bit.
    for weight, owner in packed(learner.model).owned(learner.model).values():
        assert (weight[owner == 0].view(torch.int32) == 0).all()
        assert (owner == 0).any()
        assert (owner == 2).any()


def test_pk2_owners_change_only_by_their_own_steps_pruning(taught: list[NerModel]) -> None:
    """PK2."""
    for number, (earlier, later) in enumerate(pairwise(map(owners, taught)), start=2):
        for name, before in earlier.items():
            assert torch.equal(later[name][before > 0], before[before > 0])
            assert set(later[name][before == 0].unique().tolist()) == {0, number}


def test_what_lies_outside_a_sub_network_contributes_nothing(taught: list[NerModel]) -> None:
    model = copy.deepcopy(taught[2])
    expected = emissions(model, 2)
    for weight, owner in packed(model).owned(model).values():
        outside = (owner == 0) | (owner > 2)
        weight.data[outside] = torch.randn(int(outside.sum()), generator=torch.Generator().manual_seed(0)) * 1e6
        weight.data[tuple(outside.nonzero()[0])] = -torch.inf
    assert torch.equal(emissions(model, 2), expected)
    assert not torch.equal(emissions(model, 3), emissions(taught[2], 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [0, 1])
def test_with_nothing_pruned_it_is_the_encoder_itself(folder: Path, kind: str, layers: int) -> None:
    """To the last bit, whatever the architecture of the encoder."""
    model = untaught(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.encoder.backbone = AutoModel.from_config(KINDS[kind]()).eval()
    model.encoder.config = model.encoder.backbone.config
    model.isolate(PackNetOptions(layers=layers))
    model.grow(["T1"])
    packed(model).claim(1)
    batch = model.encode(TEXT).batch(range(len(TEXT)))
    with torch.no_grad():
        assert torch.equal(model(batch).blocks[0], model.head.blocks[0](model.encoder(batch)))


def test_a_sub_network_is_the_encoder_with_zeros_in_it(taught: list[NerModel]) -> None:
    """Against a plain pass through an encoder whose weights somebody else set to 0."""
    model = taught[3]
    for step in (1, 3):
        plain = copy.deepcopy(model)
        for weight, owner in packed(plain).owned(plain).values():
            weight.data *= (owner > 0) & (owner <= step)
        batch = plain.encode(TEXT).batch(range(len(TEXT)))
        with torch.no_grad():
            found = model(batch, steps=[step]).blocks[step - 1]
            assert torch.equal(found, plain.head.blocks[step - 1](plain.encoder(batch)))


def test_what_a_step_emits_does_not_depend_on_which_others_are_asked(taught: list[NerModel]) -> None:
    model = taught[-1]
    batch = model.encode(TEXT).batch(range(len(TEXT)))
    with torch.no_grad():
        together = model(batch).blocks
        for step in range(1, 6):
            assert torch.equal(model(batch, steps=[step]).blocks[step - 1], together[step - 1])


def test_a_step_trains_through_its_own_weights_and_those_before(taught: list[NerModel]) -> None:
    """A gradient reaches the entries of the sub-network, and is exactly 0 outside of it."""
    model = copy.deepcopy(taught[2]).eval()
    batch = model.encode(TEXT).batch(range(len(TEXT)))
    model(batch, steps=[2]).blocks[1].square().sum().backward()
    for weight, owner in packed(model).owned(model).values():
        assert weight.grad is not None
        inside = (owner > 0) & (owner <= 2)
        assert weight.grad[inside].any()
        assert not weight.grad[~inside].any()


def test_threads_and_saving_get_in_nobodys_way(taught: list[NerModel], tmp_path: Path) -> None:
    model = taught[-1]
    expected = [emissions(model, step) for step in range(1, 6)]
    weights = weights_of(model)  # looked at while threads predict, the model itself may show exchanged ones
    wrong: list[str] = []

    def ask(step: int) -> None:
        if not all(torch.equal(emissions(model, step), expected[step - 1]) for _ in range(3)):
            wrong.append(f"step {step}")

    threads = [threading.Thread(target=ask, args=(step,)) for step in range(1, 6)]
    for thread in threads:
        thread.start()
    for number in range(3):
        model.save(tmp_path / str(number))
        assert same_weights(model.copy(), weights)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(same_weights(load_model(tmp_path / str(number)), model) for number in range(3))


# -- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("digits", [8, 2], ids=["distinct", "tied"])
def test_pk3_the_smallest_are_pruned_and_no_others(folder: Path, share: float, digits: int) -> None:
    """PK3, against a sort by numpy; twice, so that the second step prunes among its own only."""
    model = untaught(folder)
    model.isolate(PackNetOptions())
    for step, type_ in enumerate(("A", "B"), start=1):
        model.grow([type_])
        packed(model).claim(step)
        draw = torch.Generator().manual_seed(step)
        for weight, owner in packed(model).owned(model).values():
            own = owner == step
            weight.data[own] = torch.randn(int(own.sum()), generator=draw).mul(0.02).round(decimals=digits)
        before = {
            name: (w.detach().numpy().copy(), o.numpy().copy()) for name, (w, o) in packed(model).owned(model).items()
        }
        packed(model).prune(model, step, share)
        for name, (weight, owner) in packed(model).owned(model).items():
            old, owned = before[name]
            ranked = np.sort(np.abs(old[owned == step]))
            count = round(share * len(ranked))
            gone = (owned == step) & (np.abs(old) <= (ranked[count - 1] if count else -1.0))
            assert digits == 2 or gone.sum() == count
            assert gone.sum() >= count
            assert np.array_equal(owner.numpy(), np.where(gone, 0, owned))
            assert np.array_equal(weight.detach().numpy(), np.where(gone, np.float32(0.0), old))
        if share == 0.0:
            break  # nothing is free for a second step


def test_pk4_what_is_free_is_the_product_of_what_was_pruned(taught: list[NerModel]) -> None:
    """PK4: weight by weight to within an entry a step, of which rounding and a tie may take one."""
    for steps, model in enumerate(taught, start=1):
        expected = 0.5 * 0.75 ** (steps - 1)
        assert packed(model).free == pytest.approx(expected, abs=2e-3)
        for owner in owners(model).values():
            assert abs(int((owner == 0).sum()) - expected * owner.numel()) <= 2 * steps


def test_without_pruning_step_one_is_plain_training(folder: Path) -> None:
    """T11: the same weights as `finetune`, in one stage, but for rounding."""
    training = TRAINING.model_copy(update={"optimizer": OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1)})
    models = []
    for options in ({"name": "packnet", "prune_first": 0}, "finetune"):
        learner = learner_of(no_dropout(untaught(folder)), options, training)
        events = list(learner.learn_step(step_of(1, dev=0)))
        assert sum(isinstance(event, StepStarted) for event in events) == 1
        models.append(learner.model)
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(models[0].get_parameter(name), parameter, rtol=0, atol=1e-5)
    assert packed(models[0]).free == 0


def notes(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_with_nothing_free_a_step_is_refused_before_it_trains(folder: Path) -> None:
    learner = learner_of(untaught(folder), {"name": "packnet", "prune_first": 0})
    events = list(learner.learn_step(step_of(1)))
    assert notes(events) == []
    before = weights_of(learner.model)
    with pytest.raises(TrainingError, match="no free weight left for step 2; start a new model with larger shares"):
        list(learner.learn_step(step_of(2)))
    assert same_weights(before, weights_of(learner.model))


def test_what_earlier_steps_left_is_told(taught: list[NerModel]) -> None:
    learner = learner_of(copy.deepcopy(taught[1]), {**QUICK, "prune": 0.5})
    found = notes(list(learner.learn_step(step_of(3))))
    assert found == ["packnet: earlier steps have left 37.5% of the network free"]
    record = history_record(learner, step_of(3), before={}, after={})
    assert record["free"] == pytest.approx(0.1875, abs=2e-3)


def test_what_only_step_one_learns_rests_from_its_pruning_on(folder: Path) -> None:
    """Stage 0 of step 1 trains everything; after it only packed weights and the new block have gradients or dropout."""
    learner = learner_of(untaught(folder), {**QUICK, "layers": 1})
    seen: list[tuple[int, int, set[str], bool]] = []
    for number in (1, 2):
        for event in learner.learn_step(step_of(number)):
            if isinstance(event, UpdateDone):
                model = learner.model
                trained = {name for name, p in model.named_parameters() if p.requires_grad}
                trunk = model.get_submodule("encoder.backbone.encoder.layer.0").training
                seen.append((number, learner.progress.stage, trained, trunk))
    everything = {name for name, _ in learner.model.named_parameters()}
    top = set(owners(learner.model))
    for number, stage, trained, trunk in seen:
        if (number, stage) == (1, 0):
            assert trained | {"head.blocks.1.weight", "head.blocks.1.bias"} == everything
            assert trunk
        else:
            assert trained == top | {f"head.blocks.{number - 1}.weight", f"head.blocks.{number - 1}.bias"}
            assert not trunk
    assert {(number, stage) for number, stage, *_ in seen} == {(1, 0), (1, 1), (2, 0), (2, 1)}


def test_a_pruned_weight_stays_out_while_the_others_are_trained_again(folder: Path) -> None:
    learner = learner_of(untaught(folder), {**QUICK, "retrain_epochs": 2})
    pruned: list[dict[str, Tensor]] = []
    kept: list[dict[str, Tensor]] = []
    for event in learner.learn_step(step_of(1)):
        if isinstance(event, UpdateDone) and learner.progress.stage == 1:
            weights = packed(learner.model).owned(learner.model)
            pruned.append({name: weight.detach()[owner == 0].clone() for name, (weight, owner) in weights.items()})
            kept.append({name: weight.detach()[owner == 1].clone() for name, (weight, owner) in weights.items()})
    assert len(pruned) > 2
    assert not any(tensor.any() for tensors in pruned for tensor in tensors.values())
    assert all(not torch.equal(kept[0][name], kept[-1][name]) for name in kept[0])


# -- a broken promise, an interrupted step, a wrong model -------------------------------------------------------------


class Meddler(Strategy):
    """Changes something when a step is over."""

    def __init__(self, change: Callable[[NerModel], None]) -> None:
        super().__init__(StrategyOptions(name="zz_meddler"))
        self.change = change

    def settle(self, context: StepContext) -> None:
        with torch.no_grad():
            self.change(context.model)


def own_entry(model: NerModel, step: int) -> tuple[Tensor, tuple[int, int]]:
    weight, owner = packed(model).owned(model)[f"{QUERY}.weight"]
    row, column = (owner == step).nonzero()[0].tolist()
    return weight, (row, column)


def meddle_with_owned(model: NerModel) -> None:
    weight, where = own_entry(model, 1)
    weight[where] += 0.1


def meddle_with_owner(model: NerModel) -> None:
    _, where = own_entry(model, 1)
    packed(model).owned(model)[f"{QUERY}.weight"][1][where] = 0


def meddle_with_free(model: NerModel) -> None:
    weight, where = own_entry(model, 0)
    weight[where] += 0.1


def meddle_with(name: str) -> Callable[[NerModel], None]:
    def change(model: NerModel) -> None:
        parameter = model.get_parameter(name)
        parameter += 0.01 * torch.arange(parameter.shape[-1])  # more than normalisation or a softmax takes out again

    return change


@pytest.mark.parametrize(
    "change",
    [
        meddle_with_owned,
        meddle_with_owner,
        meddle_with(f"{QUERY}.bias"),
        meddle_with("encoder.backbone.embeddings.word_embeddings.weight"),
        meddle_with("encoder.backbone.encoder.layer.1.output.LayerNorm.weight"),
        meddle_with("head.blocks.0.weight"),
    ],
    ids=["owned", "owner", "bias", "embeddings", "norm", "block"],
)
def test_a_frozen_tensor_that_was_touched_makes_the_step_fail(
    taught: list[NerModel], change: Callable[[NerModel], None]
) -> None:
    learner = learner_of(copy.deepcopy(taught[0]))
    learner.strategies.append(Meddler(change))
    with pytest.raises(CheckFailed, match="blocks of steps 1 are not what they were"):
        list(learner.learn_step(step_of(2)))


def test_a_free_weight_that_was_touched_does_not(taught: list[NerModel]) -> None:
    learner = learner_of(copy.deepcopy(taught[0]))
    learner.strategies.append(Meddler(meddle_with_free))
    list(learner.learn_step(step_of(2)))
    assert learner.isolation is not None
    assert learner.isolation.record()["unchanged"] == [1]


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("number", [1, 2])
def test_a_step_goes_on_to_the_last_bit(
    folder: Path, taught: list[NerModel], tmp_path: Path, number: int, stage: int
) -> None:
    """S1, with the crash before and after pruning."""
    start = untaught(folder) if number == 1 else taught[0]
    training = TRAINING.model_copy(update={"checkpoint_seconds": 0.0})

    def learner(checkpoint: Path | None) -> Learner:
        return learner_of(copy.deepcopy(start), {**QUICK, "retrain_epochs": 2}, training, checkpoint)

    straight = learner(None)
    list(straight.learn_step(step_of(number)))
    stopped = learner(tmp_path / "checkpoint")
    updates = 0
    for event in stopped.learn_step(step_of(number)):
        updates += isinstance(event, UpdateDone) and stopped.progress.stage == stage
        if updates == 2:
            break
    resumed = learner(tmp_path / "checkpoint")
    events = list(resumed.learn_step(step_of(number)))
    assert [event.stage for event in events if isinstance(event, StepStarted)] == list(range(stage, 2))
    assert [event.update for event in events if isinstance(event, Resumed)] == [1]
    assert same_weights(resumed.model, straight.model)
    for learned in (straight, resumed):
        record = history_record(learned, step_of(number), before={}, after={})
        assert record["epochs"] == 1 + 2  # learning, and learning again
        assert record["best_epoch"] in (2, 3)
    assert 0 < resumed.carried < resumed.progress.train_seconds  # whichever stage was resumed


def test_a_model_that_learned_without_it_is_refused(folder: Path, taught: list[NerModel]) -> None:
    learner = learner_of(untaught(folder), "finetune")
    list(learner.learn_step(step_of(1)))
    before = weights_of(learner.model)
    with pytest.raises(ModelError, match="from step 1 on, and this model has learned steps without it"):
        list(learner_of(learner.model).learn_step(step_of(2)))
    assert same_weights(before, weights_of(learner.model))
    with pytest.raises(ConfigError, match="which only packnet can add to"):
        learner_of(copy.deepcopy(taught[0]), "finetune")
    with pytest.raises(ConfigError, match="have layers 0, not 1; leave layers out"):
        list(learner_of(copy.deepcopy(taught[0]), {**QUICK, "layers": 1}).learn_step(step_of(2)))


def test_no_more_steps_than_a_byte_can_number(folder: Path) -> None:
    model = untaught(folder)
    model.isolate(PackNetOptions()).count = 254
    model.grow(["A"])
    packed(model).claim(255)
    assert all((owner == 255).all() for owner in owners(model).values())
    with pytest.raises(ModelError, match="no more than 255 steps"):
        model.grow(["B"])


def test_gates_are_shut_for_earlier_steps_whatever_was_pruned(taught: list[NerModel]) -> None:
    """So that a step resumed after pruning, on weights of before it, has the gates that it had."""
    model = copy.deepcopy(taught[1])
    strategy = PackNetStrategy(PackNetStrategyOptions())
    model.grow(["T3"])
    context = toy_context(model, ["T3"])
    found = [strategy.gates(context)]
    packed(model).claim(3)
    found.append(strategy.gates(context))
    packed(model).prune(model, 3, 0.75)
    found.append(strategy.gates(context))
    for name, owner in owners(taught[1]).items():
        assert all(torch.equal(gates[name], (owner == 0).float()) for gates in found)
    assert strategy.gates(toy_context(taught[0], ["T1"])) == {}


def test_a_step_is_learned(folder: Path) -> None:
    """After pruning too: the words of each type tell it, and both sub-networks find theirs."""
    training = TRAINING.model_copy(update={"epochs": 4, "optimizer": OptimizerOptions(lr=5e-3, head_lr=2e-2)})
    learner = learner_of(untaught(folder), {"name": "packnet", "retrain_epochs": 2}, training)
    steps = [step_of(number, train=60, dev=20) for number in (1, 2)]
    for step in steps:
        list(learner.learn_step(step))
    for step in steps:
        counts = learner.count(step.dev, step.types, alone=True)[step.types[0]]
        assert counts.f1 is not None
        assert counts.f1 > 0.8
