"""The exemplar memory: a few sentences of every step, kept for later steps."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal, final

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from ner_cl.config import Options
from ner_cl.errors import DataError
from ner_cl.registry import nearest
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.selection import balanced, enough_mentions, herding, in_turn, reservoir, type_features
from ner_cl.types import Sentence

__all__ = ["Memory", "MemoryOptions", "check_kept"]


class MemoryOptions(Options):
    """How many sentences of each step are kept, and which.

    Attributes:
        budget: how much is kept, in the unit given by `unit`.
        unit: `step`: this many sentences per step; `step_fraction`: this share of a step's sentences; `new_fraction`:
            of every step at most this share of the newest step's number of sentences; `total`: this many sentences,
            shared evenly by all steps; `type`: sentences with this many mentions of each type. `auto` is
            `step_fraction` for a budget below 1, else `step`; 1.0 could mean either and is refused. A share is rounded,
            but never to 0 sentences.
        selection: `random`; `reservoir`: the same distribution, drawn in one pass; `balanced`: each time the sentence
            that most raises the count of the type that is rarest so far; `herding`: the sentences whose mean word
            vectors come nearest to the mean of each type (iCaRL).
    """

    # A union, so that 1 is written to files as 1 and not as 1.0, which would be refused on reading.
    budget: int | float = Field(0.01, gt=0, le=1e300)
    unit: Literal["auto", "step", "step_fraction", "new_fraction", "total", "type"] = "auto"
    selection: Literal["random", "reservoir", "balanced", "herding"] = "random"

    @model_validator(mode="after")
    def _budget_fits_unit(self) -> "MemoryOptions":
        if self.unit == "auto" and isinstance(self.budget, float) and self.budget == 1:
            raise ValueError("budget: 1.0 may be all sentences of a step or one; say unit: step_fraction or step")
        if self.resolved_unit == "step_fraction" and self.budget > 1:
            raise ValueError(f"budget: a share of a step's sentences is at most 1, not {self.budget:g}")
        if self.resolved_unit in ("step", "total", "type") and self.budget % 1:
            raise ValueError(f"budget: {self.budget:g} is no whole number, which unit: {self.resolved_unit} counts in")
        return self

    @property
    def resolved_unit(self) -> str:
        """The unit, with `auto` resolved."""
        if self.unit == "auto":
            return "step_fraction" if self.budget < 1 else "step"
        return self.unit


@final
class Memory:
    """Sentences of earlier steps, each annotated for the types of its own step only.

    The sentences of a step are ordered by rank, best first, so a step that must drop some drops the last ones.

    Args:
        options: how many sentences to keep, and which.

    Attributes:
        sentences: the sentences, in the order of steps.
    """

    def __init__(self, options: MemoryOptions) -> None:
        self.options = options
        self.sentences: tuple[Sentence, ...] = ()

    def load(self, sentences: Sequence[Sentence]) -> None:
        """Restores `sentences`, or less: some may have been deleted."""
        self.sentences = tuple(sentences)

    def by_step(self, steps: Sequence[Sequence[str]]) -> list[tuple[Sentence, ...]]:
        """The sentences of each step; one annotated for types of several steps belongs to the last of these.

        Args:
            steps: the types of each step.
        """
        groups: list[list[Sentence]] = [[] for _ in steps]
        for sentence in self.sentences:
            own = [number for number, types in enumerate(steps) if not sentence.annotated_types.isdisjoint(types)]
            if own:
                groups[own[-1]].append(sentence)
        return [tuple(group) for group in groups]

    def remember(self, context: StepContext) -> None:
        """Chooses from the step's own sentences, and drops those of earlier steps that exceed the budget.

        Args:
            context: the step at its end, when the weights are final.
        """
        own, steps = _own_sentences(context), context.model.tagset.steps
        groups = [*self.by_step(steps[:-1]), self._choose(context, own)]
        if self.options.resolved_unit == "type":
            groups = [self._enough(group, range(len(group)), types) for group, types in zip(groups, steps, strict=True)]
        limits = self._limits([len(group) for group in groups], len(own))
        self.sentences = tuple(chain(*(group[:limit] for group, limit in zip(groups, limits, strict=True))))

    def _choose(self, context: StepContext, own: Sequence[Sentence]) -> tuple[Sentence, ...]:
        """The step's best sentences, best first, as many as the budget could allow."""
        unit, budget = self.options.resolved_unit, self.options.budget
        mentions = _mentions(own, context.types)
        if unit == "type":
            return self._enough(own, self._ranking(context, own, mentions, len(own)), context.types)
        most = min(int(budget), len(own)) if unit in ("step", "total") else _share(budget, len(own))
        return tuple(own[index] for index in islice(self._ranking(context, own, mentions, most), most))

    def _enough(
        self, sentences: Sequence[Sentence], ranking: Iterable[int], types: Sequence[str]
    ) -> tuple[Sentence, ...]:
        """The first sentences of a ranking that hold `budget` mentions of each type, or all there are (unit: `type`).

        Applied again to an earlier choice with a smaller budget, it gives what that budget would have chosen.
        """
        chosen = enough_mentions(ranking, _mentions(sentences, types), int(self.options.budget))
        return tuple(sentences[index] for index in chosen)

    def _ranking(
        self, context: StepContext, own: Sequence[Sentence], mentions: Float[np.ndarray, "sentence type"], most: int
    ) -> Iterator[int]:
        # One shared stream: strategies with the same memory options remember the same sentences.
        generator = context.generator("memory")
        if self.options.selection == "balanced":
            return balanced(mentions, generator)
        if self.options.selection == "reservoir":
            return iter(reservoir(range(len(own)), most, generator))
        others: Iterator[int] = iter(generator.permutation(len(own)).tolist())
        if self.options.selection == "random":
            return others
        features = type_features(context.model, own, context.types, batch_tokens=context.eval_batch_tokens)
        # One queue: drops repeats.
        return in_turn([chain(in_turn([_herd(*part) for part in features.values()]), others)])

    def _limits(self, sizes: Sequence[int], new: int) -> list[int]:
        """How many of its sentences each step may keep."""
        unit, budget = self.options.resolved_unit, self.options.budget
        if unit == "new_fraction":
            return [min(size, _share(budget, new)) for size in sizes]
        if unit == "step":
            return [min(size, int(budget)) for size in sizes]
        if unit != "total":
            # `step_fraction` is a share of an earlier step's sentences, whose number is no longer known.
            return list(sizes)
        limits, left = [0] * len(sizes), int(budget)
        # A step with fewer sentences than its share leaves the rest to the others.
        for place, index in enumerate(sorted(range(len(sizes)), key=lambda index: sizes[index])):
            limits[index] = min(sizes[index], -(-left // (len(sizes) - place)))
            left -= limits[index]
        return limits


def check_kept(sentences: Sequence[Sentence], old_types: Sequence[str], types: Sequence[str]) -> None:
    """Refuses remembered sentences whose annotation the model cannot use, as after a mistaken edit.

    Args:
        sentences: the memory; annotation for the types in `types` is ignored.
        old_types: the types the model knows.
        types: the types it is about to learn.

    Raises:
        DataError: if a sentence is annotated for a type that is in neither, or for no old type.
    """
    known = ", ".join(old_types) or "none yet"
    for sentence in sentences:
        for type_ in sorted(sentence.annotated_types.difference(old_types, types)):
            raise DataError(
                f"{sentence.where}a remembered sentence is annotated for {type_}, which the model does not know"
                f"{nearest(type_, old_types)} (it knows {known}); correct the line or delete it"
            )
        if sentence.annotated_types.isdisjoint(old_types):
            raise DataError(
                f"{sentence.where}a remembered sentence is annotated for none of the types that the model knows "
                f"({known}); correct its annotated_types or delete the line"
            )


def _own_sentences(context: StepContext) -> list[Sentence]:
    """The step's sentences without remembered ones or duplicates, annotated for the step's types only."""
    distinct: dict[tuple[object, ...], Sentence] = {}
    for sentence in context.encoded.sentences:
        shown = sentence.restrict(context.types)
        if shown.annotated_types:
            distinct.setdefault((shown.words, shown.spans), shown)
    return list(distinct.values())


def _mentions(sentences: Sequence[Sentence], types: Sequence[str]) -> Float[np.ndarray, "sentence type"]:
    counts = np.zeros((len(sentences), len(types)))
    for row, sentence in enumerate(sentences):
        for span in sentence.spans:
            if span.type in types:
                counts[row, types.index(span.type)] += 1
    return counts


def _herd(sentences: list[int], features: Float[np.ndarray, "sentence hidden"]) -> Iterator[int]:
    return (sentences[item] for item in herding(features))


def _share(fraction: int | float, count: int) -> int:
    return max(1, round(min(fraction * count, sys.maxsize)))
