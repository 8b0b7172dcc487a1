"""A results table from one command: runs every method of a grid with every seed and order, then `ner-cl compare`.

    python -m benchmarks.grid configs/benchmarks/wnut17.yaml [--output DIR] [--only NAME,NAME] [--seeds 1,2,3]
                              [--streams NAME,NAME] [--orders N] [--set KEY=VALUE] [--share N/M] [--dry-run]

A grid file holds the configuration keys that all methods share (`base`) and those that define each method (`methods`).
If it lists several `streams`, the grid runs once per stream, each with its own folder and table. Finished runs are
skipped and interrupted ones resume, so it is always safe to repeat the command; several processes split the work with
`--share 1/2` and `--share 2/2`. Methods that do the same in step 1 (`PLAIN_FIRST_STEP`, checked by a test) share one
trained step 1. Tables go to OUTPUT/results.md, .csv, .json and .html.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ner_cl.cli.progress import line_of
from ner_cl.config import Config, StreamOptions, parse_config, with_values
from ner_cl.errors import NerClError
from ner_cl.report.compare import compare
from ner_cl.report.comparison_page import comparison_page
from ner_cl.report.tables import to_csv, to_markdown
from ner_cl.strategies.frozen_trunk import FrozenTrunkOptions
from ner_cl.train.events import EpochDone, Event, UpdateDone
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
        for grid in read_grids(arguments):
            make(grid, *arguments.share, dry_run=arguments.dry_run)
    except NerClError as error:
        sys.exit(f"grid: {error}")


def make(grid: Grid, part: int, parts: int, *, dry_run: bool) -> None:
    """Does one share of a grid's runs, then writes the tables of all finished runs; a dry run only lists runs."""
    if dry_run:
        print("\n".join(f"{_state(grid.output / name):8} {grid.stream}{name}" for name in grid.runs))
        return
    for number, (name, config) in enumerate(grid.runs.items()):
        if number % parts == part - 1:
            run_one(grid, name, config)
    finished = [folder for folder in grid.methods if any(_done(path) for path in _below(grid, folder))]
    write_tables(grid, finished)


def read_grids(arguments: argparse.Namespace) -> Iterator[Grid]:
    """The grid of a file, narrowed by the command line; one grid per stream if the file lists several."""
    path: Path = arguments.grid
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    output = arguments.output or Path("runs/benchmarks") / path.stem
    if "streams" not in values:
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
        merged = _merged(values["base"], values["methods"][method])
        config = _with_settings(parse_config(merged, source=f"{path}: {method}", folder=path.parent), arguments.set)
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


def run_one(grid: Grid, name: str, config: Config) -> None:
    """Starts or resumes one run, unless it is done."""
    folder = Path(config.output)
    if _done(folder):
        check_same_run(folder, config)
        return
    if not folder.exists() and (donor := _donor(grid, config)):
        share_first_step(donor, folder)
        print(f"{name}: step 1 is that of {donor.relative_to(grid.output)}", flush=True)
    started = time.monotonic()

    def show(event: Event) -> None:
        if not isinstance(event, EpochDone | UpdateDone) and (line := line_of(event)):
            print(f"{name}: {line}", flush=True)

    run_stream(config, resume=folder.exists(), on_event=show)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def share_first_step(donor: Path, folder: Path) -> None:
    """Copies step 1 of another run, with its events (timings included) and predictions, into a new run folder."""
    shutil.copytree(donor / "steps" / "01", folder / "steps" / "01")
    (folder / "predictions").mkdir()
    shutil.copy2(donor / "predictions" / "01.jsonl", folder / "predictions" / "01.jsonl")
    lines = (donor / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step") == 1]
    note = {"event": "Note", "step": 1, "text": f"step 1 was learned by {donor}, which does the same in it"}
    (folder / "events.jsonl").write_text("".join([*kept, json.dumps(note) + "\n"]), encoding="utf-8")


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
    """A run with the same step 1: it differs only in strategies, and those of both train step 1 like fine-tuning."""
    if not _plain_first_step(config) or len(config.stream.steps or ()) < 2:
        return None
    for other in grid.runs.values():
        same = other.model_copy(update={"strategies": config.strategies, "output": config.output}) == config
        folder = Path(other.output)
        if same and _plain_first_step(other) and _first_step_done(folder):
            return folder
    return None


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


def _with_settings(config: Config, settings: Sequence[str]) -> Config:
    return with_values(config, {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in settings)})


def _below(grid: Grid, folder: Path) -> Iterator[Path]:
    return (grid.output / name for name in grid.runs if name.split("/")[0] == folder.name)


def _done(folder: Path) -> bool:
    events = folder / "events.jsonl"
    return events.is_file() and '"event": "RunDone"' in events.read_text(encoding="utf-8")


def _first_step_done(folder: Path) -> bool:
    if not (folder / "predictions" / "01.jsonl").is_file():
        return False
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return any('"event": "StepDone"' in line and json.loads(line)["step"] == 1 for line in lines)


def _state(folder: Path) -> str:
    return "done" if _done(folder) else "begun" if folder.exists() else "to do"


def _chosen(names: Sequence[str] | None, known: dict[str, Any], where: str) -> list[str]:
    """The named methods or streams of a file, or all of them."""
    if unknown := set(names or ()) - known.keys():
        sys.exit(f"{where} has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    return list(names or known)


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _share(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("grid", type=Path, help="a file of configs/benchmarks")
    parser.add_argument("--output", type=Path, help="the folder of all runs; runs/benchmarks/NAME by default")
    parser.add_argument("--only", type=_names, help="only these methods")
    parser.add_argument("--seeds", type=_numbers, help="other seeds than those of the file")
    parser.add_argument("--streams", type=_names, help="only these streams, where the file names several")
    parser.add_argument("--orders", type=int, help="how many orders of the steps")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key for all")
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="N/M", help="only every M-th run from the N-th")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what is done of them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
