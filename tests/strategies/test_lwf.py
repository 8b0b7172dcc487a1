"""LwF: cross entropy as labelled on every word, and the old columns of the model before on every word."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ner_cl.config import parse_strategies
from ner_cl.data.batching import Batch, rows_from
from ner_cl.errors import ConfigError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.distill import Distill, DistillStrategyOptions
from ner_cl.strategies.lwf import Lwf, LwfOptions
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences, toy_stream
from tests.train.toy_runs import learn_all, learner_of, same_weights

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(12, seed=3, types=("PER", "LOC")))
KEPT = toy_sentences(3, seed=8, types=("PER",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=1)


def begin(
    folder: Path, head: str, strategy: Lwf | Distill, *, kept: bool = False, steps: tuple[str, ...] = ("PER", "ORG")
) -> tuple[StepContext, NerModel]:
    """The context of a third step, and a copy of the model before it."""
    model = tiny_model(folder, head, steps=[[type_] for type_ in steps])
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = copy.deepcopy(model)
    context = toy_context(model, ["LOC"], grown=False)
    strategy.begin_step(context)
    model.grow(["LOC"], generator=torch.Generator().manual_seed(4))
    context.encoded = model.encode([*TRAIN, *KEPT] if kept else TRAIN)
    return context, before


def all_rows(context: StepContext) -> Batch:
    assert context.encoded is not None
    return context.encoded.batch(range(len(context.encoded)))


def made_up(context: StepContext, batch: Batch) -> Emissions:
    """Scores of a student that has moved away, in leaves that gradients can be read off."""
    generator = torch.Generator().manual_seed(11)
    blocks = context.model(batch).blocks
    return Emissions(
        tuple(torch.randn(block.shape, generator=generator).requires_grad_() for block in blocks), batch.word_mask
    )


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """`Σ p log(p / q)` of one word by its definition."""
    p, q = torch.softmax(teacher / temperature, -1), torch.softmax(student / temperature, -1)
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("cache", [True, False])
def test_extendner_imitates_the_old_columns_on_every_word(folder: Path, temperature: float, cache: bool) -> None:
    strategy = Lwf(LwfOptions(strength=0.7, temperature=temperature, scale=False, cache=cache))
    context, before = begin(folder, "extendner", strategy)
    batch = all_rows(context)
    emissions = made_up(context, batch)
    found = strategy.losses(context, batch, emissions)
    with torch.no_grad():
        teacher = before(batch).flat()
    words = batch.word_mask.nonzero().tolist()
    student = emissions.flat()
    kd = torch.stack([divergence(teacher[r, w], student[r, w, :5], temperature) for r, w in words]).mean()
    ce = torch.nn.functional.cross_entropy(student[batch.word_mask], batch.targets[batch.word_mask])
    torch.testing.assert_close(found, {"ce": ce, "kd": 0.7 * kd}, rtol=1e-4, atol=1e-5)


def test_the_two_terms_contradict_each_other_on_old_mentions(folder: Path) -> None:
    """What makes LwF weak here: the gold of a word that the teacher calls PER is `O`, and both are taught."""
    strategy = Lwf(LwfOptions())
    context, _ = begin(folder, "extendner", strategy)
    batch = all_rows(context)
    found = {}
    for name in ("ce", "kd"):
        emissions = made_up(context, batch)
        strategy.losses(context, batch, emissions)[name].backward()
        assert emissions.blocks[0].grad is not None
        found[name] = emissions.blocks[0].grad[batch.word_mask]
    assert (found["ce"].abs().sum(-1) > 0).all()
    assert (found["kd"][:, :5].abs().sum(-1) > 0).all()
    assert not found["kd"][:, 5:].any()  # it says nothing of the new columns


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_where_blocks_share_nothing_it_is_distillation(folder: Path, head: str) -> None:
    lwf, distill = Lwf(LwfOptions()), Distill(DistillStrategyOptions(alpha=1.0, mention_weight=1.0))
    context, _ = begin(folder, head, lwf)
    same, _ = begin(folder, head, distill)
    batch = all_rows(context)
    emissions = made_up(context, batch)
    torch.testing.assert_close(lwf.losses(context, batch, emissions), distill.losses(same, batch, emissions))


@BOTH
def test_a_fresh_student_starts_without_divergence(folder: Path, head: str) -> None:
    strategy = Lwf(LwfOptions())
    context, _ = begin(folder, head, strategy)
    batch = all_rows(context)
    assert strategy.losses(context, batch, context.model(batch))["kd"].item() < 1e-5


@BOTH
def test_step_one_is_plain_cross_entropy(folder: Path, head: str) -> None:
    strategy = Lwf(LwfOptions())
    context, _ = begin(folder, head, strategy, steps=())
    batch = all_rows(context)
    assert strategy.losses(context, batch, context.model(batch)).keys() == {"ce"}


@BOTH
def test_remembered_rows_are_left_to_who_remembers_them(folder: Path, head: str) -> None:
    """The terms are shares of a mean over all words of the batch."""
    strategy = Lwf(LwfOptions())
    context, _ = begin(folder, head, strategy, kept=True)
    batch = all_rows(context)
    emissions = made_up(context, batch)
    own = rows_from(batch.origins, "own")
    assert len(own) == len(TRAIN) < len(batch.origins)
    share = sum(batch.row_words[row] for row in own) / sum(batch.row_words)
    alone = strategy.losses(context, batch.select(own), emissions.select(own))
    together = strategy.losses(context, batch, emissions)
    torch.testing.assert_close(together, {name: share * term for name, term in alone.items()})


@BOTH
def test_t10_without_strength_it_is_fine_tuning(folder: Path, head: str) -> None:
    """T10, bit for bit."""
    learners = [learner_of(folder, [item], head=head) for item in ({"name": "lwf", "strength": 0}, "finetune")]
    for learner in learners:
        learn_all(learner, toy_stream(train=60))
    assert same_weights(learners[0].model, learners[1].model)


def test_it_says_itself_how_old_types_are_held() -> None:
    assert [s.options.name for s in build_strategies(parse_strategies(["lwf"]))] == ["lwf"]
    with pytest.raises(ConfigError, match="distill and lwf both say how old types are held"):
        build_strategies(parse_strategies(["distill", "lwf"]))
