"""Gates, projections and preconditioners: exact at both ends, right in between, against scipy's solvers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.errors import ConfigError, TrainingError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import Constraint, HalfSpace
from ner_cl.strategies.finetune import FinetuneOptions
from ner_cl.strategies.gated import hold_back
from ner_cl.train.combine import Updater, combine_gates
from ner_cl.train.project import Projector
from tests.tiny import tiny_model, toy_context

WEIGHT = "head.blocks.0.weight"  # [3, 32]
NORM = "encoder.backbone.embeddings.LayerNorm.weight"  # [32]
BIAS = "encoder.backbone.embeddings.LayerNorm.bias"  # [32]


class Declared(Strategy):
    """Says what a test tells it to say."""

    options_class = FinetuneOptions

    def __init__(
        self,
        *,
        gates: Mapping[str, Tensor] | None = None,
        constraints: Sequence[Mapping[str, Tensor]] = (),
        scale: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(FinetuneOptions())
        self._gates, self.references, self._scale = gates or {}, constraints, scale

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        return self._gates

    def constraints(self, context: StepContext) -> Sequence[Constraint]:
        return [HalfSpace(reference) for reference in self.references]

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        return None if self._scale is None else {name: factor * gradient[name] for name, factor in self._scale.items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture
def model(encoder: Path) -> NerModel:
    return tiny_model(encoder, steps=[("PER",)])


def optimizer_of(model: NerModel, name: str, *, lr: float = 0.01, decay: float = 0.1) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, fused=True)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay, momentum=momentum, fused=True)


def train(
    model: NerModel,
    strategies: Sequence[Strategy],
    *,
    optimizer: str = "adamw",
    updates: int = 1,
    clip: float = 0.0,
    decay: float = 0.1,
    seed: int = 0,
    mask: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weights after updates along seeded gradients, which do not depend on the weights."""
    updater = Updater(strategies, toy_context(model, ["PER"]), optimizer_of(model, optimizer, decay=decay), clip=clip)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient * mask[name] if mask and name in mask else gradient
        assert updater.update()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gated(before: Tensor, after: Tensor, gate: Tensor) -> Tensor:
    held = after.clone()
    hold_back([held], [before], [gate])
    return held


def half_mask(shape: torch.Size, value: float = 1.0) -> Tensor:
    """Zero and `value` by turns."""
    return (torch.arange(shape.numel()) % 2).reshape(shape) * value


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "sgd"])
def test_a_gate_of_zero_keeps_a_weight_and_a_gate_of_one_frees_it_to_the_last_bit(
    model: NerModel, encoder: Path, optimizer: str
) -> None:
    """U1 and U2."""
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = half_mask(start[WEIGHT].shape)
    gates = {WEIGHT: mask, NORM: torch.zeros(32), BIAS: torch.ones(32)}
    gated_run = train(model, [Declared(gates=gates)], optimizer=optimizer, updates=60, clip=1.0)
    free_run = train(tiny_model(encoder, steps=[("PER",)]), [], optimizer=optimizer, updates=60, clip=1.0)
    assert torch.equal(gated_run[WEIGHT], torch.where(mask == 0, start[WEIGHT], free_run[WEIGHT]))
    assert torch.equal(gated_run[NORM], start[NORM])
    for name in start.keys() - {WEIGHT, NORM}:
        assert torch.equal(gated_run[name], free_run[name])
        assert not torch.equal(free_run[name], start[name])


def test_a_gate_may_broadcast(model: NerModel) -> None:
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = train(model, [Declared(gates={WEIGHT: torch.tensor([[0.0], [1.0], [0.5]])})], updates=5)
    assert (after[WEIGHT] == start[WEIGHT]).all(dim=1).tolist() == [True, False, False]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), st.floats(0, 1, width=32))
def test_gated_lies_between_its_ends_and_meets_both(values: list[float], factor: float) -> None:
    before, after = torch.tensor(values), torch.tensor(values[::-1]) + 1
    ends = gated(before, after, torch.tensor([0.0, 1.0, 0.0])), gated(before, after, torch.ones(3))
    assert ends[0][0] == before[0]
    assert ends[0][1] == after[1]
    assert torch.equal(ends[1], after)
    between = gated(before, after, torch.full((3,), factor))
    slack = 1e-6 * (before.abs() + after.abs())
    assert (torch.minimum(before, after) - slack <= between).all()
    assert (between <= torch.maximum(before, after) + slack).all()


def test_under_plain_sgd_gating_the_update_is_masking_the_gradient(model: NerModel, encoder: Path) -> None:
    """U3."""
    mask = {WEIGHT: torch.rand(3, 32, generator=torch.Generator().manual_seed(1))}
    by_gate = train(model, [Declared(gates=mask)], optimizer="sgd", decay=0.0)[WEIGHT]
    other = tiny_model(encoder, steps=[("PER",)])
    by_mask = train(other, [], optimizer="sgd", decay=0.0, mask=mask)[WEIGHT]
    two_ulps = 2 * np.spacing(by_mask.abs().numpy().max())
    assert (by_gate - by_mask).abs().max() <= two_ulps


