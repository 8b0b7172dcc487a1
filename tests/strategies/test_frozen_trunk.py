"""The frozen trunk: what lies below the top layers stays as step 1 left it, and is run once a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ner_cl.config import check_composition, parse_strategies
from ner_cl.errors import ConfigError
from ner_cl.model.encoder import Encoder
from ner_cl.model.subnetworks.trunk import all_layers
from ner_cl.train.events import EpochDone, Note, UpdateDone
from ner_cl.train.learner import Learner
from tests.tiny import ALIKE, tiny_encoder, toy_stream
from tests.train.toy_runs import GOOD_TRAINING, learner_of, same_weights, weights_of

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
TRUNK = {"name": "frozen_trunk", "layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=3)


def learned(folder: Path, *strategies: object, head: str = "extendner") -> tuple[Learner, list[dict[str, Tensor]]]:
    """A learner after two steps, and its weights after each."""
    learner = learner_of(folder, strategies, head=head)
    weights = []
    for step in toy_stream(train=60).steps:
        for _ in learner.learn_step(step):
            pass
        weights.append(weights_of(learner.model))
    return learner, weights


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@contextmanager
def passes_through(encoder: Encoder, layer: int) -> Iterator[list[int]]:
    """How many rows go through a layer."""
    rows: list[int] = []
    hook = all_layers(encoder)[layer].register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


@BOTH
@pytest.mark.parametrize("cache", [True, False])
def test_only_the_top_layers_and_the_head_change(folder: Path, head: str, cache: bool) -> None:
    fresh = weights_of(learner_of(folder, head=head).model)
    learner, (first, second) = learned(folder, {**TRUNK, "cache": cache}, head=head)
    encoder = "encoder.backbone.encoder.layer."
    for before, after in ((fresh, first), (first, second)):
        moved = changed({name: tensor for name, tensor in before.items() if not name.startswith("head.")}, after)
        assert {name.split(".")[4] for name in moved} == {"1", "2"}
        assert all(name.startswith(encoder) for name in moved)
    assert any(name.startswith("head.") for name in changed(first, second))
    assert all(parameter.requires_grad for parameter in learner.model.parameters())
    assert learner.model.encoder.shortcut is None


def test_what_begins_later_leaves_step_1_alone(folder: Path) -> None:
    _, (with_it, second) = learned(folder, {**TRUNK, "since": 2})
    _, (without, _) = learned(folder, "distill")
    assert same_weights(with_it, without)
    moved = {name for name in changed(with_it, second) if name.startswith("encoder.")}
    assert {name.split(".")[4] for name in moved} == {"1", "2"}


@BOTH
def test_kept_states_give_what_running_the_trunk_gives(folder: Path, head: str) -> None:
    _, (_, kept) = learned(folder, ALIKE, TRUNK, head=head)
    _, (_, run) = learned(folder, ALIKE, {**TRUNK, "cache": False}, head=head)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, run[name], rtol=1e-3, atol=1e-4)


def test_the_trunk_runs_once_over_the_sentences_of_a_step(folder: Path) -> None:
    """Training passes begin at the top layers, and so do all looks at the dev sentences but the first."""
    learner = learner_of(folder, [TRUNK], training=GOOD_TRAINING.model_copy(update={"epochs": 6}))
    first, second = toy_stream(train=60).steps
    list(learner.learn_step(first))
    with passes_through(learner.model.encoder, 0) as below, passes_through(learner.model.encoder, 2) as above:
        epochs = sum(isinstance(event, EpochDone) for event in learner.learn_step(second))
    assert epochs == 6
    # Beside the epochs, whole passes are made by the teacher, for the cache and to calibrate, wherever the time goes.
    assert sum(above) - sum(below) >= (epochs - 1) * (len(second.train) + len(second.dev))


def test_scores_while_training_are_those_of_the_whole_model(folder: Path) -> None:
    learner = learner_of(folder, [TRUNK])
    for step in toy_stream(train=60).steps:
        events = [event for event in learner.learn_step(step) if isinstance(event, EpochDone)]
        best = max((event for event in events if event.best), key=lambda event: event.epoch)
        counts = learner.count(step.dev, learner.model.types)
        tp, fp, fn = (sum(getattr(c, key) for c in counts.values()) for key in ("tp", "fp", "fn"))
        assert best.score == pytest.approx(2 * tp / max(1, 2 * tp + fp + fn))


@pytest.mark.parametrize(("layers", "learning"), [("auto", {"0", "1", "2"}), (1, {"2"}), (9, {"0", "1", "2"})])
def test_as_many_layers_learn_as_are_asked_for(folder: Path, layers: int | str, learning: set[str]) -> None:
    _, (first, second) = learned(folder, {"name": "frozen_trunk", "layers": layers})
    names = [name.split(".") for name in changed(first, second) if ".layer." in name]
    assert {name[name.index("layer") + 1] for name in names} == learning


def test_a_sixth_of_the_layers_stays_by_default(tmp_path: Path) -> None:
    learner = learner_of(tiny_encoder(tmp_path, layers=6), ["distill", "frozen_trunk"])
    before = weights_of(learner.model)
    list(learner.learn_step(toy_stream(train=60).steps[0]))
    moved = {name.split(".")[4] for name in changed(before, weights_of(learner.model)) if ".layer." in name}
    assert moved == {"1", "2", "3", "4", "5"}


def test_no_layers_is_as_if_it_were_not_there(folder: Path) -> None:
    _, (_, with_it) = learned(folder, {"name": "frozen_trunk", "layers": 0})
    _, (_, without) = learned(folder, "distill")
    assert same_weights(with_it, without)


@pytest.mark.parametrize("ground", [{"name": "rdp", "duplets": True}, "cfner", "is3", "lwf", "self_training"], ids=str)
def test_sentences_that_a_strategy_adds_by_itself_are_run(folder: Path, ground: object) -> None:
    """They have rows of the same numbers, and are not to be taken for the step's own."""
    (_, (_, kept)), (_, (_, run)) = (learned(folder, {**TRUNK, "cache": cache}, ground) for cache in (True, False))
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, run[name], rtol=2e-3, atol=5e-4, msg=name)


