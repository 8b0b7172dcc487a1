"""The upper bound: it starts afresh in every step and sees everything."""

import copy
from pathlib import Path

import pytest
import torch

from ner_cl.config import TrainingOptions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import Strategy
from ner_cl.strategies.finetune import FinetuneOptions
from ner_cl.strategies.joint import Joint, JointOptions
from ner_cl.train.learner import Learner
from ner_cl.train.run import learn_step
from tests.tiny import (
    TOY_TRAINING,
    tiny_encoder,
    tiny_model,
    toy_context,
    toy_sentences,
    toy_stream,
)

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
STREAM = toy_stream(train=60)
SHORT = TOY_TRAINING.model_copy(update={"epochs": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def learn_second(model: NerModel, training: TrainingOptions = SHORT) -> NerModel:
    learner = Learner(model, [JointOptions()], training)
    for _ in learner.learn_step(STREAM.steps[1], earlier=STREAM.everything_until(2)):
        pass
    return learner.model


@BOTH
def test_nothing_of_the_earlier_weights_is_left(folder: Path, head: str) -> None:
    """From a ruined model it comes to the same weights, to the last bit."""
    model = tiny_model(folder, head, steps=[["PER"]])
    ruined = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in ruined.parameters():
            parameter.normal_()
    one, other = learn_second(model).state_dict(), learn_second(ruined).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@BOTH
def test_the_step_begins_with_the_pretrained_encoder_and_an_untrained_head(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"]])
    pretrained = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    learner = Learner(model, [JointOptions()], SHORT)
    next(learner.learn_step(STREAM.steps[1], earlier=STREAM.everything_until(2)))  # stops before the first update
    assert all(torch.equal(model.encoder.state_dict()[name], tensor) for name, tensor in pretrained.items())
    assert model.tagset.steps == (("PER",), ("LOC",))
    assert all(block.weight.abs().max() < 0.2 and not block.bias.any() for block in model.head.blocks)


def test_it_trains_on_everything_so_far_with_all_its_annotation(folder: Path) -> None:
    earlier = toy_sentences(5, seed=1)
    model = tiny_model(folder, steps=[["PER"]])
    context = toy_context(model, ["LOC"], earlier=earlier, grown=False)
    asked: list[str] = []
    context.reset_model = lambda: asked.append("reset")
    joint = Joint(JointOptions())
    joint.begin_step(context)
    assert asked == ["reset"]
    assert tuple(joint.sentences(context, toy_sentences(2, seed=9))) == earlier


def test_only_a_strategy_that_says_so_sees_earlier_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    begin_step = Strategy.begin_step

    def spy(self: Strategy, context) -> None:  # type: ignore[no-untyped-def]
        found[type(self).__name__] = context.earlier
        begin_step(self, context)

    monkeypatch.setattr("ner_cl.strategies.finetune.Finetune.begin_step", spy, raising=False)
    monkeypatch.setattr("ner_cl.strategies.joint.Joint.begin_step", spy)
    for options in (FinetuneOptions(), JointOptions()):
        learner = Learner(tiny_model(folder, steps=[["PER"]]), [options], SHORT)
        next(learner.learn_step(STREAM.steps[1], earlier=STREAM.everything_until(2)))
    assert found == {"Finetune": (), "Joint": STREAM.everything_until(2)}


@pytest.mark.parametrize("annotation", ["all", "own"])
def test_a_run_gives_it_all_annotation_or_that_of_the_steps(folder: Path, annotation: str) -> None:
    learner = Learner(tiny_model(folder), [JointOptions(annotation=annotation)], SHORT)  # type: ignore[arg-type]
    for step in STREAM.steps:
        list(learn_step(learner, step, STREAM))
    found = {sentence.annotated_types for sentence in learner.loop.context.encoded.sentences}
    both, apart = {frozenset({"PER", "LOC"})}, {frozenset({"PER"}), frozenset({"LOC"})}
    assert found == (both if annotation == "all" else apart)
