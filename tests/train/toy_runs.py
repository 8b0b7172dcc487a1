"""Small whole runs: a toy corpus in files, configurations for it, and what a run left behind."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ner_cl import registry
from ner_cl.config import (
    Config,
    EarlyStoppingOptions,
    HeadOptions,
    OptimizerOptions,
    TrainingOptions,
    parse_config,
    parse_strategies,
)
from ner_cl.data.stream import Stream
from ner_cl.data.writers import write_sentences
from ner_cl.evaluate.matrix import Matrix
from ner_cl.model.ner_model import NerModel
from ner_cl.train.events import Event
from ner_cl.train.learner import Learner
from tests.tiny import tiny_encoder, tiny_model, toy_corpus

# What a random encoder of one layer needs to learn the toy types well, in about half a second a step.
GOOD_TRAINING = TrainingOptions(
    epochs=8,
    batch_tokens=128,
    precision="fp32",
    optimizer=OptimizerOptions(lr=5e-3, head_lr=5e-2),
    early_stopping=EarlyStoppingOptions(tolerance=0),  # as in `TOY_TRAINING`
)
# What only has to move weights.
SHORT_TRAINING = GOOD_TRAINING.model_copy(update={"epochs": 2, "batch_tokens": 256})


def toy_encoder(folder: Path, *, hidden: int = 32) -> Path:
    """An encoder of one layer."""
    return tiny_encoder(folder, hidden=hidden, layers=1)


def teaches(strategy: str, head: str) -> bool:
    """Whether a strategy with its default options can teach a model with a head."""
    class_ = registry.strategies[strategy]
    refused = class_(class_.options_class()).refuses_head(HeadOptions(name=head))
    return not refused and (registry.heads[head].apart or not class_.isolates)


def learner_of(
    encoder: Path,
    strategies: Sequence[Any] = ("distill",),
    *,
    head: str = "extendner",
    training: TrainingOptions = SHORT_TRAINING,
    seed: int = 13,
    **options: Any,
) -> Learner:
    """A learner on a model that knows nothing."""
    return Learner(tiny_model(encoder, head), parse_strategies(list(strategies)), training, seed=seed, **options)


def learn_all(learner: Learner, stream: Stream, *, first: int = 1) -> list[Event]:
    """Learns the steps from `first` on; a strategy that may look at earlier data is given them."""
    events: list[Event] = []
    for step in stream.steps[first - 1 :]:
        events += learner.learn_step(
            step,
            old_steps=[earlier.types for earlier in stream.steps[: step.number - 1]],
            earlier=stream.everything_until(step.number),
            earlier_dev=stream.dev_everything_until(step.number),
        )
    return events


def weights_of(model: NerModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_weights(one: NerModel | dict[str, Tensor], other: NerModel | dict[str, Tensor]) -> bool:
    """Whether two models have the same weights to the last bit."""
    left, right = (weights_of(x) if isinstance(x, NerModel) else x for x in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def no_dropout(model: NerModel) -> NerModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


def write_corpus(folder: Path, *, train: int = 60, types: Sequence[str] = ("PER", "LOC")) -> dict[str, str]:
    """The toy corpus as CoNLL files; gives the `stream.corpus` section of a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = toy_corpus(train=train, dev=20, test=40, types=types)
    paths = {}
    for part in ("train", "dev", "test"):
        paths[part] = str(folder / f"{part}.conll")
        write_sentences(paths[part], getattr(corpus, part))
    return {"format": "conll", **paths}


def run_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """The plain values of a configuration for a short run on the toy corpus, all of whose files are in `folder`."""
    if not (folder / "encoder").is_dir():
        toy_encoder(folder / "encoder")
        write_corpus(folder / "corpus")
    corpus = {part: str(folder / "corpus" / f"{part}.conll") for part in ("train", "dev", "test")}
    values = {
        "encoder": {"name": str(folder / "encoder"), "max_pieces": 64, "window_overlap": 16},
        "stream": {"corpus": {"format": "conll", **corpus}, "steps": [["PER"], ["LOC"]], "name": "toy"},
        "training": SHORT_TRAINING.model_dump(mode="json"),
        "output": str(folder / "run"),
    }
    training = {**values["training"], **changes.pop("training", {})}
    return {**values, **changes, "training": training}


def run_config(folder: Path, **changes: Any) -> Config:
    """The same as a checked configuration."""
    return parse_config(run_values(folder, **changes))


def step_files(run: Path) -> dict[str, bytes]:
    """Everything a run leaves that a later step, a report or a reader uses, as bytes; times are left out.

    And `tokenizer_config.json`, in which transformers writes down whether the process was offline.
    """
    models = [path for path in sorted((run / "steps").glob("[0-9]*/**/*")) if path.is_file()]
    paths = [*models, *sorted((run / "predictions").glob("*.jsonl")), run / "matrix.json"]
    return {str(path.relative_to(run)): _without_times(path) for path in paths if path.name not in _LEFT_OUT}


_LEFT_OUT = ("README.md", "tokenizer_config.json")


def _without_times(path: Path) -> bytes:
    if path.name != "history.jsonl":
        return path.read_bytes()
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return json.dumps(
        [{k: v for k, v in r.items() if k not in ("finished", "train_seconds")} for r in records]
    ).encode()


def f1_after(run: Path) -> list[dict[str, float | None] | None]:
    return Matrix.load(run / "matrix.json").f1


class Interrupted(Exception):
    """Raised by a test in the middle of a run."""


def interrupt_at(update: int) -> Callable[[Event], None]:
    """A receiver of events that ends the run after so many updates of it."""
    left: Iterator[int] = iter(range(update - 1, -1, -1))

    def receive(event: Event) -> None:
        if type(event).__name__ == "UpdateDone" and next(left) == 0:
            raise Interrupted

    return receive
