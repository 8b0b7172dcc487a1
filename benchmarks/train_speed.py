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
step. One epoch is one measurement, the second of two, with all that a `Learner` does in it beside the updates. With one
thread on a CPU, CPU time is measured, which other processes do not affect.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ner_cl.config import HeadOptions, TrainingOptions, parse_strategies
from ner_cl.data.batching import EncodedSentences, plan_batches
from ner_cl.data.readers import read_sentences
from ner_cl.data.stream import Step
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast, has_gpu, resolve_device, resolve_precision
from ner_cl.train.engine import Engine
from ner_cl.train.environment import environment
from ner_cl.train.events import EpochDone, StepStarted
from ner_cl.train.learner import Learner
from ner_cl.train.optimizer import make_optimizer

CACHED: dict[str, object] = {"name": "distill"}
LIVE: dict[str, object] = {"name": "distill", "cache": False}
DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart" / "train.jsonl"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 and not has_gpu() else time.perf_counter
    sentences = read_sentences(arguments.data)[: arguments.sentences]
    types = sorted({span.type for sentence in sentences for span in sentence.spans})
    first, rest = types[:1], types[1:]
    step = Step(2, tuple(rest), tuple(s.restrict(rest) for s in sentences), ())
    models = {head: _model_that_knows(first, head) for head in ("extendner", "addner")}
    contestants = {
        "bare loop": partial(bare_epochs, models["extendner"]),
        "bare loop, embeddings trained": partial(bare_epochs, models["extendner"], train_embeddings=True),
        "finetune": partial(learner_epochs, models["extendner"], strategy={"name": "finetune"}),
        "extendner, cached teacher": partial(learner_epochs, models["extendner"], strategy=CACHED),
        "addner, cached teacher": partial(learner_epochs, models["addner"], strategy=CACHED),
        "extendner, live teacher": partial(learner_epochs, models["extendner"], strategy=LIVE),
        "addner, live teacher": partial(learner_epochs, models["addner"], strategy=LIVE),
    }
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    bare_epochs(models["extendner"], step=step, clock=clock)  # warms up caches and allocators
    for _ in range(arguments.repeats):
        for name, run in contestants.items():
            seconds[name].append(run(step=step, clock=clock))
    report(seconds, len(step.train), arguments)


def bare_epochs(
    model: NerModel, *, step: Step, clock: Callable[[], float], train_embeddings: bool = False
) -> dict[str, float]:
    """Seconds of two epochs of a plain PyTorch loop; the first allocates gradients and the optimizer's state."""
    model = copy.deepcopy(model).to(Engine().device)
    model.grow(step.types)
    model.encoder.embeddings.requires_grad_(train_embeddings)
    encoded = EncodedSentences(step.train, model.encoder.pieces, model.tagset)
    options = TrainingOptions()
    optimizer = make_optimizer(model, options.optimizer)
    generator = np.random.default_rng(1)
    model.train()
    ends = [clock()]
    for _ in range(2):
        for rows in plan_batches(encoded.lengths, batch_tokens=options.batch_tokens, generator=generator):
            batch = encoded.batch(rows).to(model.device)
            optimizer.zero_grad(set_to_none=True)
            with autocast("auto", model.device):
                logits = model(batch).blocks[0]
            mask = batch.word_mask
            loss = torch.nn.functional.cross_entropy(logits[mask], batch.targets[mask])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.optimizer.clip)
            optimizer.step()
        loss.item()  # waits for a GPU
        ends.append(clock())
    return {"first epoch": ends[1] - ends[0], "epoch": ends[2] - ends[1]}


def learner_epochs(
    model: NerModel, *, step: Step, clock: Callable[[], float], strategy: dict[str, object]
) -> dict[str, float]:
    """Seconds of the first epoch, which fills caches, and of the second one."""
    learner = Learner(copy.deepcopy(model), parse_strategies([strategy]), TrainingOptions(epochs=2))
    ends = [clock() for event in learner.learn_step(step) if isinstance(event, StepStarted | EpochDone)]
    return {"first epoch": ends[1] - ends[0], "epoch": ends[2] - ends[1]}


def report(seconds: dict[str, list[dict[str, float]]], sentences: int, arguments: argparse.Namespace) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in seconds.items()
    }
    # The cost of a step of ten epochs: one that fills the cache and nine that use it.
    tens = {name: [run["first epoch"] + 9 * run["epoch"] for run in runs] for name, runs in seconds.items()}
    bare = seconds["bare loop"]
    rows = []
    for name, runs in seconds.items():
        ratios = [one["epoch"] / run["epoch"] for one, run in zip(bare, runs, strict=True)]
        over_ten = [one / ten for one, ten in zip(tens["bare loop"], tens[name], strict=True)]
        rows.append(
            {
                "what": name,
                "sentences_per_second": sentences / medians[name]["epoch"],
                "ratio_to_bare": statistics.median(ratios),
                "ratio_over_ten_epochs": statistics.median(over_ten),
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
    return f"{resolve_precision('auto', resolve_device('auto'))}, torch {torch.__version__}"


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
