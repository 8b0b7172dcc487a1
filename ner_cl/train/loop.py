"""The training loop of one step; read it from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import TrainingOptions
from ner_cl.data.batching import Batch, EncodedSentences
from ner_cl.errors import TrainingError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.precision import autocast
from ner_cl.strategies.base import StepContext, Strategy
from ner_cl.train.checkpoint import Checkpoint, Progress
from ner_cl.train.combine import Updater
from ner_cl.train.engine import Engine
from ner_cl.train.events import EpochDone, Event, Note, Resumed, StepStarted, UpdateDone
from ner_cl.train.optimizer import head_alone, make_optimizer, rate_factor, set_peak_rates
from ner_cl.types import Sentence

__all__ = ["StepTraining", "epochs_between_scores", "loss_terms", "plan_epochs", "standard_error"]

# Cost of a forward and backward pass, in forward passes.
_PASSES = 3
# Defaults for `epochs: auto`.
_EPOCHS = 10
_FEWEST_UPDATES = 100
_FEWEST_UPDATES_ALONE = 500  # of a head that trains alone; they cost little, as the encoder has run once before


@dataclass(kw_only=True)
class StepTraining:
    """Trains one stage of a step and leaves the student with its best weights.

    Args:
        context: context of the step; `model` is the student with its new block, `encoded` the sentences to train on.
        strategies: all strategies.
        options: batches, optimizer, checkpoints.
        epochs: maximum number of epochs.
        patience: epochs without a better score before stopping; 0 trains all.
        mentions: mentions that the dev score is computed from, for its standard error; 0 if it is not an F1 on gold.
        every: epochs between two dev scores; see `epochs_between_scores`.
        engine: device, processes, precision.
        dev_score: F1 of the student on the dev sentences, or None if there is nothing to score.
        seed: seed of this stage's dropout; other draws come from `context.generator`.
        checkpoint: stores the state.
        fingerprint: hash of configuration and data.
        seconds: training time of earlier stages of the step.
        earlier_epochs: epochs trained in earlier stages.

    Attributes:
        progress: training progress.
        carried: seconds of training that earlier processes put into the step; 0 if this stage was not resumed.
    """

    context: StepContext
    strategies: Sequence[Strategy]
    options: TrainingOptions
    epochs: int
    patience: int
    mentions: int
    every: int
    engine: Engine
    dev_score: Callable[[], float | None]
    seed: int
    checkpoint: Checkpoint
    fingerprint: str
    seconds: float = 0.0
    earlier_epochs: int = 0
    progress: Progress = field(init=False)
    carried: float = field(init=False, default=0.0)
    _saved_at: float = field(init=False, default_factory=time.monotonic)

    def run(self) -> Iterator[Event]:
        """Trains, yielding events for the caller to report."""
        context, options, model = self.context, self.options, self.context.model
        encoded = context.encoded
        optimizer = self._optimizer()
        best: dict[str, Tensor] = {}
        progress = Progress(context.number, self.fingerprint, stage=context.stage)
        progress.train_seconds, progress.earlier_epochs = self.seconds, self.earlier_epochs
        self.progress = progress
        plan = self._plan(encoded, 1)
        yield StepStarted(
            step=context.number,
            types=context.types,
            sentences=len(encoded.sentences_from("own", "remembered")),
            words=_words(encoded),
            updates=len(plan),
            epochs=self.epochs,
            strategies=tuple(strategy.options.name for strategy in self.strategies),
            stage=context.stage,
        )
        rule = options.optimizer
        updater = Updater(
            self.strategies, context, optimizer, clip=rule.clip, apply_to=rule.apply_to, average=self.engine.average
        )
        context.trained = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        if saved := self.checkpoint.load(progress, model, optimizer, self.strategies):
            self.progress, best = saved
            progress = self.progress
            self.carried = progress.train_seconds - self.seconds
            yield Resumed(step=context.number, epoch=progress.epoch, update=progress.update)

        while not progress.finished:
            context.epoch = progress.epoch
            model.train()
            for strategy in self.strategies:
                strategy.begin_epoch(context)
            set_peak_rates(optimizer, model, rule)
            plan = self._plan(encoded, progress.epoch)
            for group in plan[progress.update :]:
                yield self._update(optimizer, updater, group, len(plan))
                if progress.update < len(plan):  # a run resumed after the last would skip corrections of `_end_epoch`
                    self._save_if_due(optimizer, best)
            yield self._end_epoch(encoded, updater, best, len(plan))
            yield from self._unsolved(updater)
            self._save_if_due(optimizer, best)

        if best:
            model.load_state_dict(best)
        optimizer.zero_grad(set_to_none=True)  # strategies that measure gradients afterwards start from None
        model.requires_grad_(True).eval()

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        updater: Updater,
        group: list[list[int]],
        updates: int,
    ) -> UpdateDone:
        """Makes one update on a group of batches; `updates` is the number of updates per epoch."""
        progress, options, encoded = self.progress, self.options, self.context.encoded
        started = time.perf_counter()
        done = (progress.epoch - 1) * updates + progress.update
        factor = rate_factor(done, self.epochs * updates, options.optimizer.warmup)
        for parameters in optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * factor
        self.context.update, self.context.updates, self.context.rate = progress.update, updates, factor
        for strategy in self.strategies:
            strategy.begin_update(self.context)
        # Dropout depends only on the update's number and the rank, so a resumed run repeats the same draws.
        torch.manual_seed(self.seed + done * self.engine.processes + self.engine.rank)
        optimizer.zero_grad(set_to_none=True)
        losses, problem = self._backward(encoded, group)
        applied = updater.update()
        if not applied and (problem := self.engine.first(problem)):
            raise TrainingError(problem)
        progress.update += 1
        progress.skipped += not applied
        progress.train_seconds += time.perf_counter() - started
        for name, value in losses.items():
            progress.losses[name] = progress.losses.get(name, 0.0) + value
        return UpdateDone(
            step=progress.step, epoch=progress.epoch, update=progress.update, losses=losses, skipped=not applied
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the parameters that train in this stage."""
        if not self.options.train_embeddings:
            self.context.model.encoder.embeddings.requires_grad_(False)
        return make_optimizer(self.context.model, self.options.optimizer)

    def _plan(self, encoded: EncodedSentences, epoch: int) -> list[list[list[int]]]:
        """The updates of an epoch, each a list of batches, each a list of rows; identical in all processes."""
        generator = self.context.generator(f"batches/{self._stage}{epoch}")
        batches = encoded.plan(encoded.annotated, batch_tokens=self.options.batch_tokens, generator=generator)
        self.context.keep_batches = any(strategy.fills_batches for strategy in self.strategies)
        # Strategies that add raw text come last, because its amount is a share of all other rows.
        for strategy in sorted(self.strategies, key=lambda strategy: strategy.reads_unlabeled):
            batches = strategy.plan(
                self.context, batches, self.context.generator(f"plan/{self._stage}{epoch}/{strategy.options.name}")
            )
        size = self.options.accumulate * self.engine.processes
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    @property
    def _stage(self) -> str:
        """Prefix that gives later stages random draws of their own; "" for the first."""
        return f"stage {self.context.stage}/" if self.context.stage else ""

    def _backward(self, encoded: EncodedSentences, group: list[list[int]]) -> tuple[dict[str, float], str]:
        """Computes the gradients of one update; the loss is the mean over the group's words, however it is batched.

        Returns:
            The mean loss terms over this process's words, and the error message if the loss is not finite, else "".
        """
        context, engine = self.context, self.engine
        words = [sum(len(encoded.windows[row].word_pieces) for row in rows) for rows in group]
        mine = list(engine.mine(list(zip(group, words, strict=True))))
        own_share = sum(count for _, count in mine) / sum(words)
        problem = ""
        totals: dict[str, Tensor] = {}
        for rows, count in mine:
            batch = encoded.batch(rows).to(engine.device)
            with autocast(engine.precision, engine.device):
                emissions = context.model(batch, steps=context.trained_steps)  # blocks of [row, word, tag]
            terms = loss_terms(self.strategies, context, batch, emissions)
            if not terms:
                continue  # no strategy has a loss for these rows
            share = count / sum(words)
            loss = torch.stack(list(terms.values())).sum() * share
            if not torch.isfinite(loss):
                problem = problem or self._not_finite(encoded, rows)
                loss = loss * torch.nan  # spreads to all processes' gradients: none updates, and all stop
            (loss * engine.processes).backward()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach() * share
        engine.average_gradients(context.model.parameters())
        return {name: float(value) / (own_share or 1.0) for name, value in totals.items()}, problem

    def _end_epoch(
        self, encoded: EncodedSentences, updater: Updater, best: dict[str, Tensor], updates: int
    ) -> EpochDone:
        """Scores the epoch if due, keeps its weights if they are the best, and decides whether to continue."""
        progress, started = self.progress, time.perf_counter()
        updater.correct()
        progress.train_seconds += time.perf_counter() - started
        due = progress.epoch % self.every == 0 or progress.epoch == self.epochs
        score = self.dev_score() if due else None
        better = due and self._no_worse(score)
        if better:
            progress.best_epoch, progress.bad_epochs = progress.epoch, 0
            progress.best_score = None if score is None else max(score, progress.best_score or 0.0)
            for name, tensor in self.context.model.state_dict().items():
                best[name] = best[name].copy_(tensor) if name in best else tensor.detach().clone()
        else:
            progress.bad_epochs += 1
        event = EpochDone(
            step=progress.step,
            epoch=progress.epoch,
            losses={name: value / max(1, updates) for name, value in progress.losses.items()},
            score=score,
            best=better,
            seconds=progress.train_seconds,
            sentences=len(encoded.sentences_from("own", "remembered")),
            skipped=progress.skipped,
        )
        impatient = bool(self.patience and score is not None and progress.bad_epochs >= self.patience)
        progress.finished = progress.epoch == self.epochs or impatient
        progress.epoch, progress.update, progress.losses, progress.skipped = progress.epoch + 1, 0, {}, 0
        return event

    def _unsolved(self, updater: Updater) -> Iterator[Note]:
        """After the first epoch, a note on weights whose constraints do not hold as they should."""
        if updater.unsolved and self.progress.epoch == 2:
            text = f"gpm holds {len(updater.unsolved)} weights only in part, because gates leave them too little room"
            yield Note(step=self.context.number, text=f"{text}; lower its threshold, or list one of the two")

    def _no_worse(self, score: float | None) -> bool:
        """Whether to keep an epoch: its score is the best so far, or less than the tolerance below the best."""
        best, tolerance = self.progress.best_score, self.options.early_stopping.tolerance
        if score is None or not best or score > best:  # while F1 is undefined or 0, no patience is used up
            return True
        return self.mentions > 0 and tolerance > 0 and score >= best - tolerance * standard_error(best, self.mentions)

    def _save_if_due(self, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]) -> None:
        """Saves a checkpoint if the last one is old enough."""
        if time.monotonic() - self._saved_at < self.options.checkpoint_seconds:
            return
        # No barrier here: clocks differ, so one process might wait while another does not.
        if self.engine.is_main:
            self.checkpoint.save(self.progress, self.context.model, optimizer, self.strategies, best)
        self._saved_at = time.monotonic()

    def _not_finite(self, encoded: EncodedSentences, rows: Sequence[int]) -> str:
        sentences = [encoded.sentences[encoded.windows[row].sentence] for row in rows]
        where = ", ".join(s.source or " ".join(s.words[:6]) for s in sentences[:5])
        return (
            f"step {self.context.number}, epoch {self.progress.epoch}: the loss is not finite on {len(rows)} sentences "
            f"({where}{', …' if len(rows) > 5 else ''}); lower training.optimizer.lr or use training.precision=fp32"
        )


