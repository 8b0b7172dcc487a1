"""Per-word losses against worked numbers, plain references in Python floats, and what must never happen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional as F

from ner_cl.model.losses import bernoulli_kl, kd_full, kd_merged, kd_sub, marginal_cross_entropy, masked_mean

TEACHER = torch.tensor([[2.0, 0.0, -1.0]])  # O, B, I of an old type
STUDENT = torch.tensor([[1.5, 0.5, -1.0, 0.2, -0.3]])  # and two columns of a new one
SEEDS = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=50)


def normal(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(z / temperature) for z in logits]
    return [weight / sum(weights) for weight in weights]


def divergence(teacher: list[float], student: list[float]) -> float:
    """KL over the teacher's columns of two lists of probabilities."""
    return sum(p * (math.log(p) - math.log(student[column])) for column, p in enumerate(teacher))


@pytest.mark.parametrize(("temperature", "sub", "full"), [(1.0, 0.066493, 0.330363), (2.0, 0.023140, 0.422280)])
def test_worked_numbers_of_distillation(temperature: float, sub: float, full: float) -> None:
    assert kd_sub(TEACHER, STUDENT[:, :3], temperature=temperature).item() == pytest.approx(sub, abs=1e-6)
    assert kd_full(TEACHER, STUDENT, temperature=temperature).item() == pytest.approx(full, abs=1e-6)


def test_worked_numbers_at_the_start_of_a_step() -> None:
    fresh = torch.cat([TEACHER, STUDENT[:, 3:]], dim=-1)
    assert kd_sub(TEACHER, fresh[:, :3], temperature=1.0).item() == 0.0
    new_mass = fresh.softmax(-1)[0, 3:].sum().item()
    assert new_mass == pytest.approx(0.183057, abs=1e-6)
    assert kd_full(TEACHER, fresh, temperature=1.0).item() == pytest.approx(0.202186, abs=1e-6)
    assert kd_full(TEACHER, fresh, temperature=1.0).item() == pytest.approx(-math.log(1 - new_mass), abs=1e-6)


@pytest.mark.parametrize(
    ("annotated", "cost"), [([False, True], 0.263871), ([True, True], 0.635410), ([False, False], 0.0)]
)
def test_worked_numbers_of_the_marginal_cross_entropy(annotated: list[bool], cost: float) -> None:
    outside = torch.zeros(1, 1, dtype=torch.long)
    found = marginal_cross_entropy(STUDENT[None], outside, torch.tensor([annotated]))
    assert found.item() == pytest.approx(cost, abs=1e-6)


@given(seed=SEEDS, old=st.integers(1, 7), new=st.integers(0, 4), temperature=st.floats(0.5, 8))
@PROPERTY
def test_distillation_is_the_divergence_it_says_it_is(seed: int, old: int, new: int, temperature: float) -> None:
    teacher, student = normal(seed, 2, 3, old), normal(seed + 1, 2, 3, old + new)
    sub = kd_sub(teacher, student[..., :old], temperature=temperature)
    full = kd_full(teacher, student, temperature=temperature)
    for row in range(2):
        for word in range(3):
            target = softmax(teacher[row, word].tolist(), temperature)
            own = softmax(student[row, word, :old].tolist(), temperature)
            everything = softmax(student[row, word].tolist(), temperature)
            assert sub[row, word].item() == pytest.approx(divergence(target, own), abs=2e-5)
            assert full[row, word].item() == pytest.approx(divergence(target, everything), abs=2e-5)
    assert (sub > -1e-6).all()
    assert (full > sub - 1e-5).all()  # columns that the teacher does not have can only take away


@given(seed=SEEDS, temperature=st.floats(0.5, 8))
@PROPERTY
def test_the_divergence_of_decisions_is_that_of_torch(seed: int, temperature: float) -> None:
    teacher, student = normal(seed, 4, 5), normal(seed + 1, 4, 5)
    one, other = (Bernoulli(logits=logits.double() / temperature) for logits in (teacher, student))
    found = bernoulli_kl(teacher, student, temperature=temperature)
    torch.testing.assert_close(found.double(), kl_divergence(one, other), atol=1e-5, rtol=1e-4)


def test_sk2_decisions_that_agree_diverge_by_nothing() -> None:
    """To the last bit, gradient included, certain ones too."""
    teacher = torch.tensor([0.0, 1e-6, 3.0, -40.0, 200.0, -1e4])
    student = teacher.clone().requires_grad_()
    divergence_ = bernoulli_kl(teacher, student, temperature=2.0)
    divergence_.sum().backward()
    assert divergence_.tolist() == [0.0] * 6
    assert student.grad is not None
    assert not student.grad.any()


