"""What every registered strategy must do with every head, whatever its idea."""

import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ner_cl.config import OptimizerOptions, TrainingOptions, check_composition, parse_config, parse_strategies
from ner_cl.data.stream import Step, Stream, build_stream
from ner_cl.errors import ConfigError
from ner_cl.evaluate.matrix import Matrix
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.registry import heads, strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.build import build_strategies
from ner_cl.train.events import UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.optimizer import make_optimizer
from ner_cl.train.run import Run, run_stream
from tests.tiny import tiny_model, toy_corpus
from tests.train.toy_runs import (
    SHORT_TRAINING,
    Interrupted,
    interrupt_at,
    no_dropout,
    run_config,
    run_values,
    same_weights,
    step_files,
    teaches,
    toy_encoder,
    weights_of,
)

# Options under which a strategy does nothing: training is then that of the list without it, to the last bit (T10).
POWERLESS: dict[str, dict[str, Any]] = {
    "bias_correction": {"strength": 0.0},
    "ewc": {"strength": 0.0},
    "frozen_trunk": {"layers": 0},
    "gpm": {"threshold": 0.0},
    "logit_adjustment": {"strength": 0.0},
    "lwf": {"strength": 0.0},
    "ogd": {"per_step": 0},
    "replay": {"weight": 0.0},
    "slda": {"strength": 0.0},
    "weight_average": {"old_share": 0.0},
}
# Strategies that do nothing in a step that finds nothing remembered of earlier ones, whatever their options.
POWERLESS_WITHOUT_STATE = {"agem", "das", "ewc", "gem", "gpm", "ogd", "replay", "spg"}
# What cannot be turned off, and why.
ALWAYS_AT_WORK = {
    "cfner": "it is a ground that others stand on",
    "cpfd": "it is a ground that others stand on",
    "distill": "it is a ground that others stand on",
    "finetune": "it is a ground that others stand on",
    "frozen": "it is a ground that others stand on",
    "hat": "it is a ground of its own, where nothing else can be listed",
    "ice": "it is a ground that others stand on",
    "is3": "it is a ground that others stand on",
    "joint": "it is a ground that others stand on",
    "modules": "it is a ground of its own, where nothing else can be listed",
    "ncl": "from step 2 on it takes the optimizer's place",
    "packnet": "it is a ground of its own, where nothing else can be listed",
    "rdp": "it is a ground that others stand on",
    "self_training": "it is a ground that others stand on",
}
# Options under which step 1 is plain training (T11), where the default is not.
PLAIN_AT_FIRST: dict[str, dict[str, Any]] = {
    "das": {"general_sentences": 0},
    "frozen_trunk": {"since": 2},
    "logit_adjustment": {"strength": 0.0},
    "slda": {"strength": 0.0},
}
# Strategies whose step 1 is more than plain training (T11), and why.
NEVER_PLAIN = {
    "hat": "step 1 leaves units to later steps, and its gates are trained with it",
    "ice": "its `O` is a constant from the first step on",
    "packnet": "it prunes and trains again, or there would be nothing for step 2",
}

PAIRS = [(strategy, head) for strategy in strategies for head in heads if teaches(strategy, head)]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])
every_strategy = pytest.mark.parametrize("name", list(strategies))


def pairs_of(names: Iterable[str]) -> pytest.MarkDecorator:
    """The pairs of some strategies only."""
    chosen = [pair for pair in PAIRS if pair[0] in names]
    return pytest.mark.parametrize("pair", chosen, ids=["-".join(pair) for pair in chosen])


Pair = tuple[str, str]
# Under SGD, because Adam turns a gradient that is only rounding into a whole step.
SGD = SHORT_TRAINING.model_copy(update={"optimizer": OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1)})


class Learned:
    """A model after step 1 and after step 2, with what its strategies keep; each is learned when it is asked for."""

    def __init__(self, learner: Learner, stream: Stream) -> None:
        self._learner, self._stream = learner, stream

    @cached_property
    def first(self) -> NerModel:
        learn_step(self._learner, self._stream, 1)
        return copy.deepcopy(self._learner.model)

    @cached_property
    def second(self) -> NerModel:
        _ = self.first
        learn_step(self._learner, self._stream, 2)
        return self._learner.model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for files that nobody needs after the power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module")
