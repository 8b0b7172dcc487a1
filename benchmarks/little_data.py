"""Learning a new type from few sentences: a module on a frozen model against distillation into the whole model.

    python -m benchmarks.little_data [--counts 20,50,100,200] [--seeds 1,2,3] [--new TYPE,TYPE]
                                     [--methods NAME;NAME] [--head NAME] [--train FILE] [--dev FILE] [--test FILE]
                                     [--output FILE]

For each seed, one model (AddNER by default) learns all types except the new ones in one step. Each method then teaches
it each new type from each number of sentences in `--counts`; they are annotated for that type alone, and half of them
mention it if there are enough. All methods get the same sentences, and larger draws contain the smaller ones. Methods
with raw text also get the text of the sentences outside every draw. The table shows F1 of the new type and the mean
change in F1 of the old types, both on the whole test set, and the CPU seconds of teaching.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ner_cl.config import HeadOptions, TrainingOptions
from ner_cl.data.readers import read_sentences
from ner_cl.evaluate.counts import count_spans
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.train.environment import environment
from ner_cl.train.learn import learn
from ner_cl.types import Sentence

FOLDER = Path(__file__).parents[1] / "data" / "quickstart"
METHODS: dict[str, list[Any]] = {
    "distill": ["distill"],
    "default": [],
    "distill, frozen_trunk (4, since 2)": ["distill", {"name": "frozen_trunk", "layers": 4, "since": 2}],
    "distill, raw text": ["distill"],
    "default, raw text": [],
    "frozen": ["frozen"],
    "modules (ladder)": ["modules"],
    "modules, copy of 4 layers": [{"name": "modules", "kind": "copy", "layers": 4}],
}
WITH_RAW_TEXT = {"distill, raw text", "default, raw text"}


@dataclass(frozen=True)
class Taught:
    """The result of teaching one type once."""

    method: str
    sentences: int
    type: str
    seed: int
    new_f1: float
    old_change: float
    seconds: float


def main() -> None:
    arguments = _arguments()
    train, dev, test = (read_sentences(getattr(arguments, part)) for part in ("train", "dev", "test"))
    types = sorted({span.type for sentence in train for span in sentence.spans})
    old = [type_ for type_ in types if type_ not in arguments.new]
    training = TrainingOptions(batch_tokens=256)
    found: list[Taught] = []
    for seed in arguments.seeds:
        base = NerModel.from_encoder("minilm-l6", head=HeadOptions(name=arguments.head))
        base = learn(
            base,
            [s.restrict(old) for s in train],
            types=old,
            dev=[s.restrict(old) for s in dev],
            training=training,
            seed=seed,
        ).model
        before = f1_of(base, test, old)
        for type_ in arguments.new:
            order = drawn(train, type_, seed)
            raw = [" ".join(sentence.words) for sentence in order[max(arguments.counts) :]]
            for count in arguments.counts:
                for method in arguments.methods:
                    started = time.process_time()
                    taught = learn(
                        base,
                        [s.restrict([type_]) for s in order[:count]],
                        types=[type_],
                        strategies=METHODS[method],
                        unlabeled=raw if method in WITH_RAW_TEXT else None,
                        training=training,
                        seed=seed,
                    )
                    seconds = time.process_time() - started
                    after = f1_of(taught.model, test, [*old, type_])
                    change = statistics.mean(after[name] - before[name] for name in old)
                    found.append(Taught(method, count, type_, seed, after[type_], change, seconds))
                    print(json.dumps(asdict(found[-1])), flush=True)
    print(table(found))
    if arguments.output:
        values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        record = {"environment": environment(), "arguments": values, "taught": [asdict(item) for item in found]}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def drawn(train: Sequence[Sentence], type_: str, seed: int) -> list[Sentence]:
    """The sentences, ordered so that those that mention the type alternate with others for as long as both last."""
    draw = np.random.default_rng(seed)
    order = [train[index] for index in draw.permutation(len(train))]
    mentioning = [s for s in order if any(span.type == type_ for span in s.spans)]
    others = [s for s in order if all(span.type != type_ for span in s.spans)]
    both = [sentence for pair in zip(mentioning, others, strict=False) for sentence in pair]
    half = len(both) // 2
    return [*both, *mentioning[half:], *others[half:]]


def f1_of(model: NerModel, sentences: Sequence[Sentence], types: Sequence[str]) -> dict[str, float]:
    """F1 of each type against gold; 0 if undefined."""
    counts = count_spans(sentences, predict_sentences(model, sentences), types)
    return {type_: cell.f1 or 0.0 for type_, cell in counts.items()}


def table(found: Sequence[Taught]) -> str:
    """Means and standard deviations over types and seeds, one row per method and number of sentences."""
    groups: dict[tuple[str, int], list[Taught]] = defaultdict(list)
    for item in found:
        groups[item.method, item.sentences].append(item)
    lines = [
        "| method | sentences | F1 of the new type | change of old types | processor seconds |",
        "|---|---|---|---|---|",
    ]
    for (method, count), items in groups.items():
        new, old = [100 * i.new_f1 for i in items], [100 * i.old_change for i in items]
        spread = statistics.stdev(new) if len(new) > 1 else 0.0
        lines.append(
            f"| {method} | {count} | {statistics.mean(new):.1f} ± {spread:.1f} | {statistics.mean(old):+.1f} "
            f"| {statistics.mean(i.seconds for i in items):.0f} |"
        )
    return "\n".join([lines[0], lines[1], *sorted(lines[2:])])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _methods(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"no method {unknown[0]!r}; there are {'; '.join(METHODS)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--counts", type=_numbers, default=[20, 50, 100, 200])
    parser.add_argument("--seeds", type=_numbers, default=[1, 2, 3])
    parser.add_argument("--head", choices=["addner", "extendner"], default="addner", help="modules need addner")
    parser.add_argument("--new", type=lambda text: text.split(","), default=["MEDICATION", "MONEY"])
    parser.add_argument("--methods", type=_methods, default=list(METHODS), help="with semicolons (default: all)")
    for part in ("train", "dev", "test"):
        parser.add_argument(f"--{part}", type=Path, default=FOLDER / f"{part}.jsonl")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
