"""The loop of one step: accumulation, early stopping, order of batches, what is not finite, what is forgotten."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import EarlyStoppingOptions, OptimizerOptions, TrainingOptions, parse_strategies
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.data.stream import Step, Stream
from ner_cl.errors import DataError, ModelError, TrainingError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.train.events import EpochDone, Event, StepStarted, UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.loop import epochs_between_scores, plan_epochs, standard_error
from ner_cl.types import Sentence
from tests.tiny import tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import (
    GOOD_TRAINING,
    SHORT_TRAINING,
    learn_all,
    learner_of,
    no_dropout,
    same_weights,
    toy_encoder,
    weights_of,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def stream() -> Stream:
    return toy_stream(train=60)


@pytest.fixture(scope="module")
def wide_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("wide"), hidden=64)


def forgotten_and_learned(encoder: Path, strategy: str, head: str) -> tuple[float, float, float]:
    """F1 of the old type before and after the second step, and of the new type."""
    stream = toy_stream()
    learner = learner_of(encoder, [strategy], head=head, training=GOOD_TRAINING)
    list(learner.learn_step(stream.steps[0]))
    before = learner.count(stream.test_at(1), ["PER"])["PER"].f1 or 0.0
    list(learner.learn_step(stream.steps[1]))
    after = learner.count(stream.test_at(2), ["PER", "LOC"])
    return before, after["PER"].f1 or 0.0, after["LOC"].f1 or 0.0


def test_fine_tuning_forgets(wide_encoder: Path) -> None:
    before, old, new = forgotten_and_learned(wide_encoder, "finetune", "extendner")
    assert before > 0.8
    assert old < 0.3
    assert new > 0.8


@pytest.mark.parametrize("head", ["extendner", "addner"])
@pytest.mark.parametrize("strategy", ["distill", "frozen"])
def test_continual_learning_does_not(wide_encoder: Path, strategy: str, head: str) -> None:
    before, old, new = forgotten_and_learned(wide_encoder, strategy, head)
    assert min(before, old, new) > 0.8


@pytest.mark.parametrize("head", ["extendner", "addner"])
@pytest.mark.parametrize("strategy", ["finetune", "distill"])
def test_accumulated_batches_equal_one_batch(
    encoder: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch, strategy: str, head: str
) -> None:
    """Two batches of unlike size make the update that both together make."""

    def batches_of(*sizes: int) -> None:
        def plan(encoded: EncodedSentences, rows: Sequence[int], **options: Any) -> list[list[int]]:
            if "generator" not in options:  # not an epoch
                return real(encoded, rows, **options)
            starts = range(0, len(rows) - 8, 8)
            cuts = [(start + sum(sizes[:i]), size) for start in starts for i, size in enumerate(sizes)]
            return [list(range(start, start + size)) for start, size in cuts]

        monkeypatch.setattr(EncodedSentences, "plan", plan)

    real = EncodedSentences.plan

    # SGD, because Adam turns a gradient that is only rounding into a whole step.
    plain = SHORT_TRAINING.model_copy(update={"optimizer": OptimizerOptions(name="sgd", lr=0.1, head_lr=0.1)})
    found = []
    for sizes in ((8,), (5, 3), (2, 3, 1, 2)):
        batches_of(*sizes)
        learner = learner_of(
            encoder, [strategy], head=head, training=plain.model_copy(update={"accumulate": len(sizes)})
        )
        no_dropout(learner.model)
        events = learn_all(learner, stream)
        losses = [event.losses for event in events if isinstance(event, UpdateDone)]
        found.append((weights_of(learner.model), losses))
    (weights, losses), *others = found
    for other_weights, other_losses in others:
        assert len(losses) == len(other_losses)
        for one, other in zip(losses, other_losses, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(other_weights[name], tensor, rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(encoder: Path, stream: Stream) -> None:
    runs = [learner_of(encoder, seed=seed) for seed in (13, 13, 14)]
    told = [[e.losses for e in learn_all(run, stream) if isinstance(e, UpdateDone)] for run in runs]
    assert told[0] == told[1] != told[2]
    assert same_weights(runs[0].model, runs[1].model)
    assert not same_weights(runs[0].model, runs[2].model)


def test_what_happened_before_in_the_process_does_not_matter(encoder: Path, stream: Stream) -> None:
    one, other = learner_of(encoder), learner_of(encoder)
    learn_all(one, stream)
    torch.manual_seed(4)
    for event in learn_all_slowly(other, stream):
        if isinstance(event, UpdateDone):
            torch.rand(7)  # a caller that draws numbers of its own between two updates
    assert same_weights(one.model, other.model)


def learn_all_slowly(learner: Learner, stream: Stream):
    for step in stream.steps:
        yield from learner.learn_step(step)


def test_every_epoch_has_an_order_of_its_own(encoder: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[list[list[int]]] = []
    real = EncodedSentences.plan

    def plan(encoded: EncodedSentences, rows: Sequence[int], **options: Any) -> list[list[int]]:
        found = real(encoded, rows, **options)
        if "generator" in options:
            plans.append(found)
        return found

    monkeypatch.setattr(EncodedSentences, "plan", plan)
    training = SHORT_TRAINING.model_copy(update={"epochs": 3})
    list(learner_of(encoder, training=training).learn_step(stream.steps[0]))
    first, epochs = plans[0], plans[1:]  # the first counts the updates
    assert first == epochs[0]
    assert len(epochs) == 3
    assert len({str(plan) for plan in epochs}) == 3
    for plan in epochs:
        assert sorted(row for batch in plan for row in batch) == list(range(len(stream.steps[0].train)))


# -- early stopping -------------------------------------------------------------------------------------------------


def scored_run(
    encoder: Path,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    scores: Sequence[float | None],
    *,
    patience: int,
    tolerance: float = 0.0,
) -> tuple[Learner, list[EpochDone], list[dict[str, Tensor]]]:
    """A step whose dev scores are given; also the weights after each epoch."""
    left, snapshots = list(scores), []
    training = SHORT_TRAINING.model_copy(
        update={"epochs": len(scores), "early_stopping": EarlyStoppingOptions(patience=patience, tolerance=tolerance)}
    )
    learner = learner_of(encoder, training=training)

    def score(self: Learner, dev: object, context: StepContext) -> float | None:
        snapshots.append(weights_of(learner.model))
        return left.pop(0)

    monkeypatch.setattr(Learner, "_score", score)
    events = list(learner.learn_step(stream.steps[0]))
    return learner, [event for event in events if isinstance(event, EpochDone)], snapshots


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.9], 2, 4, 2),  # the fifth epoch, the best of all, is never reached
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.5], 2, 6, 4),
        ([0.1, 0.5, 0.4, 0.3, 0.2], 0, 5, 2),  # no patience: all epochs, still the best weights
        ([0.5, 0.5, 0.5, 0.5], 2, 3, 1),  # as good is not better
        ([0.0, 0.0, 0.0, 0.0, 0.2], 2, 5, 5),  # nothing found yet is no reason to stop
        ([0.5, 0.0, 0.0, 0.9], 2, 3, 1),  # nothing found any more is one
        ([None, None, None, None], 2, 4, 4),  # nothing to score
    ],
)
def test_patience_and_the_best_weights(
    encoder: Path,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float | None],
    patience: int,
    epochs: int,
    best: int,
) -> None:
    learner, told, snapshots = scored_run(encoder, stream, monkeypatch, scores, patience=patience)
    assert [event.epoch for event in told] == list(range(1, epochs + 1))
    assert learner.progress.best_epoch == best
    assert [event.epoch for event in told if event.best][-1] == best
    assert same_weights(learner.model, snapshots[best - 1])
    assert not learner.model.training
    assert all(parameter.requires_grad for parameter in learner.model.parameters())


@pytest.mark.parametrize(
    ("scores", "tolerance", "epochs", "best"),  # in standard errors below 0.5
    [
        ([0.0, 0.9, 1.9, 0.5], 1.0, 4, 4),
        ([0.0, 1.1, 1.2, 1.3], 1.0, 3, 1),  # worse than chance makes of the best is worse
        ([0.0, 1.1, 1.2, 1.3], 1.5, 4, 4),
        ([0.0, 0.9, -3.0, 0.9], 1.0, 4, 3),  # what is as good as a lower score may be worse than a higher one
        ([0.0, 0.0, 0.0, 0.0], 1.0, 4, 4),
        ([0.0, 0.0, 0.0, 0.0], 0.0, 3, 1),
    ],
)
def test_of_epochs_as_good_as_the_best_the_last_is_kept(
    encoder: Path,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    tolerance: float,
    epochs: int,
    best: int,
) -> None:
    mentions = sum(len(sentence.spans) for sentence in stream.steps[0].dev)
    below = [0.5 - errors * standard_error(0.5, mentions) for errors in scores]
    learner, told, snapshots = scored_run(encoder, stream, monkeypatch, below, patience=2, tolerance=tolerance)
    assert len(told) == epochs
    assert learner.progress.best_epoch == best
    assert learner.progress.best_score == max(below[:epochs])
    assert same_weights(learner.model, snapshots[best - 1])


@pytest.mark.parametrize(
    ("score", "mentions", "error"), [(0.5, 96, 0.05), (1.0, 5, 0.138580), (0.0, 12, 0.082680), (0.8, 10**6, 0.0004)]
)
def test_the_standard_error_is_that_of_agresti_and_coull(score: float, mentions: int, error: float) -> None:
    """Worked by hand; for many mentions, it is the ordinary one."""
    assert standard_error(score, mentions) == pytest.approx(error, rel=1e-4)


def test_dev_sentences_are_looked_at_every_so_many_epochs_and_after_the_last(
    encoder: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks no epoch is the best one, and patience goes on counting epochs."""
    looked: list[int] = []
    found = {3: 0.2, 6: 0.5, 8: 0.1}

    def score(self: Learner, dev: object, context: StepContext) -> float | None:
        looked.append(context.epoch)
        return found[context.epoch]

    monkeypatch.setattr(Learner, "_score", score)
    for patience, expected in ((0, [3, 6, 8]), (3, [3, 6, 8])):
        looked.clear()
        stopping = EarlyStoppingOptions(patience=patience, every=3)
        training = SHORT_TRAINING.model_copy(update={"epochs": 8, "early_stopping": stopping})
        learner = learner_of(encoder, training=training)
        done = [event for event in learner.learn_step(stream.steps[0]) if isinstance(event, EpochDone)]
        assert looked == expected
        assert [event.epoch for event in done if event.score is not None] == expected
        assert learner.progress.best_epoch == 6


