"""`ner-cl sweep`: search for good options on the first steps."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ner_cl.cli.console import emit, emit_json, percent, say, table
from ner_cl.cli.options import Json, Settings

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.train.sweep import Sweep, Trial

__all__ = ["sweep"]


def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration to start from.")],
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=VALUES",
            help="low..high, low..high:log or [a, b]; may be repeated. Replaces the section sweep.search.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Learn only this many first steps.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Number of trials, including earlier ones.")] = None,
    settings: Settings = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Folder of the sweep; that of the run with -sweep by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for the options that best learn and keep the types of the first steps.

    Each trial learns the first steps and is scored on their dev sentences; later steps and the test set are not used.
    Repeat the command to continue a stopped sweep. Its best.yaml is the configuration to train with.
    """
    from ner_cl.config import load_config
    from ner_cl.train.search import read_search
    from ner_cl.train.sweep import run_sweep

    overrides = [*(settings or ())]
    overrides += [f"sweep.{key}={value}" for key, value in (("steps", steps), ("trials", trials)) if value is not None]
    loaded = load_config(config, overrides=overrides)
    if search:
        options = loaded.sweep.model_copy(update={"search": read_search(search)})
        loaded = loaded.model_copy(update={"sweep": options})
    found = run_sweep(loaded, folder=output, on_trial=lambda trial: say(_line(trial, loaded.sweep.trials)))
    emit_json(_values(found)) if as_json else emit(_text(found))
    say(f"train with the best values: ner-cl train {found.folder / 'best.yaml'}")


def _line(trial: "Trial", trials: int) -> str:
    values = ", ".join(f"{key} {_short(value)}" for key, value in trial.values.items())
    score = "failed" if trial.score is None else f"dev F1 {percent(trial.score)}"
    problem = f"; {trial.problem}" if trial.problem else ""
    return f"trial {trial.number} of {trials} ({values}): {score} in {trial.seconds:.0f} s{problem}"


def _values(found: "Sweep") -> dict[str, Any]:
    return {**asdict(found), "folder": str(found.folder)}


def _text(found: "Sweep") -> str:
    """Format all trials as a table, best first."""
    ranked = sorted(found.trials, key=lambda trial: -1.0 if trial.score is None else trial.score, reverse=True)
    keys = list(found.best.values)
    rows = [[t.number, *(_short(t.values[key]) for key in keys), percent(t.score), f"{t.seconds:.0f}"] for t in ranked]
    header = ["trial", *keys, f"dev F1 after {found.steps} steps", "seconds"]
    return table(header, rows)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