def test_attention_is_imitated_in_all_layers(folder: Path) -> None:
    """Where training begins at the top layers, a pass of its own shows what the lower ones look at."""
    learner = learner_of(folder, [TRUNK, "cpfd"])
    first, second = toy_stream(train=60).steps
    list(learner.learn_step(first))
    before = weights_of(learner.model)
    losses = [event.losses for event in learner.learn_step(second) if isinstance(event, EpochDone)]
    assert losses[-1]["attention"] > 0
    assert not {name for name in changed(before, weights_of(learner.model)) if "layer.0" in name}


def test_attention_takes_no_second_pass(folder: Path) -> None:
    """What is kept of frozen layers does not show what they look at, so all are run, once."""
    passes = []
    for cache in (True, False):
        learner = learner_of(folder, [{**TRUNK, "cache": cache}, "cpfd"])
        first, second = toy_stream(train=60).steps
        list(learner.learn_step(first))
        events = learner.learn_step(second)
        while not isinstance(next(events), UpdateDone):
            pass
        with passes_through(learner.model.encoder, 1) as rows:
            next(events)
        passes.append(sum(rows))
    assert passes[0] == passes[1] > 0


def test_embeddings_that_were_to_be_trained_and_are_not_are_told(folder: Path) -> None:
    for strategies, told in ((["distill", TRUNK], True), (["distill"], False)):
        learner = learner_of(folder, strategies, training=GOOD_TRAINING.model_copy(update={"train_embeddings": True}))
        events = list(learner.learn_step(toy_stream(train=60).steps[0]))
        said = [event.text for event in events if isinstance(event, Note)]
        assert any("training.train_embeddings has no effect" in text for text in said) == told


@pytest.mark.parametrize("other", ["frozen", "ice", "joint", "modules", "hat", "packnet"])
def test_what_says_itself_which_layers_learn_is_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be combined"):
        check_composition(parse_strategies([other, "frozen_trunk"]))
