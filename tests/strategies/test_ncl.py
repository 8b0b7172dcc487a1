"""NCL: its steps against dense matrices and the paper's own order of operations; what it holds and what it learns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ner_cl.config import check_composition, parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError
from ner_cl.evaluate.counts import count_spans
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies import ncl as ncl_module
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.kronecker import Diagonal, Kronecker, fisher, kronecker_sum, scaled_identity
from ner_cl.strategies.ncl import Ncl, NclOptions, Part, joined, parted
from ner_cl.train.learner import Learner
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import GOOD_TRAINING, SHORT_TRAINING, learner_of, same_weights, weights_of

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
STREAM = toy_stream(train=60)
PLAIN = {"data_size": 1, "momentum": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def part(
    weight: Tensor, anchor: Tensor, precision: Kronecker | Diagonal, *, rate: float = 0.1, damping: float = 0.0
) -> Part:
    return Part(
        names=("weight",),
        parameters=(weight,),
        precision=precision,
        inverse=precision.inverse(damping=damping),
        anchor=anchor,
        rate=rate,
    )


def some_precision(rows: int, columns: int, seed: int) -> Kronecker:
    generator = torch.Generator().manual_seed(seed)
    a, g = (torch.randn(n, n + 2, generator=generator, dtype=torch.float64) for n in (columns, rows))
    return Kronecker(a @ a.T, g @ g.T)


def test_a7_one_update() -> None:
    precision = Kronecker(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[2.0]]))
    weight, anchor = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    change = part(weight, anchor, precision).change(torch.tensor([[0.5, 0.5]]), NclOptions(**PLAIN))
    torch.testing.assert_close(weight + change, torch.tensor([[0.89375, 0.975]]))


def test_n4_a8_the_optimum_of_both_steps_is_reached() -> None:
    first = torch.diag(torch.tensor([5.0, 0.1, 1.0], dtype=torch.float64))
    second = torch.tensor([[1, 0.3, 0], [0.3, 2, 0.1], [0, 0.1, 0.2]], dtype=torch.float64)
    a, b = (torch.tensor([values], dtype=torch.float64) for values in ([1.0, 2, 3], [-1.0, 0, 1]))
    expected = torch.tensor([[0.677903, -0.224719, 2.685393]], dtype=torch.float64)
    for start, momentum in ((a, 0.0), (b, 0.9)):  # whatever the path
        weight = start.clone()
        own = part(weight, a, Kronecker(first, torch.ones(1, 1, dtype=torch.float64)), rate=0.01)
        for _ in range(6000):
            weight += own.change((weight - b) @ second, NclOptions(data_size=1, momentum=momentum))
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_n1_without_information_and_prior_it_is_sgd(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    context = toy_context(model, ["LOC"])
    strategy = Ncl(NclOptions(lr=0.05, head_lr=0.05, prior=0.0, data_size=777))
    strategy.gates(context)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    twin = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in names}
    sgd = torch.optim.SGD(twin.values(), lr=0.05, momentum=0.9)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        gradient = {name: torch.randn(twin[name].shape, generator=generator) for name in names}
        changes = strategy.precondition(context, gradient)
        assert changes is not None
        assert changes.keys() == set(names)
        for name, tensor in twin.items():
            tensor.grad = gradient[name]
            model.get_parameter(name).data.add_(changes[name])
        sgd.step()
    for name, tensor in twin.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_n2_without_a_gradient_weights_go_straight_back(rate: float) -> None:
    precision = some_precision(3, 4, 0)
    weight, anchor = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    change = part(weight, anchor, precision, rate=rate, damping=1e-9).change(
        torch.zeros_like(weight), NclOptions(**PLAIN, damping=1e-9)
    )
    torch.testing.assert_close(weight + change, anchor + (1 - rate) * (weight - anchor), rtol=1e-5, atol=1e-6)


def test_n3_the_preconditioned_pull_is_the_way_back() -> None:
    precision, away = some_precision(5, 6, 1), torch.randn(5, 6, dtype=torch.float64)
    pull = precision.inverse(damping=1e-8).times(precision.times(away))
    torch.testing.assert_close(pull, away, rtol=1e-4, atol=1e-4)
    strong = precision.inverse(damping=1.0).times(precision.times(away))
    assert strong.norm() < away.norm()


def test_n8_directions_that_matter_move_less() -> None:
    precision = Kronecker(torch.diag(torch.tensor([1e4, 1.0])), torch.ones(1, 1))
    change = part(torch.zeros(1, 2), torch.zeros(1, 2), precision).change(torch.ones(1, 2), NclOptions(**PLAIN))
    torch.testing.assert_close(change[0, 1] / change[0, 0], torch.tensor(1e4))


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_the_order_of_momentum_and_preconditioning_does_not_matter(damping: float) -> None:
    """Against the order of the paper's code, written out: gradient with prior, momentum, then both inverses."""
    precision = some_precision(3, 4, 2)
    inverse = precision.inverse(damping=damping)
    options = NclOptions(data_size=50, momentum=0.8, prior=0.7, damping=damping)
    anchor = torch.randn(3, 4, dtype=torch.float64)
    weight, other, gathered = anchor.clone(), anchor.clone(), torch.zeros_like(anchor)
    own = part(weight, anchor, precision, rate=0.3, damping=damping)
    for seed in range(5):
        slope = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight += own.change(slope, options, scale=0.5)
        gathered = 0.8 * gathered + slope + 0.7 * precision.outputs @ (other - anchor) @ precision.inputs
        other -= 0.5 * 0.3 / 50 * inverse.outputs @ gathered @ inverse.inputs
    torch.testing.assert_close(weight, other)


