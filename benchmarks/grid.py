"""A results table from one command: runs every method of a grid with every seed and order, then `ner-cl compare`.

    python -m benchmarks.grid configs/benchmarks/wnut17.yaml [--output DIR] [--only NAME,NAME] [--seeds 1,2,3]
                              [--streams NAME,NAME] [--orders N] [--set KEY=VALUE] [--workers N] [--drop-models]
                              [--dry-run]

A grid file holds the configuration keys that all methods share (`base`) and those that define each method (`methods`).
If it lists several `streams`, the grid runs once per stream, each with its own folder and table. Finished runs are
skipped and interrupted ones resume, so it is always safe to repeat the command. With `--workers`, that many processes
work on the runs of all streams, each taking the next run when it has finished one. Methods that do the same in step 1
(`PLAIN_FIRST_STEP`, checked by a test) share one trained step 1. `--drop-models` deletes the weights of finished runs,
which tables do not need. Tables go to OUTPUT/results.md, .csv, .json and .html.
"""

import argparse
import copy
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.processes import in_processes
from ner_cl.cli.progress import line_of
from ner_cl.config import Config, StreamOptions, assign_all, parse_config
from ner_cl.errors import NerClError, first_line
from ner_cl.files import new_folder
from ner_cl.report.compare import compare
from ner_cl.report.comparison_page import comparison_page
from ner_cl.report.tables import to_csv, to_markdown
from ner_cl.strategies.frozen_trunk import FrozenTrunkOptions
from ner_cl.train.events import EpochDone, Event, EventLog, Note, UpdateDone
from ner_cl.train.orders import with_orders
from ner_cl.train.run import run_stream
from ner_cl.train.run_folder import check_same_run

# Strategies whose step 1 is bit-identical to plain fine-tuning and that keep nothing from it; `frozen_trunk` only if it
# starts after step 1.
PLAIN_FIRST_STEP = {
    "cfner",
    "cpfd",
    "distill",
    "finetune",
    "frozen_trunk",
    "lwf",
    "rdp",
    "self_training",
    "weight_average",
}


@dataclass(frozen=True)
class Grid:
    """What to run: one configuration per method, order and seed, keyed by its folder below `output`."""

    stream: str
    output: Path
    baseline: str | None
    allow_differences: bool
    runs: dict[str, Config]

    @property
    def methods(self) -> list[Path]:
        """The folder of each method, in file order."""
        return [self.output / name for name in dict.fromkeys(run.split("/")[0] for run in self.runs)]


def main() -> None:
    arguments = _arguments()
    try:
        grids = list(read_grids(arguments))
        if arguments.dry_run:
            for grid in grids:
                print("\n".join(f"{_state(grid.output / name):8} {grid.stream}{name}" for name in grid.runs))
            return
        failed = make(grids, workers=arguments.workers, drop_models=arguments.drop_models)
        for grid in grids:
            write_tables(grid, [method for method in grid.methods if any(map(_done, _below(grid, method)))])
    except (NerClError, OSError, yaml.YAMLError) as error:
        sys.exit(f"grid: {first_line(error)}")
    except KeyboardInterrupt:
        sys.exit("grid: stopped; the same command goes on with it")
    if failed:
        sys.exit("\n".join(f"grid: {line}" for line in failed))


def make(grids: Sequence[Grid], *, workers: int = 1, drop_models: bool = False) -> list[str]:
    """Makes all runs that are not done, and returns a line for each that failed; a failure does not stop the others.

    Args:
        grids: the runs, made in the order of `_turn`.
        workers: number of processes; with one, runs are made in this process.
        drop_models: delete the weights of a run when it is done, and those of a shared step 1 when all are.

    Raises:
        ConfigError: before anything is run, if a folder holds a run of another configuration.
    """
    runs = [(grid, name) for grid in grids for name in grid.runs]
    for grid, name in runs:
        if _done(grid.output / name):
            check_same_run(grid.output / name, grid.runs[name])
    todo = sorted((run for run in runs if not _done(run[0].output / run[1])), key=lambda run: _turn(*run))
    tasks = {f"{grid.stream}{name}": partial(attempt, grid, name, drop_models=drop_models) for grid, name in todo}
    failed = in_processes(tasks, workers) if workers > 1 else [line for task in tasks.values() if (line := task())]
    for grid, name in runs:
        if drop_models and _done(grid.output / name):
            _drop_models(grid.output / name)
    return failed