def runs(home: Path) -> Mapping[Pair, Run]:
    """The uninterrupted run of a pair, made when it is first asked for."""

    class Runs(dict[Pair, Run]):
        def __missing__(self, pair: Pair) -> Run:
            self[pair] = run_stream(run_config(home, **changes(pair), output=str(home / "-".join(pair))))
            return self[pair]

    return Runs()


def changes(pair: Pair, **training: Any) -> dict[str, Any]:
    strategy, head = pair
    return {"strategies": [strategy], "head": {"name": head}, "training": {"checkpoint_seconds": 9999, **training}}


@pytest.fixture(scope="module")
def stream() -> Stream:
    return build_stream(toy_corpus(train=60, dev=20, test=40), [["PER"], ["LOC"]])


@pytest.fixture(scope="module")
def untaught(home: Path) -> Callable[[str], NerModel]:
    """A model with a head that knows nothing, a new one every time."""
    toy_encoder(home / "tiny")
    models = {head: tiny_model(home / "tiny", head) for head in heads}
    return lambda head: copy.deepcopy(models[head])


@pytest.fixture(scope="module")
def learned(untaught: Callable[[str], NerModel], stream: Stream) -> Callable[..., Learned]:
    """Two steps in memory; the same list, head and training are learned once."""
    known: dict[tuple[str, str, str], Learned] = {}

    def learn(names: Sequence[Any], head: str, training: TrainingOptions = SHORT_TRAINING) -> Learned:
        options = parse_strategies(names)
        key = (repr(sorted(options, key=lambda item: item.name)), head, training.model_dump_json())
        if key not in known:
            known[key] = Learned(Learner(untaught(head), options, training), stream)
        return known[key]

    return learn


def learn_step(learner: Learner, stream: Stream, number: int, *, dev: bool = True) -> None:
    """One step; a strategy that may look at earlier data is given them."""
    step = stream.steps[number - 1]
    for _ in learner.learn_step(
        step if dev else Step(step.number, step.types, step.train, ()),
        old_steps=[earlier.types for earlier in stream.steps[: number - 1]],
        earlier=stream.everything_until(number),
        earlier_dev=stream.dev_everything_until(number) if dev else (),
    ):
        pass


def ground_of(name: str) -> str:
    """What a strategy alone in a list is added to; itself, if it is a ground."""
    return next(s.options.name for s in build_strategies(parse_strategies([name])) if s.holds_old_types)


@every_pair
def test_two_steps_train_and_old_columns_keep_their_ids(runs: Mapping[Pair, Run], pair: Pair) -> None:
    run = runs[pair]
    assert len(run.matrix.counts) == 2
    models = [load_model(run.folder / "steps" / name) for name in ("01", "02")]
    assert [model.types for model in models] == [("PER",), ("PER", "LOC")]
    assert models[1].tagset.tags[: len(models[0].tagset.tags)] == models[0].tagset.tags
    for model in models:
        assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert isinstance(models[1].predict("Ada visited Rome ."), list)
    if pair[0] != "ice":  # whose columns have no bias; those of other new blocks are all equal until they are trained
        trained = models[1].head.new_block().named_parameters()
        assert any(len(parameter.unique()) > 1 for name, parameter in trained if name.endswith("bias"))
    assert Matrix.load(run.folder) == run.matrix


@every_pair
def test_the_result_is_the_same_again_and_after_interruptions(home: Path, runs: Mapping[Pair, Run], pair: Pair) -> None:
    """S1: bit for bit, whether in one process, from a published step, or from the middle of one."""
    run = runs[pair]
    expected = step_files(run.folder)
    config = run_config(home, **changes(pair, checkpoint_seconds=0), output=str(home / "stopped" / "-".join(pair)))
    stopped = Path(config.output)
    for number, update in enumerate((2, 6)):  # in the middle of step 1, and of step 2
        with pytest.raises(Interrupted):
            run_stream(config, resume=number > 0, on_event=interrupt_at(update))
    run_stream(config, resume=True)
    assert step_files(stopped) == expected
    shutil.rmtree(stopped / "steps" / "02")
    assert not (stopped / "checkpoints").exists()
    run_stream(config, resume=True)
    assert step_files(stopped) == expected
    for path in (run.folder / "steps").glob("*/strategy/*"):
        other = stopped / path.relative_to(run.folder)
        if path.suffix == ".safetensors":
            assert same_weights(safetensors.torch.load_file(path), safetensors.torch.load_file(other))
        else:
            assert path.read_bytes() == other.read_bytes()


