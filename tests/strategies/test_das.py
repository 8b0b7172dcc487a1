"""DAS: unit gates that are what they claim in every kind of encoder, and masks on the right axes (D1-D7)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor

from ner_cl.config import OptimizerOptions, parse_strategies
from ner_cl.data.batching import Batch
from ner_cl.data.stream import Step
from ner_cl.errors import ConfigError, ModelError, TrainingError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.subnetworks.trunk import top_layers
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.das import Das, DasOptions, contrast_loss, proxy_loss
from ner_cl.strategies.finetune import Finetune, FinetuneOptions
from ner_cl.strategies.masked_words import MaskedWords, raw_text
from ner_cl.strategies.read_once import read_once
from ner_cl.strategies.units import Units
from ner_cl.train.checkpoint import Checkpoint
from ner_cl.train.events import UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import no_dropout

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
FAMILIES = ("heads", "intermediate", "output")
PREFIX = "encoder.backbone.encoder.layer"
# As hostile as can be: decay and momentum move parameters that have no gradient, if they are let.
OPTIMIZERS = [
    OptimizerOptions(lr=5e-3, head_lr=2e-2, weight_decay=0.5),
    OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1, momentum=0.9, weight_decay=0.1),
]
_SIZE: dict[str, Any] = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 130}
_SIZE |= {"num_hidden_layers": 2, "num_attention_heads": 3}
_DISTIL = {"vocab_size": 300, "dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 3}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
KINDS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "bert": lambda: transformers.BertConfig(**_SIZE),
    "roberta": lambda: transformers.RobertaConfig(**_SIZE, pad_token_id=0),
    "electra": lambda: transformers.ElectraConfig(**_SIZE, embedding_size=12),
    "distilbert": lambda: transformers.DistilBertConfig(**_DISTIL),
    "deberta-v3": lambda: transformers.DebertaV2Config(**_SIZE, **_DEBERTA, share_att_key=True),
    "deberta-v2": lambda: transformers.DebertaV2Config(**_SIZE, **_DEBERTA, share_att_key=False),
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def of_kind(folder: Path, config: transformers.PretrainedConfig, steps: Sequence[Sequence[str]] = ()) -> NerModel:
    """A tiny model on a random encoder of another architecture, with the tokenizer of the usual one."""
    model = tiny_model(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.encoder.backbone = transformers.AutoModel.from_config(config)
    model.encoder.config = config
    model.head.hidden = model.encoder.hidden
    for types in steps:
        model.grow(types, generator=torch.Generator().manual_seed(1))
    return model.eval()


def batch_of(model: NerModel, count: int = 6, *, types: Sequence[str] = ("PER",)) -> Batch:
    return model.encode(toy_sentences(count, seed=2, types=types)).batch(range(count))


def weights(model: NerModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def random_gates(units: Units, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {family: torch.rand(len(units.layers), size, generator=draw) for family, size in units.sizes.items()}


def filled(model: NerModel, value: float) -> dict[str, Tensor]:
    units = Units(model)
    return {family: torch.full((len(units.layers), size), value) for family, size in units.sizes.items()}


def learn(
    folder: Path,
    head: str,
    strategies: Sequence[Any],
    *,
    steps: Sequence[Sequence[str]] = (("PER",),),
    state: Mapping[str, Tensor] | None = None,
    optimizer: OptimizerOptions = TOY_TRAINING.optimizer,
) -> tuple[NerModel, dict[str, Tensor], list[Any]]:
    """A model that knew `steps` and has learned LOC, its weights at the first update, and what happened."""
    model = tiny_model(folder, head, steps=steps)
    if state is not None:
        model.strategy_state = {"das": state}
    training = TOY_TRAINING.model_copy(update={"epochs": 2, "optimizer": optimizer})
    learner = Learner(model, parse_strategies(list(strategies)), training)
    step = Step(len(steps) + 1, ("LOC",), toy_stream(train=40).steps[1].train, ())
    events = learner.learn_step(step)
    next(events)
    before = weights(model)
    return model, before, list(events)


def ready(model: NerModel, *, train: Sequence[Sentence] = (), **options: Any) -> tuple[Das, StepContext]:
    """The strategy before the first update of the newest step, which plain fine-tuning teaches."""
    train = train or toy_sentences(16, seed=4, types=model.tagset.steps[-1])
    das = Das(DasOptions(**options))
    context = toy_context(model, model.tagset.steps[-1], train=train, strategies=[Finetune(FinetuneOptions()), das])
    return das, context


# -- gates on units ---------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_d1_open_gates_change_no_bit(folder: Path, kind: str, bf16: bool) -> None:
    model = of_kind(folder, KINDS[kind]())
    units, batch = Units(model), batch_of(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        plain = model.encoder(batch)
        with units.gated(units.open_gates()):
            gated = model.encoder(batch)
    assert torch.equal(plain, gated)
    assert plain.dtype == gated.dtype


@every_kind
def test_a_gate_does_what_scaling_the_weights_of_its_unit_does(folder: Path, kind: str) -> None:
    """A head's gate is a factor on what its values give; a feed-forward unit's one is a factor on its row and bias."""
    model = of_kind(folder, KINDS[kind]())
    units, batch = Units(model), batch_of(model)
    gates = random_gates(units)
    with torch.no_grad(), units.gated(gates):
        gated = model.encoder(batch)
    with torch.no_grad():
        plain = model.encoder(batch)  # the hooks are gone
        factors = units.on_parameters(gates)
        for layer in units.layers:
            for module in (layer.projections[2], layer.intermediate, layer.output):
                for name in (f"{module}.weight", f"{module}.bias"):
                    model.get_parameter(name).mul_(factors[name])
        scaled = model.encoder(batch)
    torch.testing.assert_close(gated, scaled, rtol=1e-4, atol=1e-5)
    assert (plain - gated).abs().max() > 1e-2


@every_kind
def test_a_head_that_is_shut_gives_nothing_and_hears_nothing(folder: Path, kind: str) -> None:
    """The columns of the attention's output that a head writes to are those its factor masks."""
    model = of_kind(folder, KINDS[kind]())
    units, batch = Units(model), batch_of(model)
    gates = {family: torch.ones_like(gate) for family, gate in random_gates(units).items()}
    gates["heads"][0, 1] = 0
    with torch.no_grad(), units.gated(gates):
        gated = model.encoder(batch)
    factors = units.on_parameters(gates)
    joined = f"{units.layers[0].joined}.weight"
    with torch.no_grad():
        model.get_parameter(joined).mul_(factors[joined])
        assert torch.allclose(model.encoder(batch), gated, atol=1e-5)
    assert factors[joined].tolist() == [[1.0] * 8 + [0.0] * 8 + [1.0] * 8]


