"""GPM: what a weight makes of old inputs does not change, and the bases hold no more than they must."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import OptimizerOptions, check_composition, parse_strategies
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.registry import strategies
from ner_cl.strategies import gpm as gpm_module
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import HalfSpace, InputSubspace
from ner_cl.strategies.finetune import FinetuneOptions
from ner_cl.strategies.gpm import Gpm, GpmOptions, extend_basis
from ner_cl.train.combine import Updater
from ner_cl.train.events import EpochDone, Note, UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.project import Projector
from ner_cl.train.run import run_stream
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import (
    SHORT_TRAINING,
    Interrupted,
    interrupt_at,
    learn_all,
    learner_of,
    run_config,
    same_weights,
    step_files,
    weights_of,
)

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
ATTENTION = "encoder.backbone.encoder.layer.0.attention.self"
SHARED = f"{ATTENTION}.query {ATTENTION}.key {ATTENTION}.value"
WIDE = "encoder.backbone.encoder.layer.0.output.dense"
STREAM = toy_stream(train=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def empty(side: int) -> Tensor:
    return torch.zeros(side, 0)


def inputs_of(side: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.7 ** torch.arange(side, dtype=torch.float64)
    return scale[:, None] * torch.randn(side, count, generator=generator, dtype=torch.float64)


def explained(basis: Tensor, inputs: Tensor) -> float:
    return float((basis.double().T @ inputs).square().sum() / inputs.square().sum())


def strategy_of(learner: Learner) -> Gpm:
    [found] = [strategy for strategy in learner.strategies if isinstance(strategy, Gpm)]
    return found


def test_a6_the_rule_is_at_least() -> None:
    inputs = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64)
    basis = extend_basis(empty(3), inputs @ inputs.T, share=0.97)
    torch.testing.assert_close(basis.abs(), torch.tensor([[1.0], [0.0], [0.0]]))
    change = {"weight": torch.tensor([[1.0, 1, 1], [2, 0, -1]])}
    assert extend_basis(basis, inputs @ inputs.T, share=0.97).shape == (3, 1)
    assert extend_basis(basis, inputs @ inputs.T, share=0.999).shape == (3, 2)
    projected = Projector({})(change, [InputSubspace({"weight": basis})])["weight"]
    torch.testing.assert_close(projected, torch.tensor([[0.0, 1, 1], [0, 0, -1]]))


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1.0), more=st.floats(0.0, 0.2))
@settings(max_examples=40)
def test_m1_and_m3_bases_are_orthonormal_and_no_larger_than_needed(seed: int, share: float, more: float) -> None:
    first, second = inputs_of(8, 20, seed), inputs_of(8, 20, seed + 1)
    basis = extend_basis(empty(8), first @ first.T, share=share)
    grown = extend_basis(basis, second @ second.T, share=min(1.0, share + more))
    assert torch.equal(grown[:, : basis.shape[1]], basis)
    for found, inputs, wanted, old in (
        (basis, first, share, 0),
        (grown, second, min(1.0, share + more), basis.shape[1]),
    ):
        torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1]), rtol=0, atol=2e-6)
        assert explained(found, inputs) >= wanted - 1e-6
        assert found.shape[1] <= 8
        if found.shape[1] > old:
            assert explained(found[:, :-1], inputs) < wanted
    assert basis.shape[1] == 8 or share < 1


def test_m3_few_inputs_give_no_more_directions_than_inputs() -> None:
    inputs = inputs_of(8, 3, 0)
    assert extend_basis(empty(8), inputs @ inputs.T, share=1.0).shape == (8, 3)
    assert extend_basis(empty(8), torch.zeros(8, 8, dtype=torch.float64), share=1.0).shape == (8, 0)


def test_m5_projection_twice_is_projection_once() -> None:
    inputs = inputs_of(8, 20, 0)
    constraint = InputSubspace({"weight": extend_basis(empty(8), inputs @ inputs.T, share=0.9)})
    once = Projector({})({"weight": torch.randn(5, 8)}, [constraint])
    twice = Projector({})(once, [constraint])
    torch.testing.assert_close(once["weight"], twice["weight"])


@BOTH
@pytest.mark.parametrize("wide", ["freeze", "project"])
def test_m2_what_weights_make_of_old_inputs_stays(folder: Path, head: str, wide: str) -> None:
    """With AdamW, weight decay and all; and what has no inputs does not move at all."""
    learner = learner_of(folder, ["distill", {"name": "gpm", "wide": wide, "threshold": 0.8}], head=head)
    list(learner.learn_step(STREAM.steps[0]))
    before, bases = weights_of(learner.model), dict(strategy_of(learner).state_dict())
    assert (WIDE in bases) == (wide == "project")
    assert SHARED in bases
    list(learner.learn_step(STREAM.steps[1]))
    after = weights_of(learner.model)
    free = set()
    for names, basis in bases.items():
        assert 0 < basis.shape[1] < basis.shape[0]
        for name in names.split():
            change = after[f"{name}.weight"] - before[f"{name}.weight"]
            assert change.norm() > 1e-3
            assert (change @ basis).norm() < 1e-5 * before[f"{name}.weight"].norm()
            free.add(f"{name}.weight")
    for name, tensor in before.items():
        if name.startswith("encoder.") and name not in free:
            assert torch.equal(after[name], tensor), name
    assert all(parameter.requires_grad and parameter.grad is None for parameter in learner.model.parameters())
    assert not learner.model.training
    grown = strategy_of(learner).state_dict()
    assert grown.keys() == bases.keys()
    for names, basis in bases.items():
        assert torch.equal(grown[names][:, : basis.shape[1]], basis)  # M3


def test_m3_a_full_basis_freezes_its_layers(folder: Path) -> None:
    learner = learner_of(folder, ["distill", {"name": "gpm", "threshold": 1.0, "wide": "project"}])
    list(learner.learn_step(STREAM.steps[0]))
    # Sixty toy sentences do not fill 64 directions; what they miss is filled by hand.
    state = learner.model.strategy_state["gpm"]
    state.update({names: torch.linalg.qr(torch.randn(len(b), len(b)))[0] for names, b in state.items()})
    before = weights_of(learner.model)
    list(learner.learn_step(STREAM.steps[1]))
    after = weights_of(learner.model)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith("encoder."), name


@BOTH
def test_m4_t10_a_threshold_of_zero_is_no_strategy(folder: Path, head: str) -> None:
    plain, off = (
        learner_of(folder, head=head),
        learner_of(folder, ["distill", {"name": "gpm", "threshold": 0}], head=head),
    )
    learn_all(plain, STREAM)
    learn_all(off, STREAM)
    assert same_weights(plain.model, off.model)
    assert strategy_of(off).state_dict() == {}


def test_t11_step_one_is_plain_training(folder: Path) -> None:
    plain, other = learner_of(folder), learner_of(folder, ["distill", "gpm"])
    for learner in (plain, other):
        list(learner.learn_step(STREAM.steps[0]))
    assert same_weights(plain.model, other.model)


def test_heads_are_held_too_if_asked(folder: Path) -> None:
    learner = learner_of(folder, ["distill", {"name": "gpm", "heads": True, "threshold": 0.8}])
    list(learner.learn_step(STREAM.steps[0]))
    basis = strategy_of(learner).state_dict()["head.blocks.0"]
    before = weights_of(learner.model)
    list(learner.learn_step(STREAM.steps[1]))
    after = weights_of(learner.model)
    change = after["head.blocks.0.weight"] - before["head.blocks.0.weight"]
    assert change.norm() > 1e-3
    assert (change @ basis).norm() < 1e-5
    assert torch.equal(after["head.blocks.0.bias"], before["head.blocks.0.bias"])
    shared = strategy_of(learner).state_dict()["head.blocks.0 head.blocks.1"]
    assert torch.equal(shared[:, : basis.shape[1]], basis)


def measured(model: NerModel, options: GpmOptions, *, tokens: int = 128) -> dict[str, Tensor]:
    context = toy_context(model, ["PER"], train=toy_sentences(30, types=("PER",)))
    context.batch_tokens = tokens
    strategy = Gpm(options)
    strategy.end_step(context)
    return strategy.state_dict()


def test_bases_are_of_the_inputs_at_real_pieces_alone(folder: Path) -> None:
    """However sentences are padded; seen from the embeddings, of which the first layer's inputs are made."""
    model = tiny_model(folder, steps=[["PER"]])
    small, large = measured(model, GpmOptions(), tokens=16), measured(model, GpmOptions(), tokens=2000)
    for names, basis in small.items():
        torch.testing.assert_close(basis @ basis.T, large[names] @ large[names].T, rtol=0, atol=1e-3)
    encoded = model.encode(toy_sentences(30, types=("PER",)))
    found = []
    for row in range(30):
        batch = encoded.batch([row])
        inputs = model.encoder.backbone.embeddings(batch.piece_ids).detach()
        found.append(inputs[0, 1:-1])
    inputs = torch.cat(found).double().T
    assert explained(small[SHARED], inputs) >= 0.97 > explained(small[SHARED][:, :-1], inputs)


