"""IS3: two backward passes in one, prototypes that never change, and distillation where both brakes are off."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ner_cl.config import HeadOptions, check_head, parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.is3 import Is3, Is3Options, hold_back_old_columns
from ner_cl.types import Sentence, Span
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learn_all, learner_of, same_weights

Reduction = Literal["mean_each", "sum_then_mean"]
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean_each", "sum_then_mean"])
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(14, seed=3, types=("PER", "LOC")))
WHOLLY = Sentence(("Rome", "North"), (Span(0, 2, "LOC"),), frozenset({"LOC"}))
KEPT = toy_sentences(4, seed=8, types=("PER",))
OLD = 5  # columns before the step; two more in it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def begin(folder: Path, train: tuple[Sentence, ...] = TRAIN, **options: Any) -> tuple[Is3, StepContext, NerModel]:
    """A strategy at the start of a third step with made-up prototypes, its context, and the model before the step."""
    model = tiny_model(folder, steps=[["PER"], ["ORG"]])
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = copy.deepcopy(model)
    strategy, context = Is3(Is3Options(**options)), toy_context(model, ["LOC"], grown=False)
    draw = torch.Generator().manual_seed(2)
    strategy.load_state_dict({tag: torch.randn(32, generator=draw) for tag in ("B-PER", "I-PER", "B-ORG")})
    strategy.begin_step(context)
    model.grow(["LOC"], generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.encoder.embeddings.weight.mul_(1.5)  # a student that has moved
    context.encoded = model.encode(train)
    strategy.begin_stage(context)
    return strategy, context, before


def all_rows(context: StepContext) -> Batch:
    assert context.encoded is not None
    return context.encoded.batch(range(len(context.encoded)))


def gradients(model: NerModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("factor", [0.6, 0.0, 1.0])
@REDUCTIONS
def test_one_backward_pass_is_the_papers_two(folder: Path, factor: float, reduction: Reduction) -> None:
    """Cross entropy backward, the rows of old types scaled, then the rest backward, added up."""
    strategy, context, before = begin(folder, old_gradient=factor, reduction=reduction)
    batch = all_rows(context)
    model = context.model
    total(strategy.losses(context, batch, model(batch))).backward()
    found = gradients(model)

    with torch.no_grad():
        teacher = before(batch).flat()
    options = DistillOptions(temperature=1.0, alpha=2.0, reduction=reduction)
    plain = model.head.distillation(model(batch), batch, teacher, options)
    prototypes = total({"": strategy._prototype_loss(context)})
    plain["ce"].backward(retain_graph=True)
    for number in (0, 1):
        for parameter in model.head.blocks[number].parameters():
            assert parameter.grad is not None
            rows = slice(1 if number == 0 else 0, None)
            parameter.grad[rows] *= factor
    (plain["kd"] + 0.1 * prototypes).backward()
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_holding_back_changes_no_bit_of_the_logits(folder: Path) -> None:
    _, context, _ = begin(folder)
    emissions = context.model(all_rows(context))
    assert torch.equal(hold_back_old_columns(context.model.head, emissions, factor=0.3), emissions.flat())


def test_only_columns_of_old_types_are_held_back(folder: Path) -> None:
    """Neither `O`, nor new columns, nor what word vectors are told."""
    _, context, _ = begin(folder)
    batch, model = all_rows(context), context.model
    weights = torch.randn(*batch.word_mask.shape, OLD + 2, generator=torch.Generator().manual_seed(1))
    found = []
    for factor in (1.0, 0.25):
        (hold_back_old_columns(model.head, model(batch), factor=factor) * weights).sum().backward()
        found.append(gradients(model))
    free, held = found
    for name, gradient in free.items():
        expected = gradient.clone()
        if name in ("head.blocks.0.weight", "head.blocks.0.bias"):
            expected[1:] *= 0.25
        if name.startswith("head.blocks.1."):
            expected *= 0.25
        torch.testing.assert_close(held[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_without_its_brakes_it_is_distillation(folder: Path, cache: bool) -> None:
    """Factor 1 and weight 0: the weights of `distill` with a double KL at temperature 1, to the last bit."""
    off = {"name": "is3", "old_gradient": 1.0, "prototypes": 0.0, "cache": cache}
    plain = {"name": "distill", "alpha": 2.0, "mention_weight": 1.0, "temperature": 1.0}
    learners = [learner_of(folder, [item]) for item in (off, plain)]
    for learner in learners:
        learn_all(learner, toy_stream(train=40))
    assert same_weights(learners[0].model, learners[1].model)
    assert learners[0].model.strategy_state == {}


def test_each_brake_makes_a_difference(folder: Path) -> None:
    models = []
    for options in ({"old_gradient": 1.0, "prototypes": 0.0}, {"prototypes": 0.0}, {"old_gradient": 1.0}):
        learner = learner_of(folder, [{"name": "is3", **options}])
        learn_all(learner, toy_stream(train=40))
        models.append(learner.model)
    assert not same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


@REDUCTIONS
def test_t6_t9_terms_do_not_depend_on_padding_and_batches(folder: Path, reduction: Reduction) -> None:
    strategy, context, _ = begin(folder, reduction=reduction)
    encoded = context.encoded
    assert encoded is not None

    def terms(rows: list[int]) -> dict[str, float]:
        batch = encoded.batch(rows)
        found = strategy.losses(context, batch, context.model(batch))
        return {name: term.item() * sum(batch.row_words) for name, term in found.items()}

    whole = terms(list(range(len(encoded))))
    parts = [terms([row]) for row in range(len(encoded))]
    assert whole.keys() == {"ce", "kd", "prototypes"}
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("train", [tuple(s for s in TRAIN if not s.spans), (WHOLLY,)], ids=["nothing", "everything"])
def test_a_term_about_no_word_costs_nothing(folder: Path, train: tuple[Sentence, ...]) -> None:
    strategy, context, _ = begin(folder, train)
    batch = all_rows(context)
    terms = strategy.losses(context, batch, context.model(batch))
    assert all(bool(term.isfinite()) for term in terms.values())
    assert (terms["ce"].item() == 0) == (train != (WHOLLY,))
    assert (terms["kd"].item() == 0) == (train == (WHOLLY,))


def test_remembered_rows_are_the_business_of_others(folder: Path) -> None:
    strategy, context, _ = begin(folder, (*TRAIN, *KEPT))
    batch = all_rows(context)
    own = batch.select(rows_from(batch.origins, "own"))
    alone = strategy.losses(context, own, context.model(own))
    found = strategy.losses(context, batch, context.model(batch))
    share = sum(own.row_words) / sum(batch.row_words)
    for name, term in alone.items():
        torch.testing.assert_close(found[name], term * (1.0 if name == "prototypes" else share))


def test_the_prototype_term_by_its_formula(folder: Path) -> None:
    strategy, context, _ = begin(folder, prototypes=0.7)
    batch = all_rows(context)
    found = strategy.losses(context, batch, context.model(batch))["prototypes"]
    blocks = list(context.model.head.blocks)
    weight, bias = (np.concatenate([getattr(b, part).detach().numpy() for b in blocks]) for part in ("weight", "bias"))
    costs = []
    for tag, vector in strategy.state_dict().items():
        logits = weight.astype(np.float64) @ vector.numpy() + bias
        costs.append(np.log(np.exp(logits).sum()) - logits[context.model.tagset.tags.index(tag)])
    assert found.item() == pytest.approx(0.7 * np.mean(costs), rel=1e-5)


@pytest.mark.parametrize("length", ["words", "unit"])
def test_prototypes_are_mean_directions_of_the_words_of_the_step(folder: Path, length: str) -> None:
    strategy, context, _ = begin(folder, (*TRAIN, *KEPT), prototype_length=length)
    earlier = strategy.state_dict()
    strategy.end_step(context)
    strategy.release()
    members: dict[str, list[np.ndarray]] = {}
    for sentence in TRAIN:
        batch = context.model.encode([sentence]).batch([0])
        with torch.no_grad():
            vectors = context.model.encoder(batch)[0].double().numpy()
        for word, tag in enumerate(batch.targets[0].tolist()):
            members.setdefault(context.model.tagset.tags[tag], []).append(vectors[word])
    state = strategy.state_dict()
    assert state.keys() == {*earlier, "B-LOC", "I-LOC"}
    for tag in ("B-LOC", "I-LOC"):
        norms = [np.linalg.norm(vector) for vector in members[tag]]
        mean = np.mean([vector / norm for vector, norm in zip(members[tag], norms, strict=True)], axis=0)
        expected = mean * (np.mean(norms) if length == "words" else 1.0)
        np.testing.assert_allclose(state[tag].numpy(), expected, rtol=1e-4, atol=1e-6)
    for tag, prototype in earlier.items():
        assert state[tag] is prototype  # never made anew


def test_a_tag_that_no_word_has_gets_no_prototype(folder: Path) -> None:
    single = tuple(s for s in TRAIN if all(span.end - span.start == 1 for span in s.spans))
    strategy, context, _ = begin(folder, single)
    strategy.end_step(context)
    strategy.release()
    assert "B-LOC" in strategy.state_dict()
    assert "I-LOC" not in strategy.state_dict()


def test_prototypes_count_only_from_the_next_step_on(folder: Path) -> None:
    """Others measure this step's loss at its end, when its own prototypes exist already."""
    strategy, context, _ = begin(folder)
    batch = all_rows(context)
    losses = [strategy.losses(context, batch, context.model(batch))["prototypes"].item()]
    strategy.end_step(context)
    losses.append(strategy.losses(context, batch, context.model(batch))["prototypes"].item())
    strategy.release()
    strategy.begin_step(context)
    strategy.begin_stage(context)
    losses.append(strategy.losses(context, batch, context.model(batch))["prototypes"].item())
    assert losses[0] == losses[1] != losses[2]


