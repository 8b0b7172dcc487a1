"""The interface of continual learning strategies: hooks, all empty here."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ner_cl.config import HeadOptions, StrategyOptions
from ner_cl.data.batching import Batch, EncodedSentences, rows_from
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import Precision
from ner_cl.strategies.constraints import Constraint
from ner_cl.types import Sentence, Span

__all__ = ["PROTECTING", "Settled", "StepContext", "Strategy"]

T = TypeVar("T")

PROTECTING = ("agem", "das", "ewc", "gem", "gpm", "ncl", "ogd", "spg", "weight_average")
"""Strategies that hold weights where old types need them, for `excludes` where old types' weights stay anyway."""


@dataclass(kw_only=True)
class StepContext:
    """What a strategy may know about the step being learned.

    Attributes:
        number: the number of the step, from 1.
        types: the new types.
        old_types: the types learned before.
        model: the student; its new block exists once `sentences` has run.
        epochs: maximum number of epochs planned for this stage; set once every strategy has begun it.
        batch_tokens: word pieces of a training batch.
        eval_batch_tokens: word pieces of a prediction batch.
        precision: number format of forward passes.
        earlier: the sentences of steps 1 to `number`, annotated for all types seen. Empty unless a strategy has
            `reads_earlier` (the joint upper bound).
        reset_model: gives the student its pre-trained encoder back, and an untrained head. For the joint upper bound.
        predict: finds spans with the student as it is now.
        training_loss: the training loss of a batch, with all terms of all strategies; in fp32, and in the mode the
            model is in. For measurements at the end of a step.
        generator: makes a random stream for a purpose, independent of those for others. The same purpose gives the same
            numbers again, also when the step is run again: put `epoch` and `update` into it for new ones.
        epoch_factor: factor by which `training.epochs: auto` raised the number of epochs because the step is small;
            else 1. Options that count epochs are multiplied by it.
        epoch: the epoch being trained, from 1; 0 before the first.
        update: number of updates made in this epoch so far.
        updates: number of updates in this epoch.
        stage: the stage of the step being trained, from 0; see `Strategy.stages`.
        rate: the current fraction of the peak learning rates under the schedule, in [0, 1].
        encoded: the step's encoded training sentences; not set until they are encoded, after `sentences`.
        trained: names of the parameters that train in this step; set once every strategy's `gates` has been called.
        keep_batches: whether the rows of a batch must stay in one batch; see `Strategy.fills_batches`.
        unlabeled: sentences of the step's domain without annotation, for strategies that can use them.
        dev: the step's dev sentences, annotated for the new types only.
    """

    number: int
    types: tuple[str, ...]
    old_types: tuple[str, ...]
    model: NerModel
    batch_tokens: int
    eval_batch_tokens: int
    precision: Precision
    earlier: tuple[Sentence, ...]
    reset_model: Callable[[], None]
    predict: Callable[[Sequence[Sentence]], list[list[Span]]]
    training_loss: Callable[[Batch], Float[Tensor, ""]]
    generator: Callable[[str], np.random.Generator]
    epochs: int = 0
    epoch_factor: int = 1
    epoch: int = 0
    update: int = 0
    updates: int = 0
    stage: int = 0
    rate: float = 1.0
    encoded: EncodedSentences = field(init=False, repr=False, compare=False)
    trained: tuple[str, ...] = ()
    keep_batches: bool = False
    unlabeled: tuple[Sentence, ...] = ()
    dev: tuple[Sentence, ...] = ()

    @property
    def trained_steps(self) -> tuple[int, ...] | None:
        """Steps whose blocks are computed in training: with sub-networks only the current one, else all (None)."""
        return None if self.model.subnetworks is None else (self.number,)

    def at_most(self, items: Sequence[T], count: int, purpose: str) -> list[T]:
        """All items, or `count` of them drawn by the random stream for `purpose`, in their original order."""
        if len(items) <= count:
            return list(items)
        chosen = self.generator(purpose).choice(len(items), size=count, replace=False)
        return [items[index] for index in sorted(chosen.tolist())]

    def batches(self, *, sentences: int | None = None, purpose: str = "sample") -> Iterator[Batch]:
        """Batches of the step's own sentences only, of training size and on the model's device.

        Args:
            sentences: maximum number of sentences, drawn at random, each with all its windows; all by default.
            purpose: names the random stream of the draw.
        """
        own = list(chain.from_iterable(self.own_rows(sentences, purpose)))
        for rows in self.encoded.plan(own, batch_tokens=self.batch_tokens):
            yield self.encoded.batch(rows).to(self.model.device)

    def own_rows(self, sentences: int | None, purpose: str) -> list[list[int]]:
        """For each of the step's own sentences, or `sentences` of them drawn by `purpose`, the rows of its windows."""
        rows: dict[int, list[int]] = {}
        for row in rows_from(self.encoded.origins, "own"):
            rows.setdefault(self.encoded.windows[row].sentence, []).append(row)
        drawn = list(rows) if sentences is None else self.at_most(list(rows), sentences, purpose)
        return [rows[sentence] for sentence in drawn]


