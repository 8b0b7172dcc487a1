"""HAT: what a unit computes with is fixed once a step uses it, and what a step does not use does nothing (HT1-HT4)."""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as draw
from torch import Tensor

from ner_cl.config import OptimizerOptions, parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import CheckFailed, ConfigError, ModelError, TrainingError
from ner_cl.model.emissions import emissions_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.model.subnetworks.hat import Hat, HatOptions
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.hat import (
    HatStrategy,
    HatStrategyOptions,
    compensate,
    hat_of,
    place_in_sweep,
    scale_at,
    sparsity,
)
from ner_cl.train.events import EpochDone, Note, UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.record import history_record
from ner_cl.types import Sentence, Span
from tests.strategies.test_das import KINDS, every_kind, of_kind
from tests.tiny import TOY_TRAINING, TOY_TYPES, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import GOOD_TRAINING, toy_encoder

# As hostile as can be: decay and moments move parameters that have no gradient, if they are let.
HOSTILE = OptimizerOptions(lr=5e-3, head_lr=2e-2, weight_decay=0.5)
SHORT = TOY_TRAINING.model_copy(update={"epochs": 2, "optimizer": HOSTILE})
STEPS = (*((type_,) for type_ in TOY_TYPES), ("NAME",))
PROBES = toy_sentences(8, seed=77)
LAYER = "encoder.backbone.encoder.layer"


