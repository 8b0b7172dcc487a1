"""CFNER: probabilities that a word shares with those the teacher finds like it."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ner_cl.config import HeadOptions, TrainingOptions, parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.errors import ConfigError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.heads.options import DistillOptions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies import cfner as cfner_module
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.cfner import Cfner, CfnerOptions, joint_log_probs
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learner_of

TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(16, seed=3, types=("PER", "LOC")))
KEPT = toy_sentences(3, seed=8, types=("PER",))
OLD = 5  # columns before the step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def begin(folder: Path, *, train: Sequence[Sentence] = TRAIN, **options: object) -> tuple[Cfner, StepContext, NerModel]:
    """A strategy at the start of a third step, its context, and a copy of the model before the step.

    The student has gone its own way already.
    """
    model = tiny_model(folder, steps=[["PER"], ["ORG"]], max_pieces=14, window_overlap=4)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = copy.deepcopy(model)
    strategy = Cfner(CfnerOptions(**options))
    context = toy_context(model, ["LOC"], grown=False)
    strategy.begin_step(context)
    model.grow(["LOC"], generator=torch.Generator().manual_seed(4))
    context.encoded = model.encode(train)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return strategy, context, before


def rows_of(context: StepContext, rows: Sequence[int] | None = None) -> Batch:
    assert context.encoded is not None
    return context.encoded.batch(range(len(context.encoded)) if rows is None else rows)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return np.asarray(values / values.sum())


def loss_by_loops(context: StepContext, before: NerModel, batch: Batch, options: CfnerOptions) -> dict[str, float]:
    """The formula of the paper, word by word; the batch is the whole step."""
    with torch.no_grad():
        vectors = before.encoder(batch).double().numpy()
        teacher, student = before(batch).flat().double().numpy(), context.model(batch).flat().double().numpy()
    places = [tuple(place) for place in batch.word_mask.nonzero().tolist()]
    words = sorted(places, key=lambda place: int(batch.word_numbers[place]))
    typed = [place for place in words if batch.targets[place] > 0]
    outside = [place for place in words if batch.targets[place] == 0]
    defined = [place for place in outside if teacher[place].argmax() > 0]
    unit = {place: vectors[place] / np.linalg.norm(vectors[place]) for place in words}

    def shared(place: tuple[int, ...], kind: list[tuple[int, ...]], tags: int) -> np.ndarray:
        """Half the word's own probabilities, half the mean of its neighbours' over the first so many tags."""
        own = softmax(student[place])
        pool = [other for other in kind[: options.candidates or None] if other != place]
        near = sorted(pool, key=lambda other: float(np.linalg.norm(unit[place] - unit[other])))[: options.neighbours]
        if not near:
            return own
        mean = np.zeros_like(own)
        mean[:tags] = np.mean([softmax(student[other][:tags]) for other in near], axis=0)
        return np.asarray((own + mean) / 2)

    ce = sum(-math.log(shared(place, typed, 7)[int(batch.targets[place])]) for place in typed)
    kd = 0.0
    for place in outside:
        target, said = softmax(teacher[place]), softmax(student[place])
        if place in defined:
            said = shared(place, defined, OLD if options.columns == "old" else 7)
            target = np.eye(OLD)[target.argmax()] if options.sharpen else target
        kd += sum(t * (math.log(t) - math.log(said[tag])) for tag, t in enumerate(target) if t > 0)
    factor = options.strength * (math.sqrt((OLD - 1) / 2) if options.balance == "root" else 1.0)
    each = options.reduction == "mean_each"
    return {"ce": ce / len(typed if each else words), "kd": factor * kd / len(outside if each else words)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"columns": "old", "reduction": "mean_each"},
        {"sharpen": False, "columns": "old"},
        {"neighbours": 1, "candidates": 4, "strength": 0.5, "balance": "none"},
        {"neighbours": 1000, "candidates": 0},
        {"neighbours": 0},
    ],
    ids=["default", "published", "one mean", "few candidates", "everybody", "nobody"],
)
def test_the_terms_are_what_loops_over_the_formula_say(folder: Path, options: dict[str, object]) -> None:
    strategy, context, before = begin(folder, **options)
    batch = rows_of(context)
    found = strategy.losses(context, batch, context.model(batch))
    expected = loss_by_loops(context, before, batch, strategy.options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4)
        assert value > 0.01


def test_without_neighbours_it_is_extendner(folder: Path) -> None:
    """With the teacher's own probabilities; and gradients, too, are those of its distillation."""
    strategy, context, before = begin(
        folder, neighbours=0, sharpen=False, strength=1.0, balance="none", reduction="sum_then_mean"
    )
    batch = rows_of(context)
    with torch.no_grad():
        teacher = before(batch).flat()
    gradients = []
    plain = context.model.head.distillation(context.model(batch), batch, teacher, DistillOptions(temperature=1.0))
    found = strategy.losses(context, batch, context.model(batch))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    for terms in (found, plain):
        context.model.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        gradients.append([p.grad.clone() for p in context.model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_shared_probabilities_sum_to_one() -> None:
    """Over all columns, whether neighbours speak of all tags or of old ones only, however many there are."""
    draw = torch.Generator().manual_seed(3)
    own = torch.randn(6, 7, generator=draw).log_softmax(dim=-1)
    near = torch.randn(6, 3, 7, generator=draw)
    near[3:, :, 5:] = -torch.inf
    real = torch.tensor([[True, True, True], [True, False, False], [False, True, True]] * 2)
    found = joint_log_probs(own, near, real).exp()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(6))
    torch.testing.assert_close(found[3:, 5:], own[3:, 5:].exp() / 2)
    torch.testing.assert_close(found[1], (own[1].exp() + near[1, 0].softmax(dim=-1)) / 2)


@pytest.mark.parametrize("columns", ["old", "all"])
def test_what_new_columns_take_from_an_old_type_is_paid_for(folder: Path, columns: str) -> None:
    """As published it is not: the neighbours' old columns sum to 1 however little is left of them."""
    strategy, context, before = begin(folder, columns=columns, strength=1.0, balance="none", reduction="mean_each")
    with torch.no_grad():
        context.model.head.new_block().bias.add_(20.0)
    batch = rows_of(context)
    emissions = context.model(batch)
    emissions.blocks[0].retain_grad()
    strategy.losses(context, batch, emissions)["kd"].backward()
    with torch.no_grad():
        defined = batch.word_mask & (batch.targets == 0) & (before(batch).flat().argmax(-1) > 0)
    assert emissions.blocks[0].grad is not None
    outside = int((batch.word_mask & (batch.targets == 0)).sum())
    pushed_down = emissions.blocks[0].grad[defined][:, OLD:].sum(dim=-1) * outside
    if columns == "old":
        assert (pushed_down < 1e-3).all()
    else:
        assert pushed_down.mean() > 0.3


def test_no_gradient_comes_through_neighbours(folder: Path) -> None:
    """A word's own logits move its loss; those of the words beside it in the batch, which are neighbours, do not."""
    strategy, context, _ = begin(folder, strength=0)
    batch = rows_of(context)
    emissions = context.model(batch)
    emissions.blocks[0].retain_grad()
    strategy.losses(context, batch, emissions)["ce"].backward()
    gradient = emissions.blocks[0].grad
    assert gradient is not None
    paid = batch.word_mask & (batch.targets > 0)
    assert (gradient[paid].abs().sum(dim=-1) > 0).all()
    assert not gradient[~paid].any()
    found = {name: parameter.grad for name, parameter in context.model.named_parameters()}
    context.model.zero_grad(set_to_none=True)
    context.model(batch).blocks[0].backward(gradient)  # what comes through the words' own logits, and nothing else
    for name, parameter in context.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_neighbours_are_those_of_the_teacher_and_asked_for_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    asked = cfner_module.teacher_reads
    monkeypatch.setattr(cfner_module, "teacher_reads", lambda *given: calls.append(1) or asked(*given))
    strategy, context, _ = begin(folder)
    tables = []
    for rows in ([0, 1], [2], None):
        batch = rows_of(context, rows)
        strategy.losses(context, batch, context.model(batch))
        assert strategy._knowledge is not None
        tables.append(strategy._knowledge.neighbours.table.clone())
        with torch.no_grad():
            next(context.model.encoder.parameters()).add_(1.0)
    assert calls == [1]
    assert torch.equal(tables[0], tables[2])
    numbers = torch.arange(len(tables[0])).unsqueeze(1)
    assert (tables[0] >= 0).any()
    assert not (tables[0] == numbers).any()


def test_the_student_speaks_for_its_neighbours_as_it_is_now(folder: Path) -> None:
    """And without dropout, although it trains with it."""
    strategy, context, _ = begin(folder)
    batch = rows_of(context)
    emissions = context.model(batch)
    first = strategy.losses(context, batch, emissions)
    context.model.train()
    same = strategy.losses(context, batch, emissions)
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert context.model.training
    with torch.no_grad():
        context.model.head.new_block().bias.add_(3.0)
    assert strategy.losses(context, batch, emissions)["ce"] < first["ce"]


@pytest.mark.parametrize("name", ["ce", "kd"])
@pytest.mark.parametrize("curriculum", [False, True])
def test_t6_a_term_does_not_depend_on_batching(folder: Path, name: str, curriculum: bool) -> None:
    """T6: windows alone, weighted by their words, make the term of the whole."""
    strategy, context, _ = begin(folder, curriculum=curriculum)
    context.epochs, context.epoch = 3, 2
    batch = rows_of(context)
    whole = strategy.losses(context, batch, context.model(batch))[name]
    total = torch.zeros(())
    for row in batch.rows:
        alone = rows_of(context, [row])
        total += alone.row_words[0] * strategy.losses(context, alone, context.model(alone))[name]
    torch.testing.assert_close(total / sum(batch.row_words), whole, rtol=1e-4, atol=1e-6)


def test_remembered_rows_are_nobodys_neighbours_and_pay_nothing(folder: Path) -> None:
    mixed, both, _ = begin(folder, train=[*TRAIN, *KEPT])
    strategy, context, _ = begin(folder)
    batch, alone = rows_of(both), rows_of(context)
    together = mixed.losses(both, batch, both.model(batch))
    apart = strategy.losses(context, alone, context.model(alone))
    share = sum(alone.row_words) / sum(batch.row_words)
    assert share < 1
    torch.testing.assert_close(together, {n: share * term for n, term in apart.items()}, rtol=1e-4, atol=1e-6)
    kept = rows_of(both, rows_from(batch.origins, "remembered"))
    assert mixed.losses(both, kept, both.model(kept)) == {}


def test_the_curriculum_ends_with_all_words_that_the_teacher_defines(folder: Path) -> None:
    strategy, context, _ = begin(folder, curriculum=True)
    plain, other, _ = begin(folder)
    softly, third, _ = begin(folder, sharpen=False, neighbours=0)
    batch = rows_of(context)
    emissions = context.model(batch)
    context.epochs = other.epochs = third.epochs = 10

    def kd(asked: Cfner, of: StepContext, epoch: int) -> torch.Tensor:
        of.epoch = epoch
        return asked.losses(of, batch, emissions)["kd"]

    torch.testing.assert_close(kd(strategy, context, 10), kd(plain, other, 10))
    flat = Emissions((torch.zeros_like(emissions.blocks[0]),), emissions.word_mask)
    context.epoch = third.epoch = 1  # a student that is sure of nothing imitates softly
    torch.testing.assert_close(strategy.losses(context, batch, flat)["kd"], softly.losses(third, batch, flat)["kd"])


@pytest.mark.parametrize(
    ("epoch", "epochs", "sure", "sharpened"),
    [
        (1, 10, 0.91, True),
        (1, 10, 0.89, False),
        (4, 10, 0.61, True),
        (4, 10, 0.59, False),
        (10, 10, 0.2, True),
        (1, 1, 0.2, True),
    ],
)
def test_the_threshold_falls_in_a_line(folder: Path, epoch: int, epochs: int, sure: float, sharpened: bool) -> None:
    """From 0.9 in the first epoch to 0 in the last."""
    strategy, context, before = begin(folder, curriculum=True)
    context.epoch, context.epochs = epoch, epochs
    batch = rows_of(context)
    with torch.no_grad():
        teacher = before(batch).flat()
    row, word = (batch.word_mask & (batch.targets == 0) & (teacher.argmax(-1) > 0)).nonzero()[0].tolist()
    best = int(teacher[row, word].argmax())
    logits = torch.zeros(*batch.word_mask.shape, 7)
    logits[row, word] = math.log((1 - sure) / 6)
    logits[row, word, best] = math.log(sure)
    logits.requires_grad_()
    strategy.losses(context, batch, Emissions((logits,), batch.word_mask))["kd"].backward()
    assert logits.grad is not None
    gradient = logits.grad[row, word]
    # Towards a single answer all other columns are pushed down alike; towards probabilities they are not.
    others = torch.cat([gradient[:best], gradient[best + 1 : OLD]])
    assert torch.allclose(others, others[0].expand_as(others), atol=1e-7) == sharpened


def test_step_one_is_plain_cross_entropy(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    strategy = Cfner(CfnerOptions())
    context = toy_context(model, ["PER"], train=toy_sentences(8, types=("PER",)))
    strategy.begin_step(context)
    batch = rows_of(context)
    emissions = model(batch)
    terms = strategy.losses(context, batch, emissions)
    expected = torch.nn.functional.cross_entropy(emissions.flat()[batch.word_mask], batch.targets[batch.word_mask])
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], expected)


