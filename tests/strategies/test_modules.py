"""Modular networks: every kind and join learns, resumes to the last bit, and moves nothing that was learned before."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ner_cl.config import HeadOptions, parse_config, parse_strategies
from ner_cl.data.stream import Step, Stream
from ner_cl.errors import CheckFailed, ConfigError
from ner_cl.evaluate.counts import micro_f1
from ner_cl.model.emissions import emissions_of
from ner_cl.model.heads.addner import AddNer
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.model.subnetworks.joins import Fusion
from ner_cl.model.subnetworks.modules import ModuleOptions, Modules
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.strategies.modules import ModuleStrategy, ModuleStrategyOptions
from ner_cl.train.events import EpochDone, StepStarted
from ner_cl.train.learner import Learner
from ner_cl.train.run import run_stream
from tests.model.test_subnetworks import every_case
from tests.tiny import tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import (
    GOOD_TRAINING,
    SHORT_TRAINING,
    Interrupted,
    interrupt_at,
    run_config,
    run_values,
    step_files,
    toy_encoder,
    weights_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def stream() -> Stream:
    return toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=75)


def head_for(join: str) -> HeadOptions:
    return HeadOptions(name="addner", merge="vote" if join == "vote" else "resolver")


def learner_of(folder: Path, join: str = "separate", *, steps: Sequence[Sequence[str]] = (), **options: Any) -> Learner:
    """A learner whose encoder is never trained: a tiny one that was trained for one type serves no other."""
    size = {} if options.get("kind") == "copy" else {"size": 4}
    values = {"name": "modules", "trunk": "pretrained", "join": join, **size, **options}
    return Learner(tiny_model(folder, head_for(join), steps=steps), parse_strategies([values]), SHORT_TRAINING)


def learn(learner: Learner, stream: Stream, *numbers: int) -> list[Any]:
    return [event for number in numbers for event in learner.learn_step(stream.steps[number - 1])]


def emitted(model: NerModel, *steps: int) -> list[Tensor]:
    """What the blocks of some steps say of sentences that nobody has seen."""
    encoded = model.encode(toy_sentences(12, seed=77))
    found = [emissions for _, emissions in emissions_of(model, encoded, steps=steps, precision="fp32")]
    return [torch.cat([e.blocks[step - 1][e.word_mask] for e in found]) for step in steps]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_case
def test_every_kind_and_join_learns_and_keeps_what_was_learned(
    folder: Path, stream: Stream, tmp_path: Path, kind: str, join: str
) -> None:
    learner = learner_of(folder, join, kind=kind)
    model = learner.model
    encoder = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    learn(learner, stream, 1)
    known = emitted(model, 1)
    events = learn(learner, stream, 2)
    losses = [event.losses["ce"] for event in events if isinstance(event, EpochDone)]
    assert losses[-1] < losses[0]
    assert learner.isolation is not None
    assert learner.isolation.record()["unchanged"] == [1]
    assert same(known, emitted(model, 1))
    assert all(torch.equal(tensor, model.encoder.state_dict()[name]) for name, tensor in encoder.items())  # PF2
    assert all(parameter.grad is None for parameter in model.parameters())
    model.save(tmp_path / "model")
    assert same(emitted(model, 1, 2), emitted(load_model(tmp_path / "model"), 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["learned", "pretrained"])
def test_modules_learn_their_types(folder: Path, trunk: str) -> None:
    stream = toy_stream(train=240)
    learner = learner_of(folder, "skip", kind="copy", trunk=trunk)
    learner.training = GOOD_TRAINING
    learn(learner, stream, 1, 2)
    scores = [micro_f1(learner.count(step.dev, step.types, alone=True)) for step in stream.steps]
    assert min(score or 0 for score in scores) > 0.5


class FlipOneBit(Strategy):
    """Changes one bit of one tensor at the end of a step, before the check."""

    def __init__(self, name: str) -> None:
        super().__init__(parse_strategies(["finetune"])[0].model_copy(update={"name": "zz_flip"}))
        self.name = name

    def settle(self, context: StepContext) -> None:
        tensor = context.model.state_dict()[self.name]
        with torch.no_grad():
            tensor.view(torch.int32).view(-1)[0] ^= 1 << 22


FROZEN = {
    "encoder.backbone.encoder.layer.0.output.LayerNorm.weight": "adapter",
    "head.blocks.0.bias": "adapter",
    "subnetworks.join.steps.2.1.0.weight": "adapter",
    "subnetworks.kind.steps.1.0.up.weight": "adapter",
    "subnetworks.kind.steps.2.0.output.dense.bias": "copy",
}


@pytest.mark.parametrize(("name", "kind"), FROZEN.items(), ids=FROZEN)
def test_one_bit_of_a_frozen_tensor_fails_the_step(folder: Path, stream: Stream, name: str, kind: str) -> None:
    learner = learner_of(folder, "skip", kind=kind)
    learn(learner, stream, 1, 2)
    learner.strategies.append(FlipOneBit(name))
    with pytest.raises(CheckFailed, match=r"the emissions of the blocks of steps .* are not what they were"):
        learn(learner, stream, 3)


def test_the_new_step_may_change_what_is_its_own(folder: Path, stream: Stream) -> None:
    """The check is of old blocks only, or it would fail whatever was trained."""
    learner = learner_of(folder, "skip", kind="adapter")
    learn(learner, stream, 1)
    learner.strategies.append(FlipOneBit("head.blocks.1.bias"))
    learn(learner, stream, 2)
    assert set(learner.model.types) == {t for step in stream.steps[:2] for t in step.types}


@pytest.mark.parametrize("join", ["fusion", "sequence", "skip", "vote"])
def test_a_run_that_is_stopped_at_every_turn_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    options = {"name": "modules", "kind": "adapter", "join": join, "size": 4, "trunk": "pretrained"}
    values = {
        "strategies": [options | ({"fusion_epochs": 2} if join == "fusion" else {})],
        "head": head_for(join).model_dump(),
    }
    whole = run_stream(run_config(tmp_path, **values, output=str(tmp_path / "whole")))
    config = run_config(tmp_path, **values, training={"checkpoint_seconds": 0}, output=str(tmp_path / "stopped"))
    stops = 0
    for attempt in range(100):
        try:
            run_stream(config, resume=attempt > 0, on_event=interrupt_at(3))
            break
        except Interrupted:
            stops += 1
    assert 3 <= stops < 100
    assert step_files(tmp_path / "stopped") == step_files(whole.folder)


# --- fusion


def test_fusion_learns_the_adapter_first_and_then_what_draws_on_all(folder: Path, stream: Stream) -> None:
    learner = learner_of(folder, "fusion", kind="adapter", fusion_epochs=1)
    assert [event.stage for event in learn(learner, stream, 1) if isinstance(event, StepStarted)] == [0]
    model = learner.model
    seen: dict[int, dict[str, Tensor]] = {}
    trained: dict[int, set[str]] = {}
    for event in learner.learn_step(stream.steps[1]):
        if isinstance(event, StepStarted):
            seen[event.stage] = weights_of(model)
            trained[event.stage] = {name for name, p in model.named_parameters() if p.requires_grad}
    modules = model.subnetworks
    assert isinstance(modules, Modules)
    assert isinstance(modules.join, Fusion)
    assert modules.join.is_on(2)
    assert {name.split(".")[1] for name in trained[0]} == {"kind", "blocks"}
    assert {name.split(".")[1] for name in trained[1]} == {"join", "blocks"}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, seen[1][name])}
    assert moved <= trained[1]
    assert any("value" in name for name in moved)


# --- votes


def test_blocks_that_vote_are_taught_what_the_model_says_of_older_types(folder: Path) -> None:
    train = toy_sentences(10, seed=3, types=("LOC",))
    labelled = {}
    for join in ("separate", "vote"):
        model = tiny_model(folder, head_for(join), steps=[("PER",)])
        model.isolate(ModuleOptions(join=join))
        strategy = ModuleStrategy(ModuleStrategyOptions(join=join))
        labelled[join] = strategy.sentences(toy_context(model, ["LOC"], grown=False), train)
    assert labelled["separate"] == train
    assert all(sentence.annotated_types == {"PER", "LOC"} for sentence in labelled["vote"])
    assert [sentence.restrict(["LOC"]) for sentence in labelled["vote"]] == [s.restrict(["LOC"]) for s in train]
    assert any(sentence.restrict(["PER"]).spans for sentence in labelled["vote"])


def test_a_vote_is_measured_once_on_the_steps_dev_sentences(folder: Path, stream: Stream) -> None:
    learner = learner_of(folder, "vote", kind="copy")
    learner.training = GOOD_TRAINING
    head = learner.model.head
    assert isinstance(head, AddNer)
    learn(learner, stream, 1)
    f1 = micro_f1(learner.count(stream.steps[0].dev, ["PER"], alone=True))
    assert f1
    assert float(head.ballot(1).weight) == pytest.approx(f1)
    assert float(head.ballot(1).temperature) != 1.0
    before = {name: tensor.clone() for name, tensor in head.ballots.state_dict().items()}
    learn(learner, stream, 2)
    assert all(torch.equal(tensor, head.ballots.state_dict()[name]) for name, tensor in before.items())
    assert head.known[1] == (1, 0)
    bare = stream.steps[2]
    list(learner.learn_step(Step(bare.number, bare.types, bare.train, ())))
    assert (float(head.ballot(3).weight), float(head.ballot(3).temperature)) == (1.0, 1.0)


def test_a_vote_is_not_measured_where_nothing_is_known_of_the_steps_types(folder: Path, stream: Stream) -> None:
    step = stream.steps[0]
    silent = [sentence.restrict(()) for sentence in toy_sentences(20, seed=5, types=step.types)]
    ballots = []
    for dev in (step.dev, (*step.dev, *silent)):
        learner = learner_of(folder, "vote", kind="copy")
        list(learner.learn_step(Step(step.number, step.types, step.train, dev)))
        assert isinstance(learner.model.head, AddNer)
        ballot = learner.model.head.ballot(1)
        ballots.append((float(ballot.weight), float(ballot.temperature)))
    assert ballots[0] == ballots[1] != (1.0, 1.0)


@pytest.mark.parametrize("merge", ["viterbi", "majority", "vote"])
def test_blocks_of_their_own_types_may_be_merged_in_any_way(folder: Path, stream: Stream, merge: str) -> None:
    model = tiny_model(folder, HeadOptions(name="addner", merge=merge))
    learner = Learner(model, parse_strategies([{"name": "modules", "kind": "ladder"}]), SHORT_TRAINING)
    learn(learner, stream, 1, 2)
    assert learner.isolation is not None
    assert model.head.known == [(0,), (1,)]
    assert {span.type for spans in learner.predict(stream.steps[1].dev) for span in spans} <= {"PER", "LOC"}


# --- what is refused


def test_a_vote_needs_a_head_that_counts_votes(folder: Path, tmp_path: Path) -> None:
    message = r"modules with join: vote needs blocks that vote, and head\.merge is resolver; set head\.merge: vote"
    strategies = [{"name": "modules", "join": "vote"}]
    with pytest.raises(ConfigError, match=message):
        Learner(tiny_model(folder, "addner"), parse_strategies(strategies), SHORT_TRAINING)
    with pytest.raises(ConfigError, match=message):
        parse_config(run_values(tmp_path, strategies=strategies))
    parse_config(run_values(tmp_path, strategies=strategies, head={"name": "addner", "merge": "majority"}))


@pytest.mark.parametrize(
    ("join", "said"),
    [
        ("vote", "needs blocks that vote, which those of head spankl never do; use head addner"),
        ("sequence", "reads tags of words, which head spankl has none of; choose another join"),
    ],
)
def test_joins_that_a_head_of_spans_cannot_have(folder: Path, tmp_path: Path, join: str, said: str) -> None:
    strategies = [{"name": "modules", "join": join}]
    with pytest.raises(ConfigError, match=f"modules with join: {join} {said}"):
        Learner(tiny_model(folder, "spankl"), parse_strategies(strategies), SHORT_TRAINING)
    with pytest.raises(ConfigError, match=said):
        parse_config(run_values(tmp_path, strategies=strategies, head={"name": "spankl"}))
    parse_config(run_values(tmp_path, strategies=["modules"], head={"name": "spankl"}))


def test_a_model_keeps_the_join_it_has(folder: Path, stream: Stream) -> None:
    learner = learner_of(folder, "skip", kind="adapter", steps=[("PER",)])
    learn(learner, stream, 2)
    again = Learner(learner.model, parse_strategies([{"name": "modules", "join": "concat"}]), SHORT_TRAINING)
    with pytest.raises(ConfigError, match="sub-networks have join 'skip', not 'concat'; leave join out"):
        learn(again, stream, 3)
    learn(Learner(learner.model, parse_strategies(["modules"]), SHORT_TRAINING), stream, 3)
    assert isinstance(learner.model.subnetworks, Modules)
    assert list(learner.model.subnetworks.join.steps) == ["2", "3"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"kind": "copy", "size": 4}, "size: has no effect with kind: copy"),
        ({"kind": "adapter", "fusion_epochs": 2}, "fusion_epochs: has no effect with join: separate"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_strategies([{"name": "modules", **options}])
