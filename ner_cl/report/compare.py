"""Compare methods side by side: means over seeds and orders, and significance of their differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ner_cl.errors import DataError
from ner_cl.evaluate.mistakes import Outcomes, outcomes
from ner_cl.evaluate.predictions import Predictions
from ner_cl.evaluate.significance import (
    BootstrapTest,
    SignFlipTest,
    paired_bootstrap,
    sentence_counts,
    sign_flip_test,
)
from ner_cl.report.comparable import Difference, check_no_repeats, check_one_method, differences
from ner_cl.report.outputs import Outputs, TestSets, run_outputs
from ner_cl.report.runs import RunRecord, find_runs, load_run, method_of
from ner_cl.report.spread import Spread
from ner_cl.strategies.build import build_strategies

__all__ = ["Comparison", "Contrast", "Method", "RunScores", "compare"]

_TESTED = ("final/micro_f1", "final/macro_f1", "average/micro_f1", "average/macro_f1")


@dataclass(frozen=True)
class RunScores:
    """One run: folder, the seed and order it is paired by, scores by key, and F1 by type after the last step."""

    folder: str
    seed: int
    order: int
    scores: dict[str, float | None]
    types: dict[str, float | None]


@dataclass(frozen=True)
class Method:
    """All runs of one method.

    Attributes:
        name: name of its folder.
        method: strategies and head as text.
        seeds: number of distinct seeds.
        orders: number of distinct orders of steps.
        scores: every score of a matrix, by key.
        gap: how far final micro F1 is below that of `joint` with all annotation; None without such a run, and for it.
        types: F1 of each type after the last step.
        outcomes: outcomes on the test set after the last step, by type, summed over all runs with predictions.
        judged: number of runs with predictions.
        minutes: mean time of all steps of a run, in minutes; None if no run was timed.
        speed: training sentences per second in updates.
        runs: the scores of each run.
    """

    name: str
    method: str
    seeds: int
    orders: int
    scores: dict[str, Spread]
    gap: float | None
    types: dict[str, Spread]
    outcomes: dict[str, Outcomes]
    judged: int
    minutes: float | None
    speed: float | None
    runs: tuple[RunScores, ...]


@dataclass(frozen=True)
class Contrast:
    """A method compared with the baseline.

    Attributes:
        name: name of the method.
        pairs: number of pairs of runs with the same seed and order.
        micro: test of final micro F1 over test sentences; None without a pair or without predictions.
        macro: the same for final macro F1.
        runs: test over pairs of runs, by score; pairs in which a run lacks the score are left out.
        changes: mean change over pairs of runs, by score.
    """

    name: str
    pairs: int
    micro: BootstrapTest | None
    macro: BootstrapTest | None
    runs: dict[str, SignFlipTest]
    changes: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """A comparison of several methods.

    Attributes:
        stream: name, protocol and number of steps, as text.
        baseline: the method that the others are compared with.
        types: entity types, in the learning order of the baseline's first run.
        methods: the methods, in the order given.
        contrasts: one for each method except the baseline.
        differences: differences between methods besides their strategies.
        notes: remarks for the reader.
    """

    stream: str
    baseline: str
    types: tuple[str, ...]
    methods: tuple[Method, ...]
    contrasts: tuple[Contrast, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-compatible values."""
        return asdict(self)


