"""The projection: subspaces, half-spaces, gates and their mixtures, against dense solvers in fp64."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ner_cl.config import OptimizerOptions
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.constraints import Constraint, HalfSpace, InputSubspace, Subspace
from ner_cl.strategies.finetune import FinetuneOptions
from ner_cl.train.combine import Updater
from ner_cl.train.input_systems import InputSystem
from ner_cl.train.project import Projector, solve_dual
from tests.tiny import tiny_model, toy_context

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 6)}
NORM = "encoder.backbone.embeddings.LayerNorm.weight"
BIAS = "encoder.backbone.embeddings.LayerNorm.bias"
WEIGHT = "head.blocks.0.weight"
Dense = np.ndarray[Any, np.dtype[np.float64]]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vector(generator: torch.Generator, names: Sequence[str] = tuple(SHAPES)) -> dict[str, Tensor]:
    return {name: torch.randn(SHAPES[name], generator=generator) for name in names}


def gate_of(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Some closed, some open, the rest in between."""
    return (1.6 * torch.rand(tuple(shape), generator=generator) - 0.3).clamp(0, 1)


def dense(parts: Mapping[str, Tensor], names: Sequence[str] = tuple(SHAPES)) -> Dense:
    """All parameters end to end, zero where one is missing."""
    found = [parts[name] if name in parts else torch.zeros(SHAPES[name]) for name in names]
    return torch.cat([part.flatten() for part in found]).double().numpy()


def metric_of(gates: Mapping[str, Tensor], names: Sequence[str] = tuple(SHAPES)) -> Dense:
    return dense({name: gates.get(name, torch.ones(())).expand(SHAPES[name]) for name in names}, names)


def directions(count: int, generator: torch.Generator, names: Sequence[str] = tuple(SHAPES)) -> Subspace:
    """Random orthonormal directions over some parameters."""
    sizes = [int(np.prod(SHAPES[name])) for name in names]
    basis = torch.linalg.qr(torch.randn(sum(sizes), count, generator=generator))[0].T
    parts = basis.split(sizes, dim=1)
    return Subspace({name: part.reshape(count, *SHAPES[name]) for name, part in zip(names, parts, strict=True)})


def rows_of(subspace: Subspace, names: Sequence[str] = tuple(SHAPES)) -> Dense:
    count = len(next(iter(subspace.directions.values())))
    return np.stack([dense({n: part[i] for n, part in subspace.directions.items()}, names) for i in range(count)])


def out_of(start: Dense, rows: Dense, metric: Dense) -> Dense:
    """Equality-constrained weighted least squares: the metric times the nearest point with `rows @ metric·x = 0`."""
    root = np.sqrt(metric)
    basis = (rows * root).T
    shares = np.linalg.lstsq(basis, root * start, rcond=1e-10)[0]
    return root * (root * start - basis @ shares)


def combined(change: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**change, **found}


def assert_near(found: Dense, expected: Dense, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# -- directions -----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["open", "some", "all"]))
def test_directions_are_left_as_weighted_least_squares_leaves_them(seed: int, count: int, which: str) -> None:
    """O2, O3, in the metric of the gates."""
    generator = draw(seed)
    gated = {"open": (), "some": ("a",), "all": tuple(SHAPES)}[which]
    gates = {name: gate_of(SHAPES[name], generator) for name in gated}
    subspace, change, metric = directions(count, generator), vector(generator), metric_of(gates)
    project = Projector(gates)
    found = combined(change, project(change, [subspace]))
    assert_near(metric * dense(found), out_of(dense(change), rows_of(subspace), metric))
    assert np.abs(rows_of(subspace) @ (metric * dense(found))).max() < 1e-5 * np.linalg.norm(dense(change))
    again = combined(found, project(found, [subspace]))
    assert_near(metric * dense(again), metric * dense(found))


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (4,), (1, 4)])
def test_a_gate_on_directions_may_broadcast(shape: tuple[int, ...]) -> None:
    generator = draw(1)
    gates = {"a": torch.rand(shape, generator=generator)}
    subspace, change, metric = directions(2, generator), vector(generator), metric_of(gates)
    found = combined(change, Projector(gates)(change, [subspace]))
    assert_near(metric * dense(found), out_of(dense(change), rows_of(subspace), metric))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans())