def test_adam_divides_a_constant_gradient_factor_out_again(model: NerModel, encoder: Path) -> None:
    """Why soft masks act on the update: masking gradients by 0.9 importance did nothing (U4, A.15)."""
    masked = train(model, [], updates=200, decay=0.0, mask={WEIGHT: torch.full((3, 32), 0.1)})[WEIGHT]
    free = train(tiny_model(encoder, steps=[("PER",)]), [], updates=200, decay=0.0)[WEIGHT]
    assert (masked - free).abs().max() < 1e-6


def test_a_half_open_gate_moves_a_weight_half_as_far_under_adam(model: NerModel, encoder: Path) -> None:
    start = dict(tiny_model(encoder, steps=[("PER",)]).named_parameters())[WEIGHT].detach()
    factors = torch.tensor([1.0, 0.5, 0.1]).unsqueeze(1)
    after = train(model, [Declared(gates={WEIGHT: factors})], updates=100, decay=0.0)[WEIGHT]
    free = train(tiny_model(encoder, steps=[("PER",)]), [], updates=100, decay=0.0)[WEIGHT]
    torch.testing.assert_close(after - start, factors * (free - start), rtol=1e-3, atol=1e-6)


def test_decay_alone_moves_a_weight_and_a_closed_gate_stops_it(model: NerModel) -> None:
    before = model.head.new_block().weight.detach().clone()
    gates = {WEIGHT: half_mask(before.shape)}
    train(model, [Declared(gates=gates)], updates=3, mask={WEIGHT: torch.zeros_like(before)})
    moved = model.head.new_block().weight != before
    assert torch.equal(moved, gates[WEIGHT] == 1)


# -- the projection -------------------------------------------------------------------------------------------------


def vector(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float32)}


def project(
    change: Mapping[str, Tensor], references: Sequence[Mapping[str, Tensor]], gates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return Projector(gates)(change, [HalfSpace(reference) for reference in references])


def projected(
    direction: dict[str, Tensor], references: Sequence[Mapping[str, Tensor]], gates: dict[str, Tensor]
) -> Tensor:
    """The descent direction after projection; a change is a descent direction with its sign turned."""
    change = {name: -value for name, value in direction.items()}
    return -(change | project(change, references, gates))["w"]


def test_one_reference_gives_the_closed_form_of_a_gem() -> None:
    assert projected(vector(1, 2, -1), [vector(-2, 0, 1)], {}).tolist() == pytest.approx([-0.2, 2.0, -0.4])


def test_an_update_that_opposes_nothing_is_left_alone() -> None:
    assert project({"w": -torch.tensor([1.0, 2.0, 3.0])}, [vector(-2, 0, 1)], {}) == {}


def test_two_references_give_the_solution_of_gem() -> None:
    references = [vector(-2, 0, 1), vector(0, -1, 0)]
    assert projected(vector(1, 2, -1), references, {}).tolist() == pytest.approx([-0.2, 0.0, -0.4], abs=1e-6)


def test_the_exact_opposite_leaves_nothing_and_a_zero_reference_everything() -> None:
    assert projected(vector(1, -2, 3), [vector(-1, 2, -3)], {}).abs().max() < 1e-6
    assert projected(vector(1, -2, 3), [vector(0, 0, 0)], {}).tolist() == [1, -2, 3]


def test_references_on_parameters_of_their_own_do_not_touch_others() -> None:
    change = {"w": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0])}
    found = project(change, [{"w": torch.tensor([1.0, 0.0])}], {})
    assert found.keys() == {"w"}
    assert found["w"].tolist() == [0, 0]