def loss_terms(
    strategies: Sequence[Strategy], context: StepContext, batch: Batch, emissions: Emissions
) -> dict[str, Float[Tensor, ""]]:
    """The loss terms of all strategies on a batch; terms of the same name are summed."""
    terms: dict[str, Tensor] = {}
    for strategy in strategies:
        for name, term in strategy.losses(context, batch, emissions).items():
            terms[name] = terms[name] + term if name in terms else term
    return terms


def plan_epochs(options: TrainingOptions, context: StepContext, processes: int) -> tuple[int, int]:
    """Maximum number of epochs of a step, and the factor by which `epochs: auto` raised it (else 1).

    Args:
        options: options of the training loop.
        context: context with the step's sentences encoded; what will not train no longer requires gradients.
        processes: number of processes that train together.
    """
    if options.epochs != "auto":
        return options.epochs, 1
    batches = len(context.encoded.plan(context.encoded.annotated, batch_tokens=options.batch_tokens))
    updates = math.ceil(batches / (options.accumulate * processes))
    fewest = _FEWEST_UPDATES_ALONE if head_alone(context.model) else _FEWEST_UPDATES
    times = max(1, math.ceil(fewest / (_EPOCHS * updates)))
    return times * _EPOCHS, times


def epochs_between_scores(options: TrainingOptions, context: StepContext, dev: Sequence[Sentence]) -> int:
    """Number of epochs between two dev scores.

    Args:
        options: options of the training loop.
        context: context with the step's sentences encoded.
        dev: the dev sentences.
    """
    if options.early_stopping.every != "auto":
        return options.early_stopping.every
    looked_at = sum(len(sentence.words) for sentence in dev)
    return max(1, math.ceil(looked_at / (_PASSES * max(1, _words(context.encoded)))))


def standard_error(score: float, mentions: int) -> float:
    """The standard error of an F1 score, 0 to 1, taken as a proportion of the mentions that it rests on.

    By Agresti and Coull (The American Statistician 52, 1998): as if two more were found and two more missed, so that
    it is not 0 at 0 or 1.
    """
    proportion = (score * mentions + 2) / (mentions + 4)
    return math.sqrt(proportion * (1 - proportion) / (mentions + 4))


def _words(encoded: EncodedSentences) -> int:
    """Number of words in the annotated sentences; raw text is not counted, as it says little about a step's size."""
    return sum(len(sentence.words) for sentence in encoded.sentences_from("own", "remembered"))