def test_many_dev_sentences_are_looked_at_less_often(encoder: Path, stream: Stream) -> None:
    step = stream.steps[0]
    learner = learner_of(encoder)
    list(learner.learn_step(step))
    context = learner.loop.context
    words = sum(len(sentence.words) for sentence in step.train)

    def every(dev_words: int, **options: Any) -> int:
        training = SHORT_TRAINING.model_copy(update={"early_stopping": EarlyStoppingOptions(**options)})
        return epochs_between_scores(training, context, [Sentence(("word",) * dev_words)])

    assert [every(times * words) for times in (1, 3, 4, 30)] == [1, 1, 2, 10]
    assert every(30 * words, every=1) == 1
    assert every(0) == 1


def test_old_types_can_be_selected_on_by_what_the_model_said_of_them(wide_encoder: Path) -> None:
    """With `metric: seen`, forgetting counts: the score of a fine-tuned step is lower than over new types alone."""
    stream = toy_stream()
    scores = {}
    for metric in ("new", "seen"):
        stopping = EarlyStoppingOptions(patience=0, metric=metric)
        learner = learner_of(
            wide_encoder, ["finetune"], training=GOOD_TRAINING.model_copy(update={"early_stopping": stopping})
        )
        learn = [list(learner.learn_step(step)) for step in stream.steps]
        scores[metric] = [[e.score or 0.0 for e in events if isinstance(e, EpochDone)] for events in learn]
    assert scores["new"][0] == scores["seen"][0]
    assert max(scores["new"][1]) > 0.8
    assert scores["seen"][1][-1] < scores["new"][1][-1] - 0.2