@dataclass(frozen=True)
class Settled:
    """What a strategy did to the trained weights in `settle`.

    Attributes:
        text: one line for the user; where nothing was changed, why.
        values: the same as numbers, which can be written as JSON.
    """

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


class Strategy(ABC):
    """One continual learning method. A strategy knows nothing about files or other strategies.

    Hooks are defined in the order in which they are first called. `begin_step`, `sentences` and `stages` run once per
    step; `begin_stage` and `gates` once per stage; `begin_epoch` once per epoch, and `plan` too, with one call before
    `gates`; `begin_update`, `constraints` and `precondition` for every update, `losses` for each of its batches.
    `settle`, `end_step` and `release` end the step. Strategies are combined as a list whose order does not matter.

    Attributes:
        options_class: the options; its `name` is the name in configurations.
        holds_old_types: whether the strategy decides what is learned from the new sentences and how old types are
            preserved. Exactly one strategy of a list does; a list without one gets its `stands_on`.
        stands_on: the strategy that preserves old types if the list names none.
        keeps: whether it relies on state from earlier steps, which a model trained without it does not have.
        acts_at_once: whether it has an effect even without such state.
        replaces_optimizer: whether it turns gradients into updates itself.
        settle_order: position of its `settle`: strategies with a lower number settle first.
        isolates: whether what earlier steps' blocks compute never changes; the learner then checks that, bit by bit.
        excludes: names of strategies it cannot be combined with, each with the reason.
        excludes_apart: the same, for heads whose steps share no columns.
    """

    options_class: ClassVar[type[StrategyOptions]]
    holds_old_types: ClassVar[bool] = False
    stands_on: ClassVar[str] = "distill"
    keeps: ClassVar[bool] = False
    acts_at_once: ClassVar[bool] = False
    replaces_optimizer: ClassVar[bool] = False
    settle_order: ClassVar[int] = 0
    isolates: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}
    excludes_apart: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options

    def refuses(self) -> Mapping[str, str]:
        """Strategies that cannot be combined with these options: `excludes`, and any that the options rule out."""
        return self.excludes

    def refuses_head(self, head: HeadOptions) -> str:
        """Why these options cannot train a model with such a head, and what to do about it; "" if they can."""
        return ""

    @property
    def reads_unlabeled(self) -> bool:
        """Whether the strategy, with these options, uses unlabeled text of the step's domain."""
        return False

    @property
    def fills_batches(self) -> bool:
        """Whether `plan` fixes the mixture of rows of every batch, which later ones may add to but must not split."""
        return False

    @property
    def reads_dev(self) -> bool:
        """Whether the strategy, with these options, measures on the step's dev sentences and needs them to act."""
        return False

    @property
    def reads_earlier(self) -> Literal["all", "own"] | None:
        """Annotation with which it reads earlier steps' data, breaking the rules on purpose; None if it does not."""
        return None

    @property
    def last_step_only(self) -> bool:
        """Whether of a stream only the last step is trained, so that earlier ones have neither model nor scores."""
        return False

    def begin_step(self, context: StepContext) -> None:  # noqa: B027
        """Called before anything else: keep a teacher, allocate state.

        Parameters added to the model here could not be saved and are refused; what is to be part of the model derives
        from `ner_cl.model.subnetworks.base.Subnetworks`.
        """

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The sentences to train on: mix in others, add pseudo-labels. The new block does not exist yet."""
        return train

    def stages(self, context: StepContext) -> Sequence[int]:
        """Number of epochs of each further stage; every stage has its own optimizer, schedule and best weights."""
        return ()

    def begin_stage(self, context: StepContext) -> None:  # noqa: B027
        """Called before `gates` in every stage, with the best weights of the previous stage.

        When a step is resumed in a later stage, other weights are in place here; the right ones are loaded afterwards.
        """

    def plan(self, context: StepContext, batches: list[list[int]], generator: np.random.Generator) -> list[list[int]]:
        """The batches of an epoch, as row numbers of `context.encoded`: mix in remembered or unlabeled rows.

        Called after `begin_epoch` in every epoch, and once before in each stage to count the updates.

        Args:
            context: the step.
            batches: every row that has any annotation once, in random order.
            generator: the epoch's random stream; the plan must depend on nothing else that changes.
        """
        return batches

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Factors in [0, 1] on the *update* of parameters, by name; called once per stage, before the first update."""
        return {}

    def begin_epoch(self, context: StepContext) -> None:  # noqa: B027
        """Called before each epoch: freeze or unfreeze parameters on a schedule."""

    def begin_update(self, context: StepContext) -> None:  # noqa: B027
        """Called before an update's forward passes; `context.update` of the epoch's `context.updates` are done."""

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms of a batch; the loop minimises the sum of all terms of all strategies.

        A term is a mean over the words of the batch. Rows that are not the step's own (`Batch.origins`) are handled by
        the strategy that added them; see `rows.on_rows`.
        """
        return {}

    def constraints(self, context: StepContext) -> Sequence[Constraint]:
        """What the update must not do; called at every update, while `.grad` holds gradients: leave them unchanged.

        Not called where an update is left out because the gradient is not finite.
        """
        return ()

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Replaces the optimizer's step: the update to add to each parameter, or None to leave it to the optimizer.

        The strategy chooses its own learning rate; `context.rate` is the schedule's current factor.
        """
        return None

    def settle(self, context: StepContext) -> Settled | None:
        """Called once the best weights are restored: the last change to the weights before any measurement.

        Returns:
            What to tell the user and to record in the model's history, if anything.
        """
        return None

    def end_step(self, context: StepContext) -> None:  # noqa: B027
        """Called when the weights are final: measure importance, choose what to remember, store bases.

        The model is in eval mode, every parameter requires gradients, and all `.grad` are None. Leave it like that, and
        do not change its weights.
        """

    def release(self) -> None:  # noqa: B027
        """Called when every strategy has measured: release what only this step needed."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that later steps need, kept under `strategy/` of the model folder.

        The name of a tensor about a single sentence must begin with `ner_cl.model.ner_model.SENTENCE_PREFIX`, so that
        it is deleted together with the sentences.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restores what `state_dict` returned at the end of the step before, as copies and sorted by name.

        Called when a learner is made and before every step, unless no tensors were kept.
        """

    def kept_sentences(self) -> Sequence[Sentence]:
        """Sentences that later steps need, kept under `strategy/` of the model folder until somebody deletes them."""
        return ()

    def load_sentences(self, sentences: Sequence[Sentence]) -> None:  # noqa: B027
        """Restores what `kept_sentences` returned, or less: sentences may have been deleted for privacy.

        Called when a learner is made and before every step.
        """

    def progress(self) -> dict[str, Tensor]:
        """State that changes with every update and cannot be recomputed; kept in checkpoints within a step."""
        return {}

    def load_progress(self, progress: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restores what `progress` returned, after `begin_step`, `sentences` and `gates` of the resumed step."""