@given(seed=SEEDS, temperature=st.floats(0.5, 8))
@PROPERTY
def test_a_fresh_student_is_pushed_by_neither_column_it_shares(seed: int, temperature: float) -> None:
    logits = normal(seed, 6, 5).requires_grad_()
    cost = kd_sub(logits.detach(), logits, temperature=temperature)
    assert (cost == 0).all()
    cost.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


@given(seed=SEEDS)
@PROPERTY
def test_full_distillation_pushes_new_columns_down(seed: int) -> None:
    student = normal(seed, 6, 7).requires_grad_()
    kd_full(student.detach()[:, :5], student, temperature=2.0).sum().backward()
    assert student.grad is not None
    assert (student.grad[:, 5:] > 0).all()


@pytest.mark.parametrize("form", [kd_sub, kd_full])
def test_gradients_agree_with_differences(form) -> None:  # type: ignore[no-untyped-def]
    teacher = normal(0, 2, 5)
    student = normal(1, 2, 5).requires_grad_()
    form(teacher, student, temperature=2.0).sum().backward()
    step = 1e-2
    for row in range(2):
        for column in range(5):
            moved = [student.detach().clone(), student.detach().clone()]
            moved[0][row, column] += step
            moved[1][row, column] -= step
            up, down = (form(teacher, each, temperature=2.0).sum().item() for each in moved)
            assert student.grad[row, column].item() == pytest.approx((up - down) / (2 * step), abs=1e-3)


@given(seed=SEEDS, types=st.integers(1, 4), rows=st.integers(1, 3), words=st.integers(1, 4))
@PROPERTY
def test_marginal_cross_entropy_with_all_types_is_cross_entropy(seed: int, types: int, rows: int, words: int) -> None:
    logits = normal(seed, rows, words, 1 + 2 * types)
    targets = torch.randint(0, 1 + 2 * types, (rows, words), generator=torch.Generator().manual_seed(seed))
    found = marginal_cross_entropy(logits, targets, torch.ones(rows, types, dtype=torch.bool))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(rows, words)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@given(seed=SEEDS, annotated=st.lists(st.booleans(), min_size=1, max_size=4))
@PROPERTY
def test_marginal_cross_entropy_sums_what_the_annotation_allows(seed: int, annotated: list[bool]) -> None:
    tags = 1 + 2 * len(annotated)
    logits = normal(seed, 1, tags, tags)
    targets = torch.arange(tags)[None]  # a word for every tag
    found = marginal_cross_entropy(logits, targets, torch.tensor([annotated]))
    allowed = [0, *(1 + 2 * i + k for i, known in enumerate(annotated) if not known for k in (0, 1))]
    for tag in range(tags):
        probabilities = softmax(logits[0, tag].tolist())
        mass = probabilities[tag] if tag else sum(probabilities[column] for column in allowed)
        assert found[0, tag].item() == pytest.approx(-math.log(mass), abs=2e-5)


def test_a_row_without_annotation_teaches_exactly_nothing() -> None:
    logits = normal(3, 50, 20, 9).requires_grad_()
    annotated = torch.zeros(50, 4, dtype=torch.bool)
    cost = marginal_cross_entropy(logits, torch.zeros(50, 20, dtype=torch.long), annotated)
    assert (cost == 0).all()
    cost.sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()  # not nearly: Adam divides a tiny gradient by its own size


@given(seed=SEEDS, annotated=st.lists(st.booleans(), min_size=1, max_size=5).filter(any))
@PROPERTY
def test_outside_never_punishes_a_type_that_was_not_annotated(seed: int, annotated: list[bool]) -> None:
    logits = normal(seed, 1, 8, 1 + 2 * len(annotated)).requires_grad_()
    cost = marginal_cross_entropy(logits, torch.zeros(1, 8, dtype=torch.long), torch.tensor([annotated]))
    cost.sum().backward()
    assert logits.grad is not None
    ruled_out = torch.tensor([False, *(known for known in annotated for _ in "BI")])
    assert (logits.grad[..., ruled_out] >= 0).all()
    assert (logits.grad[..., ~ruled_out] <= 0).all()
    # All columns that may be right are pulled up in the same proportion: none loses against `O`.
    pull = logits.grad[..., ~ruled_out] / logits.detach().softmax(-1)[..., ~ruled_out]
    torch.testing.assert_close(pull, pull[..., :1].expand_as(pull), atol=1e-5, rtol=1e-3)