def attempt(grid: Grid, name: str, *, drop_models: bool) -> str | None:
    """Makes one run; returns why it failed, or None."""
    try:
        run_one(grid, name)
    except NerClError as error:
        line = f"{grid.stream}{name}: {error}"
    except Exception as error:  # whatever one method dies of, the others go on
        line = f"{grid.stream}{name}: {type(error).__name__}: {error}"
    else:
        if drop_models:
            _drop_models(grid.output / name, first=not any(_alike(grid, grid.runs[name])))
        return None
    print(line, flush=True)
    return line


def read_grids(arguments: argparse.Namespace) -> Iterator[Grid]:
    """The grid of a file, narrowed by the command line; one grid per stream if the file lists several."""
    path: Path = arguments.grid
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not (isinstance(values, dict) and values.keys() >= {"base", "methods"}):
        sys.exit(f"grid: {path}: is no grid; give it `base` and `methods`, as in configs/benchmarks")
    output = arguments.output or Path("runs/benchmarks") / path.stem
    if "streams" not in values:
        if arguments.streams:
            sys.exit(f"--streams: {path} names no streams; leave the option out")
        yield read_grid(arguments, values, output)
        return
    for name in _chosen(arguments.streams, values["streams"], f"--streams: {path}"):
        base = {**values["base"], "stream": values["streams"][name]}
        yield read_grid(arguments, {**values, "base": base}, output / name, stream=f"{name}/")


def read_grid(arguments: argparse.Namespace, values: dict[str, Any], output: Path, *, stream: str = "") -> Grid:
    """One grid, narrowed by the command line.

    Args:
        arguments: the command line.
        values: contents of the file.
        output: the folder of all runs.
        stream: name of the stream and a slash, if there are several.
    """
    path: Path = arguments.grid
    runs: dict[str, Config] = {}
    orders_of: dict[str, list[StreamOptions]] = {}  # cached, as finding the orders may mean reading a corpus
    for method in _chosen(arguments.only, values["methods"], f"--only: {path}"):
        merged = copy.deepcopy(_merged(values["base"], values["methods"][method]))
        assign_all(merged, arguments.set)
        config = parse_config(merged, source=f"{path}: {method}", folder=path.parent)
        seeds = arguments.seeds or values.get("seeds", [config.seed])
        if set(values["methods"][method]) >= {"seeds"}:
            seeds = [seed for seed in seeds if seed in values["methods"][method]["seeds"]]
        if (key := config.stream.model_dump_json()) not in orders_of:
            ordered = with_orders(config, arguments.orders or values.get("orders", 1))
            orders_of[key] = [item.stream for item in ordered]
        for order, stream_options in enumerate(orders_of[key], start=1):
            for seed in seeds:
                name = f"{method}/order-{order}/seed-{seed}"
                changes = {"stream": stream_options, "seed": seed, "output": str(output / name)}
                runs[name] = config.model_copy(update=changes)
    return Grid(stream, output, values.get("baseline"), bool(values.get("allow_differences")), runs)


def run_one(grid: Grid, name: str) -> None:
    """Starts or resumes one run."""
    config = grid.runs[name]
    folder = Path(config.output)
    if not folder.exists() and (donor := _donor(grid, config)):
        share_first_step(donor, folder)
        print(f"{grid.stream}{name}: step 1 is that of {donor.relative_to(grid.output)}", flush=True)
    started = time.monotonic()

    def show(event: Event) -> None:
        if not isinstance(event, EpochDone | UpdateDone) and (line := line_of(event)):
            print(f"{grid.stream}{name}: {line}", flush=True)

    run_stream(config, resume=folder.exists(), on_event=show)
    print(f"{grid.stream}{name}: {time.monotonic() - started:.0f} s", flush=True)


def share_first_step(donor: Path, folder: Path) -> None:
    """Makes a run folder of step 1 of another run, with its events (timings included) and predictions."""
    events = [event for event in EventLog(donor / "events.jsonl").read() if event.get("step") == 1]
    with new_folder(folder) as draft:
        shutil.copytree(donor / "steps" / "01", draft / "steps" / "01")
        (draft / "predictions").mkdir()
        shutil.copy2(donor / "predictions" / "01.jsonl", draft / "predictions" / "01.jsonl")
        lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in events]
        (draft / "events.jsonl").write_text("".join(lines), encoding="utf-8")
        note = Note(step=1, text=f"step 1 was learned by {donor}, which does the same in it")
        EventLog(draft / "events.jsonl").write(note)


