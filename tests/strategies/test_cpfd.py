"""CPFD: what is believed is learned, logits and attention are imitated."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ner_cl.config import HeadOptions, TrainingOptions, parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.attention import attention_maps
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies import teacher as teacher_module
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.cpfd import Cpfd, CpfdOptions
from ner_cl.train.learner import Learner
from ner_cl.types import Sentence, Span
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learn_all, learner_of

TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(16, seed=3, types=("PER", "LOC")))
KEPT = toy_sentences(3, seed=8, types=("PER",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def begin(folder: Path, *, train: Sequence[Sentence] = TRAIN, **options: object) -> tuple[Cpfd, StepContext, NerModel]:
    """A strategy at the start of a third step, its context, and a copy of the model before the step."""
    model = tiny_model(folder, steps=[["PER"], ["ORG"]], max_pieces=14, window_overlap=4)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = copy.deepcopy(model)
    strategy = Cpfd(CpfdOptions(**options))
    context = toy_context(model, ["LOC"], grown=False)
    strategy.begin_step(context)
    model.grow(["LOC"], generator=torch.Generator().manual_seed(4))
    context.encoded = model.encode(train)
    return strategy, context, before


def move(model: NerModel) -> None:
    """A student that has gone its own way."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def rows_of(context: StepContext, rows: Sequence[int] | None = None) -> Batch:
    assert context.encoded is not None
    return context.encoded.batch(range(len(context.encoded)) if rows is None else rows)


def loss_by_loops(context: StepContext, before: NerModel, batch: Batch, options: CpfdOptions) -> dict[str, float]:
    """The formula of the paper, word by word, sentence by sentence; the batch is the whole step."""
    assert context.encoded is not None
    with torch.no_grad():
        teacher, student = before(batch).flat().double().numpy(), context.model(batch).flat().double().numpy()
    words = [tuple(place) for place in batch.word_mask.nonzero().tolist()]
    sentence = {place: context.encoded.windows[batch.rows[place[0]]].sentence for place in words}
    p = {place: softmax(teacher[place]) for place in words}
    q = {place: softmax(student[place]) for place in words}
    gold = {place: int(batch.targets[place]) for place in words}
    answer = {place: int(p[place].argmax()) for place in words}
    entropy = {place: -float((p[place] * np.log(p[place])).sum()) for place in words}
    outside = [place for place in words if not gold[place]]
    sure = {
        place: entropy[place]
        < max(options.floor, float(np.median([entropy[o] for o in outside if answer[o] == answer[place]])))
        for place in outside
    }
    ce, paying = 0.0, 0
    for place in words:
        if not gold[place] and not sure[place]:
            continue
        paying += 1
        mine = [other for other in words if sentence[other] == sentence[place]]
        unsaid = [other for other in mine if not gold[other]]
        weight = sum(sure[other] for other in unsaid) / len(unsaid) if unsaid else 1.0
        if not gold[place] and answer[place]:
            old = sum(sure[other] and answer[other] > 0 for other in unsaid)
            weight *= 0.5 + 1 / (1 + math.exp(-old / max(1, len(mine) - len(unsaid))))
        ce -= weight * math.log(q[place][gold[place] or answer[place]])
    kd = sum(float((p[place] * np.log(p[place] / q[place][:5])).sum()) for place in outside)
    each = options.reduction == "mean_each"
    factor = options.strength * (math.sqrt(4 / 2) if options.balance == "root" else 1.0)
    return {"ce": ce / (paying if each else len(words)), "kd": factor * kd / (len(outside) if each else len(words))}


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return np.asarray(values / values.sum())


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "sum_then_mean"}, {"strength": 0.7, "balance": "none", "floor": 0.5}],
    ids=["published", "one mean", "other weights"],
)
def test_the_terms_are_what_loops_over_the_formula_say(folder: Path, options: dict[str, object]) -> None:
    strategy, context, before = begin(folder, **options)
    move(context.model)
    batch = rows_of(context)
    found = strategy.losses(context, batch, context.model(batch))
    expected = loss_by_loops(context, before, batch, strategy.options)
    assert found.keys() == {"ce", "kd", "attention"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4)
        assert value > 0.01


