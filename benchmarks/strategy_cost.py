"""What every strategy costs compared with plain distillation: time and memory per update, and what it keeps.

    python -m benchmarks.strategy_cost [--only NAME,NAME] [--data FILE] [--sentences N] [--updates N] [--head NAME]
                                       [--threads T] [--batch-tokens N] [--output FILE]

For each registered strategy that the head allows, step 1 is learned briefly, so that there is something to protect,
and updates of step 2 are measured. A strategy that does not itself preserve old types is combined with `distill`; one
that keeps sentences keeps 50; all other options are the defaults.
    time     of five updates in a row, because a strategy need not do the same in each, alternating with five of
             `distill` on a model of the same kind: the median ratio. With one thread on a CPU, CPU time is measured,
             which other processes do not affect
    memory   the most bytes of tensors alive at once during an update, minus those of `distill`; also per trained
             encoder parameter. For strategies that keep a number per parameter, `expected` lists what it should
             consist of: what is kept, and what only a step or an update needs
    kept     bytes of tensors and sentences kept for later steps, also per trained encoder parameter; `expected` is
             what the method needs by definition, or at most needs if marked `≤`
    end      time spent after the last epoch of step 1, on what the strategy measures and selects
"""

import argparse
import copy
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ner_cl.config import HeadOptions, StrategyOptions, TrainingOptions, parse_strategies
from ner_cl.data.readers import read_sentences
from ner_cl.data.stream import Step
from ner_cl.errors import NerClError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import resolve_device, resolve_precision
from ner_cl.registry import strategies
from ner_cl.strategies.base import Strategy
from ner_cl.strategies.gpm import GpmOptions
from ner_cl.train.environment import environment
from ner_cl.train.events import EpochDone, UpdateDone
from ner_cl.train.learner import Learner
from ner_cl.train.refusals import check_model
from ner_cl.types import Sentence

DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart" / "train.jsonl"
WARM_UP = 2  # updates that fill caches: the teacher's answers, buffers, the allocator's pools
IN_A_ROW = GpmOptions().every  # updates that are timed together: a multiple of what `gpm` projects together
REMEMBERED = 50  # sentences per step, for strategies that keep sentences: enough for a batch
# Expected extra bytes per trained parameter: what is kept, plus gates and a copy of the weights (`spg`) or the gradient
# of the penalty (`ewc`).
TRANSIENT = {"spg": "4 kept + 4 gates + 4 copy", "ewc": "8 kept + 4 gradient"}
AIMS = {"agem": 2.1, "das": 1.1, "ewc": 1.1, "gpm": 1.2, "spg": 1.1}


@dataclass(frozen=True)
class Cost:
    """The figures of one strategy, or of `distill` itself."""

    strategies: tuple[str, ...]
    time_ratio: float
    update_seconds: float
    extra_bytes: int
    extra_per_parameter: float
    expected_extra: str
    kept_bytes: int
    kept_per_parameter: float
    kept_sentences: int
    expected_per_parameter: str
    end_seconds: float