def known_state(model: NerModel, options: NclOptions) -> dict[str, Tensor]:
    """A state as after a step, of a strategy that measured `model` on toy sentences."""
    strategy = Ncl(options)
    strategy.end_step(toy_context(model, ["PER"], train=toy_sentences(20, types=("PER",))))
    return strategy.state_dict()


def second_step(folder: Path, **options: Any) -> tuple[Ncl, StepContext]:
    """A strategy in step 2, that has asked for gates."""
    model = tiny_model(folder, steps=[["PER"]])
    strategy = Ncl(NclOptions(data_size=100, **options))
    strategy.load_state_dict(known_state(model, strategy.options))
    model.grow(["LOC"], generator=torch.Generator().manual_seed(3))
    context = toy_context(model, ["LOC"])
    strategy.begin_step(context)
    assert strategy.gates(context) == {}
    return strategy, context


def moved_gradient(context: StepContext) -> dict[str, Tensor]:
    """Moves the weights away from where the step began, and draws a gradient."""
    generator = torch.Generator().manual_seed(8)
    gradient = {}
    for name, parameter in context.model.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator))
            gradient[name] = 0.1 * torch.randn(parameter.shape, generator=generator)
    return gradient


@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_an_update_of_a_model_equals_that_of_the_dense_precision(folder: Path, damping: float) -> None:
    """The whole way from state to update: factors with the bias as last column, the prior, rates and schedule."""
    strategy, context = second_step(folder, damping=damping, lr=0.2, head_lr=0.4, momentum=0.0)
    start = {name: p.detach().clone() for name, p in context.model.named_parameters()}
    gradient = moved_gradient(context)
    context.rate = 0.5
    changes = strategy.precondition(context, gradient)
    assert changes is not None
    state, model = strategy.state_dict(), context.model
    layer = "encoder.backbone.encoder.layer.1.output.dense"
    for name, rate in ((layer, 0.2), ("head.blocks.0", 0.4), ("head.blocks.1", 0.4)):
        weight, bias = f"{name}.weight", f"{name}.bias"
        rows, columns = model.get_parameter(weight).shape
        fresh = scaled_identity((rows, columns + 1), 1 / 100)
        assert isinstance(fresh, Kronecker)
        known = Kronecker(state[f"{name}/inputs"], state[f"{name}/outputs"]) if name != "head.blocks.1" else fresh
        damped = known
        if damping:
            identity = Kronecker(damping * torch.eye(columns + 1), damping * torch.eye(rows))
            damped = kronecker_sum(known, identity)
        dense, dense_damped = (np.kron(k.outputs.double().numpy(), k.inputs.double().numpy()) for k in (known, damped))

        def flat(tensors: Any, weight: str = weight, bias: str = bias) -> np.ndarray:
            return torch.cat([tensors[weight], tensors[bias][:, None]], dim=1).double().detach().numpy().ravel()

        away = flat(dict(model.named_parameters())) - flat(start)
        expected = -0.5 * rate / 100 * np.linalg.solve(dense_damped, flat(gradient) + dense @ away)
        np.testing.assert_allclose(flat(changes), expected, rtol=2e-3, atol=1e-5 * np.abs(expected).max())
    norm = "encoder.backbone.encoder.layer.1.output.LayerNorm.weight"
    precision = state[f"{norm}/diagonal"]
    force = (gradient[norm] + precision * (model.get_parameter(norm).detach() - start[norm])) / (precision + damping**2)
    torch.testing.assert_close(changes[norm], -0.5 * 0.2 / 100 * force, rtol=1e-3, atol=1e-7)


