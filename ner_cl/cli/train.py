"""`ner-cl train`: learn a whole stream of steps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ner_cl.cli.console import emit, emit_json, say
from ner_cl.cli.options import Json, MaxDrop, Settings, integers
from ner_cl.cli.repeat import runs_of, train_all
from ner_cl.errors import CheckFailed, ConfigError

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.config import Config
    from ner_cl.evaluate.matrix import Matrix
    from ner_cl.train.events import Event

__all__ = ["train"]


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file; `ner-cl init` writes one.")],
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="DIR", help="Run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="1,2,3", help="A run for each seed, in OUTPUT/seed-N.")
    ] = None,
    orders: Annotated[
        int | None,
        typer.Option("--orders", min=1, metavar="N", help="A run for each of N step orders, in OUTPUT/order-1, ..."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and describe configuration and data; write nothing.")
    ] = False,
    max_drop: MaxDrop = None,
    tracker: Annotated[
        str | None,
        typer.Option("--tracker", metavar="NAME", help="Show curves in trackio, tensorboard, mlflow or wandb."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a stream of steps and show the F1 of every type after each."""
    from ner_cl.config import load_config

    overrides = list(settings or ())
    if max_drop is not None:
        overrides.append(f"gate.max_drop={max_drop}")
    if tracker is not None:
        overrides.append(f"tracker={tracker}")
    loaded = load_config(config, overrides=overrides)
    if output is not None:
        loaded = loaded.model_copy(update={"output": str(output)})
    numbers = integers(seeds, "--seeds")
    if dry_run:
        _describe(runs_of(loaded, numbers, orders), resume=resume, as_json=as_json)
    elif numbers or orders:

        def train_once(one: "Config") -> "Matrix":
            say(f"run {Path(one.output).relative_to(loaded.output)}")
            return _train_once(one, resume=resume, show=_nothing)

        train_all(loaded, train_once, seeds=numbers, orders=orders, as_json=as_json)
    else:
        _train_once(loaded, resume=resume, show=_json if as_json else _table)


def _describe(runs: "Mapping[str, Config]", *, resume: bool, as_json: bool) -> None:
    """Check every run and describe each order of steps; runs that differ in their seed do the same."""
    from ner_cl.cli.describe import describe_run
    from ner_cl.train.run_folder import check_folder

    described = {}
    for name, config in runs.items():
        order = name.partition("seed-")[0].rstrip("/")
        if order not in described:
            described[order] = describe_run(config)
        try:
            check_folder(Path(config.output), config, resume=resume)
        except ConfigError as error:
            say(f"note: {error}")
    if as_json and list(described) != [""]:
        emit_json({order: description.to_dict() for order, description in described.items()})
    elif as_json:
        emit_json(described[""].to_dict())
    else:
        emit("\n\n".join(description.text for description in described.values()))


def _json(matrix: "Matrix", folder: Path) -> None:
    emit_json({"output": str(folder), **matrix.to_dict()})


def _table(matrix: "Matrix", folder: Path) -> None:
    from ner_cl.evaluate.matrix import render

    emit(render(matrix))


def _nothing(matrix: "Matrix", folder: Path) -> None:
    """Print nothing."""


def _train_once(config: "Config", *, resume: bool, show: "Callable[[Matrix, Path], None]") -> "Matrix":
    """Train one run and show its matrix, even if the forgetting gate stops it."""
    from ner_cl.cli.progress import progress
    from ner_cl.evaluate.matrix import Matrix
    from ner_cl.train.run import run_stream

    folder = Path(config.output)
    train = config.stream.corpus.train
    say(f"reading {train if isinstance(train, str) else ', '.join(train)}")
    try:
        with progress(len(config.stream.steps or ()) or None) as display, _how_to_go_on(folder, display) as receive:
            matrix = run_stream(config, resume=resume, on_event=receive).matrix
    except CheckFailed:
        show(Matrix.load(folder), folder)
        raise
    show(matrix, folder)
    say(f"everything is in {folder}")
    return matrix


@contextmanager
def _how_to_go_on(folder: Path, display: "Callable[[Event], None]") -> "Iterator[Callable[[Event], None]]":
    """Explain how to resume a run that is interrupted after its first event."""
    begun = False

    def receive(event: "Event") -> None:
        nonlocal begun
        begun = True
        display(event)

    try:
        yield receive
    except KeyboardInterrupt:
        if begun:
            say(f"stopped; the same command with --resume goes on with {folder}")
        raise