def test_positions_are_thinned(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    bases = measured(model, GpmOptions(positions=5, threshold=1.0))
    assert {basis.shape[1] for basis in bases.values()} == {5}
    again = measured(model, GpmOptions(positions=5, threshold=1.0))
    assert all(torch.equal(basis, again[names]) for names, basis in bases.items())


def test_the_constraint_is_the_same_object_at_every_update(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    strategy = Gpm(GpmOptions())
    strategy.load_state_dict({SHARED: torch.eye(32)[:, :4]})
    context = toy_context(model, ["LOC"])
    assert strategy.gates(context) == {}
    [one], [other] = strategy.constraints(context), strategy.constraints(context)
    assert one is other
    assert one.bases[f"{ATTENTION}.query.weight"] is one.bases[f"{ATTENTION}.value.weight"]


def test_later_steps_ask_for_a_larger_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def recorded(basis: Tensor, products: Tensor, *, share: float) -> Tensor:
        shares.append(share)
        return extend_basis(basis, products, share=share)

    monkeypatch.setattr(gpm_module, "extend_basis", recorded)
    learner = learner_of(folder, ["distill", {"name": "gpm", "threshold": 0.9, "increase": 0.07}])
    for number, step in enumerate(toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60).steps):
        list(learner.learn_step(step))
        assert sorted(set(shares)) == pytest.approx([min(1.0, 0.9 + 0.07 * number)])
        shares.clear()


def test_layers_that_were_not_held_from_the_start_stay_frozen(folder: Path) -> None:
    learner = learner_of(folder, ["distill", {"name": "gpm", "wide": "freeze"}])
    list(learner.learn_step(STREAM.steps[0]))
    other = Learner(learner.model, parse_strategies(["distill", {"name": "gpm", "wide": "project"}]), SHORT_TRAINING)
    before = learner.model.state_dict()[f"{WIDE}.weight"].clone()
    list(other.learn_step(STREAM.steps[1]))
    assert torch.equal(other.model.state_dict()[f"{WIDE}.weight"], before)
    assert WIDE not in strategy_of(other).state_dict()


def test_a_layer_that_was_not_measured_in_one_step_stays_frozen(folder: Path) -> None:
    """Its basis has missed that step."""
    learner = learner_of(folder, ["distill", {"name": "gpm", "threshold": 0.8}])
    list(learner.learn_step(STREAM.steps[0]))
    model, steps = learner.model, toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60).steps
    for wide, step in (("freeze", steps[1]), ("project", steps[2])):
        options = parse_strategies(["distill", {"name": "gpm", "wide": wide, "threshold": 0.8}])
        learner, before = Learner(model, options, SHORT_TRAINING), weights_of(model)
        list(learner.learn_step(step))
        assert WIDE not in strategy_of(learner).state_dict()
        assert torch.equal(model.state_dict()[f"{WIDE}.weight"], before[f"{WIDE}.weight"])
        assert not torch.equal(model.state_dict()[f"{ATTENTION}.query.weight"], before[f"{ATTENTION}.query.weight"])