def test_an_update_stays_within_the_radius(folder: Path) -> None:
    found = []
    for radius in (0.0, 1e9, 1e-3):
        strategy, context = second_step(folder, radius=radius)
        changes = strategy.precondition(context, moved_gradient(context))
        assert changes is not None
        state = strategy.state_dict()
        squared = 0.0
        for name in {key.rsplit("/", 1)[0] for key in state}:
            if f"{name}/diagonal" in state:
                squared += float((changes[name] ** 2 * state[f"{name}/diagonal"]).sum())
            else:
                whole = torch.cat([changes[f"{name}.weight"], changes[f"{name}.bias"][:, None]], dim=1)
                squared += float((whole * (state[f"{name}/outputs"] @ whole @ state[f"{name}/inputs"])).sum())
        new = torch.cat([changes["head.blocks.1.weight"], changes["head.blocks.1.bias"][:, None]], dim=1)
        squared += float(new.square().sum()) / 100
        found.append((changes, squared**0.5))
    (free, length), (wide, _), (held, short) = found
    for name, change in free.items():
        assert torch.equal(change, wide[name])
        torch.testing.assert_close(held[name], change * (1e-3 / length), rtol=1e-3, atol=1e-9)
    assert length > 1e-3
    np.testing.assert_allclose(short, 1e-3, rtol=1e-4)


def test_weights_are_joined_with_their_bias_and_parted_again() -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    found = parted(joined([weight, bias]), ("weight", "bias"))
    assert torch.equal(found["weight"], weight)
    assert torch.equal(found["bias"], bias)
    assert torch.equal(parted(joined([bias]), ("own",))["own"], bias)


def test_momentum_comes_back_in_the_middle_of_a_step(folder: Path) -> None:
    strategy, context = second_step(folder)
    gradient = moved_gradient(context)
    strategy.precondition(context, gradient)
    saved = {name: tensor.clone() for name, tensor in strategy.progress().items()}
    assert saved
    expected = strategy.precondition(context, gradient)
    resumed, other = second_step(folder)
    moved_gradient(other)
    resumed.load_progress(saved)
    found = resumed.precondition(other, gradient)
    assert expected is not None
    assert found is not None
    assert all(torch.equal(change, found[name]) for name, change in expected.items())
    strategy.release()
    assert strategy.progress() == {}


def test_n5_knowledge_grows_with_steps_and_leaves_no_trace_in_the_model(folder: Path) -> None:
    learner = learner_of(folder, ["distill", "ncl"])
    list(learner.learn_step(STREAM.steps[0]))
    first = learner.model.strategy_state["ncl"]
    list(learner.learn_step(STREAM.steps[1]))
    second = learner.model.strategy_state["ncl"]
    assert second.keys() - first.keys() == {"head.blocks.1/inputs", "head.blocks.1/outputs"}
    for name, factor in second.items():
        if name.endswith("/diagonal"):
            assert (factor >= first[name]).all()
            continue
        torch.testing.assert_close(factor, factor.T)
        assert torch.linalg.eigvalsh(factor.double()).min() > 0
        if name in first:
            assert factor.trace() > first[name].trace()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in learner.model.parameters())
    assert not learner.model.training