def test_directions_over_parameters_that_do_not_change_bind_the_others(seed: int, gated: bool) -> None:
    """A parameter without a gradient stands still: the rest alone must keep the products at zero."""
    generator = draw(seed)
    names = ("a", "c")
    gates = {name: gate_of(SHAPES[name], generator) for name in SHAPES} if gated else {}
    subspace, change = directions(3, generator), vector(generator, names)
    metric = metric_of(gates, names)
    found = combined(change, Projector(gates)(change, [subspace]))
    assert found.keys() == set(names)
    assert_near(metric * dense(found, names), out_of(dense(change, names), rows_of(subspace, names), metric))


def test_directions_behind_closed_gates_ask_for_nothing() -> None:
    generator = draw(2)
    change = vector(generator, ["b"])
    behind = Subspace({"b": torch.eye(5)[:2]})
    gate = torch.tensor([0.0, 0.0, 1.0, 0.5, 1.0])
    found = Projector({"b": gate})(change, [behind])["b"]
    assert torch.equal(found[2:], change["b"][2:])
    # What is left of these two in the open coordinates is the same direction twice.
    half = 0.5**0.5
    twice = Subspace({"b": torch.tensor([[half, 0, half, 0, 0], [0, half, -half, 0, 0]])})
    found = Projector({"b": gate})(change, [twice])["b"]
    assert bool(found.isfinite().all())
    torch.testing.assert_close((gate * found)[2], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[3:], change["b"][3:])


def test_a_direction_behind_a_nearly_closed_gate_is_kept_as_exactly_as_any_other() -> None:
    change = {"b": torch.tensor([1.0, -2.0, 3.0, 0.5, 1.0])}
    gate = torch.tensor([1e-6, 3e-6, 1.0, 1.0, 1.0])
    direction = torch.tensor([[0.6, 0.8, 0, 0, 0]])
    found = Projector({"b": gate})(change, [Subspace({"b": direction})])["b"]
    assert abs(float((gate * found) @ direction[0])) < 1e-6 * float((gate * found)[:2].norm())
    assert torch.equal(found[2:], change["b"][2:])


def test_no_directions_leave_every_bit() -> None:
    """O5."""
    change = vector(draw(3))
    empty = [Subspace({"a": torch.zeros(0, 3, 4)}), InputSubspace({"c": torch.zeros(6, 0)}), Subspace({})]
    for gates in ({}, {"a": torch.rand(3, 4), "c": torch.rand(2, 6)}):
        assert Projector(gates)(change, empty) == {}
        assert Projector(gates)(change, [Subspace({"elsewhere": torch.eye(3)})]) == {}


def test_many_directions_over_a_large_parameter_are_multiplied_in_pieces() -> None:
    generator = draw(4)
    basis = torch.linalg.qr(torch.randn(150_000, 3, generator=generator))[0].T.contiguous()
    gate, change = torch.rand(150_000, generator=generator), torch.randn(150_000, generator=generator)
    found = Projector({"w": gate})({"w": change}, [Subspace({"w": basis})])["w"]
    expected = out_of(change.double().numpy(), basis.double().numpy(), gate.double().numpy())
    assert_near((gate * found).double().numpy(), expected)


def test_what_was_computed_for_a_subspace_is_kept_as_long_as_it_is_asked_for() -> None:
    generator = draw(5)
    gates = {"a": torch.rand(3, 4, generator=generator), "c": torch.rand(2, 6, generator=generator)}
    project, change = Projector(gates), vector(generator)
    kept = directions(2, generator, ["a", "b"])
    project(change, [kept])
    first = next(iter(project._inverses.values()))
    for _ in range(20):
        inputs = InputSubspace({"c": torch.linalg.qr(torch.randn(6, 2, generator=generator))[0]})
        project(change, [kept, inputs])
        assert len(project._inverses) == len(project._systems) == 1
        assert next(iter(project._inverses.values())) is first
    project(change, [])
    assert project._inverses == project._systems == {}


def test_two_subspaces_of_one_parameter_are_refused() -> None:
    generator = draw(6)
    inputs = InputSubspace({"a": torch.eye(4)[:, :1], "c": torch.eye(6)[:, :1]})
    with pytest.raises(ConfigError, match="strategies: two of them keep subspaces of a; keep one of the two"):
        Projector({})(vector(generator), [directions(1, generator, ["a"]), inputs])


