"""Training speed relative to a bare PyTorch loop: sentences per second, all measured in one run.

    python benchmarks/train_speed.py [--data FILE] [--sentences N] [--repeats R] [--threads T] [--output FILE]

Contestants take turns `repeats` times; the table shows medians:
    (a) bare       a plain loop with the same encoder, head size, batches, precision, trained parameters, fused AdamW
                   and clipping, and nothing else; and again with the word-piece embeddings trained, as in a naive loop
    (b) finetune   the same work through `Learner`
    (c) addner, extendner with the teacher's answers computed once (the default): the first epoch, which computes
        them, and a later epoch
    (d) the same with the teacher run in every update

The model already has the corpus's first type, so that there is a teacher; the other types are learned in the measured
step. One epoch is one measurement.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from ner_cl.config import HeadOptions, TrainingOptions, parse_strategies
from ner_cl.data.batching import EncodedSentences, plan_batches
from ner_cl.data.readers import read_sentences
from ner_cl.data.stream import Step
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast, resolve_precision
from ner_cl.train.environment import environment
from ner_cl.train.events import EpochDone
from ner_cl.train.learner import Learner
from ner_cl.train.optimizer import make_optimizer

DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart" / "train.jsonl"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    sentences = read_sentences(arguments.data)[: arguments.sentences]
    types = sorted({span.type for sentence in sentences for span in sentence.spans})
    first, rest = types[:1], types[1:]
    step = Step(2, tuple(rest), tuple(s.restrict(rest) for s in sentences), ())
    models = {head: _model_that_knows(first, head) for head in ("extendner", "addner")}
    contestants = {
        "bare loop": lambda: {"epoch": bare_epoch(models["extendner"], step)},
        "bare loop, embeddings trained": lambda: {
            "epoch": bare_epoch(models["extendner"], step, train_embeddings=True)
        },
        "finetune": lambda: learner_epochs(models["extendner"], step, {"name": "finetune"}),
        "extendner, cached teacher": lambda: learner_epochs(models["extendner"], step, {"name": "distill"}),
        "addner, cached teacher": lambda: learner_epochs(models["addner"], step, {"name": "distill"}),
        "extendner, live teacher": lambda: learner_epochs(
            models["extendner"], step, {"name": "distill", "cache": False}
        ),
        "addner, live teacher": lambda: learner_epochs(models["addner"], step, {"name": "distill", "cache": False}),
    }
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    bare_epoch(models["extendner"], step)  # warms up caches and allocators
    for _ in range(arguments.repeats):
        for name, run in contestants.items():
            seconds[name].append(run())
    report(seconds, len(step.train), arguments)


def bare_epoch(model: NerModel, step: Step, *, train_embeddings: bool = False) -> float:
    """Seconds of one epoch of a plain PyTorch loop."""
    model = copy.deepcopy(model)
    model.grow(step.types)
    model.encoder.embeddings.requires_grad_(train_embeddings)
    encoded = EncodedSentences(step.train, model.encoder.pieces, model.tagset)
    options = TrainingOptions()
    optimizer = make_optimizer(model, options.optimizer)
    plan = plan_batches(encoded.lengths, batch_tokens=options.batch_tokens, generator=np.random.default_rng(1))
    model.train()
    started = time.perf_counter()
    for rows in plan:
        batch = encoded.batch(rows)
        optimizer.zero_grad(set_to_none=True)
        with autocast("auto", model.device):
            logits = model(batch).blocks[0]
        mask = batch.word_mask
        loss = torch.nn.functional.cross_entropy(logits[mask], batch.targets[mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.optimizer.clip)
        optimizer.step()
    return time.perf_counter() - started


def learner_epochs(model: NerModel, step: Step, strategy: dict[str, object]) -> dict[str, float]:
    """Seconds of the first epoch, which fills caches, and of the second one."""
    learner = Learner(copy.deepcopy(model), parse_strategies([strategy]), TrainingOptions(epochs=2))
    ends = [event.seconds for event in learner.learn_step(step) if isinstance(event, EpochDone)]
    return {"first epoch": ends[0], "epoch": ends[1] - ends[0]}


def report(seconds: dict[str, list[dict[str, float]]], sentences: int, arguments: argparse.Namespace) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in seconds.items()
    }
    bare = medians["bare loop"]["epoch"]
    rows = []
    for name, values in medians.items():
        # The cost of a step of ten epochs: one that fills the cache and nine that use it.
        ten = values.get("first epoch", values["epoch"]) + 9 * values["epoch"]
        rows.append(
            {
                "what": name,
                "sentences_per_second": sentences / values["epoch"],
                "ratio_to_bare": bare / values["epoch"],
                "ratio_over_ten_epochs": 10 * bare / ten,
            }
        )
    print(f"{sentences} sentences, median of {arguments.repeats}, {arguments.threads} threads, {_where()}\n")
    print("| what | sentences/s | ratio to the bare loop | the same over a step of ten epochs |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['what']} | {row['sentences_per_second']:.0f} | {row['ratio_to_bare']:.2f} "
            f"| {row['ratio_over_ten_epochs']:.2f} |"
        )
    if arguments.output:
        record = {"environment": environment(), "sentences": sentences, "rows": rows, "seconds": seconds}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _model_that_knows(types: list[str], head: str) -> NerModel:
    model = NerModel.from_encoder("minilm-l6", head=HeadOptions(name=head))
    model.grow(types)
    return model


def _where() -> str:
    return f"{resolve_precision('auto', torch.device('cpu'))}, torch {torch.__version__}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, help="any annotated file (default: the quickstart corpus)"
    )
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