# -- events and refusals --------------------------------------------------------------------------------------------


def test_events_tell_the_whole_story(encoder: Path, stream: Stream) -> None:
    events: list[Event] = list(learner_of(encoder).learn_step(stream.steps[0]))
    start, *rest = events
    assert isinstance(start, StepStarted)
    assert (start.types, start.sentences, start.epochs) == (("PER",), len(stream.steps[0].train), 2)
    assert start.words == sum(len(sentence.words) for sentence in stream.steps[0].train)
    updates = [event for event in rest if isinstance(event, UpdateDone)]
    assert [(e.epoch, e.update) for e in updates] == [
        (epoch, update) for epoch in (1, 2) for update in range(1, start.updates + 1)
    ]
    for epoch in (event for event in rest if isinstance(event, EpochDone)):
        own = [event.losses["ce"] for event in updates if event.epoch == epoch.epoch]
        assert epoch.losses["ce"] == pytest.approx(sum(own) / len(own))


class Spoiler(Strategy):
    """Adds a loss that is not finite, or a gradient that is not, in the second batch."""

    def __init__(self, *, loss: float = 0.0, gradient: float = 0.0) -> None:
        from ner_cl.strategies.finetune import FinetuneOptions

        super().__init__(FinetuneOptions())
        self.loss, self.gradient, self.batches = loss, gradient, 0

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        self.batches += 1
        spoilt = emissions.flat().sum() * 0
        if self.batches == 2:
            spoilt = spoilt + self.loss
            if self.gradient:
                spoilt.register_hook(lambda gradient: gradient * self.gradient)
        return {"spoilt": spoilt}


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_step_and_names_the_sentences(
    encoder: Path, stream: Stream, wrong: float
) -> None:
    learner = learner_of(encoder)
    learner.strategies.append(Spoiler(loss=wrong))
    before: dict[str, Tensor] = {}

    def learn() -> None:
        for event in learner.learn_step(stream.steps[0]):
            if isinstance(event, UpdateDone):
                before.update(weights_of(learner.model))

    message = r"step 1, epoch 1: the loss is not finite on \d+ sentences \(toy:\d+, .*; lower training.optimizer.lr"
    with pytest.raises(TrainingError, match=message):
        learn()
    assert same_weights(before, learner.model)