@every_kind
def test_factors_stand_on_rows_columns_and_biases_and_stay_small(folder: Path, kind: str) -> None:
    """D4: heads own rows of queries, keys and values, but columns of the attention's output, whose bias is nobody's."""
    model = of_kind(folder, KINDS[kind]())
    units = Units(model)
    found = units.on_parameters(random_gates(units))
    assert len(units.layers) == 2
    for layer in units.layers:
        expected = dict.fromkeys((f"{name}.weight" for name in layer.projections), (24, 1))
        expected |= {f"{layer.joined}.weight": (1, 24), f"{layer.intermediate}.weight": (40, 1)}
        expected |= {
            f"{layer.output}.weight": (24, 1),
            f"{layer.output}.bias": (24,),
            f"{layer.intermediate}.bias": (40,),
        }
        for name, shape in expected.items():
            assert found[name].shape == shape, name
        assert f"{layer.joined}.bias" not in found
        assert len(layer.projections) == (5 if kind == "deberta-v2" else 3)
    parameters = dict(model.named_parameters())
    assert all(factor.expand_as(parameters[name]).shape == parameters[name].shape for name, factor in found.items())
    assert sum(factor.numel() for factor in found.values()) < 0.1 * sum(parameters[name].numel() for name in found)


def test_parameters_that_are_not_trained_get_no_factor(folder: Path) -> None:
    model = tiny_model(folder)
    model.get_parameter(f"{PREFIX}.0.output.dense.weight").requires_grad_(False)
    units = Units(model)
    found = units.on_parameters(random_gates(units))
    assert f"{PREFIX}.0.output.dense.weight" not in found
    assert f"{PREFIX}.1.output.dense.weight" in found