@pytest.mark.parametrize("other", ["joint", "ogd"])
def test_what_it_cannot_be_combined_with_is_refused(other: str) -> None:
    if other not in strategies:
        pytest.skip(f"{other} is not there")
    with pytest.raises(ConfigError, match=other):
        check_composition(parse_strategies(["gpm", other]))


def drift(model: NerModel, before: dict[str, Tensor], bases: dict[str, Tensor]) -> float:
    """How far outputs for old inputs have moved, relative to the weights; the largest of all layers."""
    now = weights_of(model)
    moved = [
        float(((now[f"{name}.weight"] - before[f"{name}.weight"]) @ basis).norm() / before[f"{name}.weight"].norm())
        for names, basis in bases.items()
        for name in names.split()
    ]
    return max(moved)


def drifts(folder: Path, every: int, others: Sequence[object] = (), **training: object) -> list[tuple[int, float]]:
    """Number and drift after every update of step 2; 0 after every epoch."""
    options = SHORT_TRAINING.model_copy(update={"batch_tokens": 64, **training})
    strategies = ["distill", {"name": "gpm", "threshold": 0.8, "every": every}, *others]
    learner = learner_of(folder, strategies, training=options)
    list(learner.learn_step(STREAM.steps[0]))
    before, bases = weights_of(learner.model), dict(strategy_of(learner).state_dict())
    return [
        (event.update if isinstance(event, UpdateDone) else 0, drift(learner.model, before, bases))
        for event in learner.learn_step(STREAM.steps[1])
        if isinstance(event, UpdateDone | EpochDone)
    ]


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_m2_after_so_many_updates_and_at_the_end_of_every_epoch(folder: Path, every: int) -> None:
    found = drifts(folder, every)
    assert [number for number, _ in found] == [*range(1, 8), 0] * 2
    for number, moved in found:
        # The last update of an epoch is corrected with the epoch.
        assert (moved < 1e-5) == (number % every == 0 and number < 7), (number, moved)