def test_a_step_without_any_mention_or_old_type_trains(folder: Path) -> None:
    """T7: where nobody has a neighbour the terms are finite, and the one that nobody pays is zero."""
    strategy, context, _ = begin(folder, train=[Sentence(("the",), (), frozenset({"LOC"}))])
    batch = rows_of(context)
    terms = strategy.losses(context, batch, context.model(batch))
    assert terms["ce"].item() == 0.0
    assert terms["kd"].isfinite()
    terms["ce"].backward(retain_graph=True)
    assert not context.model.head.new_block().weight.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("beside", [["spg"], [{"name": "replay", "budget": 5}, "agem"]], ids=str)
def test_frozen_old_rows_stay_to_the_last_bit_beside_others(folder: Path, beside: list[object]) -> None:
    stream = toy_stream(train=40)
    learner = learner_of(folder, [{"name": "cfner", "freeze_old_rows": True}, *beside])
    for _ in learner.learn_step(stream.steps[0]):
        pass
    before = copy.deepcopy(learner.model.head.blocks[0].state_dict())
    for _ in learner.learn_step(stream.steps[1]):
        pass
    after = learner.model.head.blocks[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_addner_is_refused_before_anything_runs(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategies: cfner needs one softmax .* use head extendner"):
        Learner(tiny_model(folder, HeadOptions(name="addner")), parse_strategies(["cfner"]), TrainingOptions())


def test_it_says_itself_how_old_types_are_held() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["cfner", "gpm"]))] == ["cfner", "gpm"]
    with pytest.raises(ConfigError, match="cfner and cpfd both say how old types are held"):
        build_strategies(parse_strategies(["cfner", "cpfd"]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"neighbours": 0, "candidates": 7}, "candidates: has no effect with neighbours: 0"),
        ({"neighbours": 0, "sharpen": False, "curriculum": True}, "curriculum: has no effect with neighbours: 0"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CfnerOptions(**options)