@pytest.mark.parametrize(
    "config",
    [
        transformers.AlbertConfig(**_SIZE, embedding_size=12),
        transformers.MPNetConfig(**_SIZE),
        transformers.DebertaConfig(**_SIZE),
    ],
    ids=lambda config: config.model_type,
)
def test_an_encoder_of_another_kind_is_refused_in_one_line(folder: Path, config: transformers.PretrainedConfig) -> None:
    model = of_kind(folder, config, steps=[["PER"]])
    das, context = ready(model)
    with pytest.raises(
        ModelError, match=rf"strategy das does not know the layers of a {config.model_type} encoder; use"
    ):
        das.gates(context)


def test_hooks_are_gone_when_a_pass_fails(folder: Path) -> None:
    model = tiny_model(folder)
    units, batch = Units(model), batch_of(model)
    with torch.no_grad():
        plain = model.encoder(batch)
        with pytest.raises(RuntimeError, match="as a test wants it"), units.gated(random_gates(units)):
            raise RuntimeError("as a test wants it")
        assert torch.equal(model.encoder(batch), plain)


# -- importance -------------------------------------------------------------------------------------------------------


def numpy_importance(gradients: Tensor) -> np.ndarray:
    rows = gradients.double().numpy()
    return np.abs(np.tanh((rows - rows.mean(1, keepdims=True)) / rows.std(1, ddof=1, keepdims=True)))


def unit_gradients(model: NerModel, units: Units) -> dict[str, Tensor]:
    """Derivatives by gates from those of the weights: `y = g · (Wx + b)` has `dL/dg = ⟨W, dL/dW⟩ + b · dL/db`."""
    found: dict[str, list[Tensor]] = {family: [] for family in FAMILIES}
    for layer in units.layers:
        for family, module in zip(FAMILIES, (layer.projections[2], layer.intermediate, layer.output), strict=True):
            weight, bias = (model.get_parameter(f"{module}.{name}") for name in ("weight", "bias"))
            rows = (weight * weight.grad).sum(dim=1) + bias * bias.grad  # type: ignore[operator]
            found[family].append(rows.detach().view(units.sizes[family], -1).sum(dim=1))
    return {family: torch.stack(rows) for family, rows in found.items()}


@BOTH
def test_the_importance_of_a_step_is_what_the_gradients_of_its_weights_say(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    das, context = ready(model, general_sentences=0)
    assert das.gates(context) == {}
    das.end_step(context)
    for batch in context.batches():
        (context.training_loss(batch) * sum(batch.row_words)).backward()
    expected = unit_gradients(model, Units(model))
    model.zero_grad(set_to_none=True)
    assert list(das.state_dict()) == list(FAMILIES)
    for family, importance in das.state_dict().items():
        np.testing.assert_allclose(importance.numpy(), numpy_importance(expected[family]), atol=1e-3)
        assert ((importance >= 0) & (importance <= 1)).all()


@BOTH
def test_d6_importance_does_not_depend_on_how_batches_are_cut(folder: Path, head: str) -> None:
    found = []
    for size in (16, 1000):
        das, context = ready(tiny_model(folder, head, steps=[["PER"], ["LOC"]]), general_sentences=0)
        context.batch_tokens = size
        das.gates(context)
        das.end_step(context)
        found.append(das.state_dict())
    for family in FAMILIES:
        torch.testing.assert_close(found[0][family], found[1][family], atol=1e-3, rtol=1e-2)


def test_d5_the_proxy_is_zero_without_dropout_and_positive_with_it(folder: Path) -> None:
    model = tiny_model(folder)
    batch = batch_of(model)
    assert proxy_loss(model.encoder, batch).item() == 0
    torch.manual_seed(0)
    model.train()
    assert proxy_loss(model.encoder, batch).item() > 0


def test_the_proxy_counts_words_and_no_padding(folder: Path) -> None:
    """One sentence alone is as far from itself as beside a longer one; its labels are not looked at."""
    model = tiny_model(folder)
    short, long = (
        Sentence(tuple(words.split())) for words in ("Ada met Bob", "the old Acme Bank visited Rome today .")
    )
    passes: list[Tensor] = []

    def noisy(module: Any, given: Any, words: Tensor) -> Tensor:
        """The same noise whatever else is in the batch."""
        passes.append(words)
        return words + len(passes) % 2 * torch.linspace(0, 1, words.shape[-1])

    with torch.no_grad():
        model.encoder.register_forward_hook(noisy)
        losses = [
            float(proxy_loss(model.encoder, model.encode(s).batch(range(len(s)))))
            for s in ([short], [long], [short, long])
        ]
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-4)
    assert losses[0] > 0