def test_a_gradient_that_is_not_finite_skips_one_update(encoder: Path, stream: Stream) -> None:
    learner = learner_of(encoder)
    learner.strategies.append(Spoiler(gradient=torch.nan))
    weights: list[dict[str, Tensor]] = []
    updates = []
    for event in learner.learn_step(stream.steps[0]):
        if isinstance(event, UpdateDone):
            weights.append(weights_of(learner.model))
            updates.append(event)
        if isinstance(event, EpochDone):
            assert event.skipped == (event.epoch == 1)
    assert [event.update for event in updates if event.skipped] == [2]
    assert same_weights(weights[0], weights[1])
    assert not same_weights(weights[1], weights[2])


def test_a_step_without_sentences_or_with_a_known_type_is_refused(encoder: Path, stream: Stream) -> None:
    from dataclasses import replace

    learner = learner_of(encoder)
    with pytest.raises(DataError, match="step 1 has no training sentences; give data that mention PER"):
        list(learner.learn_step(replace(stream.steps[0], train=())))
    assert learner.model.types == ()
    list(learner.learn_step(stream.steps[0]))
    with pytest.raises(ModelError, match="PER"):
        list(learner.learn_step(replace(stream.steps[1], types=("PER",))))
    assert learner.model.types == ("PER",)


@pytest.mark.parametrize("head", ["extendner", "addner"])
def test_with_one_step_all_methods_are_plain_training(encoder: Path, head: str) -> None:
    stream = toy_stream(steps=[("PER", "LOC")], train=60)
    found = {}
    for strategy in ("finetune", "distill", "joint", "self_training"):
        learner = learner_of(encoder, [strategy], head=head)
        learn_all(learner, stream)
        found[strategy] = learner.model
    for strategy, model in found.items():
        assert same_weights(model, found["finetune"]), strategy


def test_one_step_does_not_care_how_its_types_are_ordered(encoder: Path) -> None:
    """Nothing but the order of columns depends on it: with the rows permuted alike, training goes the same way."""
    stream = toy_stream(steps=[("PER", "LOC")], train=60)
    other = toy_stream(steps=[("LOC", "PER")], train=60)
    order = [0, 3, 4, 1, 2]  # O, B-LOC, I-LOC, B-PER, I-PER from O, B-PER, I-PER, B-LOC, I-LOC
    learners = [learner_of(encoder), learner_of(encoder)]
    for learner in learners:
        no_dropout(learner.model)
    plain_grow = learners[1].model.head.grow

    def grow(types: Sequence[str], **how: Any) -> None:
        plain_grow(types, **how)
        block = learners[1].model.head.new_block()
        with torch.no_grad():
            block.weight.copy_(block.weight[order].clone())

    learners[1].model.head.grow = grow  # type: ignore[method-assign]
    # The toy corpus draws its sentences by type, so the second stream is the first one with its types renamed in order.
    step = stream.steps[0]
    from dataclasses import replace

    list(learners[0].learn_step(step))
    list(learners[1].learn_step(replace(other.steps[0], train=step.train, dev=step.dev)))
    one, two = learners[0].model.head.new_block(), learners[1].model.head.new_block()
    torch.testing.assert_close(two.weight, one.weight[order], rtol=1e-2, atol=1e-3)
    test = stream.test_at(1)
    assert learners[0].count(test, ["PER", "LOC"]) == learners[1].count(test, ["PER", "LOC"])


def test_zero_weight_on_the_teacher_is_training_without_one(encoder: Path, stream: Stream) -> None:
    """AddNER's cross entropy is the same with and without a teacher, so alpha = 0 is plain fine-tuning."""
    plain = learner_of(encoder, ["finetune"], head="addner")
    silenced = learner_of(encoder, [{"name": "distill", "alpha": 0.0}], head="addner")
    learn_all(plain, stream)
    learn_all(silenced, stream)
    assert same_weights(plain.model, silenced.model)


