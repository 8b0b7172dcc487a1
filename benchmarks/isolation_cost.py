"""What one sub-network per step costs at prediction time: ten steps against the plain encoder, on the same text.

    python -m benchmarks.isolation_cost [--data FILE] [--sentences N] [--steps N] [--layers N] [--repeats N]
                                        [--threads T] [--only WORD,WORD] [--output FILE]

Every contestant is AddNER on MiniLM with one block per step, run through the same predict path; weights are untrained,
which does not affect speed. `plain` has one encoder for all blocks. Contestants alternate with it; a ratio is the
median over pairs of consecutive timings. With one thread on a CPU, CPU time is measured instead of wall time.
    parameters   what each step adds, including its block
    ratio        time to predict all types, relative to `plain`
    one step     the same if only the types of the last step are requested
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ner_cl.config import HeadOptions
from ner_cl.data.readers import read_sentences
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.model.subnetworks.base import SubnetworkOptions
from ner_cl.model.subnetworks.hat import HatOptions
from ner_cl.model.subnetworks.modules import ModuleOptions
from ner_cl.model.subnetworks.packnet import PackNetOptions
from ner_cl.train.environment import environment
from ner_cl.types import Sentence

DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart" / "test.jsonl"
AIM = 1.6


@dataclass(frozen=True)
class Cost:
    """The figures of one contestant."""

    name: str
    parameters: int
    ratio: float
    one_step_ratio: float


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    sentences = read_sentences(arguments.data)[: arguments.sentences]
    plain = NerModel.from_encoder("minilm-l6", head=HeadOptions(name="addner"))
    for number in range(arguments.steps):
        plain.grow([f"TYPE{number}"])
    costs = []
    print(header(arguments, len(sentences)), flush=True)
    for name, options in contestants(arguments.layers).items():
        if not any(word in name for word in arguments.only):
            continue
        model = apart(options, arguments.steps)
        added = sum(p.numel() for p in model.subnetworks.parameters()) if model.subnetworks is not None else 0
        block = sum(p.numel() for p in model.head.blocks[-1].parameters())
        whole, one = times(model, plain, sentences, arguments)
        costs.append(Cost(name, added // arguments.steps + block, whole, one))
        print(f"| {name} | {costs[-1].parameters / 1e6:.2f} | {whole:.2f} | {AIM} | {one:.2f} |", flush=True)
    if arguments.output:
        values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        record = {"environment": environment(), "arguments": values, "costs": [asdict(cost) for cost in costs]}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def contestants(layers: int) -> dict[str, SubnetworkOptions]:
    """Every kind of module, every join that changes what a step computes, and both ways to divide up one encoder."""
    kinds = {
        "ladder, all layers (the default)": ModuleOptions(),
        **{
            f"{kind}, top {layers}": ModuleOptions(kind=kind, layers=layers)
            for kind in ("ladder", "adapter", "lora", "copy")
        },
    }
    joins = {f"ladder, all layers, {join}": ModuleOptions(join=join) for join in ("concat", "skip", "sequence", "vote")}
    fusion = {f"adapter, top {layers}, fusion": ModuleOptions(kind="adapter", layers=layers, join="fusion")}
    masks = {
        f"{name}, {part}": options(layers=count)
        for name, options in (("hat", HatOptions), ("packnet", PackNetOptions))
        for part, count in ((f"top {layers}", layers), ("all layers", 0))
    }
    return {**kinds, **joins, **fusion, **masks}


def apart(options: SubnetworkOptions, steps: int) -> NerModel:
    """A model in which every step has its own sub-network."""
    votes = isinstance(options, ModuleOptions) and options.join == "vote"
    model = NerModel.from_encoder("minilm-l6", head=HeadOptions(name="addner", merge="vote" if votes else "resolver"))
    model.isolate(options)
    draw = torch.Generator().manual_seed(0)
    for number in range(steps):
        model.grow([f"TYPE{number}"], generator=draw)
    return model.eval()


def times(
    model: NerModel, plain: NerModel, sentences: list[Sentence], arguments: argparse.Namespace
) -> tuple[float, float]:
    """Median times relative to `plain`: to predict all types, and the last step's types alone."""
    clock = time.process_time if arguments.threads == 1 and not torch.cuda.is_available() else time.perf_counter
    last = list(model.tagset.steps[-1])

    def seconds(tagger: NerModel, types: list[str] | None) -> float:
        started = clock()
        predict_sentences(tagger, sentences, types=types)
        return clock() - started

    seconds(model, None), seconds(plain, None)  # fills caches
    whole, one = [], []
    for _ in range(arguments.repeats):
        base = seconds(plain, None)
        whole.append(seconds(model, None) / base)
        one.append(seconds(model, last) / base)
    return statistics.median(whole), statistics.median(one)


def header(arguments: argparse.Namespace, sentences: int) -> str:
    """What is measured and where, and the table's header."""
    return (
        f"MiniLM, {arguments.steps} steps of one type, {sentences} sentences, median of {arguments.repeats}, "
        f"{arguments.threads} threads, torch {torch.__version__}\n\n"
        "| sub-networks | million parameters a step | ratio | aim | ratio, one step asked |\n|---|---|---|---|---|"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="any annotated file")
    parser.add_argument("--sentences", type=int, default=250)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", type=lambda text: text.split(","), default=[""], help="names that have one of these")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