def random_problem(seed: int, *, size: int = 8) -> tuple[Tensor, list[Tensor], Tensor]:
    """A direction, references and gates, some of them shut or open."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 5, (), generator=generator))
    direction = torch.randn(size, generator=generator)
    references = [torch.randn(size, generator=generator) - 0.5 * direction for _ in range(count)]
    gate = (1.4 * torch.rand(size, generator=generator) - 0.2).clamp(0, 1)
    return direction, references, gate


def gated_projection(direction: Tensor, references: Sequence[Tensor], gate: Tensor) -> Tensor:
    return gate * projected({"w": direction}, [{"w": reference} for reference in references], {"w": gate})


@settings(max_examples=200)
@given(st.integers(0, 10**6))
def test_the_dual_is_solved_as_scipy_solves_it(seed: int) -> None:
    direction, references, gate = random_problem(seed)
    rows = torch.stack(references).double()
    root = gate.double().sqrt()
    weights, _ = scipy.optimize.nnls((rows * root).T.numpy(), -(root * direction.double()).numpy())
    expected = gate.double() * (direction.double() + rows.T @ torch.from_numpy(weights))
    found = gated_projection(direction, references, gate).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    products = rows @ found
    assert (products >= -1e-5 * rows.norm(dim=1) * direction.norm()).all()
    # Complementary slackness: only a reference that is met exactly has pushed.
    assert (torch.from_numpy(weights) * products).abs().max() < 1e-4


@pytest.mark.parametrize("seed", range(15))
def test_the_projection_is_the_nearest_allowed_direction(seed: int) -> None:
    """Against a general solver of the primal problem, in the gated metric."""
    direction, references, gate = random_problem(seed, size=5)
    gate = gate.clamp(min=0.2)
    rows, metric, start = torch.stack(references).double().numpy(), gate.double().numpy(), direction.double().numpy()
    found = scipy.optimize.minimize(
        lambda x: 0.5 * ((x - start) ** 2 * metric).sum(),
        start,
        jac=lambda x: (x - start) * metric,
        constraints={"type": "ineq", "fun": lambda x: rows @ (metric * x), "jac": lambda x: rows * metric},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    ours = projected({"w": direction}, [{"w": r} for r in references], {"w": gate}).double().numpy()
    np.testing.assert_allclose(ours, found.x, rtol=1e-3, atol=1e-4)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_order_of_references_does_not_matter_and_duplicates_change_nothing(seed: int, shuffle: int) -> None:
    direction, references, gate = random_problem(seed)
    expected = gated_projection(direction, references, gate)
    order = torch.randperm(len(references), generator=torch.Generator().manual_seed(shuffle)).tolist()
    shuffled = [references[index] for index in order]
    torch.testing.assert_close(gated_projection(direction, shuffled, gate), expected, rtol=1e-4, atol=1e-5)
    doubled = [*references, *shuffled]
    torch.testing.assert_close(gated_projection(direction, doubled, gate), expected, rtol=1e-4, atol=1e-5)


def test_projecting_first_and_masking_afterwards_breaks_what_the_gated_metric_keeps() -> None:
    """Why gates and constraints meet in one function."""
    broken = conflicts = 0
    for seed in range(400):
        direction, references, gate = random_problem(seed)
        reference = references[0]
        if float(direction @ reference) >= 0:
            continue
        conflicts += 1
        slack = 1e-5 * float(direction.norm() * reference.norm())
        one_after_the_other = gate * projected({"w": direction}, [{"w": reference}], {})
        broken += float(one_after_the_other @ reference) < -slack
        assert float(gated_projection(direction, [reference], gate) @ reference) >= -slack
    assert conflicts > 200
    assert broken > conflicts // 3


def test_the_update_that_adamw_applies_never_opposes_a_reference(model: NerModel) -> None:
    generator = torch.Generator().manual_seed(2)
    gate = (1.4 * torch.rand(32, generator=generator) - 0.2).clamp(0, 1)
    strategy = Declared(gates={NORM: gate})
    updater = Updater([strategy], toy_context(model, ["PER"]), optimizer_of(model, "adamw"), clip=1.0)
    parameters = {NORM: model.get_parameter(NORM), BIAS: model.get_parameter(BIAS)}
    bound = plain_violations = 0
    for _ in range(500):
        gradients = {name: torch.randn(32, generator=generator) for name in parameters}
        draws = range(int(torch.randint(1, 4, (), generator=generator)))
        strategy.references = [
            {name: torch.randn(32, generator=generator) - 0.3 * gradients[name] for name in parameters} for _ in draws
        ]
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        assert updater.update()
        change = {name: (parameter.detach() - before[name]).double() for name, parameter in parameters.items()}
        length = sum(float((value**2).sum()) for value in change.values()) ** 0.5
        for reference in strategy.references:
            product = -sum(float((change[name] * reference[name]).sum()) for name in change)
            norm = sum(float((value**2).sum()) for value in reference.values()) ** 0.5
            # A weight near 1 is stored to 6e-8, an update moves it by about 0.01.
            assert product >= -1e-5 * norm * max(length, 0.01)
            bound += abs(product) < 1e-5 * norm * max(length, 0.01)
            plain_violations += sum(float((gradients[n] * reference[n]).sum()) for n in change) < 0
    assert bound > 100
    assert plain_violations > 100


def test_a_projected_gradient_is_not_safe_under_adamw() -> None:
    """Why the projection acts on the update: Adam rescales each coordinate and undoes it."""
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.zeros(16))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, fused=True)
    violations = 0
    for _ in range(300):
        direction, reference = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
        parameter.grad = projected({"w": direction}, [{"w": reference}], {})
        before = parameter.detach().clone()
        optimizer.step()
        violations += float((before - parameter.detach()) @ reference) < -1e-6
    assert violations > 30


def test_a_binding_constraint_leaves_open_gates_elsewhere_exact(model: NerModel, encoder: Path) -> None:
    opposing = Declared(constraints=[{NORM: -torch.ones(32)}, {NORM: torch.ones(32)}])
    bound = train(model, [opposing, Declared(gates={WEIGHT: torch.ones(3, 32)})], updates=5)
    free = train(tiny_model(encoder, steps=[("PER",)]), [], updates=5)
    assert torch.equal(bound[WEIGHT], free[WEIGHT])
    assert not torch.equal(bound[NORM], free[NORM])


def test_the_order_of_strategies_does_not_matter(model: NerModel, encoder: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    strategies = [
        Declared(gates={WEIGHT: torch.rand(3, 32, generator=generator)}),
        Declared(gates={WEIGHT: torch.rand(3, 32, generator=generator), NORM: half_mask(torch.Size([32]), 0.7)}),
        Declared(constraints=[{WEIGHT: torch.randn(3, 32, generator=generator)}]),
        Declared(constraints=[{NORM: torch.randn(32, generator=generator)}], scale={BIAS: -0.1}),
    ]
    one = train(model, strategies, updates=20)
    other = train(tiny_model(encoder, steps=[("PER",)]), strategies[::-1], updates=20)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


# -- preconditioners, clipping, refusals ----------------------------------------------------------------------------


def test_a_preconditioner_replaces_the_optimizers_step(model: NerModel, encoder: Path) -> None:
    """The identity times the rate is SGD; every other parameter is still AdamW's."""
    own = train(model, [Declared(scale={WEIGHT: -0.01})], updates=10, decay=0.0)
    sgd = train(tiny_model(encoder, steps=[("PER",)]), [], optimizer="sgd", updates=10, decay=0.0)
    adam = train(tiny_model(encoder, steps=[("PER",)]), [], updates=10, decay=0.0)
    torch.testing.assert_close(own[WEIGHT], sgd[WEIGHT], rtol=1e-6, atol=1e-7)
    assert torch.equal(own[NORM], adam[NORM])


