"""Weight averaging: the published weights lie between those before the step and those after it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ner_cl.config import parse_strategies
from ner_cl.data.readers import read_sentences
from ner_cl.errors import ConfigError
from ner_cl.evaluate.counts import Counts, count_spans, micro_f1
from ner_cl.model.predict import predict_sentences
from ner_cl.model.store import load_model
from ner_cl.strategies import weight_average
from ner_cl.strategies.base import Settled
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.weight_average import WeightAverage, WeightAverageOptions
from ner_cl.train.learner import Learner
from ner_cl.train.run import run_stream
from tests.tiny import ALIKE, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import GOOD_TRAINING, SHORT_TRAINING, learner_of, run_config, same_weights, weights_of

HALF = {"name": "weight_average", "old_share": 0.5}
BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def learned(folder: Path, *strategies: object, head: str = "extendner") -> tuple[Learner, list[dict[str, Tensor]]]:
    """A learner after two steps, and its weights after each."""
    learner = learner_of(folder, strategies, head=head)
    weights = []
    for step in toy_stream(train=60).steps:
        for _ in learner.learn_step(step):
            pass
        weights.append(weights_of(learner.model))
    return learner, weights


def by_hand(folder: Path, head: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Weights before and after step 2 of plain distillation, which the strategy does not touch until it is over."""
    _, (before, after) = learned(folder, "distill", head=head)
    return before, after


@BOTH
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_every_parameter_that_existed_before_is_averaged(folder: Path, head: str, share: float) -> None:
    before, after = by_hand(folder, head)
    _, (first, second) = learned(folder, {"name": "weight_average", "old_share": share}, head=head)
    assert same_weights(first, dict(before))  # step 1 is untouched
    for name, tensor in second.items():
        if name not in before:
            assert torch.equal(tensor, after[name])  # and so is the new block
        elif share == 1.0:
            assert torch.equal(tensor, before[name])
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor, share * before[name] + (1 - share) * after[name])
    assert not torch.equal(second["head.blocks.0.weight"], after["head.blocks.0.weight"])


def test_the_head_can_be_left_out(folder: Path) -> None:
    before, after = by_hand(folder, "extendner")
    _, (_, second) = learned(folder, {**HALF, "parts": "encoder"})
    for name, tensor in second.items():
        if name.startswith("head."):
            assert torch.equal(tensor, after[name])
        elif tensor.is_floating_point():
            torch.testing.assert_close(tensor, (before[name] + after[name]) / 2)


@BOTH
def test_t10_with_nothing_of_the_old_weights_it_is_what_it_stands_on(folder: Path, head: str) -> None:
    """T10, bit for bit."""
    _, (_, second) = learned(folder, {"name": "weight_average", "old_share": 0}, head=head)
    assert same_weights(second, dict(by_hand(folder, head)[1]))


SHARES = (0.3, 0.2, 0.1, 0.0)


