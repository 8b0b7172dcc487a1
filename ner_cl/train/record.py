"""The training record of a step in the model's history."""

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from ner_cl.data.stream import Step, fingerprint
from ner_cl.data.tally import tally
from ner_cl.train.learner import Learner

__all__ = ["Scores", "drops", "history_record", "largest_drop"]

Scores = Mapping[str, float | None]


def history_record(learner: Learner, step: Step, *, before: Scores, after: Scores) -> dict[str, Any]:
    """Builds one line of `history.jsonl`: the step's types, data and training, and F1 per type before and after."""
    mentions, words = tally(step.train)
    free = learner.model.subnetworks.free if learner.model.subnetworks is not None else None
    settled = {name: {"text": found.text, **found.values} for name, found in learner.settled.items()}
    return {
        "step": step.number,
        "types": list(step.types),
        "data": step.data_hash,
        "dev": fingerprint(step.dev) if step.dev else None,
        "sentences": len(step.train),
        "mentions": {type_: mentions[type_] for type_ in step.types},
        "words": {type_: words[type_] for type_ in step.types},
        "strategies": [strategy.options.model_dump(mode="json") for strategy in learner.strategies],
        "seed": learner.seed,
        "epochs": learner.progress.epochs_done,
        "best_epoch": learner.progress.best_epoch_of_all,
        "f1_before": dict(before),
        "f1_after": dict(after),
        "train_seconds": round(learner.progress.train_seconds, 2),
        **({"calibration": learner.calibration.record()} if learner.calibration is not None else {}),
        **({"isolation": learner.isolation.record()} if learner.isolation is not None else {}),
        **({"settled": settled} if settled else {}),
        **({"free": round(free, 4)} if free is not None else {}),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def largest_drop(before: Scores, after: Scores) -> tuple[str, float]:
    """The old type whose F1 fell most, and its drop (0 to 1; negative if all rose); `("", 0.0)` if there is none."""
    found = drops(before, after)
    worst = max(found, key=lambda type_: found[type_], default="")
    return worst, found.get(worst, 0.0)


def drops(before: Scores, after: Scores) -> dict[str, float]:
    """The drop in F1 of each old type, 0 to 1; negative if it rose."""
    return {
        type_: score - (after.get(type_) or 0.0)
        for type_, score in before.items()
        if score is not None and type_ in after
    }
