"""A frozen encoder is run once over the sentences of a step, and what it gives is what it would give again."""

from pathlib import Path

import pytest
import torch

from ner_cl.model.subnetworks.trunk import all_layers
from ner_cl.train.events import EpochDone
from ner_cl.train.learner import Learner
from tests.tiny import tiny_encoder, toy_stream
from tests.train.toy_runs import GOOD_TRAINING, learner_of, weights_of

FROZEN = pytest.mark.parametrize("strategy", ["frozen", "ice"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def after_step_1(folder: Path, strategy: str, *, epochs: int = 2) -> Learner:
    learner = learner_of(folder, [strategy], training=GOOD_TRAINING.model_copy(update={"epochs": epochs}))
    list(learner.learn_step(toy_stream(train=60).steps[0]))
    return learner


def rows_passed(learner: Learner, epochs: int) -> int:
    """How many rows the last layer sees in step 2."""
    rows: list[int] = []
    last = all_layers(learner.model.encoder)[-1]
    hook = last.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    events = list(learner.learn_step(toy_stream(train=60).steps[1]))
    hook.remove()
    assert sum(isinstance(event, EpochDone) for event in events) == epochs
    return sum(rows)


@FROZEN
def test_more_epochs_are_not_more_passes(folder: Path, strategy: str) -> None:
    second = toy_stream(train=60).steps[1]
    passed = [rows_passed(after_step_1(folder, strategy, epochs=epochs), epochs) for epochs in (2, 8)]
    assert passed[0] == passed[1] >= len(second.train) + len(second.dev)


@FROZEN
def test_what_is_kept_is_what_the_encoder_gives(folder: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    second = toy_stream(train=60).steps[1]
    kept, run = (after_step_1(folder, strategy) for _ in range(2))
    events = list(kept.learn_step(second))
    monkeypatch.setattr(f"ner_cl.strategies.{strategy}.read_once", lambda context, learning: None)
    again = list(run.learn_step(second))
    for name, tensor in weights_of(kept.model).items():
        torch.testing.assert_close(tensor, weights_of(run.model)[name], rtol=1e-3, atol=1e-4)
    scores = [[event.score for event in found if isinstance(event, EpochDone)] for found in (events, again)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert kept.model.encoder.shortcut is None