def test_the_general_importance_is_measured_once_before_the_first_step(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    das, context = ready(model)
    before, random = weights(model), torch.get_rng_state()
    first = das.gates(context)
    general = das.state_dict()
    assert all(((i > 0) & (i <= 1)).any() for i in general.values())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    # A resumed step finds the same, whatever was drawn in between.
    torch.manual_seed(77)
    again, other = ready(model)
    resumed = again.gates(other)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    # Asked again, as in the next step, nothing is measured any more.
    with torch.no_grad():
        model.get_parameter(f"{PREFIX}.0.output.dense.weight").mul_(3)
    das.gates(context)
    assert all(torch.equal(general[family], das.state_dict()[family]) for family in FAMILIES)


def test_the_general_importance_is_that_of_the_proxy(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    das, context = ready(model)
    das.gates(context)
    found = das.state_dict()
    torch.manual_seed(int(context.generator("das/general/dropout").integers(2**62)))
    model.train()
    for batch in context.batches():
        proxy_loss(model.encoder, batch).backward()
    expected = unit_gradients(model, Units(model))
    for family in FAMILIES:
        np.testing.assert_allclose(found[family].numpy(), numpy_importance(expected[family]), atol=1e-3)


def test_an_encoder_without_dropout_has_no_proxy_and_says_so(folder: Path) -> None:
    """Rounding noise would be taken for importance."""
    model = tiny_model(folder, steps=[["PER"]])
    no_dropout(model)
    model.encoder.config.attention_probs_dropout_prob = 0.0
    das, context = ready(model)
    with pytest.raises(TrainingError, match=r"no dropout; set general_sentences: 0"):
        das.gates(context)
    assert not any(module.training for module in model.modules())
    das, context = ready(model, general_sentences=0)
    assert das.gates(context) == {}


@BOTH
def test_d3_importance_never_falls(folder: Path, head: str) -> None:
    learner = Learner(
        tiny_model(folder, head), parse_strategies(["das"]), TOY_TRAINING.model_copy(update={"epochs": 1})
    )
    das = next(strategy for strategy in learner.strategies if isinstance(strategy, Das))
    states: list[dict[str, Tensor]] = []
    for step in toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60).steps:
        events = learner.learn_step(step)
        while not isinstance(next(events), UpdateDone):
            pass
        states.append(das.state_dict())  # general importance, or that of the steps before
        assert [type(event).__name__ for event in events][-1] == "EpochDone"
    states.append(das.state_dict())
    for old, new in pairwise(states):
        assert all((new[family] >= old[family]).all() for family in FAMILIES)
        assert any((new[family] > old[family]).any() for family in FAMILIES)


def test_d3_importance_is_the_largest_of_any_step() -> None:
    das, generator = Das(DasOptions()), torch.Generator().manual_seed(0)
    first, second = ({family: torch.rand(2, 5, generator=generator) for family in FAMILIES} for _ in range(2))
    das._keep(first)
    das._keep(second)
    for family, found in das.state_dict().items():
        assert torch.equal(found, torch.maximum(first[family], second[family]))


@pytest.mark.parametrize("cache", [True, False])
def test_gates_act_on_frozen_layers_too(folder: Path, cache: bool) -> None:
    """What a cache knows of frozen layers was computed without gates."""
    model = no_dropout(tiny_model(folder, steps=[["PER"]]))
    units, generator = Units(model), torch.Generator().manual_seed(0)
    gates = {family: torch.rand(len(units.layers), size, generator=generator) for family, size in units.sizes.items()}
    _, context = ready(model)
    batch = next(context.batches())
    if cache:
        read_once(context, top_layers(model.encoder, 1))
        assert model.encoder.shortcut is not None
    shortcut = model.encoder.shortcut
    with torch.no_grad(), units.gated(gates):
        found = model.encoder(batch)
    assert model.encoder.shortcut is shortcut
    model.encoder.shortcut = None
    with torch.no_grad(), units.gated(gates):
        torch.testing.assert_close(found, model.encoder(batch), rtol=0, atol=0)


@BOTH
def test_measuring_leaves_no_trace(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    das, context = ready(model, contrast=1.0)
    das.gates(context)
    before, random = weights(model), torch.get_rng_state()
    das.end_step(context)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())


# -- masks ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda options: options.name)
def test_d2_d4_important_units_keep_exactly_their_parameters(
    folder: Path, head: str, optimizer: OptimizerOptions
) -> None:
    state = filled(tiny_model(folder, head), 0.0)
    state["heads"][0, 1] = state["intermediate"][1, 5] = state["output"][0, 7] = 1
    model, before, _ = learn(folder, head, ["das"], state=state, optimizer=optimizer)
    still = {
        **{
            f"{PREFIX}.0.attention.self.{name}.weight": (slice(16, 32), slice(None))
            for name in ("query", "key", "value")
        },
        **{f"{PREFIX}.0.attention.self.{name}.bias": (slice(16, 32),) for name in ("query", "key", "value")},
        f"{PREFIX}.0.attention.output.dense.weight": (slice(None), slice(16, 32)),
        f"{PREFIX}.1.intermediate.dense.weight": (5, slice(None)),
        f"{PREFIX}.1.intermediate.dense.bias": (5,),
        f"{PREFIX}.0.output.dense.weight": (7, slice(None)),
        f"{PREFIX}.0.output.dense.bias": (7,),
    }
    for name in (name for name in before if "layer" in name and "LayerNorm" not in name):
        expected = torch.zeros_like(before[name], dtype=torch.bool)
        if name in still:
            expected[still[name]] = True
        same = model.get_parameter(name) == before[name]
        assert same[expected].all(), name
        assert same[~expected].float().mean() < 0.01, name  # a rare entry moves by less than a bit


@BOTH
def test_an_importance_of_zero_is_as_if_the_strategy_were_not_there(folder: Path, head: str) -> None:
    """T10."""
    plain, _, _ = learn(folder, head, ["distill"])
    masked, _, _ = learn(folder, head, ["distill", "das"], state=filled(plain, 0.0))
    assert all(torch.equal(plain.get_parameter(name), parameter) for name, parameter in masked.named_parameters())


@BOTH
def test_without_general_importance_the_first_step_is_plain_training(folder: Path, head: str) -> None:
    """T11."""
    plain, _, _ = learn(folder, head, ["distill"], steps=())
    free, _, _ = learn(folder, head, ["distill", {"name": "das", "general_sentences": 0}], steps=())
    held, _, _ = learn(folder, head, ["distill", "das"], steps=())
    query = f"{PREFIX}.0.attention.self.query.weight"
    assert all(torch.equal(plain.get_parameter(name), parameter) for name, parameter in free.named_parameters())
    assert not torch.equal(plain.get_parameter(query), held.get_parameter(query))


def test_only_the_families_asked_for_are_protected(folder: Path) -> None:
    state = filled(tiny_model(folder), 1.0)
    model, before, _ = learn(folder, "extendner", [{"name": "das", "families": ["intermediate"]}], state=state)
    same = {name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)}
    assert same == {f"{PREFIX}.{layer}.intermediate.dense.{name}" for layer in (0, 1) for name in ("weight", "bias")}