# -- inputs ---------------------------------------------------------------------------------------------------------


def out_of_inputs_densely(weight: Tensor, basis: Tensor, gate: Tensor) -> Dense:
    gate, rows = gate.expand_as(weight).double().numpy(), basis.T.double().numpy()
    return np.stack([out_of(w, rows, m) for w, m in zip(weight.double().numpy(), gate, strict=True)])


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 16),
    st.sampled_from(["none", "scalar", "row", "column", "each"]),
)
def test_a_weight_keeps_what_it_makes_of_the_inputs(seed: int, outputs: int, rank: int, kind: str) -> None:
    """M2 and M5 in the metric of the gates: whatever is left gives 0 for every input of the basis."""
    generator = draw(seed)
    weight = torch.randn(outputs, 16, generator=generator)
    basis = torch.linalg.qr(torch.randn(16, rank, generator=generator))[0]
    shape = {"none": (), "scalar": (), "row": (outputs, 1), "column": (16,), "each": (outputs, 16)}[kind]
    gate = torch.ones(()) if kind == "none" else gate_of(shape, generator)
    gates = {} if kind == "none" else {"w": gate}
    found = Projector(gates)({"w": weight}, [InputSubspace({"w": basis})])["w"]
    masked = (gate * found).double().numpy()
    assert_near(masked, out_of_inputs_densely(weight, basis, gate), 1e-4)
    assert np.abs(masked @ basis.double().numpy()).max() < 1e-5 * float(weight.norm())


def test_rows_that_are_solved_or_closed_stay_finite_however_many_rounds_follow() -> None:
    generator = draw(7)
    weight, gate = torch.randn(4, 8, generator=generator), torch.rand(4, 8, generator=generator)
    gate[0], gate[1], weight[2] = 0, 1, 0
    basis = torch.linalg.qr(torch.randn(8, 3, generator=generator))[0]
    system, masked = InputSystem(basis, gate, weight.shape), gate * weight
    system.rounds = 200
    found = weight - system.solve(masked @ basis, of=masked) @ basis.T
    assert_near((gate * found).double().numpy(), out_of_inputs_densely(weight, basis, gate), 1e-5)
    assert torch.equal(found[0], weight[0])
    assert torch.equal(found[2], weight[2])


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_rounds_found_on_a_random_weight_are_enough_for_any_other(kind: str) -> None:
    generator = draw(8)
    basis = torch.linalg.qr(torch.randn(96, 24, generator=generator))[0]
    gate = torch.rand(64, 96, generator=generator)
    if kind == "hard":
        gate = (gate > 0.6).float()
    system = InputSystem(basis, gate, gate.shape)
    assert system.solvable
    assert 0 < system.rounds < 80
    for _ in range(20):
        weight = torch.randn(64, 96, generator=generator) * torch.rand(96, generator=generator) ** 8
        masked = gate * weight
        left = (masked - gate * (system.solve(masked @ basis, of=masked) @ basis.T)) @ basis
        assert (left.norm(dim=1) < 1e-5 * (gate * weight).norm(dim=1)).all()


def test_rows_with_the_same_gates_share_one_inverse() -> None:
    """What conjugate gradients find for rows of equal gates, however many of these are closed."""
    generator = draw(9)
    basis = torch.linalg.qr(torch.randn(24, 12, generator=generator))[0]
    gate = torch.rand(1, 24, generator=generator)
    weight = torch.randn(5, 24, generator=generator)
    for closed in (0, 6, 18, 24):
        gate[:, :closed] = 0
        found = Projector({"w": gate})({"w": weight}, [InputSubspace({"w": basis})])["w"]
        assert_near((gate * found).double().numpy(), out_of_inputs_densely(weight, basis, gate), 1e-5)
        assert ((gate * found) @ basis).abs().max() < 1e-5
    assert InputSystem(basis, gate, weight.shape).rounds == 0


def test_gates_with_which_rounds_do_not_suffice_are_told() -> None:
    basis = torch.linalg.qr(torch.randn(600, 400, generator=draw(10)))[0]
    gate = torch.logspace(0, -12, 600)[torch.stack([torch.randperm(600, generator=draw(n)) for n in range(2)])]
    project = Projector({"w": gate})
    project({"w": torch.ones(2, 600)}, [InputSubspace({"w": basis})])
    assert project.unsolved == {"w"}


