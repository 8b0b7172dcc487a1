"""Repeat a run with several seeds and step orders, for `ner-cl train --seeds --orders`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ner_cl.cli.console import emit, emit_json, percent, say, table
from ner_cl.errors import CheckFailed, TrainingError

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.config import Config
    from ner_cl.evaluate.matrix import Matrix

__all__ = ["runs_of", "train_all"]

_SUMMARY = {
    "final/micro_f1": "final micro F1",
    "final/macro_f1": "final macro F1",
    "average/micro_f1": "micro F1, mean over steps",
    "average/macro_f1": "macro F1, mean over steps",
    "forgetting/max_drop": "forgetting",
}


def train_all(
    config: "Config",
    train_once: "Callable[[Config], Matrix]",
    *,
    seeds: Sequence[int],
    orders: int | None,
    as_json: bool,
) -> None:
    """Train one run per seed and order, then print mean and standard deviation of the main scores.

    A run that fails, by the forgetting gate say, does not end the others; it is told at once and again at the end.

    Args:
        config: the configuration to repeat; runs go to `OUTPUT/seed-1`, `OUTPUT/order-1`, or `OUTPUT/order-1/seed-1`.
        train_once: trains one run.
        seeds: seeds of the runs; if empty, the seed of the configuration is used.
        orders: number of step orders; None keeps that of the configuration, without a folder for it.
        as_json: print JSON instead of a table.

    Raises:
        CheckFailed: if runs failed, after all have been trained; TrainingError if not only the gate refused them.
    """
    runs: dict[str, Mapping[str, float | None]] = {}
    failed: dict[str, CheckFailed | TrainingError] = {}
    for name, one in runs_of(config, seeds, orders).items():
        try:
            runs[name] = train_once(one).metrics
        except (CheckFailed, TrainingError) as error:
            say(f"{name} failed: {error}")
            failed[name] = error
    if runs:
        _emit_means(config.output, runs, failed, only_seeds=orders is None, as_json=as_json)
    if failed:
        kind = CheckFailed if all(isinstance(error, CheckFailed) for error in failed.values()) else TrainingError
        name, problem = next(iter(failed.items()))
        raise kind(f"{len(failed)} of {len(runs) + len(failed)} runs failed: {', '.join(failed)}; {name}: {problem}")


def _emit_means(
    output: str,
    runs: Mapping[str, Mapping[str, float | None]],
    failed: Mapping[str, Exception],
    *,
    only_seeds: bool,
    as_json: bool,
) -> None:
    """Print the scores of all runs that did not fail, and their mean and standard deviation."""
    columns = {key: [metrics[key] for metrics in runs.values()] for key in _SUMMARY}
    means = {key: _mean(values) for key, values in columns.items()}
    deviations = {key: _deviation(values) for key, values in columns.items()}
    if as_json:
        found: Mapping[str, Any] = {"runs": runs}
        if only_seeds:
            found = {"seeds": {name.removeprefix("seed-"): metrics for name, metrics in runs.items()}}
        told = {"failed": {name: str(error) for name, error in failed.items()}} if failed else {}
        emit_json({"output": output, **found, **told, "mean": means, "sd": deviations})
        return
    titles = [name.replace("-", " ").replace("/", ", ") for name in (*runs, *(f"{name} failed" for name in failed))]
    rows = [
        [
            title,
            *map(percent, columns[key]),
            *("" for _ in failed),
            percent(means[key]),
            f"± {percent(deviations[key])}",
        ]
        for key, title in _SUMMARY.items()
    ]
    emit(table(["× 100", *titles, "mean", "sd"], rows))


def runs_of(config: "Config", seeds: Sequence[int], orders: int | None) -> "dict[str, Config]":
    """Return the configuration of every run, by the name of its folder below the output."""
    from ner_cl.train.orders import with_orders

    ordered = {f"order-{n}": c for n, c in enumerate(with_orders(config, orders), 1)} if orders else {"": config}
    for name, one in ordered.items():
        if name:
            say(f"{name}: {' → '.join('+'.join(types) for types in one.stream.steps or ())}")
    configs = {}
    for order, one in ordered.items():
        for seed in seeds or [config.seed]:
            name = "/".join(part for part in (order, f"seed-{seed}" if seeds else "") if part)
            configs[name] = one.model_copy(update={"seed": seed, "output": str(Path(config.output) / name)})
    return configs


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _deviation(values: Sequence[float | None]) -> float | None:
    """Return the sample standard deviation; None for a single value or if a value is missing."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) == len(values) > 1 else None