def test_the_state_comes_back_and_is_small(folder: Path) -> None:
    model, _, _ = learn(folder, "extendner", ["das"])
    state = model.strategy_state["das"]
    assert {family: tuple(tensor.shape) for family, tensor in state.items()} == {
        "heads": (2, 2),
        "intermediate": (2, 64),
        "output": (2, 32),
    }
    other = Das(DasOptions())
    assert other.state_dict() == {}
    other.load_state_dict(state)
    assert all(torch.equal(other.state_dict()[family], state[family]) for family in state)


# -- the contrastive term ---------------------------------------------------------------------------------------------


def loops(view: Tensor, other: Tensor, previous: Tensor | None, temperature: float) -> float:
    """The formula as it is printed."""

    def likeness(a: Tensor, b: Tensor) -> float:
        return float(np.exp(float(a @ b / (a.norm() * b.norm())) / temperature))

    losses = []
    for i, row in enumerate(view):
        against = sum(likeness(row, b) for b in other)
        against += sum(likeness(row, b) for b in previous) if previous is not None else 0
        losses.append(-np.log(likeness(row, other[i]) / against))
    return float(np.mean(losses))


@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_d7_the_contrast_is_info_nce_with_more_negatives(with_previous: bool, temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    view, other, previous = (torch.randn(5, 7, generator=draw).double().float() for _ in range(3))
    found = contrast_loss(view, other, previous if with_previous else None, temperature=temperature)
    expected = loops(view, other, previous if with_previous else None, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_sentence_is_paired_with_itself_and_not_with_its_neighbour() -> None:
    view = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    right = contrast_loss(view, view + 0.01)
    assert float(right) < 0.01 < float(contrast_loss(view, (view + 0.01).roll(1, dims=0)))


@BOTH
def test_the_contrast_trains_and_weighs_what_it_is_told(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    batch = batch_of(model, types=("LOC",))
    das, context = ready(model, contrast=0.5)
    das.gates(context)
    model.train()
    emissions = model(batch)
    torch.manual_seed(0)
    half = das.losses(context, batch, emissions)
    assert half.keys() == {"contrast"}
    half["contrast"].backward()
    assert model.get_parameter(f"{PREFIX}.0.attention.self.query.weight").grad is not None
    das.options = DasOptions(contrast=1.0)
    torch.manual_seed(0)
    torch.testing.assert_close(das.losses(context, batch, emissions)["contrast"], 2 * half["contrast"])
    das.options = DasOptions()
    assert das.losses(context, batch, emissions) == {}


def test_units_of_importance_one_make_the_third_view_the_first(folder: Path) -> None:
    """In eval mode and with every gate open, all views agree: the loss is the log of how many rows there are."""
    model = tiny_model(folder, steps=[["PER"]])
    batch = batch_of(model)
    das, context = ready(model, contrast=1.0, temperature=100.0)
    das.load_state_dict(filled(model, 1.0))
    das.gates(context)
    with torch.no_grad():
        found = das.losses(context, batch, model(batch))["contrast"]
        assert float(found) == pytest.approx(np.log(12), abs=0.05)
        das.load_state_dict({})
        found = das.losses(context, batch, model(batch))["contrast"]
    assert float(found) == pytest.approx(np.log(6), abs=0.05)


def test_remembered_sentences_are_left_to_whoever_remembers_them(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    train = (*toy_sentences(3, types=("LOC",)), *toy_sentences(3, seed=9, types=("PER",)))
    das, context = ready(model, train=train, contrast=1.0)
    das.gates(context)
    assert context.encoded is not None
    mixed, own, old = (context.encoded.batch(rows) for rows in (range(6), range(3), range(3, 6)))
    with torch.no_grad():
        share = sum(own.row_words) / sum(mixed.row_words)  # as of every term that is a mean over the new words
        alone = das.losses(context, own, model(own))["contrast"]
        torch.testing.assert_close(das.losses(context, mixed, model(mixed))["contrast"], share * alone)
        assert das.losses(context, old, model(old)) == {}


@BOTH
def test_a_step_with_contrast_is_learned(folder: Path, head: str) -> None:
    _, _, events = learn(folder, head, [{"name": "das", "contrast": 0.1}])
    updates = [event for event in events if isinstance(event, UpdateDone)]
    assert updates
    assert all(event.losses.keys() == {"ce", "kd", "contrast"} for event in updates)
    assert all(np.isfinite(event.losses["contrast"]) for event in updates)


def test_the_contrast_has_no_share_in_importance(folder: Path) -> None:
    states = []
    for contrast in (0.0, 10.0):
        das, context = ready(tiny_model(folder, steps=[["PER"], ["LOC"]]), contrast=contrast)
        das.gates(context)
        das.end_step(context)
        states.append(das.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][family], known) for family, known in states[0].items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"families": ["heads", "heads"]}, "families: heads, heads names one twice"),
        ({"temperature": 0.1}, "temperature: has no effect without contrast"),
        ({"pretrain_lr": 1e-3}, "pretrain_lr: has no effect without pretrain_epochs"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DasOptions.model_validate(options)
    written = DasOptions().model_dump(mode="json")
    assert DasOptions.model_validate(written) == DasOptions()


def test_it_stands_on_distillation_and_not_beside_joint() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["das"]))] == ["das", "distill"]
    with pytest.raises(ConfigError, match="joint"):
        build_strategies(parse_strategies(["das", "joint"]))


