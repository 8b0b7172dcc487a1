"""Collect the values shown on the page about a run."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from ner_cl.errors import DataError
from ner_cl.evaluate.counts import word_table
from ner_cl.evaluate.mistakes import Mistake, Occurrence, invented_mentions, lost_mentions, most_frequent
from ner_cl.evaluate.reliability import Bin, calibration_error, judge, reliability
from ner_cl.report.comparable import check_no_repeats, strategies_of
from ner_cl.report.outputs import Outputs, TestSets, run_outputs
from ner_cl.report.runs import RunRecord, StepCost, find_runs, load_run, method_of
from ner_cl.report.sentences import Example, example_of
from ner_cl.report.spread import Spread

__all__ = ["Calibration", "MistakeGroup", "Report", "collect"]

_GROUPS = ("old", "new", "o")
_MOST_EXAMPLES = 15


@dataclass(frozen=True)
class MistakeGroup:
    """A frequent mistake with an example sentence."""

    mistake: Mistake
    example: Example


@dataclass(frozen=True)
class Calibration:
    """Calibration of span scores after one step.

    Attributes:
        step: the step.
        error: expected calibration error.
        bins: predictions of all runs, binned by score.
    """

    step: int
    error: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Report:
    """Results of one run, or means over several runs that differ only in their seed.

    Attributes:
        name: name of the folder.
        runs: folder name and seed of each run.
        method: strategies, head and encoder, as text.
        stream: name, protocol and number of test sentences, as text.
        steps: the types of each step.
        f1: F1 of every type after each step; None for a step that was not evaluated.
        micro: micro F1 after each step.
        macro: macro F1 after each step.
        metrics: scores by key.
        confusion: `table[gold][found]` by step: counts of words of old types, new types and none, over all runs.
        lost: most frequent mentions found right after their type was learned but not after the last step.
        invented: most frequent mentions predicted after the last step that are not in gold.
        calibration: calibration after each step.
        costs: costs of each step: means over the runs, but the maximum of peak memory.
        data: training data fingerprint of each step, from the first run.
        test: fingerprint of the test set.
        environment: versions and machine of the first run.
        config: configuration of the first run, in YAML.
        notes: remarks for the reader.
    """

    name: str
    runs: tuple[tuple[str, int], ...]
    method: str
    stream: str
    steps: tuple[tuple[str, ...], ...]
    f1: tuple[dict[str, Spread] | None, ...]
    micro: tuple[Spread, ...]
    macro: tuple[Spread, ...]
    metrics: dict[str, Spread]
    confusion: dict[int, dict[str, dict[str, int]]]
    lost: tuple[MistakeGroup, ...]
    invented: tuple[MistakeGroup, ...]
    calibration: tuple[Calibration, ...]
    costs: tuple[StepCost, ...]
    data: dict[int, str]
    test: str | None
    environment: dict[str, Any]
    config: str
    notes: tuple[str, ...]

    @property
    def learned(self) -> dict[str, int]:
        """The step that taught each type."""
        return {type_: number for number, types in enumerate(self.steps, start=1) for type_ in types}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-compatible values."""
        return asdict(self)


def collect(folder: Path, *, predict: bool = True, say: Callable[[str], None] = lambda line: None) -> Report:
    """Read a run folder, or a folder of several seeds.

    Args:
        folder: a folder written by `ner-cl train`.
        predict: whether models may be loaded to recompute predictions that the run did not keep.
        say: receives progress messages for slow work.

    Raises:
        DataError: if there is no run, or the runs differ in more than their seed.
    """
    runs = [load_run(path) for path in find_runs(folder)]
    _check_alike(folder, runs)
    read: TestSets = {}
    outputs = [run_outputs(run, predict=predict, read=read, say=say) for run in runs]
    first, rows = runs[0], range(len(runs[0].matrix.counts))
    matrices = [run.matrix for run in runs]
    test = outputs[0].test
    lost, invented = _mistakes(runs, outputs)
    options = first.config.stream
    return Report(
        name=folder.resolve().name,
        runs=tuple((run.folder.name, run.config.seed) for run in runs),
        method=f"{method_of(first.config)}, head {first.config.head.name}, encoder {first.config.encoder.name}",
        stream=f"{options.name}, protocol {options.protocol}" + (f", {len(test)} test sentences" if test else ""),
        steps=first.steps,
        f1=tuple(_f1_row([matrix.f1[row] for matrix in matrices]) for row in rows),
        micro=tuple(Spread.of(matrix.micro_f1[row] for matrix in matrices) for row in rows),
        macro=tuple(Spread.of(matrix.macro_f1[row] for matrix in matrices) for row in rows),
        metrics={key: Spread.of(matrix.metrics[key] for matrix in matrices) for key in first.matrix.metrics},
        confusion=_confusion(runs, outputs),
        lost=lost,
        invented=invented,
        calibration=_calibration(runs, outputs),
        costs=_mean_costs(runs),
        data=first.data,
        test=outputs[0].fingerprint,
        environment=first.environment,
        config=_portable(yaml.safe_dump(first.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)),
        notes=tuple(note for item in outputs for note in item.notes),
    )


