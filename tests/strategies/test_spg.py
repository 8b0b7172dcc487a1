"""SPG: importance against an independent computation, and masks that hold what they say (P1-P8)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import OptimizerOptions, parse_strategies
from ner_cl.data.batching import Batch
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.trunk import all_layers
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.distill import Distill, DistillStrategyOptions
from ner_cl.strategies.importance import GradientSum, relative_importance, rounding_noise
from ner_cl.strategies.spg import Spg, SpgOptions
from ner_cl.train.checkpoint import Checkpoint
from ner_cl.train.learner import Learner
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
VECTOR = torch.tensor([[1, -2, 0.5], [0, 3, -0.5]])  # A.3
# A key bias shifts all scores of a query alike, which softmax ignores: its gradient is nothing but rounding noise.
KEY_BIAS = "attention.self.key.bias"
# As hostile as can be: decay and momentum move parameters that have no gradient, if they are let.
OPTIMIZERS = [
    OptimizerOptions(lr=5e-3, head_lr=2e-2, weight_decay=0.5),
    OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1, momentum=0.9, weight_decay=0.1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def weights(model: NerModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def encoder_names(model: NerModel) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith("encoder.")]


def filled(model: NerModel, value: float) -> dict[str, Tensor]:
    """An importance of `value` everywhere in the encoder."""
    parameters = dict(model.named_parameters())
    return {name: torch.full_like(parameters[name], value, requires_grad=False) for name in encoder_names(model)}


def learn(
    folder: Path,
    head: str,
    strategies: Sequence[Any],
    *,
    steps: Sequence[Sequence[str]] = (("PER",),),
    state: dict[str, Tensor] | None = None,
    optimizer: OptimizerOptions = TOY_TRAINING.optimizer,
    **training: Any,
) -> tuple[NerModel, dict[str, Tensor]]:
    """A model that knew `steps` and has learned LOC, and its weights at the first update."""
    model = tiny_model(folder, head, steps=steps)
    if state is not None:
        model.strategy_state = {"spg": state}
    options = TOY_TRAINING.model_copy(update={"epochs": 2, "optimizer": optimizer, **training})
    learner = Learner(model, parse_strategies(list(strategies)), options)
    step = Step(len(steps) + 1, ("LOC",), toy_stream(train=40).steps[1].train, ())
    events = learner.learn_step(step)
    next(events)
    before = weights(model)
    for _ in events:
        pass
    return model, before


def measured(
    folder: Path,
    head: str,
    *,
    steps: Sequence[Sequence[str]] = (("PER",), ("MISC",), ("LOC",)),
    scale: float = 1.0,
    batch_tokens: int = 128,
    **options: Any,
) -> tuple[Spg, NerModel, StepContext]:
    """The strategy after measuring the newest of `steps`, which distillation taught."""
    model = tiny_model(folder, head, steps=steps[:-1])
    distill = Distill(DistillStrategyOptions())
    train = toy_sentences(12, seed=4, types=steps[-1])
    context = toy_context(model, steps[-1], grown=False)
    distill.begin_step(context)
    model.grow(steps[-1], generator=torch.Generator().manual_seed(3))
    model.eval()
    context.encoded = model.encode(train)
    context.batch_tokens = batch_tokens
    plain = context_loss([distill], context)
    context.training_loss = lambda batch: scale * plain(batch)
    spg = Spg(SpgOptions(**{"dropout": False, **options}))
    spg.gates(context)
    spg.end_step(context)
    return spg, model, context


def context_loss(strategies: Sequence[Strategy], context: StepContext) -> Any:
    from ner_cl.train.loop import loss_terms

    def training_loss(batch: Batch) -> Tensor:
        terms = loss_terms(strategies, context, batch, context.model(batch))
        return torch.stack(list(terms.values())).sum()

    return training_loss


# -- the measure ------------------------------------------------------------------------------------------------------


def numpy_importance(gradient: np.ndarray) -> np.ndarray:
    """The formula as it is printed."""
    gradient = gradient.astype(np.float64)
    if gradient.size < 2 or gradient.std(ddof=1) == 0:
        return np.zeros_like(gradient)
    return np.abs(np.tanh((gradient - gradient.mean()) / gradient.std(ddof=1)))


def test_vector_a3() -> None:
    found = relative_importance(VECTOR)
    expected = [[0.380635, 0.885957, 0.099867], [0.197761, 0.922150, 0.462906]]
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    assert float(found.mean()) == pytest.approx(0.491546, abs=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_p8_a_single_entry_stands_out_from_nothing(shape: tuple[int, ...]) -> None:
    assert relative_importance(torch.full(shape, 3.7)).eq(0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-20, 1 / 3])
def test_p8_entries_all_alike_get_nothing_and_not_blown_up_rounding(value: float) -> None:
    assert relative_importance(torch.full((777, 131), value)).eq(0).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_p1_an_importance_lies_between_zero_and_one(values: list[float]) -> None:
    found = relative_importance(torch.tensor(values))
    assert found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all()


def test_p1_far_outliers_saturate_so_that_their_parameters_freeze() -> None:
    """At z = 20 fp32 knows no difference to 1."""
    gradient = torch.zeros(500)
    gradient[7] = 1.0  # z is about the root of the number of entries
    found = relative_importance(gradient)
    assert found[7] == 1
    assert 1 - found[7] == 0
    assert (found[:7] < 0.05).all()


@given(st.integers(-20, 20))
def test_p6_the_scale_of_the_loss_does_not_matter(exponent: int) -> None:
    gradient = torch.randn(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(relative_importance(gradient * 2.0**exponent), relative_importance(gradient))
    torch.testing.assert_close(relative_importance(gradient * 3.1), relative_importance(gradient))


@given(st.integers(-10, 10))
def test_rounding_is_no_importance_at_any_scale(exponent: int) -> None:
    draw = torch.Generator().manual_seed(0)
    real, rounding = (scale * torch.randn(50, generator=draw) * 2.0**exponent for scale in (1.0, 3e-7))
    noise = rounding_noise([real, rounding])
    assert torch.equal(relative_importance(real, noise=noise), relative_importance(real))
    assert relative_importance(1e-4 * real, noise=noise).gt(0).all()
    assert relative_importance(rounding, noise=noise).eq(0).all()


def test_a_batch_that_overflows_adds_nothing() -> None:
    """T14, for the measurement at the end of a step."""
    weight = torch.ones(3, requires_grad=True)
    gradients = GradientSum([weight])
    gradients.add((weight * torch.tensor([1.0, 2.0, 3.0])).sum())
    for wrong in (torch.inf, torch.nan):
        gradients.add((weight * wrong).sum())
    gradients.add(torch.zeros((), requires_grad=True) * 2)  # does not depend on the weight at all
    assert gradients.tensors[0].tolist() == [1, 2, 3]
    assert weight.grad is None


# -- importance of a step ---------------------------------------------------------------------------------------------


def one_by_one(context: StepContext) -> Iterator[Batch]:
    """Every sentence alone, so that nothing is padded."""
    assert context.encoded is not None
    for row in range(len(context.encoded)):
        yield context.encoded.batch([row])


def oracle(model: NerModel, context: StepContext, losses: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    """By plain backward passes, a sentence at a time and a pass over the data for each loss."""
    found = []
    for loss in losses:
        model.zero_grad(set_to_none=True)
        for batch in one_by_one(context):
            loss(batch).backward()
        found.append(
            {name: numpy_importance(p.grad.numpy()) for name, p in model.named_parameters() if p.grad is not None}
        )
    model.zero_grad(set_to_none=True)
    return found


@BOTH
def test_importance_is_what_plain_backward_passes_say(folder: Path, head: str) -> None:
    """P7: heads are taken here in another order than there; the largest does not care."""
    spg, model, context = measured(folder, head)

    def summed_logits(block: int) -> Any:
        linear = model.head.blocks[block]
        return lambda batch: linear(model.encoder(batch)[batch.word_mask]).sum()

    losses = [summed_logits(1), lambda batch: context.training_loss(batch) * sum(batch.row_words), summed_logits(0)]
    expected = oracle(model, context, losses)
    state = spg.state_dict()
    assert list(state) == encoder_names(model)
    for name, importance in state.items():
        largest = np.max([found[name] for found in expected], axis=0)
        if name.endswith(KEY_BIAS):
            largest[:] = 0  # in theory, which plain passes miss by rounding
        np.testing.assert_allclose(importance.numpy(), largest, atol=2e-4, err_msg=name)
    assert len({float(state[name].mean()) for name in state}) > 5


@BOTH
def test_without_cross_head_only_the_steps_own_loss_counts(folder: Path, head: str) -> None:
    spg, model, context = measured(folder, head, cross_head=False)
    own = oracle(model, context, [lambda batch: context.training_loss(batch) * sum(batch.row_words)])[0]
    for name, importance in spg.state_dict().items():
        expected = np.zeros_like(own[name]) if name.endswith(KEY_BIAS) else own[name]
        np.testing.assert_allclose(importance.numpy(), expected, atol=2e-4, err_msg=name)
    both = measured(folder, head)[0].state_dict()
    assert all((both[name] >= importance).all() for name, importance in spg.state_dict().items())
    assert any((both[name] > importance).any() for name, importance in spg.state_dict().items())


@BOTH
def test_p6_a_loss_four_times_as_large_has_the_same_importance(folder: Path, head: str) -> None:
    one, four = (measured(folder, head, scale=scale)[0].state_dict() for scale in (1.0, 4.0))
    assert all(torch.equal(one[name], four[name]) for name in one)


@BOTH
def test_importance_does_not_depend_on_how_batches_are_cut(folder: Path, head: str) -> None:
    small, large = (measured(folder, head, batch_tokens=size)[0].state_dict() for size in (20, 1000))
    for name, importance in small.items():
        torch.testing.assert_close(importance, large[name], atol=2e-4, rtol=1e-3)


@BOTH
@pytest.mark.parametrize("dropout", [True, False])
def test_p5_measuring_leaves_no_trace(folder: Path, head: str, dropout: bool) -> None:
    spg, model, context = measured(folder, head)
    before, random, modes = weights(model), torch.get_rng_state(), [module.training for module in model.modules()]
    again = Spg(SpgOptions(dropout=dropout))
    again.gates(context)
    again.end_step(context)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    same = all(torch.equal(spg.state_dict()[name], again.state_dict()[name]) for name in spg.state_dict())
    assert same != dropout


def test_measuring_leaves_no_trace_when_it_fails(folder: Path) -> None:
    spg, model, context = measured(folder, "extendner")

    def fail(batch: Batch) -> Tensor:
        raise RuntimeError("as a test wants it")

    context.training_loss = fail
    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="as a test wants it"):
        spg.end_step(context)
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_dropout_is_the_same_whenever_the_step_is_run_again(folder: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(measured(folder, "extendner", dropout=True)[0].state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_layers_that_trained_without_dropout_are_measured_without(tmp_path: Path) -> None:
    """Also when the step is resumed after its last update."""
    folder, train = tiny_encoder(tmp_path / "encoder"), toy_sentences(12, seed=4, types=("LOC",))
    training = TOY_TRAINING.model_copy(update={"epochs": 1, "calibrate": False, "checkpoint_seconds": 0.0})
    strategies = parse_strategies(["distill", {"name": "frozen_trunk", "layers": 1, "cache": False}, "spg"])
    states, modes = [], []
    for _ in ("straight", "resumed"):  # the first one leaves the checkpoint of its last update
        learner = Learner(tiny_model(folder), strategies, training, checkpoint=Checkpoint(tmp_path / "checkpoint"))
        below, top = all_layers(learner.model.encoder)
        below.register_forward_hook(lambda *_, below=below, top=top: modes.append((below.training, top.training)))
        events = list(learner.learn_step(Step(1, ("LOC",), train, ())))
        states.append(learner.model.strategy_state["spg"])
    assert "UpdateDone" not in [type(event).__name__ for event in events]
    assert (False, True) in modes
    assert (True, True) not in modes
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_sample_of_sentences_is_drawn_once_and_for_all(folder: Path) -> None:
    some, same, whole = (measured(folder, "extendner", sentences=n)[0].state_dict() for n in (5, 5, 0))
    assert all(torch.equal(some[name], same[name]) for name in some)
    assert any(not torch.equal(some[name], whole[name]) for name in some)


@BOTH
def test_p2_importance_never_falls(folder: Path, head: str) -> None:
    learner = Learner(
        tiny_model(folder, head), parse_strategies(["spg"]), TOY_TRAINING.model_copy(update={"epochs": 1})
    )
    states = []
    for step in toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60).steps:
        for _ in learner.learn_step(step):
            pass
        states.append({name: tensor.clone() for name, tensor in learner.model.strategy_state["spg"].items()})
    for old, new in pairwise(states):
        assert old.keys() == new.keys()
        assert all((new[name] >= old[name]).all() for name in old)
        assert any((new[name] > old[name]).any() for name in old)


# -- masks ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options.name)
def test_p3_an_importance_of_one_keeps_a_weight_to_the_last_bit(
    folder: Path, head: str, optimizer: OptimizerOptions
) -> None:
    state = filled(tiny_model(folder, head), 0.0)
    for importance in state.values():
        importance.view(-1)[::2] = 1
    state["encoder.backbone.encoder.layer.0.intermediate.dense.weight"].fill_(1)
    model, before = learn(folder, head, ["spg"], state=state, optimizer=optimizer)
    for name, importance in state.items():
        same = model.get_parameter(name) == before[name]
        assert same[importance == 1].all(), name
    attention = "encoder.backbone.encoder.layer.0.attention.output.dense.weight"
    moved = model.get_parameter(attention) != before[attention]
    assert moved[state[attention] == 0].float().mean() > 0.99


@BOTH
def test_p4_an_importance_of_zero_is_as_if_the_strategy_were_not_there(folder: Path, head: str) -> None:
    """T10."""
    plain = weights(learn(folder, head, ["distill"])[0])
    with_spg = weights(learn(folder, head, ["distill", "spg"], state=filled(tiny_model(folder, head), 0.0))[0])
    assert all(torch.equal(plain[name], with_spg[name]) for name in plain)


@BOTH
def test_the_first_step_has_no_mask(folder: Path, head: str) -> None:
    """T11."""
    plain = weights(learn(folder, head, ["distill"], steps=())[0])
    model, _ = learn(folder, head, ["distill", {"name": "spg", "head_factor_on_new": True}], steps=())
    assert all(torch.equal(plain[name], parameter) for name, parameter in model.named_parameters())
    assert list(model.strategy_state["spg"]) == sorted(encoder_names(model))


@BOTH
def test_important_weights_move_less(folder: Path, head: str) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(tensor.shape, generator=draw) for name, tensor in filled(tiny_model(folder, head), 0).items()
    }
    model, before = learn(folder, head, ["spg"], state=state)
    for name in (name for name in state if name.endswith("dense.weight")):
        moved = (model.get_parameter(name).detach() - before[name]).abs()
        assert moved[state[name] > 0.9].mean() < 0.3 * moved[state[name] < 0.1].mean(), name


def block_gates(folder: Path, head: str, state: dict[str, Tensor], **options: Any) -> dict[str, float]:
    model = tiny_model(folder, head, steps=[["PER"], ["MISC"], ["LOC"]])
    spg = Spg(SpgOptions(**options))
    spg.load_state_dict(state)
    gates = spg.gates(toy_context(model, ["LOC"]))
    return {name: float(gate) for name, gate in gates.items() if name.startswith("head.")}


@BOTH
def test_old_blocks_are_held_by_one_minus_the_mean_importance(folder: Path, head: str) -> None:
    """A.3: the factor of the only tensor there is; a mean is over entries, not over tensors."""
    names = [f"head.blocks.{block}.{name}" for block in (0, 1) for name in ("weight", "bias")]
    norm = "encoder.backbone.embeddings.LayerNorm.weight"
    state = {norm: relative_importance(VECTOR)}
    uneven = {norm: torch.ones(32), norm.replace("weight", "bias"): torch.zeros(96)}
    for stored, factor in ((state, 0.508454), (uneven, 0.75)):
        assert block_gates(folder, head, stored) == {name: pytest.approx(factor, abs=1e-6) for name in names}


@BOTH
def test_what_becomes_of_old_and_new_blocks_can_be_chosen(folder: Path, head: str) -> None:
    half = filled(tiny_model(folder, head), 0.5)
    old = [f"head.blocks.{block}.{name}" for block in (0, 1) for name in ("weight", "bias")]
    new = ["head.blocks.2.weight", "head.blocks.2.bias"]
    assert block_gates(folder, head, half) == dict.fromkeys(old, 0.5)
    assert block_gates(folder, head, half, old_blocks="freeze") == dict.fromkeys(old, 0.0)
    assert block_gates(folder, head, half, old_blocks="free") == {}
    both = block_gates(folder, head, half, old_blocks="freeze", head_factor_on_new=True)
    assert both == dict.fromkeys(old, 0.0) | dict.fromkeys(new, 0.5)
    # A model that learned its types without SPG has no importance yet.
    assert block_gates(folder, head, {}) == {}
    assert block_gates(folder, head, {}, old_blocks="freeze") == {}  # nothing is held before something is known


@BOTH
def test_frozen_old_blocks_keep_every_bit(folder: Path, head: str) -> None:
    options = {"name": "spg", "old_blocks": "freeze"}
    state = measured(folder, head)[0].state_dict()
    model, before = learn(folder, head, [options], optimizer=OPTIMIZERS[0], state=state)
    assert all(torch.equal(before[f"head.blocks.0.{name}"], p) for name, p in model.head.blocks[0].named_parameters())
    assert not torch.equal(before["head.blocks.1.weight"], model.head.new_block().weight)


def test_what_is_not_trained_costs_nothing(folder: Path) -> None:
    """The default leaves word-piece embeddings alone; four bytes are kept for each other parameter of the encoder."""
    model, _ = learn(folder, "extendner", ["spg"], train_embeddings=False)
    state = model.strategy_state["spg"]
    embeddings = "encoder.backbone.embeddings.word_embeddings.weight"
    assert set(state) == {name for name in encoder_names(model) if name != embeddings}
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert all(tensor.shape == model.get_parameter(name).shape for name, tensor in state.items())
    # Trained later on, they begin without a mask, and are measured from then on.
    assert embeddings in learn(folder, "extendner", ["spg"], state=dict(state))[0].strategy_state["spg"]


def test_the_state_comes_back_to_the_last_bit(folder: Path) -> None:
    spg = measured(folder, "extendner")[0]
    other = Spg(SpgOptions())
    assert other.state_dict() == {}
    other.load_state_dict(spg.state_dict())
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in spg.state_dict().items())


def test_it_stands_on_distillation_and_not_beside_joint() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["spg"]))] == ["distill", "spg"]
    with pytest.raises(ConfigError, match="joint"):
        build_strategies(parse_strategies(["spg", "joint"]))
