"""Steps of several types whose sentences are annotated for some of them only: what nobody looked for is not denied."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ner_cl
from ner_cl.config import parse_strategies
from ner_cl.data.batching import Batch
from ner_cl.data.stream import Step
from ner_cl.evaluate.counts import micro_f1
from ner_cl.model.losses import unknown_as_outside
from ner_cl.strategies.build import build_strategies
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences
from tests.train.toy_runs import SHORT_TRAINING

# Of a step that learns LOC and ORG, annotated for LOC only: "Acme" may well be an ORG.
HALF = Sentence(("the", "Acme", "near", "Rome"), (Span(3, 4, "LOC"),), frozenset({"LOC"}))
WHOLE = Sentence(HALF.words, HALF.spans, frozenset({"LOC", "ORG"}))
HONEST = ["distill", "cpfd", "cfner", "rdp", {"name": "rdp", "duplets": True}, "is3", "ice", "self_training", "frozen"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def pull(folder: Path, strategy: Any, sentence: Sentence, *, head: str = "extendner") -> tuple[Tensor, Tensor]:
    """The gradients of a strategy's loss on a sentence by the tags of LOC and by those of ORG, at every word."""
    model = tiny_model(folder, head, steps=[["PER"]])
    with torch.no_grad():
        model.head.blocks[0].bias[0] = 9.0  # a teacher that is sure that no word is a PER
    (built,) = build_strategies(parse_strategies([strategy]))
    context = toy_context(model, ["LOC", "ORG"], grown=False)
    built.begin_step(context)
    train = built.sentences(context, [sentence])
    model.grow(["LOC", "ORG"], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.head.new_block().bias[-5:] = 0.0
        model.head.blocks[0].bias[0] = 0.5  # and a student that is not
    context.encoded = model.encode(train)
    built.begin_stage(context)
    context.epoch = 1
    built.begin_epoch(context)
    batch = context.encoded.batch([0])
    emissions = model.eval()(batch)
    for block in emissions.blocks:
        block.requires_grad_(True)
    loss = torch.stack(list(built.losses(context, batch, emissions).values())).sum()
    (found,) = torch.autograd.grad(loss, emissions.blocks[-1])
    return found[0, :, -4:-2], found[0, :, -2:]


@pytest.mark.parametrize("strategy", HONEST, ids=str)
def test_a_word_is_not_denied_to_be_of_a_type_nobody_looked_for(folder: Path, strategy: Any) -> None:
    """A positive gradient is a push down. RDP's soft labels and its entropy pull at all columns, whatever gold says."""
    name = strategy if isinstance(strategy, str) else strategy["name"]
    plain = {"name": name, "soft_labels": 0.0, "entropy": 0.0} if name == "rdp" else strategy
    _, known = pull(folder, plain, WHOLE)
    assert (known[1] > 0).all()  # annotated for ORG too, "Acme" is none
    place, unknown = pull(folder, plain, HALF)
    assert (unknown[1] <= 1e-7).all()
    assert place[3, 0] < 0  # and "Rome" is a LOC all the same
    assert (place[1] > 0).all()  # which "Acme" is not


@pytest.mark.parametrize("strategy", ["distill", "self_training", "frozen"])
def test_nor_by_addner(folder: Path, strategy: str) -> None:
    """Within the step's block; what SpanKL says of it is in `tests/model/test_spankl.py`, SK3."""
    _, unknown = pull(folder, strategy, HALF, head="addner")
    assert (unknown[1] <= 1e-7).all()


def test_unknown_columns_are_part_of_outside_and_of_nothing_else() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    unknown = torch.tensor([[False, True, False], [False, False, False]])
    found = unknown_as_outside(logits, unknown).softmax(dim=-1)
    wanted = logits.softmax(dim=-1)
    assert torch.equal(unknown_as_outside(logits, unknown)[1], logits[1])
    torch.testing.assert_close(found[0, :, 0], wanted[0, :, [0, 3, 4]].sum(dim=-1))
    torch.testing.assert_close(found[0, :, [1, 2, 5, 6]], wanted[0, :, [1, 2, 5, 6]])
    assert not found[0, :, 3:5].any()


def test_an_annotated_batch_is_read_as_it_is(folder: Path) -> None:
    """To the last bit: nothing is computed where every row is annotated for all new types."""
    model = tiny_model(folder, "extendner", steps=[["PER"], ["LOC", "ORG"]])
    batch = model.encode([WHOLE, WHOLE]).batch([0, 1])
    scores = model(batch).blocks[0]
    assert model.head.as_annotated(scores, batch) is scores
    assert batch.unannotated({1, 2}) is None
    mixed = model.encode([WHOLE, HALF]).batch([0, 1])
    asked = mixed.unannotated({1, 2})
    assert asked is not None
    assert asked.tolist() == [[False, False, False], [False, False, True]]


@pytest.mark.parametrize("strategy", ["distill", "cpfd", "self_training"])
def test_two_files_of_one_type_each_teach_both(tmp_path: Path, strategy: str) -> None:
    """Every sentence is annotated for one of two types that it may mention; the teacher takes neither for its own."""
    full = toy_sentences(120, seed=21, types=("ORG", "MISC"))
    halves = [sentence.restrict([("ORG", "MISC")[number % 2]]) for number, sentence in enumerate(full)]
    test = toy_sentences(60, seed=23, types=("ORG", "MISC"))
    training = TOY_TRAINING.model_copy(update={"calibrate": False})
    first = [sentence.restrict(["PER"]) for sentence in toy_sentences(150, seed=2, types=("PER", "ORG", "MISC"))]
    empty = tiny_model(tmp_path, "extendner")
    model = ner_cl.learn(empty, first, types=["PER"], dev=[], strategies=["distill"], training=training).model
    taught = ner_cl.learn(model, halves, types=["ORG", "MISC"], dev=[], strategies=[strategy], training=training)
    learner = Learner(taught.model, parse_strategies([strategy]), training)
    assert micro_f1(learner.count(test, ["ORG", "MISC"])) > 0.9


def test_pseudo_labels_complete_old_types_only(folder: Path) -> None:
    model = tiny_model(folder, "extendner", steps=[["PER"]])
    (built,) = build_strategies(parse_strategies(["self_training"]))
    context = toy_context(model, ["LOC", "ORG"], grown=False)
    raw = Sentence(("Ada", "visited", "Rome"))
    half, untouched = built.sentences(context, [HALF, raw])
    assert half.annotated_types == {"PER", "LOC"}
    assert untouched == raw


def test_joint_learns_from_sentences_of_old_types_alone(tmp_path: Path) -> None:
    """And a batch of nothing else is no error."""
    first = toy_sentences(40, seed=4, types=("PER", "LOC"))
    sentences = [sentence.restrict([("PER", "LOC")[number % 2]]) for number, sentence in enumerate(first)]
    model = tiny_model(tmp_path, "extendner", steps=[["PER"]])
    learner = Learner(model, parse_strategies(["joint"]), SHORT_TRAINING.model_copy(update={"batch_tokens": 16}))
    new = tuple(s for s in sentences if s.annotated_types == {"LOC"})
    for _ in learner.learn_step(Step(2, ("LOC",), new, ()), earlier=sentences, earlier_dev=()):
        pass
    assert learner.sentences == 40


def test_a_batch_of_which_no_strategy_says_anything_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remembered rows without `replay` are nobody's: here most batches have no other."""
    model = tiny_model(tmp_path, "extendner", steps=[["PER"]])
    learner = Learner(model, parse_strategies(["finetune"]), SHORT_TRAINING)
    old = toy_sentences(60, seed=9, types=("PER",))
    monkeypatch.setattr(learner.strategies[0], "sentences", lambda _, train: [*train, *old])
    own = tuple(sentence.restrict(["LOC"]) for sentence in toy_sentences(3, seed=2, types=("LOC",)))
    before = [parameter.clone() for parameter in model.head.parameters()]
    events = list(learner.learn_step(Step(2, ("LOC",), own, ())))
    assert learner.sentences == 63
    assert len(events) > 4
    assert not torch.equal(before[0], next(iter(model.head.parameters())))


def rows_of(batch: Batch) -> list[set[int]]:
    return [set(types) for types in batch.row_types]


def test_a_selection_knows_what_its_rows_are_annotated_for(folder: Path) -> None:
    model = tiny_model(folder, "extendner", steps=[["PER"], ["LOC", "ORG"]])
    batch = model.encode([WHOLE, HALF, Sentence(HALF.words)]).batch([0, 1, 2])
    assert rows_of(batch) == [{1, 2}, {1}, set()]
    some = batch.select([1, 2])
    assert rows_of(some) == [{1}, set()]
    assert some.annotated_types == {1}
    assert some.annotated.tolist() == [[False, True, False], [False, False, False]]
