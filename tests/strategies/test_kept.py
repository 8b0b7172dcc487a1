"""State that another model kept is refused: tensors might be broadcast, or ignored without a word."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ner_cl.config import parse_strategies
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.kept import check_state
from ner_cl.train.learner import Learner
from tests.tiny import tiny_encoder, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, learner_of

STREAM = toy_stream(train=40)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def taught(folder: Path) -> Callable[[str], tuple[NerModel, State]]:
    """A model after step 1 of a strategy, and what the strategy kept."""
    found: dict[str, tuple[NerModel, State]] = {}

    def after(name: str) -> tuple[NerModel, State]:
        if name not in found:
            learner = learner_of(folder, ["distill", name])
            list(learner.learn_step(STREAM.steps[0]))
            found[name] = learner.model, dict(learner.model.strategy_state[name])
        return found[name]

    return after


def cut(part: Tensor) -> Tensor:
    square = part.ndim == 2 and part.shape[0] == part.shape[1]
    return (part[:-1, :-1] if square else part[..., :-1]).contiguous()


CHANGES: dict[str, tuple[Callable[[State], State], str]] = {
    "renamed": (
        lambda state: {f"other.{name}": part for name, part in state.items()},
        "which the model does not have|not as in the steps before|is neither a Fisher",
    ),
    "cut": (lambda state: {name: cut(part) for name, part in state.items()}, "of shape"),
    "one row": (lambda state: {name: part[:1] for name, part in state.items()}, "of shape"),
    "half": (lambda state: {name: part.half() for name, part in state.items()}, "of type float16 instead of float32"),
}
# A basis may have any number of columns, there may be any number of directions, and factors are square.
POSSIBLE = {("gpm", "cut"), ("ogd", "one row"), ("ncl", "one row")}
CASES = [(name, change) for name in ("das", "ewc", "gpm", "ncl", "ogd", "spg") for change in CHANGES]


@pytest.mark.parametrize(("name", "change"), [case for case in CASES if case not in POSSIBLE])
def test_state_of_another_model_is_refused(
    taught: Callable[[str], tuple[NerModel, State]], name: str, change: str
) -> None:
    model, kept = taught(name)
    changed, said = CHANGES[change]
    model.strategy_state = {name: changed(kept)}
    try:
        with pytest.raises((ModelError, ConfigError), match=said):
            list(Learner(model, parse_strategies(["distill", name]), SHORT_TRAINING).learn_step(STREAM.steps[1]))
        assert model.types == ("PER",)
    finally:
        model.strategy_state = {name: kept}


def test_a_negative_fisher_information_is_damaged(taught: Callable[[str], tuple[NerModel, State]]) -> None:
    model, kept = taught("ewc")
    model.strategy_state = {"ewc": {name: -part for name, part in kept.items()}}
    with pytest.raises(
        ModelError, match=r"what ewc kept of earlier steps is damaged .*fisher/.* is negative in places"
    ):
        Learner(model, parse_strategies(["distill", "ewc"]), SHORT_TRAINING)
    model.strategy_state = {"ewc": kept}


def test_a_fisher_information_without_an_anchor_is_damaged(taught: Callable[[str], tuple[NerModel, State]]) -> None:
    model, kept = taught("ewc")
    model.strategy_state = {"ewc": {name: part for name, part in kept.items() if name.startswith("fisher/")}}
    with pytest.raises(ModelError, match=r"damaged .* has a Fisher information or an anchor, but not both"):
        Learner(model, parse_strategies(["distill", "ewc"]), SHORT_TRAINING)
    model.strategy_state = {"ewc": kept}


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(
        ModelError,
        match=r"what spg kept of earlier steps is of another model \(it has w, of shape \[2\] instead of \[3\]\); "
        r"restore strategy/spg\.safetensors of the model folder, or delete it",
    ):
        check_state("spg", {"w": torch.ones(2)}, {"w": (3,)})
    check_state("spg", {"w": torch.ones(2)}, {"w": (2,), "other": (5,)})
