"""The hooks of a strategy: their order, how often they are called, and the state they keep."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import StrategyOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.store import load_model
from ner_cl.registry import strategies
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.constraints import Constraint
from ner_cl.train.run import run_stream
from ner_cl.types import Sentence
from tests.tiny import toy_stream
from tests.train.toy_runs import SHORT_TRAINING, learner_of, run_config, step_files, toy_encoder

HOOKS = ["begin_step", "sentences", "gates", "losses", "constraints", "precondition", "end_step"]


class DiaryOptions(StrategyOptions):
    """Nothing to choose."""

    name: Literal["diary"] = "diary"


@final
class Diary(Strategy):
    """Writes down which hooks are called, and shuts the weights that the steps before moved most."""

    options_class = DiaryOptions

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self.calls: list[str] = []
        self.state: dict[str, Tensor] = {}

    def begin_step(self, context: StepContext) -> None:
        assert context.types[0] not in context.model.types
        self.calls.append("begin_step")
        self._start = {name: p.detach().clone() for name, p in context.model.named_parameters()}

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        assert context.types[0] not in context.model.types
        assert not hasattr(context, "encoded")
        self.calls.append("sentences")
        return train[:-5]

    def begin_epoch(self, context: StepContext) -> None:
        self.calls.append(f"begin_epoch {context.epoch}")

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        assert context.types[0] in context.model.types
        assert emissions.word_mask.shape == batch.targets.shape
        self.calls.append("losses")
        return {"diary": emissions.flat().pow(2).mean() * 1e-3}

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        self.calls.append("gates")
        return {name: 1 - importance for name, importance in self.state.items() if "LayerNorm" in name}

    def constraints(self, context: StepContext) -> Sequence[Constraint]:
        self.calls.append("constraints")
        return ()

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        assert gradient
        self.calls.append("precondition")
        return None

    def end_step(self, context: StepContext) -> None:
        assert not context.model.training
        assert all(p.requires_grad and p.grad is None for p in context.model.parameters())
        self.calls.append("end_step")
        for name, parameter in context.model.named_parameters():
            if name in self._start:
                moved = (parameter.detach() - self._start[name]).abs()
                self.state[name] = moved / moved.max().clamp(min=1e-12)
        self.state["steps"] = torch.tensor(context.number)

    def state_dict(self) -> dict[str, Tensor]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)


class SumOptions(StrategyOptions):
    """Nothing to choose."""

    name: Literal["sum"] = "sum"


@final
class Sum(Strategy):
    """Keeps numbers whose rounded sum depends on their order, one of them twice, and weights a loss with the sum."""

    options_class = SumOptions

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        self.parts: dict[str, Tensor] = {}

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        return {"sum": sum(self.parts.values(), torch.zeros(())) * 1e-3 * emissions.flat().pow(2).mean()}

    def end_step(self, context: StepContext) -> None:
        one, large = torch.tensor(1.0), torch.tensor(1e8)
        self.parts = {"large": large, "minus": -large, "first": one, "last": one}

    def state_dict(self) -> dict[str, Tensor]:
        return self.parts

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        assert state["first"] is not state["last"]
        self.parts = dict(state)


class AdderOptions(StrategyOptions):
    """Nothing to choose."""

    name: Literal["adder"] = "adder"


@final
class Adder(Strategy):
    """Adds a layer to the model, which nothing could load again."""

    options_class = AdderOptions

    def begin_step(self, context: StepContext) -> None:
        context.model.extra = torch.nn.Linear(2, 2)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    assert "distill" in strategies  # the built-in ones are loaded
    mine: dict[str, type[Strategy]] = {"adder": Adder, "diary": Diary, "sum": Sum}
    for name, strategy in mine.items():
        strategies.register(name)(strategy)
    yield
    for name in mine:
        del strategies._parts[name]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder"))


def test_hooks_are_called_in_order_once_for_every_update(encoder: Path) -> None:
    training = SHORT_TRAINING.model_copy(update={"batch_tokens": 64, "accumulate": 2})
    learner = learner_of(encoder, ["diary"], training=training)
    diary = next(strategy for strategy in learner.strategies if isinstance(strategy, Diary))
    assert [strategy.options.name for strategy in learner.strategies] == ["diary", "distill"]
    step = toy_stream(train=60).steps[0]
    updates = [event for event in learner.learn_step(step) if type(event).__name__ == "UpdateDone"]
    count = len(updates)
    calls = diary.calls
    assert list(dict.fromkeys(call for call in calls if not call.startswith("begin_epoch"))) == HOOKS
    assert [calls.count(hook) for hook in ("begin_step", "sentences", "gates", "end_step")] == [1, 1, 1, 1]
    assert calls.count("constraints") == calls.count("precondition") == count
    batches = calls.count("losses") // 2
    assert batches > 2
    assert count == 2 * -(-batches // 2)
    assert [call for call in calls if call.startswith("begin_epoch")] == ["begin_epoch 1", "begin_epoch 2"]
    assert learner.sentences == len(step.train) - 5
    assert all(event.losses.keys() == {"ce", "diary"} for event in updates)


def test_hooks_stand_in_the_order_in_which_they_are_called(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(encoder, ["diary"], training=SHORT_TRAINING)
    diary = next(strategy for strategy in learner.strategies if isinstance(strategy, Diary))
    named = list(vars(Strategy))
    hooks = named[named.index("begin_step") : named.index("release") + 1]
    called: list[str] = []
    for hook in hooks:

        def told(*given: object, hook: str = hook, plain: Any = getattr(diary, hook)) -> object:
            called.append(hook)
            return plain(*given)

        monkeypatch.setattr(diary, hook, told)
    list(learner.learn_step(toy_stream(train=60).steps[0]))
    assert list(dict.fromkeys(called)) == hooks


def test_the_state_of_a_strategy_survives_saving_and_acts_on_the_next_step(tmp_path: Path) -> None:
    config = run_config(tmp_path, strategies=["diary"], output=str(tmp_path / "straight"))
    straight = run_stream(config)
    first = load_model(straight.folder / "steps" / "01")
    assert first.strategy_state.keys() == {"diary"}
    assert int(first.strategy_state["diary"]["steps"]) == 1
    expected = step_files(straight.folder)
    kept = load_model(straight.folder / "steps" / "02").strategy_state["diary"]
    shutil.rmtree(straight.folder / "steps" / "02")
    run_stream(config, resume=True)
    assert step_files(straight.folder) == expected
    again = load_model(straight.folder / "steps" / "02").strategy_state["diary"]
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    # The state was read: the weight that moved most in step 1 stands still in step 2.
    importance = first.strategy_state["diary"]
    second = load_model(straight.folder / "steps" / "02")
    for name in (name for name in importance if "LayerNorm" in name):
        shut = importance[name] == 1
        assert shut.any()
        assert torch.equal(second.get_parameter(name)[shut], first.get_parameter(name)[shut])


def test_state_in_any_order_gives_the_same_weights_when_a_run_is_resumed(tmp_path: Path) -> None:
    config = run_config(tmp_path, strategies=["sum"], output=str(tmp_path / "run"))
    whole = step_files(run_stream(config).folder)
    shutil.rmtree(tmp_path / "run" / "steps" / "02")
    run_stream(config, resume=True)
    assert step_files(tmp_path / "run") == whole


def test_parameters_that_could_not_be_loaded_are_refused_before_training(encoder: Path) -> None:
    learner = learner_of(encoder, ["adder"])
    with pytest.raises(ModelError, match=r"adder added extra\.weight to the model, which could not be loaded again"):
        next(iter(learner.learn_step(toy_stream(train=60).steps[0])))


def test_of_those_that_hold_old_types_one_is_enough() -> None:
    from ner_cl.config import parse_strategies

    assert [s.options.name for s in build_strategies(parse_strategies(["frozen", "diary"]))] == ["diary", "frozen"]
    with pytest.raises(ConfigError, match="strategies: finetune and joint both say how old types are held"):
        build_strategies(parse_strategies(["finetune", "joint"]))