@given(seed=SEEDS, old=st.integers(1, 7), new=st.integers(0, 4), temperature=st.floats(0.5, 8))
@PROPERTY
def test_merged_distillation_counts_new_columns_as_outside(seed: int, old: int, new: int, temperature: float) -> None:
    teacher, student = normal(seed, 3, old), normal(seed + 1, 3, old + new)
    found = kd_merged(teacher, student, temperature=temperature)
    for word in range(3):
        probabilities = softmax(student[word].tolist())
        merged = [probabilities[0] + sum(probabilities[old:]), *probabilities[1:old]]
        tempered = softmax([math.log(probability) for probability in merged], temperature)
        expected = divergence(softmax(teacher[word].tolist(), temperature), tempered)
        assert found[word].item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_merged_distillation_leaves_open_whether_a_word_is_of_a_new_type(temperature: float) -> None:
    """A student that takes all it gives a new type from its `O` costs nothing; one that takes it from B-old does."""
    teacher = torch.tensor([0.7, 0.2, 0.1]).log()
    free, taking = torch.tensor([0.1, 0.2, 0.1, 0.6]).log(), torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    assert kd_merged(teacher, free, temperature=temperature).item() == pytest.approx(0.0, abs=1e-6)
    assert kd_merged(teacher, taking, temperature=temperature).item() > 0.001


@given(seed=SEEDS)
@PROPERTY
def test_a_word_costs_the_same_alone_and_in_a_batch(seed: int) -> None:
    teacher, student = normal(seed, 5, 9, 5), normal(seed + 1, 5, 9, 9)
    targets = torch.randint(0, 9, (5, 9), generator=torch.Generator().manual_seed(seed))
    annotated = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)) > 0.5
    together = (
        kd_sub(teacher, student[..., :5], temperature=2.0),
        kd_full(teacher, student, temperature=2.0),
        kd_merged(teacher, student, temperature=2.0),
        marginal_cross_entropy(student, targets, annotated),
    )
    for row, length in enumerate([9, 1, 4, 7, 2]):
        place = slice(row, row + 1), slice(0, length)
        alone = (
            kd_sub(teacher[place], student[place][..., :5], temperature=2.0),
            kd_full(teacher[place], student[place], temperature=2.0),
            kd_merged(teacher[place], student[place], temperature=2.0),
            marginal_cross_entropy(student[place], targets[place], annotated[place[:1]]),
        )
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one, all_[place])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_fp32(dtype: torch.dtype) -> None:
    teacher, student = normal(5, 2, 3, 5).to(dtype), normal(6, 2, 3, 9).to(dtype)
    annotated = torch.ones(2, 4, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = (
            kd_sub(teacher, student[..., :5], temperature=2.0),
            kd_full(teacher, student, temperature=2.0),
            marginal_cross_entropy(student, torch.zeros(2, 3, dtype=torch.long), annotated),
        )
    high = (
        kd_sub(teacher.float(), student[..., :5].float(), temperature=2.0),
        kd_full(teacher.float(), student.float(), temperature=2.0),
        marginal_cross_entropy(student.float(), torch.zeros(2, 3, dtype=torch.long), annotated),
    )
    for one, other in zip(low, high, strict=True):
        assert one.dtype is torch.float32
        assert torch.equal(one, other)


def test_losses_survive_extreme_logits() -> None:
    teacher = torch.tensor([[1e4, 0.0, -1e4]])
    student = torch.tensor([[-1e4, 0.0, 1e4, 3e4, 0.0]])
    costs = [
        kd_sub(teacher, student[:, :3], temperature=2.0),
        kd_full(teacher, student, temperature=2.0),
        marginal_cross_entropy(student[None], torch.zeros(1, 1, dtype=torch.long), torch.tensor([[True, True]])),
    ]
    assert all(torch.isfinite(cost).all() for cost in costs)


def test_the_mean_is_over_the_words_under_the_mask() -> None:
    values = torch.tensor([[1.0, 2.0, 900.0], [6.0, torch.nan, torch.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == 3.0


def test_the_mean_of_nothing_is_zero_with_a_zero_gradient() -> None:
    values = normal(0, 2, 3).requires_grad_()
    mean = masked_mean(values, torch.zeros(2, 3, dtype=torch.bool))
    assert mean.item() == 0.0
    mean.backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.zeros(2, 3))
