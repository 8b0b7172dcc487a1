"""Distillation: a teacher that never changes, a cache that says the same, and old types that stay."""

import copy
from pathlib import Path

import pytest
import torch

from ner_cl.config import HeadOptions, check_head, parse_strategies
from ner_cl.data.batching import Batch
from ner_cl.errors import ConfigError
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.ner_model import NerModel
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.build import build_strategies
from ner_cl.strategies.distill import Distill, DistillStrategyOptions
from ner_cl.strategies.teacher import teacher_logits
from tests.tiny import TOY_TYPES, tiny_encoder, tiny_model, toy_context, toy_sentences

BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])
TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(24, seed=3, types=("PER", "LOC")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def begin(folder: Path, head: str, **options: object) -> tuple[Distill, StepContext, NerModel]:
    """A strategy at the start of step 2, its context, and a copy of the model before the step."""
    model = tiny_model(folder, head, steps=[["PER"]], max_pieces=14, window_overlap=4)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(20)  # a teacher with opinions
    before = copy.deepcopy(model)
    strategy = Distill(DistillStrategyOptions(**options))
    context = toy_context(model, ["LOC"], grown=False)
    model.train()
    strategy.begin_step(context)
    model.eval().grow(["LOC"], generator=torch.Generator().manual_seed(4))
    context.encoded = model.encode(TRAIN)
    return strategy, context, before


def all_rows(context: StepContext) -> Batch:
    assert context.encoded is not None
    return context.encoded.batch(range(len(context.encoded)))


def fixed_emissions(context: StepContext, batch: Batch) -> Emissions:
    """Made-up scores of a student that does not change, in leaves that gradients can be read off."""
    generator = torch.Generator().manual_seed(11)
    blocks = context.model(batch).blocks
    return Emissions(
        tuple(torch.randn(block.shape, generator=generator).requires_grad_() for block in blocks), batch.word_mask
    )


def train_a_little(strategy: Distill, context: StepContext) -> None:
    optimizer = torch.optim.AdamW(context.model.parameters(), lr=1e-2, weight_decay=0.1)
    batch = all_rows(context)
    context.model.train()
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack(list(strategy.losses(context, batch, context.model(batch)).values())).sum().backward()
        optimizer.step()


@BOTH
def test_step_one_is_cross_entropy_and_needs_no_teacher(folder: Path, head: str) -> None:
    model = tiny_model(folder, head, steps=[["PER"]])
    train = toy_sentences(8, types=("PER",))
    strategy, context = Distill(DistillStrategyOptions(beta=2.0)), toy_context(model, ["PER"], train=train)
    strategy.begin_step(context)
    batch = all_rows(context)
    emissions = model(batch)
    terms = strategy.losses(context, batch, emissions)
    expected = torch.nn.functional.cross_entropy(emissions.flat()[batch.word_mask], batch.targets[batch.word_mask])
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], 2 * expected)