def test_a_preconditioned_update_is_gated_and_projected_like_any_other(model: NerModel) -> None:
    start = model.get_parameter(NORM).detach().clone()
    reference = torch.ones(32)
    declared = [
        Declared(scale={NORM: -1.0}),
        Declared(gates={NORM: half_mask(torch.Size([32]))}, constraints=[{NORM: reference}, {NORM: -reference}]),
    ]
    change = train(model, declared, decay=0.0)[NORM] - start
    assert (change[0::2] == 0).all()
    assert (change[1::2] != 0).any()
    assert abs(float(change @ reference)) < 1e-4


def test_two_preconditioners_are_refused_before_anything_moves(model: NerModel) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigError, match=r"strategies: two of them replace the optimizer's direction"):
        train(model, [Declared(scale={NORM: -0.1}), Declared(scale={WEIGHT: -0.1})])
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_the_gradient_norm_is_clipped(model: NerModel) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = train(model, [], optimizer="sgd", clip=0.5, decay=0.0)
    length = sum(float(((after[name] - before[name]).double() ** 2).sum()) for name in before) ** 0.5
    assert length == pytest.approx(0.01 * 0.5, rel=1e-3)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_a_gradient_that_is_not_finite_changes_nothing(model: NerModel, wrong: float, optimizer: str) -> None:
    rule = optimizer_of(model, optimizer)
    asked = Declared(gates={WEIGHT: torch.full((3, 32), 0.5)}, constraints=[{NORM: torch.ones(32)}])
    updater = Updater([asked], toy_context(model, ["PER"]), rule, clip=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert updater.update()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moments = [{k: v.clone() for k, v in state.items()} for state in rule.state_dict()["state"].values()]
    model.get_parameter(BIAS).grad[3] = wrong
    assert not updater.update()
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    for old, new in zip(moments, rule.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_gates_multiply_and_are_checked() -> None:
    parameters = {"a": torch.zeros(2), "b": torch.zeros(2)}
    found = combine_gates([{"a": torch.tensor([0.5, 1.0])}, {"a": torch.tensor([0.5, 0.2])}, {}], parameters)
    assert found.keys() == {"a"}
    assert found["a"].tolist() == pytest.approx([0.25, 0.2])
    with pytest.raises(TrainingError, match="a gate names c, which is no parameter"):
        combine_gates([{"c": torch.ones(1)}], parameters)
    for outside in (-0.1, 1.1, torch.nan):
        with pytest.raises(TrainingError, match=r"the gate of b leaves \[0, 1\]"):
            combine_gates([{"b": torch.tensor([0.5, outside])}], parameters)
