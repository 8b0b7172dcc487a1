"""What a strategy of continual learning may do: hooks, all empty here."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

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

__all__ = ["StepContext", "Strategy"]

T = TypeVar("T")


@dataclass(kw_only=True)
class StepContext:
    """What a strategy may know of the step being learned.

    Attributes:
        number: the step, from 1.
        types: the new types.
        old_types: the types learned before.
        model: the student; its new block is there once `sentences` is done.
        epochs: passes over the data that are planned in this stage, at most; set once the sentences are encoded.
        train_tokens: word pieces of a batch when training.
        batch_tokens: word pieces of a batch when predicting.
        precision: number format of forward passes.
        earlier: the sentences of steps 1 to `number`, annotated for all types seen. Only strategies that say
            `needs_earlier_data` (the joint upper bound) find anything here.
        reset_model: gives the student back its pre-trained encoder and an untrained head. For the joint upper bound.
        predict: the spans the student finds now.
        training_loss: the loss that is trained, all terms of all strategies, of a batch; in fp32, and in the mode the
            model is in. For measuring at the end of a step.
        generator: makes an independent random stream for a purpose, the same one whenever the step is run again.
        epoch: the epoch being trained, from 1; 0 before the first.
        update: the updates made in this epoch.
        updates: how many updates this epoch has.
        stage: which stage of the step is trained, from 0; see `Strategy.stages`.
        rate: the share of the peak learning rates that the schedule allows now, in [0, 1].
        encoded: the step's sentences as they are trained on; not there before they are encoded, after `sentences`.
        trained: names of the parameters that train in this step; set once every strategy has been asked for `gates`.
        unlabeled: words of the step's domain without any annotation, for strategies that can use them.
        dev: the step's dev sentences, annotated for the new types only.
    """

    number: int
    types: tuple[str, ...]
    old_types: tuple[str, ...]
    model: NerModel
    train_tokens: int
    batch_tokens: int
    precision: Precision
    earlier: tuple[Sentence, ...]
    reset_model: Callable[[], None]
    predict: Callable[[Sequence[Sentence]], list[list[Span]]]
    training_loss: Callable[[Batch], Float[Tensor, ""]]
    generator: Callable[[str], np.random.Generator]
    epochs: int = 0
    epoch: int = 0
    update: int = 0
    updates: int = 0
    stage: int = 0
    rate: float = 1.0
    encoded: EncodedSentences = field(init=False, repr=False, compare=False)
    trained: tuple[str, ...] = ()
    unlabeled: tuple[Sentence, ...] = ()
    dev: tuple[Sentence, ...] = ()

    @property
    def trained_steps(self) -> tuple[int, ...] | None:
        """Whose blocks are computed in training: with sub-networks the new step's only, since others do not change."""
        return None if self.model.subnetworks is None else (self.number,)

    def at_most(self, items: Sequence[T], count: int, purpose: str) -> list[T]:
        """All items, or `count` of them drawn at random by the stream of a purpose, in the order they have."""
        if len(items) <= count:
            return list(items)
        chosen = self.generator(purpose).choice(len(items), size=count, replace=False)
        return [items[index] for index in sorted(chosen.tolist())]

    def batches(self, *, sentences: int | None = None, purpose: str = "sample") -> Iterator[Batch]:
        """The step's own sentences, and no others, in batches of training size on the model's device.

        Args:
            sentences: at most so many, drawn at random; all by default.
            purpose: of the draw, for its random stream.
        """
        encoded = self.encoded
        own = rows_from(encoded.origins, "own")
        if sentences is not None:
            own = self.at_most(own, sentences, purpose)
        for rows in encoded.plan(own, batch_tokens=self.train_tokens):
            yield encoded.batch(rows).to(self.model.device)