# -- half-spaces inside subspaces -----------------------------------------------------------------------------------


def nearest(start: Dense, metric: Dense, equal: Dense, opposed: Dense) -> Dense:
    """A general solver of the primal problem, started where the equalities hold."""
    bounds: list[dict[str, Any]] = [
        {"type": "ineq", "fun": lambda x: opposed @ (metric * x), "jac": lambda x: opposed * metric}
    ]
    if len(equal):
        bounds.append({"type": "eq", "fun": lambda x: equal @ (metric * x), "jac": lambda x: equal * metric})
    found = scipy.optimize.minimize(
        lambda x: 0.5 * ((x - start) ** 2 * metric).sum(),
        out_of(start, equal, metric) / metric if len(equal) else start,
        jac=lambda x: (x - start) * metric,
        constraints=bounds,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success, found.message
    solution: Dense = found.x
    return solution


def mixture(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Constraint], Dense, Dense]:
    """A change, gates, directions of `a` and `b`, inputs of `c`, and references, some on a part of the parameters."""
    generator = draw(seed)
    gates = {name: gate_of(SHAPES[name], generator).clamp(min=0.2) for name in ("a", "c")}
    change = vector(generator)
    subspace = directions(2, generator, ["a", "b"])
    basis = torch.linalg.qr(torch.randn(6, 2, generator=generator))[0]
    count = int(torch.randint(1, 4, (), generator=generator))
    names: list[tuple[str, ...]] = [("a", "b", "c"), ("a", "c"), ("b",)]
    references = [
        {name: part + 0.5 * change[name] for name, part in vector(generator, names[index % 3]).items()}
        for index in range(count)
    ]
    inputs = [
        dense({"c": torch.outer(row, column)}) for row in torch.eye(2) for column in basis.T
    ]  # one equality an output and an input
    constraints = [subspace, InputSubspace({"c": basis}), *(HalfSpace(reference) for reference in references)]
    return change, gates, constraints, np.stack([*rows_of(subspace), *inputs]), np.stack([*map(dense, references)])


@pytest.mark.parametrize("seed", range(25))
def test_everything_at_once_gives_the_nearest_allowed_update(seed: int) -> None:
    change, gates, constraints, equal, opposed = mixture(seed)
    metric = metric_of(gates)
    expected = -nearest(-dense(change), metric, equal, opposed)
    found = dense(combined(change, Projector(gates)(change, constraints)))
    assert_near(found, expected, 2e-4)
    scale = np.linalg.norm(dense(change))
    assert np.abs(equal @ (metric * found)).max() < 1e-5 * scale
    assert (-opposed @ (metric * found) > -1e-5 * scale * np.linalg.norm(opposed, axis=1)).all()


@pytest.mark.parametrize("seed", range(10))
def test_neither_the_order_nor_doubles_of_references_change_the_result(seed: int) -> None:
    change, gates, constraints, _, _ = mixture(seed)
    expected = dense(combined(change, Projector(gates)(change, constraints)))
    doubled = [*constraints[::-1], *(c for c in constraints if isinstance(c, HalfSpace))]
    assert_near(dense(combined(change, Projector(gates)(change, doubled))), expected, 1e-4)


def test_a_reference_inside_the_kept_directions_asks_for_nothing_more() -> None:
    generator = draw(9)
    subspace, change = directions(3, generator), vector(generator)
    inside = {
        name: (torch.tensor([1.0, -2.0, 0.5]) @ part.flatten(1)).view(SHAPES[name])
        for name, part in subspace.directions.items()
    }
    alone = Projector({})(change, [subspace])
    for reference in (inside, {name: -part for name, part in inside.items()}):
        both = Projector({})(change, [subspace, HalfSpace(reference)])
        assert_near(dense(both), dense(alone))


# -- margin, ridge, and the length they count in --------------------------------------------------------------------

DIRECTION, REFERENCES = torch.tensor([1.0, 2.0, -1.0]), ([-2.0, 0.0, 1.0], [0.0, -1.0, 0.0])


