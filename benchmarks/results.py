"""A table of finished runs: quality, forgetting, time. `python -m benchmarks.results RUN... > table.md`

Each RUN is a run folder of `ner-cl train`, or a folder of several seeds (`--seeds`), whose means are shown with their
standard deviations. A run whose folder is named `joint` is what the others' gap is measured to. F1 is × 100. Wall time
is that of the machine that made the run, and of what else it did then; the time in updates leaves evaluation out.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ner_cl.evaluate.matrix import Matrix

COLUMNS = (
    ("micro F1, last step", "final/micro_f1"),
    ("macro F1, last step", "final/macro_f1"),
    ("micro F1, mean over steps", "average/micro_f1"),
    ("macro F1, mean over steps", "average/macro_f1"),
    ("old types, mean over steps", "old/macro_f1_average"),
    ("new type when learned", "learning/new_f1_mean"),
    ("forgetting (max drop)", "forgetting/max_drop"),
)


def main() -> None:
    runs = {path.name: seeds_of(path) for path in map(Path, sys.argv[1:])}
    if empty := [name for name, seeds in runs.items() if not seeds]:
        sys.exit(f"no finished run in {', '.join(empty)}")
    metrics = {name: [Matrix.load(seed).metrics for seed in seeds] for name, seeds in runs.items()}
    joint = mean([found["final/micro_f1"] for found in metrics["joint"]]) if "joint" in metrics else None
    titles = [title for title, _ in COLUMNS]
    print(
        "| run | seeds | " + " | ".join([*titles, "micro F1 below joint", "wall time", "training sentences/s"]) + " |"
    )
    print("|---" * (len(COLUMNS) + 5) + "|")
    for name, seeds in runs.items():
        cells = [spread([found.get(key) for found in metrics[name]]) for _, key in COLUMNS]
        final = mean([found["final/micro_f1"] for found in metrics[name]])
        cells.append("" if joint is None or final is None or name == "joint" else f"{100 * (joint - final):.1f}")
        print(f"| {name} | {len(seeds)} | " + " | ".join([*cells, *timing(seeds)]) + " |")


def seeds_of(folder: Path) -> list[Path]:
    """The run folders in a folder of seeds, or the one folder itself."""
    if (folder / "matrix.json").is_file() and (folder / "events.jsonl").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/events.jsonl") if (path.parent / "matrix.json").is_file())


def timing(runs: Sequence[Path]) -> list[str]:
    """Mean minutes of a whole run, and sentences a second in updates."""
    wall = seconds = sentences = 0.0
    for path in runs:
        events: list[dict[str, Any]] = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
        steps = [event for event in events if event["event"] == "StepDone"]
        seconds += sum(step["train_seconds"] for step in steps)
        sentences += sum(step["sentences_per_second"] * step["train_seconds"] for step in steps)
        wall += sum(event["seconds"] for event in events if event["event"] == "RunDone")
    return [f"{wall / len(runs) / 60:.1f} min", f"{sentences / max(seconds, 1e-9):.0f}"]


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread(values: Sequence[float | None]) -> str:
    """Mean × 100, with ± the standard deviation where there are several."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{deviation}"


if __name__ == "__main__":
    main()