def test_the_attention_term_is_a_mean_over_layers_and_words(folder: Path) -> None:
    strategy, context, before = begin(folder, attention=3.0)
    move(context.model)
    batch = rows_of(context)
    found = strategy.losses(context, batch, context.model(batch))["attention"].item()
    student, teacher = attention_maps(context.model.encoder, batch), attention_maps(before.encoder, batch)
    total = 0.0
    for row, pieces in enumerate(batch.piece_mask.sum(dim=1).tolist()):
        for layer in range(2):
            a, b = (maps[layer][row, :, :pieces, :pieces].numpy() for maps in (student, teacher))
            distance = ((a.mean(0) - b.mean(0)) ** 2).mean() + ((a.mean(1) - b.mean(1)) ** 2).mean()
            total += distance * batch.row_words[row] / 2
    assert found == pytest.approx(3 * 2 * math.sqrt(2) * total / sum(batch.row_words), rel=1e-4)


def test_a_fresh_student_looks_where_its_teacher_looks(folder: Path) -> None:
    """Without dropout the term is zero to the last bit."""
    strategy, context, _ = begin(folder)
    batch = rows_of(context)
    assert strategy.losses(context, batch, context.model(batch))["attention"].item() == 0.0
    move(context.model)
    assert strategy.losses(context, batch, context.model(batch))["attention"].item() > 1e-4


def test_dropout_moves_the_student_only(folder: Path) -> None:
    """T4, T5: what is asked of the teacher is the same again and has no gradient."""
    strategy, context, before = begin(folder)
    weights = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    batch = rows_of(context)
    context.model.train()
    first, second = (strategy.losses(context, batch, context.model(batch)) for _ in range(2))
    assert not torch.equal(first["attention"], second["attention"])
    context.model.eval()
    emissions = context.model(batch)
    torch.stack(list(strategy.losses(context, batch, emissions).values())).sum().backward()
    assert strategy._teacher is not None
    teacher = strategy._teacher._model
    assert teacher is not None
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["ce", "kd", "attention"])
def test_t6_a_term_does_not_depend_on_batching(folder: Path, name: str) -> None:
    """T6: windows alone, weighted by their words, make the term of the whole; one of them is short of words."""
    strategy, context, _ = begin(folder)
    move(context.model)
    batch = rows_of(context)
    whole = strategy.losses(context, batch, context.model(batch))[name]
    total = torch.zeros(())
    for row in batch.rows:
        alone = rows_of(context, [row])
        total += alone.row_words[0] * strategy.losses(context, alone, context.model(alone))[name]
    torch.testing.assert_close(total / sum(batch.row_words), whole, rtol=1e-4, atol=1e-6)


def test_remembered_rows_are_left_to_who_remembers_them(folder: Path) -> None:
    """They change neither the teacher's thresholds nor the means, and pay nothing."""
    mixed, both, _ = begin(folder, train=[*TRAIN, *KEPT])
    strategy, context, _ = begin(folder)
    for model in (both.model, context.model):
        move(model)
    batch, alone = rows_of(both), rows_of(context)
    together, apart = (
        mixed.losses(both, batch, both.model(batch)),
        strategy.losses(context, alone, context.model(alone)),
    )
    share = sum(alone.row_words) / sum(batch.row_words)
    assert share < 1
    torch.testing.assert_close(together, {n: share * term for n, term in apart.items()}, rtol=1e-4, atol=1e-6)
    kept = rows_of(both, rows_from(batch.origins, "remembered"))
    assert mixed.losses(both, kept, both.model(kept)) == {}


def test_step_one_is_plain_cross_entropy(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    strategy = Cpfd(CpfdOptions())
    context = toy_context(model, ["PER"], train=toy_sentences(8, types=("PER",)))
    strategy.begin_step(context)
    batch = rows_of(context)
    emissions = model(batch)
    terms = strategy.losses(context, batch, emissions)
    expected = torch.nn.functional.cross_entropy(emissions.flat()[batch.word_mask], batch.targets[batch.word_mask])
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], expected)
    assert not model.encoder.backbone._forward_hooks