@pytest.mark.parametrize("other", ["agem", "das"])
def test_beside_constraints_and_shared_gates_each_update_is_projected(folder: Path, other: str) -> None:
    assert max(moved for _, moved in drifts(folder, 1000, [other])) < 1e-5


def test_beside_gates_of_their_own_weights_wait_as_without(folder: Path) -> None:
    for number, moved in drifts(folder, 3, ["spg"]):
        assert (moved < 1e-5) == (number % 3 == 0 and number < 7), (number, moved)


def test_what_gpm_costs_beside_spg_is_told(folder: Path) -> None:
    learner = learner_of(folder, ["gpm", "spg"])
    told = [[event.text for event in learner.learn_step(step) if isinstance(event, Note)] for step in STREAM.steps[:2]]
    assert [any("takes tens of times as long" in text for text in texts) for texts in told] == [False, True]


def test_a_projected_gradient_stays_outside_at_each_update(folder: Path) -> None:
    rule = OptimizerOptions(name="sgd", lr=0.01, weight_decay=0, apply_to="gradient")
    assert max(moved for _, moved in drifts(folder, 1000, optimizer=rule)) < 1e-5


class Sometimes(Strategy):
    """Declares a constraint at some updates of an epoch only, as a strategy of a third party may."""

    options_class = FinetuneOptions

    def __init__(self, updates: set[int], reference: dict[str, Tensor]) -> None:
        super().__init__(FinetuneOptions())
        self.updates, self.reference = updates, reference

    def constraints(self, context: StepContext) -> Sequence[HalfSpace]:
        return [HalfSpace(self.reference)] if context.update in self.updates else []


@pytest.mark.parametrize(
    ("overflow", "others", "corrected"),
    [
        ([], set(), [False, False, True, False, False]),
        ([2], set(), [False, False, True, False, False]),  # left out, but due
        ([1, 3, 4], set(), [False, False, True, True, True]),
        ([], {1}, [False, True, True, False, False]),  # projected by itself, after what was owed
        ([], {4}, [False, False, True, False, True]),
    ],
)
def test_whatever_happens_on_the_way_nothing_stays_uncorrected(
    folder: Path, overflow: list[int], others: set[int], corrected: list[bool]
) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    weight = model.get_parameter(f"{ATTENTION}.query.weight")
    before, basis = weight.detach().clone(), torch.linalg.qr(torch.randn(32, 4))[0]
    strategy, context = Gpm(GpmOptions(every=3)), toy_context(model, ["LOC"])
    strategy.load_state_dict({SHARED: basis})
    reference = {f"{ATTENTION}.query.weight": torch.ones_like(weight)}
    strategies = [strategy, Sometimes(others, reference)]
    updater = Updater(strategies, context, torch.optim.SGD([weight], lr=0.1), clip=0.0)
    context.updates = 5
    for context.update in range(5):
        weight.grad = torch.full_like(weight, torch.nan if context.update in overflow else 1.0)
        assert updater.update() == (context.update not in overflow)
        moved = float(((weight.detach() - before) @ basis).norm())
        assert (moved < 1e-4) == corrected[context.update], (context.update, moved)
    updater.correct()
    assert ((weight.detach() - before) @ basis).norm() < 1e-4
    assert (weight.detach() - before).norm() > 0.1