class Strategy(ABC):
    """One idea of continual learning. A strategy knows neither files nor other strategies.

    The hooks are called in the order in which they stand here: those from `begin_stage` on once for every stage of a
    step, from `begin_epoch` on for every epoch, and `begin_update` to `precondition` for every update or batch of it.
    Strategies are combined as a list whose order does not matter.

    Attributes:
        options_class: the options; its `name` is the name in configurations.
        holds_old_types: whether the strategy says what is learned from the new sentences and how old types are held in
            it. Exactly one of a list does; a list without one gets its `stands_on`.
        stands_on: which strategy holds old types where the list names none.
        keeps: whether it acts by what it kept of earlier steps: a model that was learned without it has nothing for it.
        acts_at_once: whether it does something all the same where nothing was kept.
        replaces_optimizer: whether it makes updates of gradients itself.
        settles_last: whether it settles by what the model predicts, so that others' weights have to be there before.
        isolates: whether what earlier steps' blocks compute never changes; the learner then checks that, bit by bit.
        needs_earlier_data: whether it breaks the rules on purpose and reads the data of earlier steps.
        excludes: names of strategies it cannot be combined with, each with the reason.
    """

    options_class: ClassVar[type[StrategyOptions]]
    holds_old_types: ClassVar[bool] = False
    stands_on: ClassVar[str] = "distill"
    keeps: ClassVar[bool] = False
    acts_at_once: ClassVar[bool] = False
    replaces_optimizer: ClassVar[bool] = False
    settles_last: ClassVar[bool] = False
    isolates: ClassVar[bool] = False
    needs_earlier_data: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: StrategyOptions) -> None:
        self.options = options

    def refuses(self) -> Mapping[str, str]:
        """What these options cannot be combined with: `excludes`, and more where an option makes it so."""
        return self.excludes

    def refuses_head(self, head: HeadOptions) -> str:
        """Why these options cannot teach a model with such a head, and what to do; "" if they can."""
        return ""

    @property
    def reads_unlabeled(self) -> bool:
        """Whether raw text of the step's domain would be used, with these options."""
        return False

    @property
    def reads_dev(self) -> bool:
        """Whether it measures on the step's dev sentences, and does nothing without them, with these options."""
        return False

    def begin_step(self, context: StepContext) -> None:  # noqa: B027
        """Before anything else: keep a teacher, allocate state, add modules."""

    def sentences(self, context: StepContext, train: Sequence[Sentence]) -> Sequence[Sentence]:
        """The sentences to train on: mix some in, pseudo-label. The new block does not exist yet."""
        return train

    def stages(self, context: StepContext) -> Sequence[int]:
        """Epochs of further stages of the step, each with an optimizer, a schedule and best weights of its own."""
        return ()

    def begin_stage(self, context: StepContext) -> None:  # noqa: B027
        """Before `gates` in every stage, with the best weights of the stage before it.

        A step that is resumed in a later stage comes by here with other weights, and is given the right ones after it.
        """

    def plan(self, context: StepContext, batches: list[list[int]], generator: np.random.Generator) -> list[list[int]]:
        """The batches of an epoch, as row numbers of `context.encoded`: draw remembered or unlabeled rows into them.

        Asked for after `begin_epoch` in every epoch, and in each stage once before, to tell how many updates there are.

        Args:
            context: of the step.
            batches: every row that is annotated for something once, in random order.
            generator: the epoch's own; the plan must depend on nothing else that changes.
        """
        return batches

    def gates(self, context: StepContext) -> Mapping[str, Tensor]:
        """Factors in [0, 1] on the *update* of parameters, by name; asked for once, before the first update."""
        return {}

    def begin_epoch(self, context: StepContext) -> None:  # noqa: B027
        """Before each epoch: freeze or thaw parameters on a schedule."""

    def begin_update(self, context: StepContext) -> None:  # noqa: B027
        """Before the forward passes of an update; `context.update` of `context.updates` are made in this epoch."""

    def losses(self, context: StepContext, batch: Batch, emissions: Emissions) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms of a batch; the loop minimises the sum of all terms of all strategies.

        A term is a mean over the words of the batch. Rows that are not the step's own (`Batch.origins`) are the
        business of the strategy that brought them in; see `rows.on_rows`.
        """
        return {}

    def constraints(self, context: StepContext) -> Sequence[Constraint]:
        """What the update must not do; asked for at every update, while gradients stand in `.grad`: leave them."""
        return ()

    def precondition(self, context: StepContext, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The optimizer's step replaced: the update to add to each parameter, or None to leave it to the optimizer.

        The learning rate is the strategy's own business; `context.rate` is what the schedule says of it.
        """
        return None

    def settle(self, context: StepContext) -> None:  # noqa: B027
        """After the best weights are restored: the last change to the weights, before anybody measures them."""

    def end_step(self, context: StepContext) -> None:  # noqa: B027
        """When the weights are final: measure importance, choose what to remember, store bases.

        The model is in eval mode with all gradients on and None; it is left so, and its weights are not changed.
        """

    def release(self) -> None:  # noqa: B027
        """When every strategy has measured: let go of what only this step needed."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a later step needs, kept under `strategy/` of the model folder.

        The name of a tensor about a single sentence begins with `ner_cl.model.ner_model.SENTENCE_PREFIX`: then it is
        deleted where the sentences are.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Takes back what `state_dict` gave."""

    def kept_sentences(self) -> Sequence[Sentence]:
        """Sentences a later step needs, kept under `strategy/` of the model folder until somebody deletes them."""
        return ()

    def load_sentences(self, sentences: Sequence[Sentence]) -> None:  # noqa: B027
        """Takes back what `kept_sentences` gave, or less: sentences may have been deleted, for privacy."""

    def progress(self) -> dict[str, Tensor]:
        """What changes from update to update and cannot be computed again: kept in checkpoints inside a step."""
        return {}

    def load_progress(self, progress: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Takes back what `progress` gave, after `begin_step`, `sentences` and `gates` of the resumed step."""