@every_pair
def test_t13_what_it_keeps_survives_saving_and_loading(home: Path, runs: Mapping[Pair, Run], pair: Pair) -> None:
    """T13: the model folder byte for byte, the state bit for bit, the sentences word for word."""
    folder = runs[pair].folder / "steps" / "02"
    copy_ = home / "saved" / "-".join(pair)
    model = load_model(folder)
    model.save(copy_)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(copy_)) for path in copy_.rglob("*") if path.is_file())
    for name in names:
        assert (copy_ / name).read_bytes() == (folder / name).read_bytes(), name
    learner = Learner(model, runs[pair].config.strategies, SHORT_TRAINING)
    for strategy in learner.strategies:
        name = strategy.options.name
        assert same_weights(dict(strategy.state_dict()), dict(model.strategy_state.get(name, {})))
        assert tuple(strategy.kept_sentences()) == tuple(model.kept_sentences.get(name, ()))
    assert {*model.strategy_state, *model.kept_sentences} <= {s.options.name for s in learner.strategies}


@every_pair
def test_bf16_trains(learned: Callable[..., Learned], monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    name, head = pair
    computed: set[torch.dtype] = set()
    real = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
        result = real(self, values)
        computed.add(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    model = learned([name], head, SHORT_TRAINING.model_copy(update={"precision": "bf16", "epochs": 1})).second
    assert torch.bfloat16 in computed
    floating = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in floating)


class Cut(Strategy):
    """Makes every update of the same eight rows, in so many batches; after all other strategies had their say."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(parse_strategies(["finetune"])[0].model_copy(update={"name": "zz_cut"}))
        self.sizes = sizes

    def plan(self, context: StepContext, batches: list[list[int]], generator: np.random.Generator) -> list[list[int]]:
        rows = [row for batch in batches for row in batch]
        return [
            rows[start + sum(self.sizes[:part]) :][:size]
            for start in range(0, len(rows) - 7, 8)
            for part, size in enumerate(self.sizes)
        ]


@pytest.fixture(scope="module")
def cut(untaught: Callable[[str], NerModel], stream: Stream) -> Callable[..., tuple[Any, Any]]:
    """Weights after each of two steps under SGD and without dropout, every update cut into batches of some sizes."""
    known: dict[tuple[str, str, tuple[int, ...]], tuple[Any, Any]] = {}

    def learn(name: str, head: str, *sizes: int) -> tuple[Any, Any]:
        if (name, head, sizes) not in known:
            training = SGD.model_copy(update={"accumulate": len(sizes), "train_embeddings": True, "epochs": 1})
            options = parse_strategies([{"name": name, **PLAIN_AT_FIRST.get(name, {})}])
            learner = Learner(no_dropout(untaught(head)), options, training)
            learner.strategies.append(Cut(*sizes))
            weights = []
            for number in (1, 2):
                learn_step(learner, stream, number, dev=False)
                weights.append(weights_of(learner.model))
            known[name, head, sizes] = (weights[0], weights[1])
        return known[name, head, sizes]

    return learn


@every_pair
def test_t9_accumulated_batches_equal_one_batch(cut: Callable[..., tuple[Any, Any]], pair: Pair) -> None:
    """T9: hooks fire once an update, however its batches are cut."""
    for whole, halved in zip(cut(*pair, 8), cut(*pair, 5, 3), strict=True):
        assert_close(halved, whole, 5e-5)


@pairs_of(set(strategies) - NEVER_PLAIN.keys())
def test_t11_step_one_is_plain_training(cut: Callable[..., tuple[Any, Any]], pair: Pair) -> None:
    """T11: where there is nothing to forget, strategies do the same, but for rounding."""
    name, head = pair
    assert_close(cut(name, head, 8)[0], cut("finetune", head, 8)[0], 1e-5)


def assert_close(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@every_strategy
def test_it_is_known_how_a_strategy_is_turned_off(name: str) -> None:
    """A new one says so here, or why it cannot be."""
    assert (name in POWERLESS or name in POWERLESS_WITHOUT_STATE) != (name in ALWAYS_AT_WORK)


@pairs_of(POWERLESS)
def test_t10_without_strength_it_is_what_it_stands_on(learned: Callable[..., Learned], pair: Pair) -> None:
    """T10: the list with a strategy that is turned off gives the weights of the list without it, bit for bit."""
    name, head = pair
    ground = "finetune" if strategies[name].holds_old_types else ground_of(name)
    off, without = learned([{"name": name, **POWERLESS[name]}], head), learned([ground], head)
    assert same_weights(off.first, without.first)
    assert same_weights(off.second, without.second)


@pairs_of({name for name in POWERLESS if strategies[name].keeps})
def test_t10_turned_off_after_a_step_it_lets_go_of_what_it_keeps(
    learned: Callable[..., Learned], stream: Stream, pair: Pair
) -> None:
    """T10 in step 2, on a model whose step 1 was learned with the strategy at work."""
    name, head = pair
    first = learned([name], head).first
    assert name in {*first.strategy_state, *first.kept_sentences}
    off, without = learner_after(first, [{"name": name, **POWERLESS[name]}]), learner_after(first, [ground_of(name)])
    for learner in (off, without):
        learn_step(learner, stream, 2)
    assert same_weights(off.model, without.model)


@pairs_of(POWERLESS_WITHOUT_STATE)
def test_t10_without_what_it_remembers_it_is_what_it_stands_on(
    learned: Callable[..., Learned], stream: Stream, pair: Pair
) -> None:
    """T10 with an empty memory: step 2 on the weights of step 1 whose state somebody deleted."""
    name, head = pair
    names, ground = [{"name": name, **PLAIN_AT_FIRST.get(name, {})}], learned([ground_of(name)], head)
    first = learned(names, head).first
    assert name in {*first.strategy_state, *first.kept_sentences}
    assert same_weights(first, ground.first)
    learner = learner_after(first, names, forget=True)
    learn_step(learner, stream, 2)
    assert same_weights(learner.model, ground.second)


def learner_after(model: NerModel, names: Sequence[Any], *, forget: bool = False) -> Learner:
    """A new learner on a copy of a model, which its strategies remember something of or not."""
    model = copy.deepcopy(model)
    if forget:
        model.strategy_state, model.kept_sentences = {}, {}
    return Learner(model, parse_strategies(names), SHORT_TRAINING)


@every_pair
def test_t14_a_gradient_that_is_not_finite_changes_nothing(
    runs: Mapping[Pair, Run], stream: Stream, monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    """T14: the update is left out; weights, moments and what strategies keep are as before it."""
    learner = learner_after(load_model(runs[pair].folder / "steps" / "01"), [pair[0]])
    spoil = [False]
    optimizers: list[torch.optim.Optimizer] = []
    average = learner.engine.average_gradients

    def spoiled(parameters: Iterable[torch.nn.Parameter]) -> None:
        average(parameters)
        if spoil[0]:
            gradient = next(p.grad for p in learner.model.head.parameters() if p.grad is not None)
            gradient.view(-1)[0] = torch.nan

    def remembered(*arguments: Any) -> torch.optim.Optimizer:
        optimizers.append(make_optimizer(*arguments))
        return optimizers[-1]

    monkeypatch.setattr(learner.engine, "average_gradients", spoiled)
    monkeypatch.setattr("ner_cl.train.loop.make_optimizer", remembered)
    step = stream.steps[1]
    events = learner.learn_step(
        step, old_steps=[stream.steps[0].types], earlier=stream.everything_until(2), earlier_dev=step.dev
    )
    next(event for event in events if isinstance(event, UpdateDone))
    before = everything(learner, optimizers[0])
    spoil[0] = True
    event = next(event for event in events if isinstance(event, UpdateDone))
    assert event.skipped
    after = everything(learner, optimizers[0])
    assert same_weights(before, after)
    spoil[0] = False
    event = next(event for event in events if isinstance(event, UpdateDone))
    assert not event.skipped
    assert not same_weights(everything(learner, optimizers[0]), after)


def everything(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all tensors that an update may change."""
    found = dict(weights_of(learner.model))
    for strategy in learner.strategies:
        for kind, tensors in (("state", strategy.state_dict()), ("progress", strategy.progress())):
            found |= {f"{kind}/{strategy.options.name}/{key}": tensor.clone() for key, tensor in tensors.items()}
    for index, values in optimizer.state_dict()["state"].items():
        found |= {f"{index}/{key}": v.clone() for key, v in values.items() if isinstance(v, Tensor)}
    return found


@every_strategy
def test_the_order_of_the_list_does_not_matter(learned: Callable[..., Learned], name: str, stream: Stream) -> None:
    """Beside one that holds old types: `distill`, or for those that do so themselves, any that does not."""
    partners = (s for s in strategies if strategies[s].holds_old_types != strategies[name].holds_old_types)
    partner = next((s for s in partners if not refused(name, s)), None)
    if partner is None:
        pytest.skip("no strategy is registered that could be listed beside this one")
    found = []
    # What keeps steps apart needs a head of blocks, and a model that it has taught before.
    first, head = ([name], "addner") if strategies[name].isolates else (["finetune"], "extendner")
    for names in ([name, partner], [partner, name]):
        assert [s.options.name for s in build_strategies(parse_strategies(names))] == sorted(names)
        learner = learner_after(learned(first, head).first, names)
        learn_step(learner, stream, 2)
        found.append(learner.model)
    assert same_weights(*found)
    assert found[0].kept_sentences == found[1].kept_sentences
    for key, state in found[0].strategy_state.items():
        assert same_weights(dict(state), dict(found[1].strategy_state[key]))


def refused(*names: str) -> str:
    """Why a list is refused; "" if it is not."""
    try:
        check_composition(parse_strategies(names))
    except ConfigError as error:
        return str(error)
    return ""


@every_strategy
def test_what_cannot_be_composed_is_refused_with_a_reason(home: Path, name: str) -> None:
    """In both orders, for every pair of registered strategies; and by the configuration, before anything runs."""
    class_ = strategies[name]
    for other in set(strategies) - {name}:
        expected = (
            (class_.holds_old_types and strategies[other].holds_old_types)
            or other in class_.excludes
            or name in strategies[other].excludes
        )
        for names in ((name, other), (other, name)):
            message = refused(*names)
            assert bool(message) == expected, names
            assert not message or (name in message and other in message and "keep one" in message)
    assert name not in class_.excludes
    for other, reason in class_.excludes.items():
        assert other in strategies, f"{name} refuses {other}, which is no strategy"
        assert len(reason.split()) > 3, f"{name} does not say why it refuses {other}"
        assert reason[-1] != "."
        with pytest.raises(ConfigError, match=f"strategies: .*{name} and {other} cannot be combined|both say how"):
            parse_config(run_values(home, strategies=[name, other]))


@every_strategy
def test_a_strategy_is_one_final_class_with_frozen_options(name: str) -> None:
    class_ = strategies[name]
    assert issubclass(class_, Strategy)
    assert getattr(class_, "__final__", sys.version_info < (3, 11))  # 3.10 does not mark final classes
    assert class_.__doc__
    options = class_.options_class()
    assert options.name == name
    assert parse_strategies([name]) == parse_strategies([{"name": name}]) == (options,)
    assert class_.options_class.model_config["frozen"]
    assert copy.deepcopy(class_(options).options) == options
    assert class_(options).state_dict() == {}
    assert class_(options).progress() == {}
    assert tuple(class_(options).kept_sentences()) == ()


@every_strategy
def test_nothing_but_the_upper_bound_sees_earlier_data(name: str) -> None:
    strategy = strategies[name](strategies[name].options_class())
    assert strategy.reads_earlier == ("all" if name == "joint" else None)
    assert not strategy.last_step_only


@every_strategy
def test_every_option_is_explained(name: str) -> None:
    """In the docstring of the class that has it, or of one of those it has it from."""
    class_ = strategies[name].options_class
    explained = "\n".join(base.__doc__ or "" for base in class_.__mro__)
    for option in set(class_.model_fields) - {"name"}:
        assert f"    {option}: " in explained, f"{class_.__name__}.{option}"
