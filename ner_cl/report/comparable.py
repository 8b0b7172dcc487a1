"""Check that runs differ only in their method: same data in the same order, budget, selection and encoder."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ner_cl.config import StrategyOptions, flatten
from ner_cl.errors import DataError
from ner_cl.report.runs import RunRecord
from ner_cl.strategies.build import build_strategies

__all__ = ["Difference", "check_no_repeats", "check_one_method", "differences", "strategies_of"]

# Keys that may differ: what defines a method, what a comparison averages over, and what changes no score.
_FREE = (
    "seed",
    "output",
    "tracker",
    "sweep",
    "strategies",
    "gate",
    "stream.name",
    "stream.file",
    "stream.steps",
    "stream.orders",
    "stream.corpus",
    "training.checkpoint_seconds",
    "training.eval_batch_tokens",
)
# Differences that are reported but not refused: a strategy may require a head or raw text, and machines differ.
_SAID = ("head", "environment", "stream.corpus.unlabeled")
_MACHINE = ("torch", "transformers")
_PARTS = ("data", "dev", "earlier", "earlier_dev", "unlabeled")


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between methods other than their strategies.

    Attributes:
        what: key path of the configuration, or `data`, `dev`, `earlier`, `unlabeled`, `test`, `orders`, `seeds`,
            `environment`.
        values: the value of each method.
        spoils: whether it makes the comparison unfair, because more than the method differs.
    """

    what: str
    values: dict[str, str]
    spoils: bool

    def __str__(self) -> str:
        """Describe the difference in one line, grouping methods with the same value."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name, value in self.values.items():
            groups[value].append(name)
        return f"{self.what}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def check_one_method(name: str, runs: Sequence[RunRecord]) -> None:
    """Check that all runs in a folder use the same method with the same settings.

    Raises:
        DataError: if they do not; names two of the runs.
    """
    first = runs[0]
    settings = _settings(first)
    for run in runs[1:]:
        if (strategies_of(run), run.config.head) != (strategies_of(first), first.config.head):
            raise DataError(
                f"{name}: {first.folder} and {run.folder} are of different methods; "
                "give a folder for each, such as RUNS/*"
            )
        for key, value in _settings(run).items():
            if not _is_free(key) and value != settings.get(key):
                raise DataError(
                    f"{name}: {first.folder} and {run.folder} differ in {key}: {settings.get(key)}, {value}; "
                    "give a folder for each"
                )


def check_no_repeats(name: str, runs: Sequence[RunRecord]) -> None:
    """Check that no two runs of a method have the same seed and order, since a repeated run is no further evidence.

    Raises:
        DataError: if two have; names both.
    """
    found: dict[object, RunRecord] = {}
    for run in runs:
        other = found.setdefault(run.pair, run)
        if other is not run:
            raise DataError(
                f"{name}: {other.folder} and {run.folder} have the same seed ({run.config.seed}) and order of steps, "
                "and must not count twice; move one of them elsewhere"
            )


def differences(groups: Mapping[str, Sequence[RunRecord]], tests: Mapping[str, set[str]]) -> list[Difference]:
    """Return all differences between methods besides the strategies, those that spoil the comparison first.

    Args:
        groups: runs of each method.
        tests: fingerprints of the test sets of each method's runs, where known.
    """
    found = [*_of_settings(groups), *(item for part in _PARTS for item in _of_data(groups, part))]
    known = {name: ", ".join(sorted(hashes)) for name, hashes in tests.items() if hashes}
    found += _unequal("test", known, spoils=True)
    orders = {name: _orders(runs) for name, runs in groups.items()}
    disjoint = not set.intersection(*(set(item) for item in orders.values()))
    told = {name: f"{len(item)}" for name, item in orders.items()}
    if disjoint:
        told = {name: " → ".join("+".join(step) for step in next(iter(item))) for name, item in orders.items()}
    found += _unequal("orders", told, spoils=disjoint)
    found += _unequal("seeds", {name: _listed(run.config.seed for run in runs) for name, runs in groups.items()})
    found += _unequal("environment", {name: _machines(runs) for name, runs in groups.items()})
    return sorted(found, key=lambda item: not item.spoils)


def _of_settings(groups: Mapping[str, Sequence[RunRecord]]) -> list[Difference]:
    """Compare the configurations key by key."""
    flat = {name: [_settings(run) for run in runs] for name, runs in groups.items()}
    keys = dict.fromkeys(key for settings in flat.values() for values in settings for key in values)
    found: list[Difference] = []
    for key in keys:
        if key.startswith(_SAID) or not _is_free(key):
            values = {name: _listed(one.get(key) for one in settings) for name, settings in flat.items()}
            found += _unequal(key, values, spoils=not key.startswith(_SAID))
    return found


def _settings(run: RunRecord) -> dict[str, Any]:
    """Return the values of the configuration by key path, the encoder by the whole path of its folder."""
    name = run.config.encoder.name
    where = {"encoder.name": str(Path(name).absolute())} if Path(name).is_dir() else {}
    return {**flatten(run.config.model_dump(mode="json")), **where}


def strategies_of(run: RunRecord) -> list[StrategyOptions]:
    """Return the options of all strategies, in an order of their own: that of the list does not matter."""
    return [strategy.options for strategy in build_strategies(run.config.strategies)]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _of_data(groups: Mapping[str, Sequence[RunRecord]], part: str) -> list[Difference]:
    """Compare the sentences that methods read which have read any, for runs that share an order of steps."""
    hashes: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, runs in groups.items():
        for run in runs:
            for step, value in _fingerprints(run, part).items():
                hashes[f"step {step} of {' '.join('+'.join(types) for types in run.steps)}"][name].add(value[:12])
    for where, by_method in hashes.items():
        values = {name: ", ".join(sorted(found)) for name, found in by_method.items()}
        if differing := _unequal(f"{part.replace('_', ' ')} of {where}", values, spoils=part != "unlabeled"):
            return differing  # one is enough; further differences have the same cause
    return []


def _fingerprints(run: RunRecord, part: str) -> dict[int, str]:
    if part in ("data", "dev"):
        return run.data if part == "data" else run.dev
    return {step: read[part] for step, read in run.besides.items() if part in read}


def _unequal(what: str, values: dict[str, str], *, spoils: bool = False) -> list[Difference]:
    return [Difference(what, values, spoils)] if len(set(values.values())) > 1 else []


def _orders(runs: Sequence[RunRecord]) -> dict[tuple[tuple[str, ...], ...], None]:
    return dict.fromkeys(run.steps for run in runs)


def _machines(runs: Sequence[RunRecord]) -> str:
    """List the package versions and machines, which may affect rounding."""
    told = []
    for run in runs:
        packages = run.environment.get("packages") or {}
        versions = [f"{name} {packages[name]}" for name in _MACHINE if packages.get(name)]
        told.append(", ".join([*versions, str(run.environment.get("gpu") or run.environment.get("cpu") or "")]))
    return _listed(told)


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