# -- pre-training on raw text, the method as published ----------------------------------------------------------------


def test_masked_pieces_are_drawn_as_bert_draws_them(folder: Path) -> None:
    model = tiny_model(folder)
    task = MaskedWords(model.encoder)
    tokenizer = model.encoder.tokenizer
    ids = torch.randint(5, 250, (200, 60), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 50:] = tokenizer.cls_token_id, tokenizer.pad_token_id
    shown, guessed = task.corrupt(ids, np.random.default_rng(0))
    assert not guessed[:, 0].any()
    assert not guessed[:, 50:].any()
    assert torch.equal(shown[~guessed], ids[~guessed])
    assert float(guessed[:, 1:50].float().mean()) == pytest.approx(0.15, abs=0.01)
    masked, kept = shown[guessed] == tokenizer.mask_token_id, shown[guessed] == ids[guessed]
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.02)


def test_the_loss_of_guessing_is_that_of_the_pieces_guessed(folder: Path) -> None:
    model = tiny_model(folder)
    task, batch = MaskedWords(model.encoder), batch_of(model)
    shown, guessed = task.corrupt(batch.piece_ids, np.random.default_rng(3))
    hidden = model.encoder.backbone(input_ids=shown, attention_mask=batch.piece_mask).last_hidden_state
    log_probs = (hidden @ model.encoder.embeddings.weight.T).log_softmax(-1)
    expected = -torch.stack([log_probs[r, p, batch.piece_ids[r, p]] for r, p in guessed.nonzero().tolist()]).mean()
    torch.testing.assert_close(task.loss(batch, np.random.default_rng(3)), expected)
    nothing = np.random.default_rng(0)
    alone = model.encode([Sentence(("Ada",))]).batch([0])
    losses = [task.loss(alone, nothing).item() for _ in range(10)]
    assert 0.0 in losses
    assert all(np.isfinite(losses))