def compare(
    folders: Sequence[Path],
    *,
    baseline: str | None = None,
    allow_differences: bool = False,
    predict: bool = True,
    resamples: int = 2000,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Read runs and compare their methods side by side.

    Args:
        folders: one per method: a run folder, or a folder of seeds and orders.
        baseline: name of the method that the others are compared with; the first by default.
        allow_differences: also compare runs that differ in more than their method, and report how they differ.
        predict: whether models may be loaded to recompute predictions that runs did not keep.
        resamples: number of bootstrap draws of the test sentences.
        say: receives progress messages for slow work.

    Raises:
        DataError: if a folder has no finished run or the same one twice, or runs differ in more than their method.
    """
    groups, undone = _finished(folders)
    held = baseline or next(iter(groups))
    if held not in groups:
        raise DataError(f"--baseline {held}: is none of {', '.join(groups)}")
    read: TestSets = {}
    outputs = {
        run.folder: run_outputs(run, steps=[len(run.matrix.counts)], predict=predict, read=read, say=say)
        for runs in groups.values()
        for run in runs
    }
    tests = {name: {h for run in runs if (h := outputs[run.folder].fingerprint)} for name, runs in groups.items()}
    found = differences(groups, tests)
    if not allow_differences:
        _check_comparable(found)
    first = groups[held][0]
    joint = _joint(groups)
    orders = list(dict.fromkeys(run.steps for runs in groups.values() for run in runs))
    return Comparison(
        stream=f"{first.config.stream.name}, protocol {first.config.stream.protocol}, {len(first.steps)} steps",
        baseline=held,
        types=first.matrix.types,
        methods=tuple(_method(name, runs, outputs, joint, orders) for name, runs in groups.items()),
        contrasts=tuple(
            _contrast(name, groups[held], runs, outputs, resamples) for name, runs in groups.items() if name != held
        ),
        differences=tuple(found),
        notes=(
            *(f"{name}: is not done, and left out" for name in undone),
            *dict.fromkeys(note for item in outputs.values() for note in item.notes),
        ),
    )


def _finished(folders: Sequence[Path]) -> tuple[dict[str, list[RunRecord]], list[str]]:
    """Return the finished runs of each method, and the names of those that are not finished."""
    read = {name: [load_run(path) for path in find_runs(folder)] for name, folder in _named(folders).items()}
    groups = {name: [run for run in runs if run.is_done] for name, runs in read.items()}
    for name, runs in groups.items():
        if not runs:
            raise DataError(f"{name}: no run is done; go on with it by --resume, or leave it out")
        check_one_method(name, runs)
        check_no_repeats(name, runs)
    return groups, [run.name for runs in read.values() for run in runs if not run.is_done]


def _check_comparable(found: Sequence[Difference]) -> None:
    """Refuses runs whose results cannot be compared."""
    spoiling = [item for item in found if item.spoils]
    if spoiling:
        more = f" and {len(spoiling) - 1} more" if len(spoiling) > 1 else ""
        raise DataError(
            f"runs differ in more than their method: {spoiling[0]}{more}; "
            "compare runs of one setting, or use --allow-differences"
        )


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by name, or by path where several have the same name."""
    names = [folder.resolve().name for folder in folders]
    named = {name if names.count(name) == 1 else str(path): path for name, path in zip(names, folders, strict=True)}
    if len(named) < len(folders):
        raise DataError("a folder is given twice; give each method once")
    return named


def _joint(groups: Mapping[str, Sequence[RunRecord]]) -> float | None:
    """Return the mean final micro F1 of the upper bound; None if it is not among the methods."""
    finals = [run.matrix.metrics["final/micro_f1"] for runs in groups.values() for run in runs if _is_upper_bound(run)]
    return Spread.of(finals).mean


def _is_upper_bound(run: RunRecord) -> bool:
    """Whether a run learned from all data of all steps, with all types annotated in all of them."""
    return any(strategy.reads_earlier == "all" for strategy in build_strategies(run.config.strategies))


def _method(
    name: str,
    runs: Sequence[RunRecord],
    outputs: Mapping[Path, Outputs],
    joint: float | None,
    orders: Sequence[tuple[tuple[str, ...], ...]],
) -> Method:
    first = runs[0]
    judged = [
        outcomes(outputs[run.folder].test, last.spans, run.matrix.types, learned=run.matrix.learned)
        for run in runs
        if (last := _last(outputs, run))
    ]
    rows = [
        RunScores(
            str(run.folder),
            run.config.seed,
            orders.index(run.steps) + 1,
            run.matrix.metrics,
            run.matrix.f1[-1] or {},
        )
        for run in runs
    ]
    scores = {key: Spread.of(row.scores[key] for row in rows) for key in first.matrix.metrics}
    final = scores["final/micro_f1"].mean
    costs = [cost for run in runs for cost in run.costs]
    training = sum(cost.train_seconds for cost in costs)
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return Method(
        name=name,
        method=f"{method_of(first.config)}, head {first.config.head.name}",
        seeds=len({run.config.seed for run in runs}),
        orders=len({run.steps for run in runs}),
        scores=scores,
        gap=None if joint is None or final is None or _is_upper_bound(first) else joint - final,
        types={type_: Spread.of(row.types.get(type_) for row in rows) for type_ in first.matrix.types},
        outcomes={type_: Outcomes.total(found[type_] for found in judged) for type_ in first.matrix.types},
        judged=len(judged),
        minutes=fmean(seconds) / 60 if seconds else None,
        speed=sum(c.sentences_per_second * c.train_seconds for c in costs) / training if training else None,
        runs=tuple(rows),
    )


def _contrast(
    name: str,
    baseline: Sequence[RunRecord],
    runs: Sequence[RunRecord],
    outputs: Mapping[Path, Outputs],
    resamples: int,
) -> Contrast:
    """Compare runs paired by seed and order; sentence tests need the same test set for all pairs."""
    held = {run.pair: run for run in baseline}
    pairs = [(held[run.pair], run) for run in runs if run.pair in held]
    tables = [(left, right) for left, right in pairs if all(_last(outputs, run) for run in (left, right))]
    types = sorted(baseline[0].matrix.types)
    counts = [(_table(left, outputs, types), _table(right, outputs, types)) for left, right in tables]
    same_sentences = len({outputs[run.folder].fingerprint for pair in tables for run in pair}) == 1
    changes = {
        key: [
            after - before
            for left, right in pairs
            if (after := right.matrix.metrics[key]) is not None and (before := left.matrix.metrics[key]) is not None
        ]
        for key in _TESTED
    }
    tested = {key: test for key, values in changes.items() if (test := sign_flip_test(values))}
    return Contrast(
        name,
        len(pairs),
        paired_bootstrap(counts, average="micro", resamples=resamples) if same_sentences else None,
        paired_bootstrap(counts, average="macro", resamples=resamples) if same_sentences else None,
        tested,
        {key: fmean(values) for key, values in changes.items() if values},
    )


def _last(outputs: Mapping[Path, Outputs], run: RunRecord) -> Predictions | None:
    """Return the predictions of a run's last step; None if they are not available."""
    return outputs[run.folder].by_step.get(len(run.matrix.counts))


def _table(run: RunRecord, outputs: Mapping[Path, Outputs], types: Sequence[str]) -> Any:
    found = outputs[run.folder]
    return sentence_counts(found.test, found.by_step[len(run.matrix.counts)].spans, types)