@pytest.mark.parametrize(
    ("margin", "ridge", "expected"),
    [(0.0, 0.0, (-0.2, 0.0, -0.4)), (0.5, 1e-3, (-0.19976, 0.001998, -0.40012))],
)
def test_the_vectors_of_gem(margin: float, ridge: float, expected: tuple[float, ...]) -> None:
    """A.5."""
    half_spaces = [HalfSpace({"w": torch.tensor(r)}, margin, ridge) for r in REFERENCES]
    found = -Projector({})({"w": -DIRECTION}, half_spaces)["w"]
    assert found.tolist() == pytest.approx(expected, abs=2e-6)


def test_a_margin_adds_every_reference_once_any_is_violated_and_none_before() -> None:
    """G1: no violation leaves every bit, whatever the margin."""
    violated, kept = {"w": torch.tensor([-1.0, 0.0, 0.0])}, {"w": torch.tensor([0.0, 0.0, -3.0])}
    change = {"w": -DIRECTION}
    assert Projector({})(change, [HalfSpace(kept, margin=0.5, ridge=1e-3)]) == {}
    found = -Projector({})(change, [HalfSpace(violated, margin=0.5), HalfSpace(kept, margin=0.5)])["w"]
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, -1.0 - 0.5 * 3.0]))


def test_margins_count_in_the_given_length() -> None:
    half_spaces = [HalfSpace({"w": torch.tensor(r)}, 0.5, 1e-3) for r in REFERENCES]
    whole = Projector({})({"w": -DIRECTION}, half_spaces)["w"]
    short = Projector({})({"w": -1e-3 * DIRECTION}, half_spaces, unit=torch.tensor(1e-3))["w"]
    torch.testing.assert_close(short, 1e-3 * whole)
    # A length that cannot be measured, as that of an update without a gradient, leaves the plain half-spaces.
    plain = Projector({})({"w": -DIRECTION}, [HalfSpace(h.reference, 0.0, 1e-3) for h in half_spaces])["w"]
    for wrong in (torch.nan, torch.inf):
        found = Projector({})({"w": -DIRECTION}, half_spaces, unit=torch.tensor(wrong))["w"]
        assert torch.equal(found, plain)


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.floats(-6, 6), st.booleans(), st.booleans())
def test_the_dual_with_margin_and_ridge_is_solved_as_scipy_solves_it(
    seed: int, exponent: float, ridged: bool, alike: bool
) -> None:
    """Whatever the scale of the problem, and for references that are nearly the same one."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 6))
    rows = generator.normal(size=(count, 8)) * (0.05 if alike else 1.0) + generator.normal(size=8)
    direction = generator.normal(size=8) * 10.0**exponent
    ridge, least = (1e-3 if ridged else 0.0), generator.uniform(0, 0.5, size=count) * 10.0**exponent
    weights = solve_dual((rows @ rows.T + ridge * np.eye(count)).tolist(), (rows @ direction).tolist(), least.tolist())
    system = np.concatenate([rows.T, ridge**0.5 * np.eye(count)])
    target = -np.concatenate([direction, np.zeros(count)])
    extra, _ = scipy.optimize.nnls(system, target - system @ least)
    expected, scale = least + extra, np.linalg.norm(direction)
    assert np.linalg.norm(system @ (np.array(weights) - expected)) < 1e-5 * scale
    assert (np.array(weights) >= least).all()


def test_references_that_are_zero_or_equal_do_no_harm() -> None:
    """G4."""
    zero, reference = {"w": torch.zeros(3)}, {"w": torch.tensor(REFERENCES[0])}
    change = {"w": -DIRECTION}
    expected = Projector({})(change, [HalfSpace(reference)])["w"]
    for half_spaces in ([reference, zero], [reference, reference, reference], [zero, zero, reference, reference]):
        for margin in (0.0, 0.1):
            found = Projector({})(change, [HalfSpace(r, margin, 0.0) for r in half_spaces])["w"]
            torch.testing.assert_close(found, expected)
    assert Projector({})(change, [HalfSpace(zero, 0.5, 1e-3)]) == {}
    elsewhere = HalfSpace({"v": torch.ones(2)}, 0.5, 1e-3)
    excess = Projector({}).excess(change, [HalfSpace(reference), elsewhere, HalfSpace({}, 0.5, 1e-3)])
    assert [vector.keys() for _, vector in excess] == [{"w"}]


# -- what must not happen -------------------------------------------------------------------------------------------


def test_products_are_added_up_over_parameters_in_fp64() -> None:
    """In fp32 the third product would be lost, and the violation with it."""
    change = {"a": torch.tensor([1e4]), "b": torch.tensor([1e4]), "c": torch.tensor([1.0])}
    reference = {"a": torch.tensor([1e4]), "b": torch.tensor([-1e4]), "c": torch.tensor([1.0])}
    found = Projector({})(change, [HalfSpace(reference)])
    assert found.keys() == {"a", "b", "c"}
    ((weight, _),) = Projector({}).excess(change, [HalfSpace(reference)])
    assert float(weight) == pytest.approx(1 / (2e8 + 1), rel=1e-4)
    kept = {**change, "c": torch.tensor([-1.0])}
    assert Projector({})(kept, [HalfSpace(reference)]) == {}


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 1e30])
def test_a_reference_that_is_not_finite_is_passed_over(wrong: float) -> None:
    bad, good = {"w": torch.tensor([wrong, 1.0, 1.0])}, {"w": torch.tensor(REFERENCES[0])}
    change = {"w": -DIRECTION}
    assert Projector({})(change, [HalfSpace(bad)]) == {}
    expected = Projector({})(change, [HalfSpace(good)])["w"]
    for order in ([bad, good], [good, bad], [bad, good, bad]):
        found = Projector({})(change, [HalfSpace(reference, 0.5, 1e-3) for reference in order])["w"]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert bool(found.isfinite().all())


def test_constraints_on_nothing_that_changes_ask_for_nothing() -> None:
    elsewhere = [HalfSpace({"w": torch.ones(3)}), Subspace({"w": torch.eye(3)}), HalfSpace({})]
    assert Projector({})({}, elsewhere) == {}
    assert Projector({})({"v": torch.ones(2)}, elsewhere) == {}


def test_one_look_at_the_device_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first update of a step, which finds out what it needs to know of gates and bases."""
    looks: list[str] = []

    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
                looks.append(str(function))
            return function(*args, **(kwargs or {}))

    change, gates, constraints, _, _ = mixture(0)
    project = Projector(gates)
    project(change, constraints)
    to_list = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: looks.append("tolist") or to_list(tensor))
    with Looks():
        project(change, constraints)
    assert looks == ["tolist"]