@pytest.mark.parametrize(("head", "seed"), [("addner", 13), ("extendner", 13), ("extendner", 14)])
def test_auto_goes_back_as_far_as_the_new_type_allows(
    folder: Path, head: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle: the step with each share by itself, of which the largest that costs the new type nothing is right."""
    monkeypatch.setattr(weight_average, "_FEWEST_MENTIONS", 1)
    first, second = toy_stream(train=60).steps
    known = learner_of(folder, head=head, training=GOOD_TRAINING, seed=seed)
    list(known.learn_step(first))

    def taught(share: float | str) -> tuple[float, dict[str, Tensor]]:
        strategies = parse_strategies([{"name": "weight_average", "old_share": share}])
        learner = Learner(known.model.copy(), strategies, GOOD_TRAINING, seed=seed)
        list(learner.learn_step(second))
        return micro_f1(learner.count(second.dev, second.types)) or 0.0, weights_of(learner.model)

    each = {share: taught(share) for share in SHARES}
    assert each[0.0][0] > 0  # a score that could fall
    right = next(share for share in SHARES if each[share][0] >= each[0.0][0])
    f1, weights = taught("auto")
    assert f1 == each[right][0]
    assert same_weights(weights, each[right][1])


@pytest.mark.parametrize(
    ("scores", "share"), [((9, 9), 0.3), ((9, 8, 9), 0.2), ((9, 8, 8, 9), 0.1), ((9, 8, 8, 8), 0.0)]
)
def test_auto_takes_the_largest_share_that_is_no_worse(
    folder: Path, scores: tuple[int, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores by hand: without averaging, then with each share in turn."""
    model = tiny_model(folder, steps=[["PER"]])
    strategy, context = WeightAverage(WeightAverageOptions(old_share="auto")), toy_context(model, ["LOC"], grown=False)
    context.dev = tuple(toy_sentences(1))
    strategy.begin_step(context)
    model.grow(["LOC"])
    counts = iter([{"LOC": Counts(tp=score, fn=30)} for score in scores])
    monkeypatch.setattr(weight_average, "_count_new", lambda _: next(counts))
    settled = strategy.settle(context)
    assert settled is not None
    assert settled.values == {"old_share": share}
    expected = f"{share:g} of the old weights kept" if share else "none of the old weights kept: even 0.1 lowers F1"
    assert settled.text.startswith(expected)


def test_auto_with_few_dev_mentions_goes_nowhere(folder: Path) -> None:
    """Neither without dev sentences, nor with sentences that hardly mention the new type, which no share can harm."""
    first, second = toy_stream(train=60).steps
    assert 0 < sum(len(sentence.spans) for sentence in second.dev) < 30
    for dev in ((), tuple(replace(sentence, spans=()) for sentence in second.dev), second.dev):
        both = []
        for strategy in ("distill", {"name": "weight_average", "old_share": "auto"}):
            learner = learner_of(folder, [strategy])
            list(learner.learn_step(first))
            list(learner.learn_step(replace(second, dev=dev)))
            both.append(weights_of(learner.model))
        assert same_weights(*both)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (Counts(tp=9, fn=20), "only 29 mentions of new types in the dev sentences"),
        (Counts(fn=30), "F1 of the new types is 0 on the dev sentences"),
    ],
)
def test_why_auto_went_nowhere_is_told(folder: Path, counts: Counts, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    strategy, context = WeightAverage(WeightAverageOptions(old_share="auto")), toy_context(model, ["LOC"], grown=False)
    context.dev = tuple(toy_sentences(1))
    strategy.begin_step(context)
    monkeypatch.setattr(weight_average, "_count_new", lambda _: {"LOC": counts})
    assert strategy.settle(context) == Settled(f"none of the old weights kept: {why}", {"old_share": 0.0})


def test_what_does_not_train_is_not_kept(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    strategy, context = WeightAverage(WeightAverageOptions(old_share=0.5)), toy_context(model, ["LOC"], grown=False)
    strategy.begin_step(context)
    model.grow(["LOC"])
    model.encoder.embeddings.requires_grad_(False)
    assert strategy.gates(context) == {}
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(strategy._before) == names - {"head.blocks.1.weight", "head.blocks.1.bias"}
    strategy.settle(context)
    assert strategy._before == {}


def test_the_published_step_is_scored_with_the_averaged_weights(tmp_path: Path) -> None:
    """The matrix, the published model and its metrics are of one and the same weights."""
    training = SHORT_TRAINING.model_dump(mode="json") | {"epochs": 4}
    strategies = [ALIKE, HALF]
    run = run_stream(run_config(tmp_path, strategies=strategies, training=training))
    model = load_model(run.folder / "steps" / "02")
    test = read_sentences(tmp_path / "corpus" / "test.conll")
    counts = count_spans(test, predict_sentences(model, test, precision="fp32"), ["PER", "LOC"])
    assert run.matrix.counts[1] == counts
    plain = run_stream(run_config(tmp_path, strategies=[ALIKE], training=training, output=str(tmp_path / "plain")))
    assert plain.matrix.counts[0] == run.matrix.counts[0]
    assert plain.matrix.counts[1] != run.matrix.counts[1]


def test_other_strategies_measure_the_averaged_weights(folder: Path) -> None:
    """`settle` comes before every `end_step`: the anchor of EWC is the average."""
    learner, (_, second) = learned(folder, "ewc", HALF)
    anchors = learner.model.strategy_state["ewc"]
    assert torch.equal(anchors["anchor/head.blocks.0.weight"], second["head.blocks.0.weight"])
    _, (_, after) = learned(folder, "ewc", "distill")
    assert not torch.equal(second["head.blocks.0.weight"], after["head.blocks.0.weight"])


def test_it_stands_on_distillation_and_not_on_joint_training() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["weight_average"]))] == [
        "distill",
        "weight_average",
    ]
    with pytest.raises(ConfigError, match="weight_average and joint cannot be combined: joint starts every step"):
        build_strategies(parse_strategies(["joint", "weight_average"]))
