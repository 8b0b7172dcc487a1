"""A table of finished runs: quality, forgetting, time. `python -m benchmarks.results RUN... > table.md`

Each RUN is a run folder of `ner-cl train`. A run whose folder is named `joint` is what the others' gap is measured to.
F1 is × 100. Wall time and sentences a second are those of the machine that made the run, and of what else it did then.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ner_cl.evaluate.matrix import Matrix

COLUMNS = (
    ("micro F1, last step", "final/micro_f1"),
    ("macro F1, last step", "final/macro_f1"),
    ("micro F1, mean over steps", "average/micro_f1"),
    ("macro F1, mean over steps", "average/macro_f1"),
    ("new type when learned", "learning/new_f1_mean"),
    ("forgetting (max drop)", "forgetting/max_drop"),
)


def main() -> None:
    runs = {path.name: path for path in map(Path, sys.argv[1:])}
    matrices = {name: Matrix.load(path / "matrix.json") for name, path in runs.items()}
    joint = matrices["joint"].metrics["final/micro_f1"] if "joint" in matrices else None
    titles = [title for title, _ in COLUMNS]
    print("| run | " + " | ".join([*titles, "micro F1 below joint", "wall time", "training sentences/s"]) + " |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for name, path in runs.items():
        metrics = matrices[name].metrics
        final = metrics["final/micro_f1"]
        cells = [percent(metrics.get(key)) for _, key in COLUMNS]
        cells.append("" if joint is None or final is None or name == "joint" else percent(joint - final))
        print(f"| {name} | " + " | ".join([*cells, *timing(path)]) + " |")


def timing(path: Path) -> list[str]:
    """Seconds of the whole run and sentences a second in updates."""
    events: list[dict[str, Any]] = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "StepDone"]
    seconds = sum(step["train_seconds"] for step in steps)
    sentences = sum(step["sentences_per_second"] * step["train_seconds"] for step in steps)
    wall = sum(event["seconds"] for event in events if event["event"] == "RunDone")
    return [f"{wall / 60:.1f} min", f"{sentences / max(seconds, 1e-9):.0f}"]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