def test_the_teacher_never_changes_and_the_student_drops_out(encoder: Path, stream: Stream) -> None:
    learner = learner_of(encoder, [{"name": "distill", "cache": False}])
    list(learner.learn_step(stream.steps[0]))
    before = weights_of(learner.model)
    (strategy,) = learner.strategies
    for event in learner.learn_step(stream.steps[1]):
        if isinstance(event, UpdateDone):
            teacher = strategy._teacher._model
            assert same_weights(teacher, before)
            assert not any(module.training for module in teacher.modules())
            assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
            assert learner.model.training
    assert not same_weights(learner.model, before)


def test_cached_and_fresh_teachers_say_the_same(encoder: Path, stream: Stream) -> None:
    """Targets do not depend on what they are batched with, but for rounding."""
    losses = []
    for cache in (True, False):
        learner = learner_of(encoder, [{"name": "distill", "cache": cache}])
        events = learn_all(learner, stream)
        losses.append([event.losses["kd"] for event in events if isinstance(event, UpdateDone) and event.step == 2])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_every_weight_but_the_word_pieces_is_trained(encoder: Path, stream: Stream) -> None:
    for train_embeddings in (False, True):
        training = SHORT_TRAINING.model_copy(update={"train_embeddings": train_embeddings})
        learner = learner_of(encoder, training=training)
        before = weights_of(tiny_model(encoder))
        list(learner.learn_step(stream.steps[0]))
        unchanged = {
            name
            for name, tensor in weights_of(learner.model).items()
            if name in before and torch.equal(tensor, before[name])
        }
        words = {name for name in before if "word_embeddings" in name}
        assert unchanged & words == (set() if train_embeddings else words)
        assert not {name for name in unchanged - words if "position_ids" not in name}


@pytest.mark.parametrize(
    ("chosen", "sentences", "expected"), [("auto", 4, (50, 5)), ("auto", 60, (10, 1)), (3, 4, (3, 1)), (3, 60, (3, 1))]
)
def test_few_sentences_are_seen_more_often_unless_somebody_says_how_often(
    tmp_path: Path, chosen: Any, sentences: int, expected: tuple[int, int]
) -> None:
    """Two batches an epoch of four sentences, so fifty epochs until there are a hundred updates."""
    train = [s.restrict(["PER"]) for s in toy_sentences(sentences, types=("PER",))]
    context = toy_context(tiny_model(tmp_path / "tiny", steps=[["PER"]]), ["PER"], train=train)
    options = TrainingOptions(epochs=chosen, batch_tokens=32)
    assert plan_epochs(options, context, 1) == expected


@pytest.mark.parametrize(("name", "epochs"), [("frozen", [50, 250]), ("ice", [50, 250]), ("distill", [50, 50])])
def test_a_head_that_trains_alone_makes_five_hundred_updates(tmp_path: Path, name: str, epochs: list[int]) -> None:
    """Two batches an epoch of four sentences; in step 1 the encoder trains too, if only for its first epochs."""
    training = TrainingOptions(batch_tokens=32, calibrate=False)
    learner = Learner(tiny_model(tmp_path / "tiny"), parse_strategies([name]), training)
    planned = []
    for number, type_ in enumerate(("PER", "LOC"), start=1):
        own = tuple(sentence.restrict([type_]) for sentence in toy_sentences(4, types=("PER", "LOC")))
        for event in learner.learn_step(Step(number, (type_,), own, ())):
            if isinstance(event, StepStarted):
                planned.append((event.updates, event.epochs))
    assert planned == [(2, count) for count in epochs]


DIVERGING = {"name": "ncl", "lr": 1e38, "radius": 0, "first_step": "ncl"}


@pytest.mark.parametrize(
    ("strategies", "advice"), [(["distill"], "training.optimizer.lr"), (["distill", DIVERGING], "lr of ncl")]
)
def test_weights_that_the_last_update_made_useless_are_no_model(
    encoder: Path, strategies: list[Any], advice: str
) -> None:
    """No loss is computed after the last update, so nothing else would notice."""
    rule = OptimizerOptions(name="sgd", lr=3e38, head_lr=3e38, clip=0, warmup=0)
    training = SHORT_TRAINING.model_copy(
        update={"epochs": 1, "batch_tokens": 100_000, "optimizer": rule, "calibrate": False}
    )
    learner = learner_of(encoder, strategies, training=training)
    step = dataclasses.replace(toy_stream(train=20).steps[0], dev=())
    said = f"step 1: training ended with weights that are beyond all bounds .*; lower {advice}"
    with pytest.raises(TrainingError, match=said):
        list(learner.learn_step(step))