# -- in the updater -------------------------------------------------------------------------------------------------


class Declared(Strategy):
    """Says what a test tells it to say, and counts how often it is asked."""

    options_class = FinetuneOptions

    def __init__(self, constraints: Sequence[Constraint] = (), gates: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(FinetuneOptions())
        self.declared, self._gates, self.asked = constraints, gates or {}, 0

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        return self._gates

    def constraints(self, context: StepContext) -> Sequence[Constraint]:
        self.asked += 1
        return self.declared


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoder")


def gradients(seed: int) -> dict[str, Tensor]:
    generator = draw(seed)
    return {
        NORM: torch.randn(32, generator=generator),
        BIAS: torch.randn(32, generator=generator),
        WEIGHT: torch.randn(3, 32, generator=generator),
    }


def updated(
    encoder: Path, strategies: Sequence[Strategy], *, rule: str = "sgd", updates: int = 1, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after updates along `gradients(0)`, `gradients(1)`, …"""
    model: NerModel = tiny_model(encoder, steps=[("PER",)])
    parameters = {name: model.get_parameter(name) for name in gradients(0)}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters.values(), lr=0.01)
    if rule != "adamw":
        optimizer = torch.optim.SGD(parameters.values(), lr=0.01, momentum=0.9 if rule == "momentum" else 0.0)
    updater = Updater(strategies, toy_context(model, ["PER"]), optimizer, **{"clip": 0.0, **options})
    for seed in range(updates):
        for name, gradient in gradients(seed).items():
            parameters[name].grad = gradient
        assert updater.update()
    return before, {name: parameter.detach() for name, parameter in parameters.items()}


def opposing(count: int, *, margin: float = 0.0, ridge: float = 0.0) -> list[HalfSpace]:
    found = []
    for index in range(count):
        drawn, mine = gradients(100 + index), gradients(0)
        found.append(HalfSpace({name: drawn[name] - 0.5 * mine[name] for name in (NORM, WEIGHT)}, margin, ridge))
    return found


@pytest.mark.parametrize(("margin", "ridge"), [(0.0, 0.0), (0.5, 1e-3), (0.5, 10.0)])
def test_under_plain_sgd_projecting_the_update_is_projecting_the_gradient(
    encoder: Path, margin: float, ridge: float
) -> None:
    strategy = Declared(opposing(3, margin=margin, ridge=ridge), {WEIGHT: torch.rand(3, 32, generator=draw(1))})
    before, by_update = updated(encoder, [strategy])
    _, by_gradient = updated(encoder, [strategy], apply_to="gradient")
    _, free = updated(encoder, [])
    for name in before:
        torch.testing.assert_close(by_update[name], by_gradient[name], rtol=1e-5, atol=2e-7)
    assert not torch.allclose(by_update[NORM], free[NORM], atol=1e-5)
    assert torch.equal(by_update[BIAS], free[BIAS])


def test_a_margin_does_not_blow_up_the_small_updates_of_adamw(encoder: Path) -> None:
    """References are gradients, some 300 times as long as an update here; half of one is half an update."""
    before, free = updated(encoder, [], rule="adamw")
    _, bound = updated(encoder, [Declared(opposing(2, margin=0.5))], rule="adamw")
    length, plain = (
        float(torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()) for after in (bound, free)
    )
    assert length < 3 * plain


def test_gradients_are_shaped_in_the_order_of_the_papers(encoder: Path) -> None:
    """Project, mask, clip, and leave momentum to the optimizer."""
    gates = {WEIGHT: torch.rand(3, 32, generator=draw(2))}
    basis = torch.linalg.qr(torch.randn(32, 3, generator=draw(3)))[0]
    constraints = [InputSubspace({WEIGHT: basis}), *opposing(2)]
    before, found = updated(
        encoder, [Declared(constraints, gates)], rule="momentum", updates=3, clip=0.5, apply_to="gradient"
    )
    moments = {name: torch.zeros_like(value) for name, value in before.items()}
    expected = dict(before)
    for seed in range(3):
        drawn = gradients(seed)
        descent = {name: -value for name, value in drawn.items()}
        shaped = {name: -value for name, value in combined(descent, Projector(gates)(descent, constraints)).items()}
        shaped[WEIGHT] = gates[WEIGHT] * shaped[WEIGHT]
        length = torch.cat([value.flatten() for value in shaped.values()]).norm()
        for name, value in shaped.items():
            moments[name] = 0.9 * moments[name] + value * min(1.0, 0.5 / float(length))
            expected[name] = expected[name] - 0.01 * moments[name]
    for name in before:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_shaping_gradients_is_refused_where_it_would_be_undone() -> None:
    OptimizerOptions(name="sgd", weight_decay=0, apply_to="gradient")
    with pytest.raises(ValueError, match="apply_to: gradient does nothing under adamw"):
        OptimizerOptions(name="adamw", apply_to="gradient")


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adamw"])
def test_an_update_that_violates_nothing_is_left_to_the_last_bit(encoder: Path, rule: str) -> None:
    """G1, AG2, for the whole update; constraints that are not finite or touch nothing included."""
    agreeing = [HalfSpace(gradients(0), 0.5, 1e-3), HalfSpace({NORM: torch.full((32,), torch.nan)}), Subspace({})]
    _, free = updated(encoder, [], rule=rule)
    for options in ({}, {"apply_to": "gradient"} if rule != "adamw" else {}):
        _, bound = updated(encoder, [Declared(agreeing)], rule=rule, **options)
        assert all(torch.equal(bound[name], free[name]) for name in free)


@pytest.mark.parametrize("apply_to", ["update", "gradient"])
def test_a_gradient_that_is_not_finite_asks_nobody_and_changes_nothing(encoder: Path, apply_to: Any) -> None:
    """T14."""
    model = tiny_model(encoder, steps=[("PER",)])
    strategy = Declared([*opposing(2), InputSubspace({WEIGHT: torch.eye(32)[:, :2]})])
    parameters = {name: model.get_parameter(name) for name in gradients(0)}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01, momentum=0.9)
    updater = Updater([strategy], toy_context(model, ["PER"]), optimizer, clip=1.0, apply_to=apply_to)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, gradient in gradients(0).items():
        parameters[name].grad = gradient
    parameters[BIAS].grad[3] = torch.nan  # type: ignore[index]
    assert not updater.update()
    assert strategy.asked == 0
    assert all(torch.equal(before[name], parameter) for name, parameter in parameters.items())
    assert not optimizer.state