def test_what_is_read_is_the_steps_own_text_and_what_was_given_without_labels(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    own, old = toy_sentences(3, types=("LOC",)), toy_sentences(3, seed=9, types=("PER",))
    _, context = ready(model, train=(*own, *old))
    context.unlabeled = toy_sentences(2, seed=5)
    found = raw_text(context)
    assert [sentence.words for sentence in found] == [sentence.words for sentence in (*own, *context.unlabeled)]
    assert not any(sentence.spans or sentence.annotated_types for sentence in found)


def pretrained(
    folder: Path, state: Mapping[str, Tensor] | None = None, *, embeddings: bool = False, **options: Any
) -> tuple[NerModel, NerModel]:
    """A model before and after the updates that come before the first update of a step."""
    model, start = (tiny_model(folder, steps=[["PER"]]) for _ in range(2))
    model.encoder.embeddings.requires_grad_(embeddings)
    das, context = ready(model, **{"pretrain_epochs": 2, "pretrain_lr": 1e-2, **options})
    das.load_state_dict(state or {})
    random = torch.get_rng_state()
    das.gates(context)
    assert torch.equal(torch.get_rng_state(), random)
    return start, model


def test_pretraining_moves_the_trained_encoder_and_leaves_no_trace_but_that(folder: Path) -> None:
    start, model = pretrained(folder)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    before = weights(start)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    embeddings = "encoder.backbone.embeddings.word_embeddings.weight"
    # A key bias has no gradient but rounding noise, which moves it as well.
    assert moved == {name for name in before if name.startswith("encoder.") and name != embeddings}
    again = pretrained(folder)[1]
    assert all(torch.equal(model.get_parameter(name), parameter) for name, parameter in again.named_parameters())


def test_pretraining_learns_to_guess(folder: Path) -> None:
    def guessing(model: NerModel) -> float:
        task = MaskedWords(model.encoder)
        batch = batch_of(model, 30)
        with torch.no_grad():
            return float(np.mean([task.loss(batch, np.random.default_rng(seed)).item() for seed in range(5)]))

    start, model = pretrained(folder, embeddings=True, pretrain_epochs=8)
    assert guessing(model) < 0.8 * guessing(start)


def test_the_rate_of_pretraining_falls_to_zero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    pretrained(folder, pretrain_epochs=3)
    assert len(rates) >= 3
    assert rates == pytest.approx([1e-2 * (1 - update / len(rates)) for update in range(len(rates))])


def test_a_gradient_that_is_not_finite_makes_no_update_in_pretraining(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T14 before the step: such an update changes neither weights nor, with it, the next one."""
    whole = MaskedWords.loss
    calls: list[int] = []

    def spoilt(self: MaskedWords, batch: Batch, generator: np.random.Generator) -> Tensor:
        calls.append(1)
        return whole(self, batch, generator) * torch.nan

    monkeypatch.setattr(MaskedWords, "loss", spoilt)
    start, model = pretrained(folder)
    assert calls
    before = weights(start)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_pretraining_keeps_important_units(folder: Path) -> None:
    state = filled(tiny_model(folder), 0.0)
    state["intermediate"][1, 5] = 1
    start, model = pretrained(folder, state)
    name = f"{PREFIX}.1.intermediate.dense.weight"
    same = (start.get_parameter(name) == model.get_parameter(name)).all(dim=1)
    assert same.nonzero().flatten().tolist() == [5]


def test_an_encoder_that_cannot_guess_its_own_pieces_says_so(folder: Path) -> None:
    model = of_kind(folder, KINDS["electra"](), steps=[["PER"]])
    das, context = ready(model, pretrain_epochs=1)
    with pytest.raises(ModelError, match=r"cannot pretrain this encoder.*set pretrain_epochs: 0"):
        das.gates(context)


@BOTH
def test_a_pretrained_step_is_the_same_again_after_a_crash(folder: Path, head: str, tmp_path: Path) -> None:
    """S1, with unlabeled text: the pre-step is made again, then the checkpoint takes over."""
    step = Step(2, ("LOC",), toy_stream(train=40).steps[1].train, ())

    def learner(checkpoint: Path | None) -> Learner:
        training = TOY_TRAINING.model_copy(update={"epochs": 2, "checkpoint_seconds": 0.0})
        strategies = parse_strategies([{"name": "das", "pretrain_epochs": 1}])
        model = tiny_model(folder, head, steps=[["PER"]])
        return Learner(model, strategies, training, checkpoint=Checkpoint(checkpoint))

    unlabeled = toy_sentences(20, seed=8)
    straight = learner(None)
    list(straight.learn_step(step, unlabeled=unlabeled))
    stopped = learner(tmp_path / "checkpoint")
    for _, event in zip(range(5), stopped.learn_step(step, unlabeled=unlabeled), strict=False):
        assert event
    resumed = learner(tmp_path / "checkpoint")
    assert "Resumed" in [type(event).__name__ for event in resumed.learn_step(step, unlabeled=unlabeled)]
    expected = weights(straight.model)
    assert all(torch.equal(expected[name], parameter) for name, parameter in resumed.model.named_parameters())
    # Other text makes another step, which the checkpoint is not of.
    other = learner(None)
    list(other.learn_step(step))
    assert not torch.equal(other.model.head.new_block().weight, straight.model.head.new_block().weight)
    kinds = [type(event).__name__ for event in learner(tmp_path / "checkpoint").learn_step(step)]
    assert "Resumed" not in kinds
