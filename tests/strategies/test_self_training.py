"""Self-training: gold wins, old spans survive whole or not at all, and the new block has no say."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.self_training import SelfTraining, SelfTrainingOptions
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence, Span
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
LENGTH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def context(folder: Path) -> StepContext:
    return toy_context(tiny_model(folder, steps=[["PER", "LOC"]]), ["ORG"], grown=False)


@st.composite
def flat_spans(draw: st.DrawFn, types: tuple[str, ...]) -> list[Span]:
    borders = sorted(draw(st.sets(st.integers(0, LENGTH), max_size=6)))
    pairs = zip(borders[::2], borders[1::2], strict=False)
    return [Span(start, end, draw(st.sampled_from(types))) for start, end in pairs]


def merge(context: StepContext, gold: list[Span], predicted: list[Span]) -> Sentence:
    sentence = Sentence(tuple("abcdefgh"), tuple(gold), frozenset({"ORG"}), source="x:1")
    context.predict = lambda sentences: [predicted for _ in sentences]
    [merged] = SelfTraining(SelfTrainingOptions()).sentences(context, [sentence])
    return merged


def test_a_sentence_where_gold_and_teacher_disagree(context: StepContext) -> None:
    gold = [Span(2, 4, "ORG")]
    predicted = [Span(0, 2, "PER"), Span(3, 5, "LOC"), Span(6, 7, "LOC")]  # the middle one cuts the gold span
    merged = merge(context, gold, predicted)
    assert merged.spans == (Span(0, 2, "PER"), Span(2, 4, "ORG"), Span(6, 7, "LOC"))
    assert merged.annotated_types == {"PER", "LOC", "ORG"}
    assert merged.source == "x:1"


@given(gold=flat_spans(("ORG",)), predicted=flat_spans(("PER", "LOC")))
def test_gold_wins_and_old_spans_are_kept_whole_or_dropped(
    context: StepContext, gold: list[Span], predicted: list[Span]
) -> None:
    merged = merge(context, gold, predicted)
    covered = {word for span in gold for word in range(span.start, span.end)}
    kept = {span for span in predicted if not covered & set(range(span.start, span.end))}
    assert set(merged.spans) == set(gold) | kept
    words = [word for span in merged.spans for word in range(span.start, span.end)]
    assert len(words) == len(set(words))


def test_in_step_one_there_is_no_teacher(folder: Path) -> None:
    context = toy_context(tiny_model(folder), ["PER"], grown=False)
    context.predict = lambda sentences: pytest.fail("nobody to ask")
    train = toy_sentences(3, types=("PER",))
    assert SelfTraining(SelfTrainingOptions()).sentences(context, train) is train


def loud_model(folder: Path, head: str) -> NerModel:
    """A model that knows PER and finds it all over the place."""
    model = tiny_model(folder, head, steps=[["PER"]])
    block = model.head.new_block()
    batch = model.encode(toy_sentences(40, seed=2)).batch(range(40))
    with torch.no_grad():
        block.weight.mul_(60)
        block.bias.sub_(model(batch).flat()[batch.word_mask].mean(0))  # every tag has its turn
    return model


@BOTH
def test_labels_are_those_of_the_model_before_the_step(folder: Path, head: str) -> None:
    """The untrained block of the new type is never asked, nor does it talk the old types down."""
    model = loud_model(folder, head)
    train = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(40, seed=2))
    predicted = predict_sentences(copy.deepcopy(model), train, precision="fp32")
    assert sum(map(len, predicted)) > 40
    learner = Learner(model, [SelfTrainingOptions()], TOY_TRAINING)
    step = toy_stream(steps=(("PER",), ("LOC",))).steps[1]
    next(learner.learn_step(type(step)(2, ("LOC",), train, ())))
    encoded = learner.loop.context.encoded
    assert encoded is not None
    for sentence, gold, old in zip(encoded.sentences, train, predicted, strict=True):
        expected = {span for span in old if not any(span.overlaps(other) for other in gold.spans)}
        assert set(sentence.spans) == {*gold.spans, *expected}


@BOTH
def test_pseudo_labels_count_as_gold(folder: Path, head: str) -> None:
    """The loss is that of sentences annotated for everything."""
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    train = toy_sentences(6, seed=1, types=("PER", "LOC"))
    context = toy_context(model, ["LOC"], train=train)
    assert context.encoded is not None
    batch = context.encoded.batch(range(6))
    emissions = model(batch)
    found = SelfTraining(SelfTrainingOptions()).losses(context, batch, emissions)
    tags, words = batch.targets, batch.word_mask
    expected = torch.zeros(())
    if head == "extendner":
        expected = torch.nn.functional.cross_entropy(emissions.flat()[words], tags[words])
    else:
        for index, block in enumerate(emissions.blocks):
            own = torch.where((tags + 1) // 2 == index + 1, tags - 2 * index, 0)
            expected = expected + torch.nn.functional.cross_entropy(block[words], own[words])
    assert found.keys() == {"ce"}
    torch.testing.assert_close(found["ce"], expected)


def test_a_head_of_whole_spans_keeps_what_lies_inside_gold(folder: Path) -> None:
    context = toy_context(tiny_model(folder, "spankl", steps=[["PER", "LOC"]]), ["ORG"], grown=False)
    merged = merge(context, [Span(0, 4, "ORG")], [Span(2, 4, "LOC"), Span(6, 7, "LOC")])
    assert merged.spans == (Span(0, 4, "ORG"), Span(2, 4, "LOC"), Span(6, 7, "LOC"))
    assert merged.annotated_types == {"PER", "LOC", "ORG"}