def write_tables(grid: Grid, finished: Sequence[Path]) -> None:
    """Compares all methods that have a finished run."""
    if not finished:
        return
    baseline = grid.baseline if any(path.name == grid.baseline for path in finished) else None
    found = compare(finished, baseline=baseline, allow_differences=grid.allow_differences, say=print)
    texts = {".md": to_markdown(found), ".csv": to_csv(found), ".html": comparison_page(found)}
    texts[".json"] = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
    for ending, text in texts.items():
        (grid.output / f"results{ending}").write_text(text, encoding="utf-8")
    print(texts[".md"])


def _donor(grid: Grid, config: Config) -> Path | None:
    """A run whose finished step 1 serves as that of this one."""
    folders = (Path(grid.runs[name].output) for name in _alike(grid, config))
    return next((folder for folder in folders if _first_step_done(folder)), None)


def _alike(grid: Grid, config: Config) -> Iterator[str]:
    """The runs with this one's step 1: they differ only in strategies, and all of these train it like fine-tuning."""
    if not _plain_first_step(config) or len(config.stream.steps or ()) < 2:
        return
    for name, other in grid.runs.items():
        same = other.model_copy(update={"strategies": config.strategies, "output": config.output}) == config
        if same and _plain_first_step(other):
            yield name


def _turn(grid: Grid, name: str) -> tuple[int, int]:
    """When a run is made: all methods with one order and seed before the next, shared first steps before the rest."""
    place = list(dict.fromkeys(run.split("/", 1)[1] for run in grid.runs)).index(name.split("/", 1)[1])
    alike = next(_alike(grid, grid.runs[name]), None)
    return place, 1 if alike is None else 0 if alike == name else 2


def _drop_models(folder: Path, *, first: bool = True) -> None:
    """Deletes a run's weights, without those of step 1 if others may want them."""
    for weights in sorted(folder.glob("steps/*/**/*.safetensors")):
        if first or weights.relative_to(folder / "steps").parts[0] != "01":
            weights.unlink()


def _plain_first_step(config: Config) -> bool:
    names = {options.name for options in config.strategies}
    frozen = any(isinstance(options, FrozenTrunkOptions) and options.since == 1 for options in config.strategies)
    return names <= PLAIN_FIRST_STEP and not frozen


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Overrides shared values with a method's, section by section; drops `seeds`, which is the grid's own key."""
    merged = dict(base)
    for key, value in changes.items():
        if key != "seeds":
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = _merged(merged[key], value) if both else value
    return merged


def _below(grid: Grid, folder: Path) -> Iterable[Path]:
    return (grid.output / name for name in grid.runs if name.split("/")[0] == folder.name)


def _done(folder: Path) -> bool:
    events = folder / "events.jsonl"
    return events.is_file() and '"event": "RunDone"' in events.read_text(encoding="utf-8")


def _first_step_done(folder: Path) -> bool:
    """Whether a run has learned step 1, and still has its weights."""
    needed = (folder / "predictions" / "01.jsonl", folder / "steps" / "01" / "model.safetensors")
    if not all(path.is_file() for path in needed):
        return False
    events = EventLog(folder / "events.jsonl").read()
    return any(event["event"] == "StepDone" and event["step"] == 1 for event in events)


def _state(folder: Path) -> str:
    return "done" if _done(folder) else "begun" if folder.exists() else "to do"


def _chosen(names: Sequence[str] | None, known: dict[str, Any], where: str) -> list[str]:
    """The named methods or streams of a file, or all of them."""
    if unknown := set(names or ()) - known.keys():
        sys.exit(f"{where} has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    return list(names or known)


def _names(text: str) -> list[str]:
    return text.split(",")


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("grid", type=Path, help="a file of configs/benchmarks")
    parser.add_argument("--output", type=Path, help="the folder of all runs; runs/benchmarks/NAME by default")
    parser.add_argument("--only", type=_names, help="only these methods")
    parser.add_argument("--seeds", type=_numbers, help="other seeds than those of the file")
    parser.add_argument("--streams", type=_names, help="only these streams, where the file names several")
    parser.add_argument("--orders", type=_count, help="how many orders of the steps")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key for all")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="how many processes share the runs")
    parser.add_argument("--drop-models", action="store_true", help="delete the weights of finished runs")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what is done of them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