def _check_alike(folder: Path, runs: Sequence[RunRecord]) -> None:
    """Raise DataError for runs whose mean would be meaningless."""
    first = runs[0]
    check_no_repeats(str(folder), runs)
    for run in runs[1:]:
        free = {"seed": run.config.seed, "output": run.config.output}
        if strategies_of(run) == strategies_of(first):
            free["strategies"] = run.config.strategies
        same = first.config.model_copy(update=free)
        if run.config != same:
            what = "type orders" if run.steps != first.steps else "configurations"
            raise DataError(
                f"{folder}: {first.folder} and {run.folder} differ in their {what}; "
                "report one of them, or put them side by side with `ner-cl compare`"
            )
        if len(run.matrix.counts) != len(first.matrix.counts):
            unfinished = min(run, first, key=lambda one: len(one.matrix.counts))
            raise DataError(
                f"{folder}: {unfinished.folder} is not done; go on with it by --resume, or report the others alone"
            )


def _portable(text: str) -> str:
    """Replace the path of the folder of corpora with `$NER_CL_DATA`."""
    data = os.environ.get("NER_CL_DATA", "").rstrip("/")
    if not data:
        return text
    either = "|".join(re.escape(folder) for folder in (str(Path(data).absolute()), data))
    return re.sub(f"({either})/", "$NER_CL_DATA/", text)


def _f1_row(rows: Sequence[dict[str, float | None] | None]) -> dict[str, Spread] | None:
    known = [row for row in rows if row is not None]
    return {type_: Spread.of(row[type_] for row in known) for type_ in known[0]} if known else None


def _confusion(runs: Sequence[RunRecord], outputs: Sequence[Outputs]) -> dict[int, dict[str, dict[str, int]]]:
    """Sum the word confusion tables of all runs, by step."""
    tables: dict[int, dict[str, dict[str, int]]] = {}
    for run, found in zip(runs, outputs, strict=True):
        for step, predictions in found.by_step.items():
            table = word_table(
                found.test, predictions.spans, old=run.matrix.seen_after(step - 1), new=run.steps[step - 1]
            )
            sums = tables.setdefault(step, {truth: dict.fromkeys(_GROUPS, 0) for truth in _GROUPS})
            for truth, row in table.items():
                for group, count in row.items():
                    sums[truth][group] += count
    return dict(sorted(tables.items()))


def _mistakes(
    runs: Sequence[RunRecord], outputs: Sequence[Outputs]
) -> tuple[tuple[MistakeGroup, ...], tuple[MistakeGroup, ...]]:
    """Return the most frequent lost and made-up mentions of all runs after the last step."""
    lost: list[Occurrence] = []
    invented: list[Occurrence] = []
    last = len(runs[0].matrix.counts)
    seen = runs[0].matrix.seen_after(last)
    learned = runs[0].matrix.learned
    test = next((item.test for item in outputs if item.test), ())
    gold = [sentence.restrict(seen) for sentence in test]
    found = [{step: p.spans for step, p in item.by_step.items()} for item in outputs if last in item.by_step]
    for after in found:
        lost += lost_mentions(gold, after, learned=learned)
        invented += invented_mentions(gold, after[last], seen)
    groups = []
    for occurrences in (lost, invented):
        ranked = most_frequent(gold, occurrences, limit=_MOST_EXAMPLES)
        groups.append(tuple(MistakeGroup(item, _example(gold, item, found, last)) for item in ranked))
    return groups[0], groups[1]


def _example(gold: Sequence[Any], item: Mistake, found: Sequence[dict[int, Any]], last: int) -> Example:
    """Return the sentence of a mistake with the predictions of the first run that made it."""
    number, span = item.example.sentence, item.example.span
    is_gold = span in gold[number].spans
    made_it = next(after for after in found if (span in after[last][number]) != is_gold)
    return example_of(gold[number], made_it[last][number], focus=span)


def _calibration(runs: Sequence[RunRecord], outputs: Sequence[Outputs]) -> tuple[Calibration, ...]:
    steps = sorted({step for item in outputs for step in item.by_step})
    return tuple(_calibration_after(step, runs, outputs) for step in steps)


def _calibration_after(step: int, runs: Sequence[RunRecord], outputs: Sequence[Outputs]) -> Calibration:
    scores: list[float] = []
    right: list[bool] = []
    for run, item in zip(runs, outputs, strict=True):
        if step not in item.by_step:
            continue
        seen = frozenset(run.matrix.seen_after(step))
        gold = [sentence.restrict(seen) for sentence in item.test]
        found = [[(scored.span, scored.score) for scored in row] for row in item.by_step[step].found]
        own = judge(gold, found)
        scores += own[0]
        right += own[1]
    bins = reliability(scores, right)
    return Calibration(step, calibration_error(bins), tuple(bins))


def _mean_costs(runs: Sequence[RunRecord]) -> tuple[StepCost, ...]:
    steps = sorted({cost.step for run in runs for cost in run.costs})
    means = []
    for step in steps:
        costs = [cost for run in runs for cost in run.costs if cost.step == step]
        peaks = [cost.peak_memory for cost in costs if cost.peak_memory is not None]
        means.append(
            StepCost(
                step,
                fmean(cost.train_seconds for cost in costs),
                fmean(cost.seconds for cost in costs),
                fmean(cost.sentences_per_second for cost in costs),
                max(peaks, default=None),
            )
        )
    return tuple(means)