class Taught(NamedTuple):
    """A model after each of five steps, and what was noted."""

    models: list[NerModel]
    notes: list[list[str]]
    free: list[float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def taught(folder: Path) -> Taught:
    """Five steps under AdamW with weight decay, with gates on all layers."""
    learner = Learner(tiny_model(folder, "addner"), parse_strategies([{"name": "hat", "layers": 0}]), SHORT)
    found = Taught([], [], [])
    for number, types in enumerate(STEPS, start=1):
        step = step_of(number, types)
        events = list(learner.learn_step(step))
        found.models.append(copy.deepcopy(learner.model))
        found.notes.append([event.text for event in events if isinstance(event, Note)])
        found.free.append(history_record(learner, step, before={}, after={})["free"])
    return found


def step_of(number: int, types: Sequence[str], *, count: int = 24) -> Step:
    """A step of toy sentences; NAME is what PER was."""
    [type_] = types
    sentences = toy_sentences(count, seed=number, types=["PER" if type_ == "NAME" else type_])
    renamed = [
        Sentence(s.words, tuple(Span(span.start, span.end, type_) for span in s.spans), frozenset(types))
        for s in sentences
    ]
    return Step(number, tuple(types), tuple(renamed[6:]), tuple(renamed[:6]))


def emitted(model: NerModel, steps: Sequence[int]) -> list[Tensor]:
    """What the blocks of some steps emit on the words of the probes, each step asked for alone."""
    found = []
    for step in steps:
        batches = emissions_of(model, model.encode(PROBES), steps=[step], precision="fp32")
        found.append(torch.cat([e.blocks[step - 1][e.word_mask] for _, e in batches]))
    return found


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def used_parts(model: NerModel, steps: int) -> dict[str, Tensor]:
    """Which entries of parameters belong to units that the first steps use."""
    hat = hat_of(model)
    used = {family: sum(hat.gates(step)[family] for step in range(1, steps + 1)) > 0 for family in hat.used()}
    return hat.on_parameters(used)


def grown(folder: Path, *, kind: str = "", **options: Any) -> tuple[NerModel, Hat]:
    """An untaught model of some kind with the gates of one step."""
    model = of_kind(folder, KINDS[kind]()) if kind else tiny_model(folder, "addner")
    hat = Hat(model.encoder, HatOptions(**options), first=1)
    hat.grow(model, generator=torch.Generator().manual_seed(5))
    return model, hat


# -- the promise ------------------------------------------------------------------------------------------------------


def test_ht1_what_a_used_unit_computes_with_does_not_change_by_a_bit(taught: Taught) -> None:
    """Through five steps, under AdamW with weight decay; what no step uses goes on learning."""
    final = taught.models[-1]
    moved = 0
    for after, model in enumerate(taught.models[:-1], start=1):
        for name, used in used_parts(model, after).items():
            old, new = model.get_parameter(name), final.get_parameter(name)
            used = used.expand_as(old)
            assert torch.equal(old[used], new[used]), name
            moved += int((old != new)[~used].sum())
    assert moved > 1000


def test_ht1_after_step_1_nothing_learns_that_no_gate_acts_on(taught: Taught) -> None:
    """Embeddings, LayerNorms and the biases that all units share; they do learn in step 1."""
    first, final = taught.models[0], taught.models[-1]
    gated = set(hat_of(first).on_parameters(hat_of(first).used()))
    rest = [name for name, _ in first.named_parameters() if name not in gated and not name.startswith("subnetworks")]
    assert any("LayerNorm" in name for name in rest)
    assert f"{LAYER}.0.output.dense.bias" in rest
    assert all(torch.equal(first.get_parameter(name), final.get_parameter(name)) for name in rest)


def test_ht1_old_emissions_are_the_same_to_the_last_bit(taught: Taught, tmp_path: Path) -> None:
    """After each later step, and after saving and loading."""
    final = taught.models[-1]
    final.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    for step, model in enumerate(taught.models, start=1):
        expected = emitted(model, [step])
        assert all(equal(expected, emitted(later, [step])) for later in (*taught.models[step:], loaded))
    assert not torch.equal(emitted(final, [1])[0], emitted(final, [5])[0])


def test_a_unit_outside_the_mask_contributes_nothing(taught: Taught) -> None:
    """Its weights may be anything; those of a used one may not."""
    for step in (1, 4):
        expected = emitted(taught.models[-1], [step])
        model = copy.deepcopy(taught.models[-1])
        hat = hat_of(model)
        gates = hat.gates(step)
        outside = hat.on_parameters({family: gate == 0 for family, gate in gates.items()})
        with torch.no_grad():
            for name, unused in outside.items():
                parameter = model.get_parameter(name)
                assert unused.any()
                parameter.copy_(torch.where(unused.expand_as(parameter), 100 * torch.rand_like(parameter), parameter))
            assert equal(emitted(model, [step]), expected)
            layer, unit = gates["intermediate"].nonzero()[0].tolist()
            model.get_parameter(f"{LAYER}.{layer}.output.dense.weight")[:, unit] += 1
            assert not equal(emitted(model, [step]), expected)


def test_what_a_step_emits_does_not_depend_on_which_others_are_asked(taught: Taught) -> None:
    model = taught.models[-1]
    alone = emitted(model, range(1, 6))
    for _, emissions in emissions_of(model, model.encode(PROBES), precision="fp32"):
        together = [block[emissions.word_mask] for block in emissions.blocks]
    assert equal(together, alone)


def test_a_step_is_the_encoder_without_the_columns_of_what_it_does_not_use(taught: Taught) -> None:
    """An oracle without hooks: zeros in the matrices that read units."""
    model = taught.models[-1]
    hat = hat_of(model)
    [expected] = emitted(model, [3])
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, gate in hat.on_parameters(hat.gates(3)).items():
            if name.endswith(("attention.output.dense.weight", "output.dense.weight")):
                pruned.get_parameter(name).mul_(gate)
        batch = pruned.encode(PROBES).batch(range(len(PROBES)))
        block = pruned.head.blocks[2](pruned.encoder(batch))
    order = [i for rows, _ in emissions_of(model, model.encode(PROBES), precision="fp32") for i in rows]
    found = torch.cat([block[i][batch.word_mask[i]] for i in order])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_kind
def test_open_gates_change_no_bit(folder: Path, kind: str) -> None:
    for layers in (0, 1):
        model, hat = grown(folder, kind=kind, layers=layers)
        for mask in hat.masks["1"].buffers():
            mask.fill_(True)
        batch = model.encode(PROBES).batch(range(len(PROBES)))
        with torch.no_grad():
            assert torch.equal(hat.eval()(model, batch, [1])[1], model.encoder(batch))
        names = hat.on_parameters(hat.used())
        assert all(factor.expand_as(model.get_parameter(name)) is not None for name, factor in names.items())
        assert len(names) == (layers or 2) * (14 if kind == "deberta-v2" else 10)


def test_threads_that_ask_for_different_steps_get_what_they_asked_for(taught: Taught) -> None:
    model = taught.models[-1]
    expected = {step: emitted(model, [step]) for step in (1, 5)}
    wrong: list[int] = []

    def ask(step: int) -> None:
        wrong.extend(step for _ in range(10) if not equal(emitted(model, [step]), expected[step]))

    threads = [threading.Thread(target=ask, args=(step,)) for step in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Vandal(Strategy):
    """Changes something at the end of a step."""

    def __init__(self, change: Callable[[NerModel], None]) -> None:
        super().__init__(parse_strategies(["finetune"])[0].model_copy(update={"name": "zz_vandal"}))
        self.change = change

    def settle(self, context: StepContext) -> None:
        with torch.no_grad():
            self.change(context.model)


def touch_used_unit(model: NerModel) -> None:
    layer, unit = hat_of(model).gates(1)["intermediate"].nonzero()[0].tolist()
    model.get_parameter(f"{LAYER}.{layer}.intermediate.dense.bias")[unit] += 1e-3


def touch_norm(model: NerModel) -> None:
    model.get_parameter(f"{LAYER}.1.output.LayerNorm.bias")[0] += 1e-3


def touch_mask(model: NerModel) -> None:
    mask = hat_of(model).masks["1"].get_buffer("heads")
    mask[0, 0] = ~mask[0, 0]


@pytest.mark.parametrize("change", [touch_used_unit, touch_norm, touch_mask])
def test_a_step_that_touches_what_is_frozen_is_refused(taught: Taught, change: Callable[[NerModel], None]) -> None:
    training = SHORT.model_copy(update={"epochs": 1})
    learner = Learner(copy.deepcopy(taught.models[0]), parse_strategies([{"name": "hat"}]), training)
    learner.strategies.append(Vandal(change))
    with pytest.raises(CheckFailed, match="the emissions of the blocks of steps 1 are not what they were"):
        list(learner.learn_step(step_of(2, ["LOC"], count=12)))


# -- what has gates ---------------------------------------------------------------------------------------------------


def test_only_gated_layers_learn_after_step_1(folder: Path) -> None:
    """With `layers: 1` and no gates on heads, that is the feed-forward net of the last layer."""
    options = parse_strategies([{"name": "hat", "layers": 1, "heads": False}])
    learner = Learner(tiny_model(folder, "addner"), options, SHORT.model_copy(update={"epochs": 1}))
    list(learner.learn_step(step_of(1, ["PER"], count=12)))
    first = copy.deepcopy(learner.model)
    list(learner.learn_step(step_of(2, ["LOC"], count=12)))
    old, new = dict(first.encoder.named_parameters()), dict(learner.model.encoder.named_parameters())
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    inner = "backbone.encoder.layer.1"
    assert moved == {f"{inner}.{name}" for name in ("intermediate.dense.weight", "intermediate.dense.bias")} | {
        f"{inner}.output.dense.weight"
    }
    assert list(hat_of(learner.model).used()) == ["intermediate"]


def test_gates_are_soft_in_training_and_hard_when_the_step_is_scored(folder: Path) -> None:
    _, hat = grown(folder)
    hat.scale = 2.0
    hat.learn(1)
    soft = hat.gates(1)
    assert all(((gate > 0) & (gate < 1)).all() for gate in soft.values())
    hard = hat.eval().gates(1)
    for family, gate in hard.items():
        assert torch.equal(gate, (soft[family] > 0.5).float())
    assert hat.free == 1
    hat.settle()
    assert all(torch.equal(gate, hat.train().gates(1)[family]) for family, gate in hard.items())
    sizes = {family: len(gate.flatten()) for family, gate in hard.items()}
    assert sizes == {"intermediate": 2 * 64, "heads": 2 * 2}
    assert hat.free == pytest.approx(1 - float(sum(gate.sum() for gate in hard.values())) / sum(sizes.values()))


def test_what_is_free_is_told_before_a_step_and_kept_in_history(taught: Taught) -> None:
    assert all(0 < later <= earlier < 1 for earlier, later in pairwise(taught.free))
    assert taught.notes[0] == []
    for before, notes in zip(taught.free, taught.notes[1:], strict=False):
        assert notes == [f"hat: earlier steps have left {before:.1%} of the network free"]


def test_without_a_free_unit_the_next_step_is_refused(taught: Taught) -> None:
    model = copy.deepcopy(taught.models[0])
    for mask in hat_of(model).masks["1"].buffers():
        mask.fill_(True)
    learner = Learner(model, parse_strategies(["hat"]), SHORT)
    with pytest.raises(TrainingError, match="step 2 cannot be learned: earlier steps use every unit"):
        list(learner.learn_step(step_of(2, ["LOC"])))


def test_a_model_that_learned_without_is_refused(folder: Path) -> None:
    learner = Learner(tiny_model(folder, "addner", steps=[["PER"]]), parse_strategies(["hat"]), SHORT)
    with pytest.raises(ModelError, match="learned steps without hat, which use every unit"):
        list(learner.learn_step(step_of(2, ["LOC"])))


def test_other_gates_than_the_model_has_are_refused(taught: Taught) -> None:
    learner = Learner(copy.deepcopy(taught.models[0]), parse_strategies([{"name": "hat", "layers": 1}]), SHORT)
    with pytest.raises(ConfigError, match="sub-networks have layers 0, not 1; leave layers out"):
        list(learner.learn_step(step_of(2, ["LOC"])))


def test_an_encoder_of_another_kind_is_refused_in_one_line(folder: Path) -> None:
    config = transformers.AlbertConfig(vocab_size=300, hidden_size=24, intermediate_size=40, num_attention_heads=3)
    with pytest.raises(ModelError, match="hat does not know the layers of a albert encoder; use a BERT"):
        Hat(of_kind(folder, config).encoder, HatOptions(), first=1)


# -- learning the gates -----------------------------------------------------------------------------------------------


def test_gates_of_known_embeddings(folder: Path) -> None:
    _, hat = grown(folder)
    hat.learn(1)
    hat.scale = 400.0
    known = torch.tensor([-0.1, 0.0, 0.3])
    with torch.no_grad():
        for embedding in hat.embedding.values():
            embedding.view(-1)[:3] = known
    for gate in hat.gates(1).values():
        found = gate.reshape(-1)[:3]
        torch.testing.assert_close(found, torch.tensor([4.248e-18, 0.5, 1.0]), rtol=1e-3, atol=0)


def test_ht2_hard_gates_are_zero_or_one(folder: Path) -> None:
    _, hat = grown(folder)
    hat.learn(1)
    hat.scale = 400.0
    with torch.no_grad():
        for embedding in hat.embedding.values():
            embedding.copy_(torch.where(embedding > 0, embedding.clamp(min=0.04), embedding.clamp(max=-0.04)))
    for family, gate in hat.gates(1).items():
        torch.testing.assert_close(gate, (hat.embedding[family] > 0).float(), rtol=0, atol=1e-6)


def test_annealing_begins_anew_each_epoch_and_ends_hard() -> None:
    scales = [scale_at(update, 5, s_max=400.0) for update in range(5)]
    assert scales[0] == 1 / 400
    assert scales[-1] == 400
    assert {round(later - earlier, 9) for earlier, later in pairwise(scales)} == {round((400 - 1 / 400) / 4, 9)}
    assert scale_at(0, 1, s_max=400.0) == 1 / 400  # hard gates would learn nothing


@pytest.mark.parametrize(("updates", "epochs", "sweep"), [(25, 4, 1), (10, 4, 1), (9, 4, 2), (3, 10, 4), (1, 100, 10)])
def test_gates_harden_over_ten_updates_at_least(folder: Path, updates: int, epochs: int, sweep: int) -> None:
    """Whole epochs, and the last update of a step has hard gates."""
    context = toy_context(tiny_model(folder, "addner"), ["PER"])
    places = [
        place_in_sweep(replace(context, epochs=epochs, epoch=epoch, updates=updates, update=update))
        for epoch in range(1, epochs + 1)
        for update in range(updates)
    ]
    assert {of for _, of in places} == {sweep * updates}
    assert places[-1][0] == sweep * updates - 1
    assert all((later - earlier) % (sweep * updates) == 1 for (earlier, _), (later, _) in pairwise(places))


def test_in_a_tiny_step_gates_learn_too(folder: Path) -> None:
    """Twenty epochs of one update."""
    step = step_of(1, ["PER"])
    training = SHORT.model_copy(update={"epochs": 20, "batch_tokens": 4096})
    free = []
    for strength in (0.0, 50.0):
        strategies = parse_strategies([{"name": "hat", "layers": 0, "strength": strength, "gate_lr": 1.0}])
        learner = Learner(tiny_model(folder, "addner"), strategies, training)
        events = list(learner.learn_step(step))
        assert {event.update for event in events if isinstance(event, UpdateDone)} == {1}
        free.append(hat_of(learner.model).free)
    assert free[0] is not None
    assert free[1] is not None
    assert free[1] > free[0] + 0.2


@given(draw.lists(draw.tuples(draw.floats(0, 1, width=32), draw.booleans()), min_size=1, max_size=12))
def test_ht3_the_price_of_units_is_the_mean_gate_of_those_that_are_free(units: list[tuple[float, bool]]) -> None:
    gates, used = zip(*units, strict=True)
    half = len(units) // 2 or 1
    split: dict[str, slice] = {"heads": slice(0, half), "intermediate": slice(half, None)}
    price = sparsity(
        {family: torch.tensor([gates[part]]) for family, part in split.items()},
        {family: torch.tensor([used[part]], dtype=torch.bool) for family, part in split.items()},
    )
    free = [gate for gate, taken in units if not taken]
    assert 0 <= price <= 1 + 1e-6
    assert float(price) == pytest.approx(sum(free) / len(free) if free else 0, abs=1e-6)


@pytest.mark.parametrize("scale", [1 / 400, 0.3, 1.0, 20.0, 400.0])
def test_ht4_the_compensated_derivative_is_that_of_soft_gates(scale: float) -> None:
    """Exactly, and in fp32 as far as it does not round gates to 0 or 1."""
    for dtype, most, tolerance in ((torch.float64, 15.0, 1e-7), (torch.float32, 8.0, 1e-3), (torch.float32, 15.0, 0.2)):
        reach = min(6.0, most / scale)
        embedding = torch.linspace(-reach, reach, 101, dtype=dtype, requires_grad=True)
        [gradient] = torch.autograd.grad(torch.sigmoid(scale * embedding).sum(), embedding)
        found = compensate(gradient[None], embedding.detach()[None], scale=scale, s_max=400.0)[0]
        soft = torch.sigmoid(embedding.detach().double())
        expected = 400 * soft * (1 - soft)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)


def test_embeddings_descend_at_their_own_rate_and_no_further_than_the_clamp(folder: Path) -> None:
    model = tiny_model(folder, "addner")
    strategy = HatStrategy(HatStrategyOptions(gate_lr=0.1, clamp=1.5))
    context = replace(toy_context(model, ["PER"], grown=False), rate=0.5, update=1, updates=3)
    strategy.begin_step(context)
    model.grow(["PER"], generator=torch.Generator().manual_seed(1))
    strategy.begin_stage(context)
    strategy.begin_update(context)
    hat = hat_of(model)
    before = {family: found.detach().clone() for family, found in hat.embedding.items()}
    gradient = {f"subnetworks.embedding.{family}": torch.full_like(found, 1e-6) for family, found in before.items()}
    changes = strategy.precondition(context, gradient)
    assert changes.keys() == gradient.keys()
    for family, found in before.items():
        slope = compensate(torch.full_like(found, 1e-6), found, scale=scale_at(1, 3, s_max=400.0), s_max=400.0)
        expected = (found - 0.1 * 0.5 * slope).clamp(-1.5, 1.5)
        torch.testing.assert_close(found + changes[f"subnetworks.embedding.{family}"], expected)


def test_the_price_of_units_leaves_more_of_them_free(folder: Path) -> None:
    free = []
    for strength in (0.0, 20.0):
        options = parse_strategies([{"name": "hat", "strength": strength}])
        learner = Learner(tiny_model(folder, "addner"), options, SHORT)
        events = list(learner.learn_step(step_of(1, ["PER"])))
        assert all("sparsity" in event.losses for event in events if isinstance(event, UpdateDone))
        free.append(hat_of(learner.model).free)
    assert free[1] > free[0] + 0.1


@pytest.mark.slow
def test_it_learns_both_steps_of_the_toy_stream(tmp_path: Path) -> None:
    stream = toy_stream()
    model = tiny_model(toy_encoder(tmp_path / "encoder"), "addner")
    learner = Learner(model, parse_strategies(["hat"]), GOOD_TRAINING)
    best = []
    for step in stream.steps:
        events = list(learner.learn_step(step))
        best.append(max(event.score or 0 for event in events if isinstance(event, EpochDone)))
    assert best[0] > 0.5
    assert best[1] > 0.8
