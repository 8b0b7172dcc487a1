"""EWC: Fisher information of single sentences, a penalty with the right gradient, and weights that stay near."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import TrainingOptions, parse_strategies
from ner_cl.errors import ConfigError
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.ewc import Ewc, EwcOptions, QuadraticPenalty
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, learn_all, learner_of, same_weights, weights_of

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(10, seed=3, types=("PER", "LOC")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def penalty(strength: float, weights: list[Tensor], anchors: list[Tensor], *parameters: Tensor) -> Tensor:
    found: Tensor = QuadraticPenalty.apply(strength, weights, anchors, *parameters)  # type: ignore[no-untyped-call]
    return found


def after_step(
    folder: Path, head: str = "extendner", *, train: Sequence[Sentence] = TRAIN, **options: object
) -> tuple[Ewc, StepContext]:
    """A strategy that has just measured step 2 of a model with opinions, whose embeddings were frozen."""
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]], max_pieces=14, window_overlap=4)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)
    strategy, context = Ewc(EwcOptions(**options)), toy_context(model, ["LOC"], train=train)
    strategy.begin_step(context)
    model.encoder.embeddings.requires_grad_(False)
    now_train(context)
    model.requires_grad_(True)
    strategy.end_step(context)
    strategy.release()
    return strategy, context


def now_train(context: StepContext) -> None:
    """Says what trains, as the loop does before the first update."""
    named = context.model.named_parameters()
    context.trained = tuple(name for name, parameter in named if parameter.requires_grad)


def fisher_of(strategy: Ewc) -> dict[str, Tensor]:
    state = strategy.state_dict()
    return {name.removeprefix("fisher/"): tensor for name, tensor in state.items() if name.startswith("fisher/")}


def trained_names(model: NerModel) -> list[str]:
    frozen = {id(parameter) for parameter in model.encoder.embeddings.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in frozen]


def test_a9_penalty_and_gradient() -> None:
    """Vector A.9."""
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    value = penalty(2.0, [torch.tensor([4.0, 0.5])], [torch.tensor([0.0, 2.5])], theta)
    assert value.item() == 4.125
    value.backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [8.0, -0.5]


@settings(max_examples=30)
@given(st.integers(1, 4), st.floats(0.01, 100.0), st.floats(0.1, 3.0), st.integers(0, 1000))
def test_the_penalty_agrees_with_autograd(tensors: int, strength: float, factor: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 5), (7,), (2, 1, 4), (1,)][:tensors]
    parameters = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    anchors = [torch.randn(shape, generator=generator) for shape in shapes]
    weights = [torch.rand(shape, generator=generator) for shape in shapes]
    own = penalty(strength, weights, anchors, *parameters)
    oracle = strength / 2 * sum((w * (p - a) ** 2).sum() for w, p, a in zip(weights, parameters, anchors, strict=True))
    torch.testing.assert_close(own, oracle)
    torch.testing.assert_close(
        torch.autograd.grad(factor * own, parameters), torch.autograd.grad(factor * oracle, parameters)
    )


def test_at_the_anchor_there_is_no_penalty_and_no_gradient() -> None:
    """None at all, rather than zeros: weight decay moves a parameter whose gradient is zero."""
    still = torch.randn(4, 3, requires_grad=True)
    moved = torch.randn(3, requires_grad=True)
    value = penalty(5.0, [torch.rand(4, 3), torch.ones(3)], [still.detach().clone(), moved.detach() + 1], still, moved)
    value.backward()
    assert value.item() == pytest.approx(7.5)
    assert still.grad is None
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad, torch.full((3,), -5.0))


def sentence_gradients(context: StepContext, likelihoods: Sequence[Tensor], names: Sequence[str]) -> list[list[Tensor]]:
    parameters = [context.model.get_parameter(name) for name in names]
    return [list(torch.autograd.grad(likelihood, parameters, materialize_grads=True)) for likelihood in likelihoods]


def gold_likelihoods(context: StepContext, sentences: Sequence[Sentence]) -> list[Tensor]:
    """The log-likelihood of each sentence's gold by its definition, from probabilities word by word.

    `O` says that a word is no LOC; of PER, which nobody annotated, it says nothing.
    """
    found = []
    for sentence in sentences:
        encoded = context.model.encode([sentence])
        total = torch.zeros(())
        for row in range(len(encoded)):
            batch = encoded.batch([row])
            logits = context.model(batch).blocks[-1][0]
            # Columns O, B-LOC, I-LOC in AddNER's new block; O, B-PER, I-PER, B-LOC, I-LOC in ExtendNER's only one.
            location = logits.shape[-1] - 2
            for word, target in enumerate(batch.targets[0].tolist()):
                chances = torch.softmax(logits[word], dim=-1)
                total = total + torch.log(chances[location + target - 3] if target else chances[:location].sum())
        found.append(total)
    return found


@BOTH
def test_the_fisher_is_the_mean_of_squared_gradients_of_single_sentences(folder: Path, head: str) -> None:
    """Of gold labels here, which can be computed by hand; sentences cut into windows count as one."""
    strategy, context = after_step(folder, head, fisher="gold")
    assert context.encoded is not None
    assert len(context.encoded) > len(TRAIN)
    names = trained_names(context.model)
    gradients = sentence_gradients(context, gold_likelihoods(context, TRAIN), names)
    expected = {name: torch.stack([each[i].square() for each in gradients]).mean(dim=0) for i, name in enumerate(names)}
    found = fisher_of(strategy)
    assert found.keys() == expected.keys()
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    # The popular mistake: the square of the mean gradient is many times smaller.
    mistaken = [torch.stack([each[i] for each in gradients]).mean(dim=0).square().sum() for i in range(len(names))]
    assert sum(mistaken) < 0.7 * sum(tensor.sum() for tensor in found.values())


def numbered(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(seed)


@BOTH
def test_drawn_labels_give_the_fisher_information(folder: Path, head: str) -> None:
    """An independent oracle: the expectation over all taggings of a sentence, for one column's bias in closed form.

    The gradient of `log p(y)` with respect to the logits of a word is `onehot(y) - p`, so the Fisher information of a
    bias is the sum over words of `p (1 - p)`.
    """
    sentence = TRAIN[0]
    total: dict[str, Tensor] = {}
    repeats = 150
    model = tiny_model(folder, head, steps=[["PER"], ["LOC"]])
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)
    context = toy_context(model, ["LOC"], train=[sentence])
    for seed in range(repeats):
        context.generator = partial(numbered, seed)
        strategy = Ewc(EwcOptions())
        strategy._trained = [name for name, _ in model.head.named_parameters(prefix="head")]
        strategy.end_step(context)
        for name, tensor in fisher_of(strategy).items():
            total[name] = total.get(name, torch.zeros_like(tensor)) + tensor / repeats
    assert context.encoded is not None
    with torch.no_grad():
        blocks = model(context.encoded.batch([0])).blocks
    chances = torch.cat([torch.softmax(block[0], dim=-1) for block in blocks], dim=-1)
    expected = (chances * (1 - chances)).sum(dim=0)
    found = torch.cat([total["head.blocks.0.bias"], total["head.blocks.1.bias"]])
    torch.testing.assert_close(found, expected, rtol=0.4, atol=0.05)


def test_the_fisher_is_not_negative_and_knows_no_order(folder: Path) -> None:
    one, _ = after_step(folder, fisher="gold")
    other, _ = after_step(folder, fisher="gold", train=TRAIN[::-1])
    for name, tensor in fisher_of(one).items():
        assert (tensor >= 0).all()
        torch.testing.assert_close(tensor, fisher_of(other)[name], rtol=1e-4, atol=1e-9)


def test_only_what_trained_is_measured_and_nothing_is_left_behind(folder: Path) -> None:
    strategy, context = after_step(folder)
    model = context.model
    names = trained_names(model)
    assert set(strategy.state_dict()) == {f"{kind}/{name}" for kind in ("fisher", "anchor") for name in names}
    assert "encoder.backbone.embeddings.word_embeddings.weight" not in names
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    for name in names:
        assert torch.equal(strategy.state_dict()[f"anchor/{name}"], model.get_parameter(name))


def test_so_many_sentences_are_measured_as_asked_for(folder: Path) -> None:
    strategy, context = after_step(folder, fisher="gold", samples=3)
    assert len({tuple(batch.rows) for batch in strategy._sentences(context)}) == 3
    few, all_of_them = fisher_of(strategy), fisher_of(after_step(folder, fisher="gold")[0])
    assert any(not torch.allclose(few[name], all_of_them[name]) for name in few)


def test_remembered_sentences_had_their_turn(folder: Path) -> None:
    kept = toy_sentences(4, seed=9, types=("PER",))
    with_memory, _ = after_step(folder, fisher="gold", train=(*TRAIN, *kept))
    alone, _ = after_step(folder, fisher="gold")
    for name, tensor in fisher_of(alone).items():
        torch.testing.assert_close(fisher_of(with_memory)[name], tensor, rtol=1e-4, atol=1e-9)


def test_the_running_fisher_decays_and_the_anchor_follows(folder: Path) -> None:
    """`F ← γF + F_step`; what was not there before has its own part only; the state it came from stays as it was."""
    first, _ = after_step(folder, decay=0.5)
    before = copy.deepcopy(first.state_dict())
    strategy, context = Ewc(EwcOptions(decay=0.5)), None
    known = {name: tensor for name, tensor in before.items() if "blocks.1" not in name}
    strategy.load_state_dict(known)
    model = tiny_model(folder, steps=[["PER"], ["LOC"]], max_pieces=14, window_overlap=4)
    context = toy_context(model, ["LOC"], train=TRAIN)
    strategy.begin_step(context)
    model.encoder.embeddings.requires_grad_(False)
    now_train(context)
    model.requires_grad_(True)
    strategy.end_step(context)
    fresh = Ewc(EwcOptions())
    model.encoder.embeddings.requires_grad_(False)
    now_train(context)
    model.requires_grad_(True)
    fresh.end_step(context)
    for name, tensor in fisher_of(strategy).items():
        expected = fisher_of(fresh)[name]
        if f"fisher/{name}" in known:
            expected = expected + 0.5 * before[f"fisher/{name}"]
        torch.testing.assert_close(tensor, expected)
        assert torch.equal(strategy.state_dict()[f"anchor/{name}"], model.get_parameter(name))
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in before.items())


def test_what_did_not_train_keeps_what_is_known_of_it(folder: Path) -> None:
    strategy, context = after_step(folder)
    before = strategy.state_dict()
    context.model.requires_grad_(False)
    context.model.head.requires_grad_(True)
    now_train(context)
    context.model.requires_grad_(True)
    strategy.end_step(context)
    after = strategy.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("fisher/head")}


def test_the_state_comes_back_bit_for_bit(folder: Path) -> None:
    strategy, _ = after_step(folder)
    other = Ewc(EwcOptions())
    assert other.state_dict() == {}
    other.load_state_dict(strategy.state_dict())
    assert same_weights(strategy.state_dict(), other.state_dict())


def test_a_step_starts_without_penalty_and_new_rows_are_free(folder: Path) -> None:
    strategy, context = after_step(folder, strength=10.0)
    model = context.model
    third = toy_context(model, ["ORG"], grown=False)
    strategy.begin_step(third)
    model.grow(["ORG"])
    now_train(third)
    third.encoded = model.encode([sentence.restrict({"ORG"}) for sentence in toy_sentences(4, types=("ORG",))])
    batch = third.encoded.batch([0])
    term = strategy.losses(third, batch, model(batch))["ewc"]
    assert term.item() == 0.0
    term.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    term = strategy.losses(third, batch, model(batch))["ewc"]
    expected = sum(10.0 / 2 * 0.01 * fisher.double().sum().item() for fisher in fisher_of(strategy).values())
    assert term.item() == pytest.approx(expected, rel=1e-3)
    term.backward()
    new = {id(parameter) for parameter in model.head.new_block().parameters()}
    frozen = {id(parameter) for parameter in model.encoder.embeddings.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is None) == (id(parameter) in new | frozen)


def two_steps(folder: Path, strategies: Sequence[object], *, head: str = "extendner", **training: object) -> Learner:
    options = TrainingOptions(**{**SHORT_TRAINING.model_dump(), **training})
    learner = learner_of(folder, strategies, head=head, training=options)
    learn_all(learner, toy_stream(train=60))
    return learner


@BOTH
@pytest.mark.parametrize("ground", ["finetune", "distill"])
def test_t10_without_strength_it_is_what_it_stands_on(folder: Path, head: str, ground: str) -> None:
    """T10, bit for bit."""
    strategies = [{"name": "ewc", "strength": 0}, ground]
    assert same_weights(two_steps(folder, strategies, head=head).model, two_steps(folder, [ground], head=head).model)


def test_the_stronger_the_pull_the_nearer_the_weights_stay(folder: Path) -> None:
    """In the metric of the Fisher information."""
    away = []
    for strength in (0.0, 1.0, 1000.0):
        learner = learner_of(folder, [{"name": "ewc", "strength": strength}])
        stream = toy_stream(train=60)
        for _ in learner.learn_step(stream.steps[0]):
            pass
        [ewc] = (strategy for strategy in learner.strategies if isinstance(strategy, Ewc))
        fisher, before = fisher_of(ewc), weights_of(learner.model)
        for _ in learner.learn_step(stream.steps[1]):
            pass
        after = weights_of(learner.model)
        away.append(sum(float((tensor * (after[name] - before[name]) ** 2).sum()) for name, tensor in fisher.items()))
    assert away[0] > 1.5 * away[1]
    assert away[1] > 1.5 * away[2]


def test_old_addner_blocks_that_nothing_trains_stand_still(folder: Path) -> None:
    """Under plain fine-tuning they have no gradient; a penalty at its anchor must not change that."""
    learner = learner_of(folder, [{"name": "ewc", "strength": 100.0}], head="addner")
    stream = toy_stream(train=60)
    for _ in learner.learn_step(stream.steps[0]):
        pass
    before = weights_of(learner.model)
    for _ in learner.learn_step(stream.steps[1]):
        pass
    for name in ("head.blocks.0.weight", "head.blocks.0.bias"):
        assert torch.equal(learner.model.get_parameter(name), before[name])


def test_it_stands_on_plain_fine_tuning() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["ewc"]))] == ["ewc", "finetune"]
    assert [s.options.name for s in build_strategies(parse_strategies(["distill", "ewc"]))] == ["distill", "ewc"]
    with pytest.raises(ConfigError, match="ewc and joint cannot be combined"):
        build_strategies(parse_strategies(["ewc", "joint"]))


def test_sentences_are_drawn_whole(folder: Path) -> None:
    """A long sentence counts once, with all of its windows."""
    model = tiny_model(folder, steps=[["PER"], ["LOC"]], max_pieces=14, window_overlap=4)
    short, long = toy_sentences(6, types=("LOC",)), Sentence(("the",) * 40, (), frozenset({"LOC"}))
    context = toy_context(model, ["LOC"], train=[short[0], long, *short[1:], long])
    windows = context.encoded.windows
    of_each = {number: [r for r, w in enumerate(windows) if w.sentence == number] for number in range(8)}
    assert len(of_each[1]) > 3
    assert sorted(map(len, context.own_rows(None, "all"))) == sorted(map(len, of_each.values()))
    for number in range(1, 9):
        drawn = context.own_rows(number, f"draw/{number}")
        assert len(drawn) == number
        assert all(rows in of_each.values() for rows in drawn)
    read = [row for batch in context.batches(sentences=4, purpose="draw/4") for row in batch.rows]
    assert sorted(read) == sorted(row for rows in context.own_rows(4, "draw/4") for row in rows)