@BOTH
@pytest.mark.parametrize("cache", [True, False])
def test_the_teacher_is_the_model_before_the_step(folder: Path, head: str, cache: bool) -> None:
    strategy, context, before = begin(
        folder, head, alpha=0.7, cache=cache, temperature=3.0, form="sub", mention_weight=5.0
    )
    batch = all_rows(context)
    emissions = fixed_emissions(context, batch)
    with torch.no_grad():
        teacher = before(batch).flat()
    expected = context.model.head.distillation(emissions, batch, teacher, strategy.options)
    found = strategy.losses(context, batch, emissions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected["kd"] > 0.1


@BOTH
@pytest.mark.parametrize("cache", [True, False])
def test_the_teacher_stays_the_same_while_the_student_learns(folder: Path, head: str, cache: bool) -> None:
    """To the last bit, and whatever mode the student is in: its own dropout is on, the teacher's is off."""
    strategy, context, _ = begin(folder, head, cache=cache)
    batch = all_rows(context)
    emissions = fixed_emissions(context, batch)
    at_first = strategy.losses(context, batch, emissions)["kd"]
    weights = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    train_a_little(strategy, context)
    assert not any(torch.equal(weights[n], p) for n, p in context.model.named_parameters() if p.grad is not None)
    assert context.model.training
    assert not torch.equal(context.model(batch).flat(), context.model(batch).flat())  # dropout of the student
    for _ in range(2):
        assert torch.equal(strategy.losses(context, batch, emissions)["kd"], at_first)


@BOTH
@pytest.mark.parametrize("cache", [True, False])
def test_the_teacher_has_no_graph(folder: Path, head: str, cache: bool) -> None:
    strategy, context, _ = begin(folder, head, cache=cache)
    batch = all_rows(context)
    emissions = fixed_emissions(context, batch)
    terms = strategy.losses(context, batch, emissions)
    leaves: set[int] = set()
    pending, seen = [term.grad_fn for term in terms.values()], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending += [parent for parent, _ in node.next_functions]
    assert leaves <= {id(block) for block in emissions.blocks}  # the student's scores, and nothing of a teacher


@BOTH
def test_cached_targets_are_those_of_a_live_teacher(folder: Path, head: str) -> None:
    (cached, context, _), (live, same, _) = (begin(folder, head, cache=cache) for cache in (True, False))
    assert context.encoded is not None
    assert len(context.encoded) > len(TRAIN)  # some sentences are read in several windows
    for rows in ([0], [3, 1, 2], [len(context.encoded) - 1, 0]):
        batch = context.encoded.batch(rows)
        emissions = fixed_emissions(context, batch)
        torch.testing.assert_close(
            cached.losses(context, batch, emissions), live.losses(same, batch, emissions), atol=1e-5, rtol=1e-5
        )


@BOTH
def test_teacher_logits_are_filed_by_word_number(folder: Path, head: str) -> None:
    _, context, before = begin(folder, head)
    assert context.encoded is not None
    filed = teacher_logits(before, context.encoded, context)
    assert filed.shape == (context.encoded.words, 3)
    with torch.no_grad():
        for row in range(len(context.encoded)):
            batch = context.encoded.batch([row])
            torch.testing.assert_close(filed[batch.word_numbers][0], before(batch).flat()[0], atol=1e-5, rtol=1e-5)


@BOTH
def test_a_fresh_student_starts_without_divergence(folder: Path, head: str) -> None:
    strategy, context, _ = begin(folder, head, form="sub")
    batch = all_rows(context)
    assert strategy.losses(context, batch, context.model(batch))["kd"].item() < 1e-5


@BOTH
def test_the_next_step_has_the_next_teacher(folder: Path, head: str) -> None:
    strategy, context, _ = begin(folder, head, alpha=0.7)
    train_a_little(strategy, context)
    strategy.end_step(context)
    context.model.eval()
    after_step_two = copy.deepcopy(context.model)
    third = toy_context(context.model, ["ORG"], grown=False)
    strategy.begin_step(third)
    third.model.grow(["ORG"])
    third.encoded = third.model.encode([sentence.restrict({"ORG"}) for sentence in toy_sentences(6, types=TOY_TYPES)])
    batch = all_rows(third)
    emissions = fixed_emissions(third, batch)
    with torch.no_grad():
        teacher = after_step_two(batch).flat()
    expected = third.model.head.distillation(emissions, batch, teacher, strategy.options)
    torch.testing.assert_close(strategy.losses(third, batch, emissions), expected, atol=1e-5, rtol=1e-5)


@BOTH
def test_without_alpha_no_gradient_comes_from_the_teacher(folder: Path, head: str) -> None:
    strategy, context, before = begin(folder, head, alpha=0.0)
    batch = all_rows(context)
    emissions = fixed_emissions(context, batch)
    with torch.no_grad():
        teacher = before(batch).flat()
    loss = torch.stack(list(strategy.losses(context, batch, emissions).values())).sum()
    expected = context.model.head.distillation(emissions, batch, teacher, strategy.options)["ce"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    if head == "addner":
        assert emissions.blocks[0].grad is None


def test_distill_is_added_where_no_strategy_holds_old_types() -> None:
    first, second = build_strategies(parse_strategies(["spg"]))
    assert isinstance(first, Distill)
    assert first.options == DistillStrategyOptions()
    assert second.options.name == "spg"


def test_an_empty_list_is_the_default() -> None:
    assert [strategy.options.name for strategy in build_strategies([])] == ["distill", "frozen_trunk", "slda"]
    assert [s.options.name for s in build_strategies([], HeadOptions(name="addner"))] == ["distill", "frozen_trunk"]


def test_two_ways_to_hold_old_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="frozen and distill both say how old types are held; keep one of them"):
        build_strategies(parse_strategies(["frozen", "distill"]))


@pytest.mark.parametrize(
    ("head", "options"),
    [("addner", {"form": "sub"}), ("spankl", {"reduction": "mean_each"}), ("extendner", {"blocks": "mean"})],
)
def test_options_of_other_heads_are_refused(head: str, options: dict[str, str]) -> None:
    strategies = parse_strategies([{"name": "distill", **options}])
    [option] = options
    with pytest.raises(ConfigError, match=f"distill has an option {option}, which has no effect with head {head}"):
        check_head(strategies, HeadOptions(name=head))
    for other in {"addner", "extendner"} - {head}:
        if head != "spankl" or other != "addner":
            check_head(strategies, HeadOptions(name=other))