@pytest.mark.parametrize("stopped", [3, 4, 6, 8])
def test_a_run_that_stopped_between_corrections_ends_as_if_it_had_not(tmp_path: Path, stopped: int) -> None:
    """Seven updates an epoch, corrected after three, after six and at the end."""
    strategies = [{"name": "distill"}, {"name": "gpm", "threshold": 0.8, "every": 3}]
    training = {"batch_tokens": 64, "checkpoint_seconds": 0}
    configs = [
        run_config(tmp_path, output=str(tmp_path / name), training=training, strategies=strategies)
        for name in ("whole", "stopped")
    ]
    counts = []
    run_stream(configs[0], on_event=lambda event: counts.append(event) if isinstance(event, UpdateDone) else None)
    assert Counter((event.step, event.epoch) for event in counts)[2, 1] == 7
    first = sum(event.step == 1 for event in counts)
    with pytest.raises(Interrupted):
        run_stream(configs[1], on_event=interrupt_at(first + stopped))
    run_stream(configs[1], resume=True)
    assert step_files(tmp_path / "stopped") == step_files(tmp_path / "whole")


def test_beside_a_frozen_trunk_only_what_trains_is_corrected(folder: Path, tmp_path: Path) -> None:
    two = tiny_encoder(tmp_path / "two", layers=2)
    frozen = {"name": "frozen_trunk", "layers": 1}
    learner = learner_of(two, ["distill", {"name": "gpm", "threshold": 0.8}, frozen])
    list(learner.learn_step(STREAM.steps[0]))
    before, bases = weights_of(learner.model), dict(strategy_of(learner).state_dict())
    list(learner.learn_step(STREAM.steps[1]))
    assert drift(learner.model, before, bases) < 1e-5
    after = weights_of(learner.model)
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert any(".layer.1." in name for name in moved)
    assert not any(".layer.0." in name for name in moved)


class Gated(Strategy):
    """Declares gates."""

    options_class = FinetuneOptions

    def __init__(self, gates: dict[str, Tensor]) -> None:
        super().__init__(FinetuneOptions())
        self.declared = gates

    def gates(self, context: StepContext) -> dict[str, Tensor]:
        return self.declared


@pytest.mark.parametrize("gated", [False, True])
def test_deferred_correction_ends_where_correcting_each_update_does(folder: Path, gated: bool) -> None:
    """As far as gradients do not depend on it: with given gradients and plain SGD."""
    ends = []
    gate = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    gate[0], gate[1:, :8] = 0, 0
    basis = torch.linalg.qr(torch.randn(32, 4, generator=torch.Generator().manual_seed(1)))[0]
    for every in (1, 5):
        model = tiny_model(folder, steps=[["PER"], ["LOC"]])
        strategy, context = Gpm(GpmOptions(every=every)), toy_context(model, ["LOC"])
        strategy.load_state_dict({SHARED: basis})
        weight = model.get_parameter(f"{ATTENTION}.query.weight")
        others = [Gated({f"{ATTENTION}.query.weight": gate})] if gated else []
        before = weight.detach().clone()
        updater = Updater([strategy, *others], context, torch.optim.SGD([weight], lr=0.1), clip=0.0)
        context.updates = 10
        for context.update in range(10):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(context.update))
            updater.update()
        updater.correct()
        ends.append(weight.detach().clone())
        assert ((ends[-1] - before) @ basis).abs().max() < 1e-5
        if gated:
            assert torch.equal(ends[-1][gate == 0], before[gate == 0])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5 if gated else 1e-6)