def test_a_sentence_of_which_nothing_is_believed_costs_no_cross_entropy(folder: Path) -> None:
    """Its gold neither, as published, unless the factor is kept above zero. One `O` of a kind is below no median."""
    train = [Sentence(("Rome", "met"), (Span(0, 1, "LOC"),), frozenset({"LOC"}))]
    for least, paid in ((0.0, False), (0.25, True)):
        strategy, context, _ = begin(folder, train=train, least_share=least, floor=0.0)
        batch = rows_of(context)
        ce = strategy.losses(context, batch, context.model(batch))["ce"]
        assert (ce.item() > 0) == paid
        if paid:
            gold = torch.log_softmax(context.model(batch).flat()[0, 0], dim=-1)[5]
            torch.testing.assert_close(ce, -0.25 * gold)


@pytest.mark.parametrize("off", [{"attention": 0.0}, {"strength": 0.0}])
def test_without_attention_nobody_watches(folder: Path, off: dict[str, float]) -> None:
    strategy, context, _ = begin(folder, **off)
    batch = rows_of(context)
    expected = {"ce", "kd"} if "attention" in off else {"ce"}
    assert strategy.losses(context, batch, context.model(batch)).keys() == expected
    assert not context.model.encoder.backbone._forward_hooks


def test_the_teacher_is_asked_once_about_logits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    asked = teacher_module.teacher_logits
    monkeypatch.setattr(teacher_module, "teacher_logits", lambda *given: calls.append(1) or asked(*given))
    strategy, context, _ = begin(folder)
    for rows in ([0, 1], [2], None):
        batch = rows_of(context, rows)
        strategy.losses(context, batch, context.model(batch))
    assert calls == [1]


def test_a_step_leaves_no_trace_in_the_model(folder: Path) -> None:
    """The encoder is not watched and attends as ever: predictions are those of its weights to the last bit."""
    learner = learner_of(folder, ["cpfd"])
    learn_all(learner, toy_stream(train=40))
    model = learner.model.eval()
    assert not model.encoder.backbone._forward_hooks
    assert not model.encoder.backbone._forward_pre_hooks
    assert model.encoder.config._attn_implementation == "sdpa"
    fresh = tiny_model(folder, steps=[["PER"], ["LOC"]])
    fresh.load_state_dict(model.state_dict())
    batch = model.encode(TRAIN).batch([0, 1, 2])
    assert torch.equal(model(batch).flat(), fresh(batch).flat())


@pytest.mark.parametrize("beside", [["spg"], ["gpm"], [{"name": "replay", "budget": 5}], ["ncl"]], ids=str)
def test_frozen_old_rows_stay_to_the_last_bit_beside_others(folder: Path, beside: list[object]) -> None:
    stream = toy_stream(train=40)
    learner = learner_of(folder, [{"name": "cpfd", "freeze_old_rows": True}, *beside])
    for _ in learner.learn_step(stream.steps[0]):
        pass
    before = copy.deepcopy(learner.model.head.blocks[0].state_dict())
    encoder = copy.deepcopy(learner.model.encoder.state_dict())
    for _ in learner.learn_step(stream.steps[1]):
        pass
    after = learner.model.head.blocks[0].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(learner.model.encoder.state_dict()[name], tensor) for name, tensor in encoder.items())


def test_an_encoder_without_maps_is_told_what_to_do(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"]])
    model.encoder.config._attn_implementation = "eager"
    with pytest.raises(ModelError, match=r"strategy cpfd: a bert encoder .*attention: 0"):
        Cpfd(CpfdOptions()).begin_step(toy_context(model, ["LOC"], grown=False))
    Cpfd(CpfdOptions(attention=0)).begin_step(toy_context(model, ["LOC"], grown=False))


def test_addner_is_refused_before_anything_runs(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategies: cpfd needs one softmax .* use head extendner"):
        Learner(tiny_model(folder, HeadOptions(name="addner")), parse_strategies(["cpfd"]), TrainingOptions())


def test_it_says_itself_how_old_types_are_held() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["cpfd", "spg"]))] == ["cpfd", "spg"]
    with pytest.raises(ConfigError, match="distill and cpfd both say how old types are held"):
        build_strategies(parse_strategies(["distill", "cpfd"]))
