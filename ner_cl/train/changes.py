"""F1 of every type before and after a step, and the forgetting gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ner_cl.errors import CheckFailed, ConfigError, many
from ner_cl.evaluate.counts import Counts, count_spans
from ner_cl.model.ner_model import NerModel
from ner_cl.train.held_back import FEWEST_TO_HOLD_BACK_FROM
from ner_cl.train.isolation import Fingerprints
from ner_cl.types import Sentence, Span

__all__ = ["LearnResult", "TypeChange", "changes_of", "check_gate", "check_measurable", "fell_too_far"]


@dataclass(frozen=True)
class TypeChange:
    """F1 of one type before and after the step.

    Attributes:
        type: the type.
        before: F1 (0 to 1) before the step; None for a new type, or if nothing could be measured.
        after: F1 after the step.
        measured: `gold` (dev annotation); `agreement`, if the gold has no mention of an old type, so that the model is
            compared with the model before the step and `before` is 1; or `nothing`, if neither gives a mention.
        mentions: number of mentions that F1 is measured on.
    """

    type: str
    before: float | None
    after: float | None
    measured: str
    mentions: int = 0

    @property
    def drop(self) -> float:
        """The drop in F1, 0 to 1; negative if it rose, 0 for a new type."""
        return 0.0 if self.before is None else self.before - (self.after or 0.0)


@dataclass(frozen=True)
class LearnResult:
    """The new model, and how F1 of each type changed.

    Attributes:
        model: the new model; the one given to `learn` is unchanged.
        changes: one entry per type, in learning order.
        isolation: fingerprints of the old blocks' emissions, verified as unchanged; None unless steps are isolated.
        new: the types that were taught; None for those of the model's last step.
        reads_unlabeled: whether one of the strategies makes use of unlabeled text.
    """

    model: NerModel
    changes: tuple[TypeChange, ...]
    isolation: Fingerprints | None = None
    new: tuple[str, ...] | None = None
    reads_unlabeled: bool = False

    def __repr__(self) -> str:
        """The new types and the table; the `repr` of `model` would be too long for a notebook."""
        new = f"{', '.join(self._new)}; " if self._new else ""  # `compact` teaches none
        return f"LearnResult({new}{many(len(self.model.types), 'type')})\n{self.table}"

    @property
    def table(self) -> str:
        """Per-type F1 before and after, as plain text."""
        width = max(len("type"), *(len(change.type) for change in self.changes))
        lines = [f"{'type':<{width}}  before   after  change  measured"]
        for change in self.changes:
            moved = (
                "" if change.before is None or change.after is None else f"{100 * (change.after - change.before):+.1f}"
            )
            new = "new" if change.type in self._new else "-"
            before, after = _percent(change.before, new), _percent(change.after, "-")
            lines.append(f"{change.type:<{width}}  {before:>6}  {after:>6}  {moved:>6}  {_measured(change)}")
        return "\n".join(lines)

    @property
    def _new(self) -> tuple[str, ...]:
        return self.model.tagset.steps[-1] if self.new is None else self.new

    @property
    def largest_drop(self) -> TypeChange | None:
        """The measured old type with the largest drop; None if there is none."""
        old = [change for change in self.changes if change.before is not None]
        return max(old, key=lambda change: change.drop, default=None)

    def check(self, max_drop: float) -> None:
        """Applies the forgetting gate.

        Raises:
            CheckFailed: if an old type's F1 fell by more than `max_drop` (0 to 1), or no old type could be measured.
            ConfigError: if `max_drop` is more than 1.
        """
        check_gate(max_drop)
        worst = self.largest_drop
        old = [change for change in self.changes if change.type not in self._new]
        if old and worst is None:
            raise _not_measured([change.type for change in old])
        if worst is not None and fell_too_far(worst.drop, max_drop):
            raise CheckFailed(
                f"{worst.type} fell by {100 * worst.drop:.1f} points of F1 ({worst.measured}, on "
                f"{many(worst.mentions, 'mention')}), more than the {100 * max_drop:.1f} allowed; the model is not "
                "published"
            )


def changes_of(
    dev: Sequence[Sentence],
    before: Sequence[Sequence[Span]],
    after: Sequence[Sequence[Span]],
    old_types: Sequence[str],
    counts: Mapping[str, Counts],
) -> tuple[TypeChange, ...]:
    """Returns one entry for every type in `counts`.

    Args:
        dev: the evaluated sentences.
        before: spans found in each sentence before the step.
        after: spans found after it.
        old_types: the types known before.
        counts: counts of `after` against the gold, for all types in learning order.
    """
    reference = [sentence.with_spans(spans, old_types) for sentence, spans in zip(dev, before, strict=True)]
    gold_before, agreed = count_spans(dev, before, old_types), count_spans(reference, after, old_types)
    return tuple(_change(type_, gold_before.get(type_), count, agreed.get(type_)) for type_, count in counts.items())


def _change(type_: str, before: Counts | None, after: Counts, agreed: Counts | None) -> TypeChange:
    if before is None or agreed is None:
        return TypeChange(type_, None, after.f1, "gold" if after.gold else "nothing", after.gold)
    if before.gold:
        return TypeChange(type_, before.f1, after.f1, "gold", before.gold)
    if agreed.gold:
        return TypeChange(type_, 1.0, agreed.f1, "agreement", agreed.gold)
    return TypeChange(type_, None, None, "nothing")


def _measured(change: TypeChange) -> str:
    return f"{change.measured}, {many(change.mentions, 'mention')}" if change.mentions else change.measured


def _percent(value: float | None, missing: str) -> str:
    return missing if value is None else f"{100 * value:.1f}"


def check_gate(max_drop: float) -> None:
    """Raises ConfigError for a gate that cannot fail."""
    if not max_drop <= 1:  # refuses NaN too
        raise ConfigError(f"max_drop: {max_drop} is more than all of F1, which is 1; 0.05 is 5 points")


def check_measurable(dev: Sequence[Sentence], before: Sequence[Sequence[Span]], old_types: Sequence[str]) -> None:
    """Raises CheckFailed if dev sentences neither mention an old type nor make the old model find one."""
    if old_types and not any(before) and not any(s.restrict(old_types).spans for s in dev):
        raise _not_measured(old_types)


def _not_measured(old_types: Sequence[str]) -> CheckFailed:
    return CheckFailed(
        f"none of the old types ({', '.join(old_types)}) can be measured; give dev sentences, annotated or not, or "
        f"{FEWEST_TO_HOLD_BACK_FROM} raw texts that mention them; no model is published"
    )


def fell_too_far(drop: float, allowed: float) -> bool:
    """Whether a drop in F1 is more than the gate allows; 0.80 - 0.75, in floating point, is not more than 0.05."""
    return drop > allowed + 1e-9