def test_n5_what_is_known_after_a_step_is_what_was_known_and_what_it_adds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N5: Λ_k = Λ_(k-1) + F_k, factor by factor as `kronecker_sum` says."""
    measured: list[Mapping[str, Kronecker | Diagonal]] = []

    def recorded(*args: Any, **options: Any) -> Mapping[str, Kronecker | Diagonal]:
        measured.append(fisher(*args, **options))
        return measured[-1]

    monkeypatch.setattr(ncl_module, "fisher", recorded)
    learner = learner_of(folder, ["distill", "ncl"])
    list(learner.learn_step(STREAM.steps[0]))
    first = learner.model.strategy_state["ncl"]
    list(learner.learn_step(STREAM.steps[1]))
    second = learner.model.strategy_state["ncl"]
    compared = 0
    for name, new in measured[1].items():
        if isinstance(new, Diagonal) and f"{name}/diagonal" in first:
            assert torch.equal(second[f"{name}/diagonal"], first[f"{name}/diagonal"] + new.values)
        elif isinstance(new, Kronecker) and f"{name}/inputs" in first:
            old = Kronecker(first[f"{name}/inputs"], first[f"{name}/outputs"])
            summed = kronecker_sum(old, new, how=NclOptions().kronecker_sum)
            assert torch.equal(second[f"{name}/inputs"], summed.inputs)
            assert torch.equal(second[f"{name}/outputs"], summed.outputs)
            compared += 1
    assert compared > 2


def test_measuring_changes_nothing_but_the_state(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    before, random = weights_of(model), torch.get_rng_state()
    options = NclOptions()
    one, other = known_state(model, options), known_state(model, options)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert same_weights(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


@BOTH
def test_t11_step_one_is_plain_training_unless_asked(folder: Path, head: str) -> None:
    plain, other = learner_of(folder, head=head), learner_of(folder, ["distill", "ncl"], head=head)
    paper = learner_of(folder, ["distill", {"name": "ncl", "first_step": "ncl"}], head=head)
    for learner in (plain, other, paper):
        list(learner.learn_step(STREAM.steps[0]))
    assert same_weights(plain.model, other.model)
    assert not same_weights(plain.model, paper.model)


@pytest.mark.parametrize("layers", [0, 1])
def test_after_step_one_only_the_last_layers_and_the_head_learn(folder: Path, layers: int) -> None:
    learner = learner_of(folder, ["distill", {"name": "ncl", "layers": layers}])
    list(learner.learn_step(STREAM.steps[0]))
    before = weights_of(learner.model)
    list(learner.learn_step(STREAM.steps[1]))
    after = weights_of(learner.model)
    free = ("encoder.backbone.encoder.layer.1.", "head.") if layers else ("head.",)
    still = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert still == {name for name in before if not name.startswith(free)}
    learner = Learner(learner.model, parse_strategies(["distill", {"name": "ncl", "layers": 2}]), SHORT_TRAINING)
    with pytest.raises(ConfigError, match=r"strategies.ncl.layers"):
        list(learner.learn_step(Step(3, ("ORG",), toy_sentences(5, types=("ORG",)), ())))


@BOTH
@pytest.mark.parametrize("first_step", ["optimizer", "ncl"])
def test_both_types_are_known_in_the_end(folder: Path, head: str, first_step: str) -> None:
    """T15: at the default rates the new type is learned, and the old one is not lost."""
    stream = toy_stream()
    model = tiny_model(folder, head)
    options = parse_strategies(["distill", {"name": "ncl", "first_step": first_step}])
    learner = Learner(model, options, GOOD_TRAINING)
    scores = []
    for step in stream.steps:
        list(learner.learn_step(step))
        counts = count_spans(stream.test, learner.predict(stream.test), ["PER", "LOC"])
        scores.append([counts[type_].f1 or 0.0 for type_ in ("PER", "LOC")])
    assert scores[1][1] > 0.4
    assert scores[1][0] > 0.7 * scores[0][0] > 0.25


@pytest.mark.parametrize("other", ["ewc", "joint"])
def test_what_it_cannot_be_combined_with_is_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=other):
        check_composition(parse_strategies(["ncl", other]))
