"""Continual-learning scores of a matrix, each under a key that names its definition.

Rows are numbered from 1; `a[k][j]` is the F1 (0 to 1) of type j after step k, K the last row, `s` the step that taught
the type. Unless the key says `step`, means weigh every type equally, so a step that taught eight types weighs eight
times as much as a step that taught one.

| key | definition |
|---|---|
| `average/micro_f1`, `average/macro_f1` | mean over all rows, row 1 included (CFNER, CPFD, RDP, TBCL) |
| `average/step_mean_f1` | mean over all rows of the mean over steps of the micro F1 of each step's types (SpanKL) |
| `final/micro_f1`, `final/macro_f1`, `final/step_mean_f1` | the same for row K alone |
| `forgetting/max_drop` | mean over old types of `max(a[s..K]) - a[K]`, never negative |
| `forgetting/max_drop_earlier` | mean over old types of `max(a[s..K-1]) - a[K]` (Chaudhry et al. 2018) |
| `forgetting/first_drop` | mean over old types of `a[s] - a[K]` (Avalanche) |
| `forgetting/step_max_drop` | `forgetting/max_drop` with steps instead of types, by the micro F1 of their types |
| `bwt/final` | mean over old types of `a[K] - a[s]` (Lopez-Paz & Ranzato 2017) |
| `bwt/lower_triangle` | mean over all old types and all rows after s of `a[k] - a[s]` (Diaz-Rodriguez et al. 2018) |
| `bwt/step_final` | `bwt/final` with steps instead of types (the backward interference of SpanKL) |
| `old/macro_f1_average`, `new/macro_f1_average` | mean over rows k >= 2 of the macro F1 of old or new types (TBCL) |
| `learning/new_f1_mean` | mean over types of `a[s]`, the score right after learning |

In forgetting and transfer, old types are those taught before step K; in `old/` and `new/`, those taught before step k.
A type without gold has no F1 and is left out of every mean. A score with nothing to average is None, such as forgetting
after a single step. If a row was not evaluated, all keys but `final/` are None.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Protocol, TypeAlias, runtime_checkable

from ner_cl.evaluate.counts import Counts, macro_f1, micro_f1

__all__ = [
    "History",
    "Table",
    "bwt_final",
    "bwt_lower_triangle",
    "comparison",
    "first_drop",
    "fwt_from_scratch",
    "gap_to_joint",
    "intransigence",
    "max_drop",
    "max_drop_earlier",
    "mean",
    "summary",
]

History: TypeAlias = Sequence[float | None]
"""Scores of one type (or step): after the step that taught it, then after each later step."""
Row: TypeAlias = Mapping[str, Counts]


@runtime_checkable
class Table(Protocol):
    """The part of a matrix that the scores need: the types each step teaches and the counts after each step so far."""

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """The types each step teaches."""

    @property
    def counts(self) -> tuple[Row | None, ...]:
        """Counts after each step run so far; None for a step that was not evaluated."""


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values; None if there are none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def max_drop(histories: Sequence[History]) -> float | None:
    """Return the mean drop from the best score (the last one included) to the last; in [0, 1]."""
    return mean(max(history) - history[-1] for history in _old(histories))


def max_drop_earlier(histories: Sequence[History]) -> float | None:
    """Return the mean drop from the best score before the last step to the last; negative where the last is the best.

    Source: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning", section on forgetting.
    """
    return mean(max(history[:-1]) - history[-1] for history in _old(histories))


def first_drop(histories: Sequence[History]) -> float | None:
    """Return the mean drop from the score right after learning to the last; the negative of `bwt_final`."""
    return mean(history[0] - history[-1] for history in _old(histories))


def bwt_final(histories: Sequence[History]) -> float | None:
    """Return the backward transfer: the mean change from the score right after learning to the last.

    Source: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning".
    """
    return mean(history[-1] - history[0] for history in _old(histories))


def bwt_lower_triangle(histories: Sequence[History]) -> float | None:
    """Return the backward transfer averaged over all later steps, not only the last.

    Source: Diaz-Rodriguez et al. 2018, "Don't forget, there is more than forgetting".
    """
    return mean(score - history[0] for history in _old(histories) for score in history[1:])


def summary(table: Table) -> dict[str, float | None]:
    """Return all scores defined by one matrix alone; see the table in the module docstring."""
    last = [row for row in table.counts[-1:] if row is not None]
    rows = _evaluated(table)
    types, steps = _type_histories(table.steps, rows), _step_histories(table.steps, rows)
    old, new = _old_and_new(table.steps, rows)
    return {
        "average/micro_f1": mean(map(micro_f1, rows)),
        "average/macro_f1": mean(map(macro_f1, rows)),
        "average/step_mean_f1": mean(_step_mean(table.steps, row) for row in rows),
        "final/micro_f1": mean(map(micro_f1, last)),
        "final/macro_f1": mean(map(macro_f1, last)),
        "final/step_mean_f1": mean(_step_mean(table.steps, row) for row in last),
        "forgetting/max_drop": max_drop(types),
        "forgetting/max_drop_earlier": max_drop_earlier(types),
        "forgetting/first_drop": first_drop(types),
        "forgetting/step_max_drop": max_drop(steps),
        "bwt/final": bwt_final(types),
        "bwt/lower_triangle": bwt_lower_triangle(types),
        "bwt/step_final": bwt_final(steps),
        "old/macro_f1_average": mean(map(macro_f1, old)),
        "new/macro_f1_average": mean(map(macro_f1, new)),
        "learning/new_f1_mean": mean(history[0] for history in types),
    }


def fwt_from_scratch(table: Table, scratch: Mapping[str, float | None]) -> float | None:
    """Return forward transfer, key `fwt/from_scratch`: mean over the types of steps >= 2 of `a[s] - scratch`.

    The classic definition compares with the model before the step. A tagger has no output column for a type it has not
    learned yet, so that score would be 0 by construction.

    Args:
        table: the continual run.
        scratch: F1 of each type for a model trained from scratch on the data of that type's step alone; missing types
            are left out of the mean.
    """
    taught_later = frozenset(chain.from_iterable(table.steps[1:]))
    gains = (_difference(score, scratch.get(type_)) for type_, score in _first(table).items() if type_ in taught_later)
    return mean(gains)


def intransigence(table: Table, joint: Table) -> float | None:
    """Return the F1 that learning in steps costs a new type, key `intransigence/joint`: mean of `a* - a[s]`.

    Args:
        table: the continual run.
        joint: a run trained on all data at once; its last row gives `a*`.

    Source: Chaudhry et al. 2018, with the joint model as the reference.
    """
    upper = joint.counts[-1] if joint.counts else None
    if upper is None:
        return None
    return mean(_difference(upper[type_].f1, score) for type_, score in _first(table).items() if type_ in upper)


def gap_to_joint(table: Table, joint: Table) -> float | None:
    """Return final micro F1 of the joint run minus that of the continual run, key `gap/joint_micro_f1`."""
    return _difference(summary(joint)["final/micro_f1"], summary(table)["final/micro_f1"])


def comparison(
    table: Table, *, joint: Table | None = None, scratch: Mapping[str, float | None] | None = None
) -> dict[str, float | None]:
    """Return the scores that need a second run, by key; those whose run is not given are left out."""
    scores: dict[str, float | None] = {}
    if scratch is not None:
        scores["fwt/from_scratch"] = fwt_from_scratch(table, scratch)
    if joint is not None:
        scores["intransigence/joint"] = intransigence(table, joint)
        scores["gap/joint_micro_f1"] = gap_to_joint(table, joint)
    return scores


def _evaluated(table: Table) -> list[Row]:
    """Return all rows, or none if one is missing: a mean over some rows would look like a mean over all."""
    rows = [row for row in table.counts if row is not None]
    return rows if len(rows) == len(table.counts) else []


def _old(histories: Sequence[History]) -> list[list[float]]:
    """Return the histories that have every score and continue after the step that taught the type."""
    defined = [[score for score in history if score is not None] for history in histories]
    return [scores for scores, history in zip(defined, histories, strict=True) if 1 < len(scores) == len(history)]


def _type_histories(steps: Sequence[Sequence[str]], rows: Sequence[Row]) -> list[History]:
    return [[row[type_].f1 for row in rows[k:]] for k, step in enumerate(steps[: len(rows)]) for type_ in step]


def _step_histories(steps: Sequence[Sequence[str]], rows: Sequence[Row]) -> list[History]:
    return [[micro_f1(_pick(row, step)) for row in rows[k:]] for k, step in enumerate(steps[: len(rows)])]


def _old_and_new(steps: Sequence[Sequence[str]], rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """For each row from the second on, return its cells of types taught earlier and of types taught in that step."""
    later = list(enumerate(rows))[1:]
    old: list[Row] = [_pick(row, chain.from_iterable(steps[:k])) for k, row in later]
    new: list[Row] = [_pick(row, steps[k]) for k, row in later]
    return old, new


def _step_mean(steps: Sequence[Sequence[str]], row: Row) -> float | None:
    return mean(micro_f1(_pick(row, step)) for step in steps if step[0] in row)


def _first(table: Table) -> dict[str, float | None]:
    rows = _evaluated(table)
    return {type_: row[type_].f1 for step, row in zip(table.steps, rows, strict=False) for type_ in step}


def _pick(row: Row, types: Iterable[str]) -> dict[str, Counts]:
    return {type_: row[type_] for type_ in types}


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