def test_prototypes_go_along_from_step_to_step(folder: Path) -> None:
    learner = learner_of(folder, ["is3", "replay", "spg"])
    stream = toy_stream(steps=(("PER",), ("LOC",), ("ORG",)), train=60)
    kept = []
    for number in (1, 2, 3):
        for _ in learner.learn_step(stream.steps[number - 1]):
            pass
        kept.append(dict(learner.model.strategy_state["is3"]))
    assert [len(state) for state in kept] == [2, 4, 6]
    for earlier, later in pairwise(kept):
        assert all(torch.equal(later[tag], prototype) for tag, prototype in earlier.items())


@pytest.mark.parametrize(("tag", "width"), [("B-PER", 7), ("B-CITY", 32)])
def test_prototypes_of_another_model_are_refused(folder: Path, tag: str, width: int) -> None:
    strategy, context, _ = begin(folder)
    strategy.load_state_dict({tag: torch.zeros(width)})
    with pytest.raises(ModelError, match="what is3 kept of earlier steps is of another model"):
        strategy.begin_step(context)


def test_a_model_that_has_no_prototypes_is_taught_all_the_same(folder: Path) -> None:
    strategy, context, _ = begin(folder)
    strategy.load_state_dict({})
    batch = all_rows(context)
    assert strategy.losses(context, batch, context.model(batch)).keys() == {"ce", "kd"}


def test_a_head_without_a_common_softmax_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="is3 needs one softmax over the tags of all types, which head addner has not"
    ):
        check_head(parse_strategies(["is3"]), HeadOptions(name="addner"))