class Corpus:
    """A stream of two steps on the same sentences, with one type each."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        types = sorted({span.type for sentence in sentences for span in sentence.spans})[:2]
        self.steps = [
            Step(number, (type_,), tuple(s.restrict([type_]) for s in sentences), ())
            for number, type_ in enumerate(types, start=1)
        ]
        self.everything = tuple(sentence.restrict(types) for sentence in sentences)

    def learn(self, learner: Learner, number: int) -> Iterator[object]:
        """The events of a step; `earlier` is what the upper bound needs."""
        return learner.learn_step(
            self.steps[number - 1],
            old_steps=[step.types for step in self.steps[: number - 1]],
            earlier=self.everything if number > 1 else self.steps[0].train,
        )


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 and not torch.cuda.is_available() else time.perf_counter
    corpus = Corpus(read_sentences(arguments.data)[: arguments.sentences])
    fresh = NerModel.from_encoder("minilm-l6", head=HeadOptions(name=arguments.head))
    plain, plain_end = after_step_one(fresh, ["distill"], corpus, clock)
    training = TrainingOptions(epochs=100, batch_tokens=arguments.batch_tokens)
    plain_bytes = peak_bytes(plain, ["distill"], corpus, training)
    costs = []
    for name in arguments.only or [name for name in strategies if fits(name, fresh)]:
        class_: type[Strategy] = strategies[name]
        names = [name] if class_.holds_old_types else [name, "distill"]
        model, end = (plain, plain_end) if names == ["distill"] else after_step_one(fresh, names, corpus, clock)
        extra = peak_bytes(model, names, corpus, training) - plain_bytes
        contestants = (updates_of(model, names, corpus, training), updates_of(plain, ["distill"], corpus, training))
        ratio, seconds = time_beside(*contestants, clock, updates=arguments.updates)
        costs.append(_cost(name, names, model, ratio=ratio, seconds=seconds, extra=extra, end=end))
        print(line(costs[-1], name) if len(costs) > 1 else f"{header(arguments)}\n{line(costs[-1], name)}", flush=True)
    if arguments.output:
        record = {"environment": environment(), "arguments": _plain(arguments), "costs": [asdict(c) for c in costs]}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def fits(name: str, model: NerModel) -> bool:
    """Whether a strategy with its default options can teach this model."""
    class_: type[Strategy] = strategies[name]
    try:
        check_model([class_(class_.options_class(name=name))], model)
    except NerClError:
        return False
    return True


def options_of(names: Sequence[str]) -> tuple[StrategyOptions, ...]:
    """The default options, except for a memory large enough to measure."""
    items: list[dict[str, object]] = []
    for name in names:
        class_: type[Strategy] = strategies[name]
        items.append(
            {"name": name, **({"budget": REMEMBERED} if "budget" in class_.options_class.model_fields else {})}
        )
    return parse_strategies(items)


def after_step_one(
    fresh: NerModel, names: Sequence[str], corpus: Corpus, clock: Callable[[], float]
) -> tuple[NerModel, float]:
    """A model after one epoch of step 1, with what its strategies keep; and the seconds spent after that epoch."""
    learner = Learner(copy.deepcopy(fresh), options_of(names), TrainingOptions(epochs=1))
    ended = clock()
    for event in corpus.learn(learner, 1):
        if isinstance(event, EpochDone):
            ended = clock()
    return learner.model, clock() - ended


def updates_of(
    model: NerModel, names: Sequence[str], corpus: Corpus, training: TrainingOptions
) -> Iterator[UpdateDone]:
    """Runs updates of step 2 on a copy of the model, one each time the iterator is advanced."""
    learner = Learner(copy.deepcopy(model), options_of(names), training)
    for event in corpus.learn(learner, 2):
        if isinstance(event, UpdateDone):
            yield event


def time_beside(
    measured: Iterator[UpdateDone], plain: Iterator[UpdateDone], clock: Callable[[], float], *, updates: int
) -> tuple[float, float]:
    """The median ratio of a few updates' time to plain distillation's, and the median seconds of an update."""
    contestants = (measured, plain)
    quotients, seconds = [], []
    for contestant in contestants:
        for _ in range(WARM_UP):
            next(contestant)
    for number in range(updates):
        taken = []
        for contestant in contestants if number % 2 else reversed(contestants):
            started = clock()
            for _ in range(IN_A_ROW):
                next(contestant)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(clock() - started)
        own, other = taken if number % 2 else reversed(taken)
        quotients.append(own / other)
        seconds.append(own / IN_A_ROW)
    return statistics.median(quotients), statistics.median(seconds)


def peak_bytes(model: NerModel, names: Sequence[str], corpus: Corpus, training: TrainingOptions) -> int:
    """The most bytes of tensors alive at once during five updates, copy of the model included."""
    before = living_bytes()
    updates = updates_of(model, names, corpus, training)
    for _ in range(WARM_UP):
        next(updates)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
        for _ in range(IN_A_ROW):
            next(updates)
        risen = torch.cuda.max_memory_allocated() - resting
    else:
        resting = living_bytes()
        risen = risen_bytes(updates)
    return resting - before + risen


def living_bytes() -> int:
    """Bytes of all tensors still referenced, counting each storage once."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are inspected
        tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
    tensors += [item.grad for item in tensors if item.is_leaf and item.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def risen_bytes(updates: Iterator[UpdateDone]) -> int:
    """The largest rise in bytes of tensors above the starting level during five updates on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        next(updates)  # so that the profiler knows the size of the gradients that the measured update frees
        with torch.profiler.record_function("measured"):
            for _ in range(IN_A_ROW):
                next(updates)
    assert profile.profiler is not None
    results = profile.profiler.kineto_results
    assert results is not None
    events = results.events()
    started = next(event.start_ns() for event in events if event.name() == "measured")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.start_ns() >= started)
    level = highest = 0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    return highest


def _cost(
    name: str, names: Sequence[str], model: NerModel, *, ratio: float, seconds: float, extra: int, end: float
) -> Cost:
    state = model.strategy_state.get(name, {})
    kept = model.kept_sentences.get(name, ())
    text = "".join(" ".join(sentence.words) for sentence in kept)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) + len(text.encode())
    return Cost(
        strategies=tuple(names),
        time_ratio=ratio,
        update_seconds=seconds,
        extra_bytes=extra,
        extra_per_parameter=extra / trained_parameters(model),
        expected_extra=TRANSIENT.get(name, ""),
        kept_bytes=size,
        kept_per_parameter=size / trained_parameters(model),
        kept_sentences=len(kept),
        expected_per_parameter=expected_bytes(name, model),
        end_seconds=end,
    )


def trained_parameters(model: NerModel) -> int:
    """Parameters of the encoder except the word-piece embeddings, which are not trained by default."""
    return sum(p.numel() for p in model.encoder.parameters()) - sum(
        p.numel() for p in model.encoder.embeddings.parameters()
    )


def expected_bytes(name: str, model: NerModel) -> str:
    """Bytes per trained parameter that the method keeps by definition after one step."""
    config = model.encoder.config
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    units = layers * (config.num_attention_heads + inner + hidden)
    # Query, key and value have the same inputs and therefore the same bases, but different output factors.
    bases = layers * (3 * hidden**2 + inner**2)
    factors = layers * (3 * (hidden + 1) ** 2 + (inner + 1) ** 2 + 5 * hidden**2 + inner**2)
    described = 4 * hidden  # two triangles, and means of three prefixes and two tags
    moments = described * (described + 1) + 5 * described
    floats = {"das": units, "gpm": bases, "is3": 2 * hidden, "ncl": factors, "slda": moments}
    if name in ("ewc", "spg"):
        return {"ewc": "8", "spg": "4"}[name]
    if name in floats:
        return f"{'' if name == 'das' else '≤ '}{4 * floats[name] / trained_parameters(model):.3g}"
    return {"agem": "sentences", "gem": "sentences", "replay": "sentences", "ogd": "4 a direction"}.get(name, "0")


def header(arguments: argparse.Namespace) -> str:
    """What is measured and where, and the table's header."""
    precision = resolve_precision("auto", resolve_device("auto"))
    return (
        f"MiniLM, {arguments.head}, {arguments.sentences} sentences a step, "
        f"median of {arguments.updates} times {IN_A_ROW} updates, "
        f"{arguments.batch_tokens} word pieces a batch, {arguments.threads} threads, {precision}, "
        f"torch {torch.__version__}\n\n"
        "| strategies | update / distill | aim | peak MB above distill | peak B / parameter | expected "
        "| kept MB | kept B / parameter | expected | sentences | end of step s |\n" + "|---" * 11 + "|"
    )


def line(cost: Cost, name: str) -> str:
    """A row of the table."""
    aim = f"{AIMS[name]:.2f}" if name in AIMS else ""
    return (
        f"| {' + '.join(cost.strategies)} | {cost.time_ratio:.2f} | {aim} | {cost.extra_bytes / 1e6:.1f} "
        f"| {cost.extra_per_parameter:.2f} | {cost.expected_extra} "
        f"| {cost.kept_bytes / 1e6:.2f} | {cost.kept_per_parameter:.2f} | {cost.expected_per_parameter} "
        f"| {cost.kept_sentences} | {cost.end_seconds:.1f} |"
    )


def _plain(arguments: argparse.Namespace) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in strategies]:
        raise argparse.ArgumentTypeError(f"unknown strategy {unknown[0]!r}; known: {', '.join(strategies)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=_names, help="names of strategies, with commas (default: all)")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="any annotated file with two types or more")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--updates", type=int, default=7, help="times five updates are measured")
    parser.add_argument("--head", default="extendner")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-tokens", type=int, default=TrainingOptions().batch_tokens, help="of a measured update")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
