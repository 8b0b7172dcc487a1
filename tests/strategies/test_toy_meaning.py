"""T15: on a toy stream of two steps plain fine-tuning forgets, and what is meant to hold old types holds them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.grid import PLAIN_FIRST_STEP
from ner_cl.config import HeadOptions, TrainingOptions, parse_strategies
from ner_cl.config.composition import default_strategies
from ner_cl.data.stream import Stream
from ner_cl.evaluate.counts import count_spans
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.registry import heads, strategies
from ner_cl.train.learner import Learner
from tests.tiny import TOY_TRAINING, tiny_encoder, toy_stream, toy_training
from tests.train.toy_runs import learn_all, learner_of, teaches

# These hold so tightly that a random encoder, which has everything to learn in every step, learns little more.
RIGID = {"frozen", "frozen_trunk", "gpm", "ice", "ncl", "slda", "weight_average"}
LITTLE = {"frozen_trunk", "ncl", "slda", "weight_average"}  # of these, those that learn something with a head of tags

# These keep steps apart, and have a test of what that means below; what they learn with is tested with each.
APART = [name for name in strategies if strategies[name].isolates]

every_pair = pytest.mark.parametrize(
    ("name", "head"),
    [(n, head) for n in strategies for head in heads if n != "ewc" and n not in APART and teaches(n, head)],
    ids=lambda value: value,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def stream() -> Stream:
    return toy_stream()


@pytest.fixture(scope="module")
def taught(encoder: Path, stream: Stream) -> Callable[[str], NerModel]:
    """A model after step 1, which many strategies learn alike to the last bit."""

    @functools.cache
    def learn(head: str) -> NerModel:
        learner = learner_of(encoder, ["finetune"], head=head, training=toy_training(head))
        learn_all(learner, replace(stream, steps=stream.steps[:1]))
        return learner.model

    return learn


def f1_of(
    encoder: Path, stream: Stream, names: Sequence[Any], head: str, training: TrainingOptions | None = None
) -> tuple[float, float]:
    """F1 of the old and of the new type after both steps."""
    learner = learner_of(encoder, names, head=head, training=training or toy_training(head))
    return f1_after(learner, stream)


def f1_after(learner: Learner, stream: Stream, *, first: int = 1) -> tuple[float, float]:
    """The same for a learner that has yet to learn the steps from `first` on."""
    learn_all(learner, stream, first=first)
    found = predict_sentences(learner.model.eval(), stream.test, precision="fp32")
    counts = count_spans(stream.test, found, ["PER", "LOC"])
    old, new = counts["PER"].f1, counts["LOC"].f1
    assert old is not None
    assert new is not None
    return old, new


@every_pair
def test_t15_old_types_are_lost_or_held(
    encoder: Path, stream: Stream, taught: Callable[[str], NerModel], name: str, head: str
) -> None:
    """T15. No gold ever denies an old type to SpanKL, so that fine-tuning forgets only what the encoder forgets."""
    # The embeddings of this encoder are random until step 1 has trained them.
    chosen = [{"name": name, "since": 2} if name == "frozen_trunk" else name]
    if name in PLAIN_FIRST_STEP:
        learner = Learner(taught(head).copy(memory=True), parse_strategies(chosen), toy_training(head))
        old, new = f1_after(learner, stream, first=2)
    else:
        old, new = f1_of(encoder, stream, chosen, head)
    if name == "finetune":
        assert old < (0.85 if head == "spankl" else 0.3)
    else:
        # `slda` keeps the embeddings as they are, which here is random.
        assert old > {("frozen", "spankl"): 0.75, ("slda", "extendner"): 0.6}.get((name, head), 0.8)
    if name not in RIGID:
        assert new > 0.8
    elif name in LITTLE and head != "spankl":
        assert new > 0.05


@pytest.mark.parametrize(
    ("name", "head", "rate"),
    [
        ("frozen", "addner", 0.1),
        ("frozen", "extendner", 0.1),
        ("gpm", "addner", 0.1),
        ("gpm", "extendner", 0.1),
        ("ice", "extendner", 0.5),
    ],
)
def test_t15_what_holds_tightly_learns_too(encoder: Path, stream: Stream, name: str, head: str, rate: float) -> None:
    """From features that are random for the new type, with a head that learns fast."""
    options = TOY_TRAINING.optimizer.model_copy(update={"head_lr": rate})
    training = TOY_TRAINING.model_copy(update={"epochs": 20, "optimizer": options})
    old, new = f1_of(encoder, stream, [name], head, training)
    assert old > 0.8
    assert new > 0.4


@pytest.mark.parametrize("head", ["addner", "extendner"])
def test_t15_the_default_holds_and_learns(encoder: Path, stream: Stream, head: str) -> None:
    """Though its lowest layer and embeddings are random here, and stay so."""
    old, new = f1_of(encoder, stream, default_strategies(HeadOptions(name=head)), head)
    assert min(old, new) > 0.5


@pytest.mark.parametrize("name", APART)
def test_steps_that_are_kept_apart_are_found_as_before(encoder: Path, stream: Stream, name: str) -> None:
    learner = learner_of(encoder, [name], head="addner", training=TOY_TRAINING)
    learn_all(learner, replace(stream, steps=stream.steps[:1]))
    before = predict_sentences(learner.model.eval(), stream.test, types=["PER"], precision="fp32")
    learn_all(learner, stream, first=2)
    assert any(before)
    assert predict_sentences(learner.model.eval(), stream.test, types=["PER"], precision="fp32") == before


def test_a_pull_on_weights_holds_only_what_no_label_contradicts(encoder: Path, stream: Stream) -> None:
    """EWC alone: AddNER's old block has a softmax of its own, which the new labels do not reach.

    In ExtendNER the gold of an old mention is still `O`, and any pull that lets the new type be learned lets that be
    learned too.
    """
    held, _ = f1_of(encoder, stream, [{"name": "ewc", "strength": 1e5}], "addner")
    assert held > 0.8
    for strength in (1.0, 1e3):
        lost, new = f1_of(encoder, stream, [{"name": "ewc", "strength": strength}], "extendner")
        assert lost < 0.3
        assert new > 0.8
