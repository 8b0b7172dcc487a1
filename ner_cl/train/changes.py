"""What learning did to every type: F1 before and after, and the forgetting gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ner_cl.errors import CheckFailed, ConfigError
from ner_cl.evaluate.counts import Counts, count_spans
from ner_cl.model.ner_model import NerModel
from ner_cl.train.isolation import Fingerprints
from ner_cl.types import Sentence, Span

__all__ = ["LearnResult", "TypeChange", "changes_of", "check_gate"]


@dataclass(frozen=True)
class TypeChange:
    """F1 of one type before and after the step.

    Attributes:
        type: the type.
        before: F1 (0 to 1) before the step; None for a new type, or when nothing was measured.
        after: F1 after it.
        measured: `gold` (dev annotation), or `agreement`: no dev sentence is annotated for this type, so the model
            after the step is compared with the model before it, and `before` is 1; or `nothing`, if that model found no
            mention either.
        mentions: how many F1 is measured on.
    """

    type: str
    before: float | None
    after: float | None
    measured: str
    mentions: int = 0

    @property
    def drop(self) -> float:
        """How far F1 fell, 0 to 1; negative if it rose, 0 for a new type."""
        return 0.0 if self.before is None else self.before - (self.after or 0.0)


@dataclass(frozen=True)
class LearnResult:
    """A model that knows more, and what that did to the types it knew.

    Attributes:
        model: the new model; the one given to `learn` is unchanged.
        changes: a row for every type, in learning order.
        isolation: what old blocks emit and was found unchanged to the last bit, where the steps are kept apart.
        new: the types that were taught; None for those of the model's last step.
    """

    model: NerModel
    changes: tuple[TypeChange, ...]
    isolation: Fingerprints | None = None
    new: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """Short, where a notebook shows it: the table says what came of it, `model` is long."""
        return f"LearnResult({', '.join(self._new)}; {len(self.model.types)} types)\n{self.table}"

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
            lines.append(f"{change.type:<{width}}  {before:>6}  {after:>6}  {moved:>6}  {change.measured}")
        return "\n".join(lines)

    @property
    def _new(self) -> tuple[str, ...]:
        return self.model.tagset.steps[-1] if self.new is None else self.new

    @property
    def largest_drop(self) -> TypeChange | None:
        """The old type that fell most; None if the model knew nothing before."""
        old = [change for change in self.changes if change.before is not None]
        return max(old, key=lambda change: change.drop, default=None)

    def check(self, max_drop: float) -> None:
        """The forgetting gate.

        Raises:
            CheckFailed: if an old type fell by more than `max_drop` (0 to 1), or no old type could be measured.
            ConfigError: if `max_drop` is more than 1.
        """
        check_gate(max_drop)
        worst = self.largest_drop
        old = [change for change in self.changes if change.type not in self._new]
        if old and worst is None:
            raise CheckFailed(
                f"none of the old types ({', '.join(change.type for change in old)}) could be measured; give dev "
                "sentences that mention them, annotated or not; the model is not published"
            )
        if worst is not None and worst.drop > max_drop:
            raise CheckFailed(
                f"{worst.type} fell by {100 * worst.drop:.1f} points of F1 ({worst.measured}, on "
                f"{worst.mentions} mentions), more than the {100 * max_drop:.1f} allowed; the model is not published"
            )


def changes_of(
    dev: Sequence[Sentence],
    before: Sequence[Sequence[Span]],
    after: Sequence[Sequence[Span]],
    old_types: Sequence[str],
    counts: Mapping[str, Counts],
) -> tuple[TypeChange, ...]:
    """A row for every type of `counts`.

    Args:
        dev: the sentences that were looked at.
        before: spans found in each before the step.
        after: spans found after it.
        old_types: the types known before.
        counts: of `after` by gold, for all types in learning order.
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


def _percent(value: float | None, missing: str) -> str:
    return missing if value is None else f"{100 * value:.1f}"


def check_gate(max_drop: float) -> None:
    """ConfigError for a gate that nothing can fail."""
    if not max_drop <= 1:  # not a number, too
        raise ConfigError(f"max_drop: {max_drop} is more than all of F1, which is 1; 0.05 is 5 points")
