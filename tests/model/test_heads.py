"""All heads: growing changes nothing old, and every word is taught by whom it should be taught."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import HeadOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import ModelError
from ner_cl.model.decode import orphans, spans_of_rows
from ner_cl.model.heads import AddNer, DistillOptions, Emissions, ExtendNer, Head, SpanKl
from ner_cl.registry import heads

HIDDEN = 24
STEPS = (("PER",), ("LOC", "ORG"), ("MISC",), ("DATE", "DRUG"), ("GENE",))
SEEDS = st.integers(0, 2**32 - 1)
BOTH = pytest.mark.parametrize("name", ["addner", "extendner"])  # what tags words
EVERY = pytest.mark.parametrize("name", ["addner", "extendner", "spankl"])
OPTIONS = [
    DistillOptions(
        temperature=temperature, alpha=0.7, beta=1.3, form=form, reduction=reduction, scale=scale, blocks=blocks
    )
    for temperature, form, reduction, scale, blocks in itertools.product(
        (1.0, 2.5), ("full", "sub"), ("sum_then_mean", "mean_each"), (True, False), ("sum", "mean")
    )
] + [DistillOptions(mention_weight=4.0, form=form, blocks="mean") for form in ("full", "sub")]


def make_head(name: str, steps: int, *, seed: int = 0, scale: float = 10.0, **options: object) -> Head:
    """A head that knows the first `steps` of STEPS, with rows large enough for decided opinions."""
    head = heads[name](HIDDEN, HeadOptions(name=name, **options))
    for number in range(steps):
        grow(head, STEPS[number], seed=seed + number, scale=scale)
    return head  # type: ignore[no-any-return]


def grow(head: Head, types: tuple[str, ...], *, seed: int, scale: float = 10.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    head.grow(types, generator=generator)
    with torch.no_grad():
        head.new_block().weight.mul_(scale)
        head.new_block().bias.normal_(generator=generator)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(targets: list[list[int]], annotated: list[list[bool]], *, pad_to: int = 0) -> Batch:
    """A batch of right-padded rows with these targets; its pieces are of no account here."""
    width = max(pad_to, *(len(row) for row in targets))
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in targets])
    mask = torch.tensor([[k < len(row) for k in range(width)] for row in targets])
    known = torch.tensor(annotated)
    return Batch(
        piece_ids=torch.zeros_like(padded),
        piece_mask=mask.long(),
        word_pieces=torch.zeros_like(padded),
        word_mask=mask,
        targets=padded,
        annotated=known,
        word_numbers=torch.zeros_like(padded),
        spans=spans_of_rows(padded),
        row_types=tuple(frozenset(index for index, flag in enumerate(row) if flag) for row in annotated),
    )


def random_case(name: str, seed: int, *, steps: int = 3) -> tuple[Head, Emissions, Batch, Tensor]:
    """A head, its emissions for three rows of a batch annotated for the newest step, and a teacher's logits."""
    head = make_head(name, steps, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    first = 1 + 2 * head.tagset.type_offset(steps)
    new = [0, 0, 0, *range(first, len(head.tagset))]
    rows = [[new[int(k)] for k in torch.randint(len(new), (n,), generator=draw)] for n in (7, 1, 4)]
    batch = make_batch(rows, [[head.tagset.step_of(type_) == steps for type_ in head.tagset.types]] * 3)
    emissions = head(normal(seed, 3, 7, HIDDEN), batch.word_mask)
    old = emissions.flat().shape[-1] - head.new_block().out_features
    teacher = emissions.flat()[..., :old].detach() + normal(seed + 1, 3, 7, old)
    return head, emissions, batch, teacher


# --- growing


@pytest.mark.parametrize(
    ("name", "new_rows"),
    [("addner", "random"), ("extendner", "random"), ("extendner", "outside"), ("spankl", "random")],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_growing_keeps_old_logits_to_the_last_bit(name: str, new_rows: str, precision: str) -> None:
    head = heads[name](384, HeadOptions(name=name, new_rows=new_rows))
    words, mask = normal(0, 32, 41, 384), torch.ones(32, 41, dtype=torch.bool)
    if precision == "bf16":
        words = words.bfloat16()
    history: list[Tensor] = []
    for number, types in enumerate(STEPS):
        before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
        head.grow(types, generator=torch.Generator().manual_seed(number))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = head(words, mask).flat()
        assert logits.dtype is torch.float32
        assert all(torch.equal(head.state_dict()[key], tensor) for key, tensor in before.items())
        for old in history:
            assert torch.equal(logits[..., : old.shape[-1]], old)
        history.append(logits)
    assert history[-1].shape[-1] == sum(block.out_features for block in head.blocks)


@EVERY
def test_a_block_has_the_columns_of_its_types(name: str) -> None:
    head = make_head(name, 5)
    own_outside = {"addner": [1, 1, 1, 1, 1], "extendner": [1, 0, 0, 0, 0], "spankl": [0, 0, 0, 0, 0]}[name]
    a_type = 100 if name == "spankl" else 2
    assert [block.out_features for block in head.blocks] == [
        a_type * len(types) + outside for types, outside in zip(STEPS, own_outside, strict=True)
    ]
    assert head.new_block() is head.blocks[-1]
    assert head.tagset.steps == STEPS


@BOTH
def test_new_rows_are_drawn_from_the_generator(name: str) -> None:
    one, same, other = (make_head(name, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.new_block().weight, same.new_block().weight)
    assert not torch.equal(one.new_block().weight, other.new_block().weight)
    fresh = heads[name](2000, HeadOptions(name=name))
    fresh.grow(("PER",), generator=torch.Generator().manual_seed(0))
    assert fresh.new_block().weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not fresh.new_block().bias.any()


def test_new_rows_can_start_from_the_outside_row() -> None:
    head = make_head("extendner", 1, new_rows="outside")
    head.grow(("LOC",), generator=torch.Generator().manual_seed(7))
    plain = make_head("extendner", 1)
    plain.grow(("LOC",), generator=torch.Generator().manual_seed(7))
    outside = head.blocks[0]
    torch.testing.assert_close(head.new_block().weight, plain.new_block().weight + outside.weight[0])
    torch.testing.assert_close(head.new_block().bias, outside.bias[0].expand(head.new_block().out_features))
    # The first step has no row to start from.
    first = make_head("extendner", 1, new_rows="outside", scale=1.0)
    assert first.new_block().weight.std() < 0.03


def test_growing_follows_the_device_of_the_rows_it_copies() -> None:
    head = make_head("extendner", 1, new_rows="outside").to("meta")
    head.grow(("LOC",))
    assert {parameter.device.type for parameter in head.parameters()} == {"meta"}


@EVERY
def test_growing_refuses_what_it_knows_and_stays_as_it_was(name: str) -> None:
    head = make_head(name, 2)
    with pytest.raises(ModelError, match="already learned in step 2"):
        head.grow(("ORG",))
    assert (head.tagset.steps, len(head.blocks)) == (STEPS[:2], 2)


@EVERY
def test_reset_forgets_all_types(name: str) -> None:
    head = make_head(name, 3)
    head.reset()
    assert (head.tagset.types, len(head.blocks), list(head.parameters())) == ((), 0, [])
    grow(head, STEPS[2], seed=9)
    assert head.tagset.types == ("MISC",)
    assert head.new_block().out_features == (100 if name == "spankl" else 3)


# --- learning from gold


@given(seed=SEEDS)
@settings(max_examples=20)
def test_step_one_is_plain_cross_entropy(seed: int) -> None:
    for name, unannotated in itertools.product(("addner", "extendner"), ("negative", "unknown")):
        head, emissions, batch, _ = random_case(name, seed, steps=1)
        expected = torch.nn.functional.cross_entropy(emissions.flat()[batch.word_mask], batch.targets[batch.word_mask])
        found = head.supervised(emissions, batch, unannotated=unannotated)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_extendner_reads_outside_as_asked() -> None:
    head = make_head("extendner", 2)
    batch = make_batch([[0, 3, 0], [1, 0]], [[False, True, True], [True, False, False]])
    emissions = head(normal(0, 2, 3, HIDDEN), batch.word_mask)
    p = emissions.flat().softmax(-1).tolist()
    negative = [p[0][0][0], p[0][1][3], p[0][2][0], p[1][0][1], p[1][1][0]]
    unknown = [sum(p[0][0][:3]), p[0][1][3], sum(p[0][2][:3]), p[1][0][1], p[1][1][0] + sum(p[1][1][3:])]
    for unannotated, likelihoods in (("negative", negative), ("unknown", unknown)):
        found = head.supervised(emissions, batch, unannotated=unannotated).item()
        assert found == pytest.approx(-sum(map(math.log, likelihoods)) / 5, abs=1e-5)


def test_addner_teaches_a_block_only_rows_annotated_for_it() -> None:
    head = make_head("addner", 2)
    batch = make_batch([[0, 3, 0], [1, 0]], [[False, True, False], [True, False, False]])
    emissions = head(normal(0, 2, 3, HIDDEN), batch.word_mask)
    per, place = (block.softmax(-1).tolist() for block in emissions.blocks)  # ORG is not annotated
    first = -(math.log(per[1][0][1]) + math.log(per[1][1][0])) / 2
    negative = [place[0][0][0], place[0][1][1], place[0][2][0]]
    unknown = [place[0][k][0] + place[0][k][3] + place[0][k][4] for k in (0, 2)] + [place[0][1][1]]
    for unannotated, likelihoods in (("negative", negative), ("unknown", unknown)):
        found = head.supervised(emissions, batch, unannotated=unannotated).item()
        assert found == pytest.approx(first - sum(map(math.log, likelihoods)) / 3, abs=1e-5)


@pytest.mark.parametrize("name", ["addner", "spankl"])
@pytest.mark.parametrize("unannotated", ["negative", "unknown"])
def test_gold_reaches_only_the_annotated_block(name: str, unannotated: str) -> None:
    head, emissions, batch, _ = random_case(name, 3)
    head.supervised(emissions, batch, unannotated=unannotated).backward()  # type: ignore[arg-type]
    reached = [block.weight.grad is not None for block in head.blocks]
    assert reached == [False, False, True]


@EVERY
@pytest.mark.parametrize("unannotated", ["negative", "unknown"])
def test_nothing_annotated_costs_nothing_unless_it_is_held_against_all(name: str, unannotated: str) -> None:
    head, emissions, _, _ = random_case(name, 0, steps=2)
    batch = make_batch([[0, 0, 0], [0]], [[False] * 3] * 2, pad_to=7)
    emissions = Emissions(tuple(block[:2] for block in emissions.blocks), batch.word_mask)
    loss = head.supervised(emissions, batch, unannotated=unannotated)  # type: ignore[arg-type]
    loss.backward()
    gradients = [block.weight.grad for block in head.blocks if block.weight.grad is not None]
    if (name, unannotated) == ("extendner", "negative"):
        assert loss.item() > 0
    else:
        assert loss.item() == 0.0
        assert not any(gradient.any() for gradient in gradients)


@EVERY
def test_a_batch_without_words_costs_nothing(name: str) -> None:
    head, emissions, batch, teacher = random_case(name, 0)
    object.__setattr__(batch, "word_mask", torch.zeros_like(batch.word_mask))
    emissions = Emissions(emissions.blocks, batch.word_mask)
    costs = [head.supervised(emissions, batch, unannotated=reading) for reading in ("negative", "unknown")]
    for options in OPTIONS:
        costs += head.distillation(emissions, batch, teacher, options).values()
    assert [cost.item() for cost in costs] == [0.0] * len(costs)
    torch.stack(costs).sum().backward()
    assert not any(block.weight.grad.any() for block in head.blocks if block.weight.grad is not None)


# --- learning from a teacher


def word_kl(teacher: list[float], student: list[float], options: DistillOptions, *, full: bool) -> float:
    """What one word costs against the teacher, in Python floats."""
    t = options.temperature
    columns = student if full else student[: len(teacher)]
    target = [math.exp(z / t) / sum(math.exp(y / t) for y in teacher) for z in teacher]
    log_sum = math.log(sum(math.exp(z / t) for z in columns))
    kl = sum(p * (math.log(p) - student[c] / t + log_sum) for c, p in enumerate(target))
    outside = math.exp(teacher[0]) / sum(math.exp(y) for y in teacher)
    weight = outside + options.mention_weight * (1 - outside)
    return kl * weight * (t * t if options.scale else 1)


def word_ce(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[target]


def words_of(batch: Batch) -> list[tuple[int, int]]:
    return [(int(row), int(word)) for row, word in batch.word_mask.nonzero()]


def extendner_reference(
    emissions: Emissions, batch: Batch, teacher: Tensor, options: DistillOptions
) -> tuple[float, float]:
    logits, full = emissions.flat().tolist(), options.form == "full"
    ce, kd = [], []
    for row, word in words_of(batch):
        target = int(batch.targets[row, word])
        if target:
            ce.append(word_ce(logits[row][word], target))
        else:
            kd.append(word_kl(teacher[row, word].tolist(), logits[row][word], options, full=full))
    each = options.reduction == "mean_each"
    words = len(ce) + len(kd)
    return sum(ce) / (len(ce) if each else words), sum(kd) / (len(kd) if each else words)


def addner_reference(
    emissions: Emissions, batch: Batch, teacher: Tensor, options: DistillOptions
) -> tuple[float, float]:
    *old, new = [block.tolist() for block in emissions.blocks]
    words = words_of(batch)
    first_tag = 1 + sum(len(block[0][0]) - 1 for block in old)
    local = {tag: max(0, tag - first_tag + 1) for tag in range(20)}
    ce = sum(word_ce(new[r][w], local[int(batch.targets[r, w])]) for r, w in words) / len(words)
    terms, start = [], 0
    for block in old:
        stop = start + len(block[0][0])
        kl = [word_kl(teacher[r, w, start:stop].tolist(), block[r][w], options, full=False) for r, w in words]
        terms.append(sum(kl) / len(words))
        start = stop
    return ce, sum(terms) / (len(terms) if options.blocks == "mean" else 1)


@BOTH
@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: f"T{o.temperature}-{o.form}-{o.reduction}-{o.scale}-{o.blocks}-{o.mention_weight}"
)
def test_distillation_agrees_with_a_word_by_word_reading(name: str, options: DistillOptions) -> None:
    reference = addner_reference if name == "addner" else extendner_reference
    for seed in (0, 1):
        head, emissions, batch, teacher = random_case(name, seed)
        found = head.distillation(emissions, batch, teacher, options)
        ce, kd = reference(emissions, batch, teacher, options)
        assert found.keys() == {"ce", "kd"}
        assert found["ce"].item() == pytest.approx(options.beta * ce, rel=1e-4)
        assert found["kd"].item() == pytest.approx(options.alpha * kd, rel=1e-4)


def test_reuters_reported_in_new_york() -> None:
    """The word with gold learns from gold; the others, New York included, learn from the teacher."""
    head = heads["extendner"](HIDDEN, HeadOptions())
    for number, types in enumerate((("LOC",), ("ORG",))):
        grow(head, types, seed=number)
    b_loc, i_loc, b_org = 1, 2, 3
    batch = make_batch([[b_org, 0, 0, 0, 0]], [[False, True]])
    teacher = torch.zeros(1, 5, 3)
    teacher[0, :, 0] = 9.0
    teacher[0, 3] = torch.tensor([0.0, 9.0, 0.0])
    teacher[0, 4] = torch.tensor([0.0, 0.0, 9.0])
    words = normal(0, 1, 5, HIDDEN)
    gradients = {}
    for term in ("ce", "kd"):
        emissions = head(words, batch.word_mask)
        emissions.blocks[0].retain_grad()
        head.distillation(emissions, batch, teacher, DistillOptions())[term].backward()
        gradients[term] = emissions.blocks[0].grad
    assert gradients["ce"][0].any(-1).tolist() == [True, False, False, False, False]
    assert gradients["kd"][0].any(-1).tolist() == [False, True, True, True, True]
    assert gradients["ce"][0, 0].argmin() == b_org  # the only column pulled up, against all four others
    assert (gradients["ce"][0, 0, [0, 1, 2, 4]] > 0).all()
    # Learning at a small step makes the teacher's tags likelier, though the file says O.
    logits = head(words, batch.word_mask).flat()[0]
    moved = logits - 0.1 * gradients["kd"][0]
    for word, tag in ((3, b_loc), (4, i_loc), (1, 0), (2, 0)):
        assert moved[word].log_softmax(-1)[tag] > logits[word].log_softmax(-1)[tag]
    assert (gradients["kd"][0, 1:, b_org:] > 0).all()  # and new columns go down there


@EVERY
def test_a_fresh_student_agrees_with_its_teacher(name: str) -> None:
    head = make_head(name, 2)
    mask = torch.ones(3, 6, dtype=torch.bool)
    words = normal(4, 3, 6, HIDDEN)
    teacher = head(words, mask).flat().detach()
    grow(head, STEPS[2], seed=5)
    batch = make_batch([[0] * 6] * 3, [[False, False, False, True]] * 3)
    for form, scale in itertools.product(("sub", "full"), (True, False)):
        head.zero_grad()
        emissions = head(words, mask)
        kd = head.distillation(emissions, batch, teacher, DistillOptions(form=form, scale=scale))["kd"]
        kd.backward()
        if name == "extendner" and form == "full":
            # Minus log of what the student leaves to the old columns, at the temperature of the loss.
            tempered = (emissions.flat() / 2.0).softmax(-1)[..., : teacher.shape[-1]].sum(-1)
            expected = -tempered.log().mean() * (4.0 if scale else 1.0)
            torch.testing.assert_close(kd, expected, atol=1e-5, rtol=1e-5)
            assert (head.new_block().bias.grad > 0).all()
        else:
            assert kd.item() <= 1e-7
            assert all(b.weight.grad is None or b.weight.grad.abs().max() < 1e-6 for b in head.blocks)


@pytest.mark.parametrize("name", ["addner", "spankl"])
def test_gold_and_teacher_reach_different_blocks(name: str) -> None:
    """SK3, and the same of AddNER."""
    for term, reached in (("ce", [False, False, True]), ("kd", [True, True, False])):
        head, emissions, batch, teacher = random_case(name, 1)
        head.distillation(emissions, batch, teacher, DistillOptions())[term].backward()
        assert [block.weight.grad is not None for block in head.blocks] == reached


@pytest.mark.parametrize("name", ["addner", "spankl"])
def test_without_alpha_old_blocks_are_left_alone(name: str) -> None:
    head, emissions, batch, teacher = random_case(name, 1)
    terms = head.distillation(emissions, batch, teacher, DistillOptions(alpha=0.0))
    torch.stack(list(terms.values())).sum().backward()
    old = [block.weight.grad for block in list(head.blocks)[:-1]]
    assert all(gradient is None or not gradient.any() for gradient in old)
    assert head.new_block().weight.grad is not None


@EVERY
def test_weights_scale_their_term_and_zero_turns_it_off(name: str) -> None:
    head, emissions, batch, teacher = random_case(name, 2)
    plain, doubled, off = (
        head.distillation(emissions, batch, teacher, DistillOptions(alpha=a, beta=b))
        for a, b in ((1.0, 1.0), (2.0, 3.0), (0.0, 0.0))
    )
    torch.testing.assert_close(doubled["kd"], 2 * plain["kd"])
    torch.testing.assert_close(doubled["ce"], 3 * plain["ce"])
    assert (off["kd"].item(), off["ce"].item()) == (0.0, 0.0)


def test_words_with_gold_contribute_nothing_to_extendner_distillation() -> None:
    head, emissions, batch, teacher = random_case("extendner", 0)
    typed = batch.word_mask & (batch.targets > 0)
    assert typed.any()
    elsewhere = torch.where(typed[..., None], teacher + normal(8, *teacher.shape) * 5, teacher)
    for options in OPTIONS:
        one, other = (head.distillation(emissions, batch, each, options) for each in (teacher, elsewhere))
        assert torch.equal(one["kd"], other["kd"])


@EVERY
def test_padding_and_order_change_no_loss(name: str) -> None:
    head, emissions, batch, teacher = random_case(name, 6)
    wide = make_batch([row[mask].tolist() for row, mask in zip(batch.targets, batch.word_mask, strict=True)][::-1],
                      batch.annotated.tolist(), pad_to=12)  # fmt: skip

    def rearrange(values: Tensor) -> Tensor:
        garbage = 1e3 * normal(9, 3, 12, values.shape[-1])
        garbage[:, :7][wide.word_mask[:, :7]] = values.flip(0)[wide.word_mask[:, :7]]
        return garbage

    moved = Emissions(tuple(rearrange(block) for block in emissions.blocks), wide.word_mask)
    for unannotated in ("negative", "unknown"):
        torch.testing.assert_close(
            head.supervised(moved, wide, unannotated=unannotated),
            head.supervised(emissions, batch, unannotated=unannotated),
            atol=1e-6, rtol=1e-6,
        )  # fmt: skip
    for options in OPTIONS:
        before = head.distillation(emissions, batch, teacher, options)
        after = head.distillation(moved, wide, rearrange(teacher), options)
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


@EVERY
def test_the_loss_of_a_batch_is_the_word_weighted_mean_of_its_sentences(name: str) -> None:
    head, emissions, batch, teacher = random_case(name, 7)
    options = DistillOptions()
    whole = head.distillation(emissions, batch, teacher, options)
    parts = {"ce": 0.0, "kd": 0.0}
    for row, length in enumerate(batch.word_mask.sum(1).tolist()):
        place = slice(row, row + 1), slice(0, length)
        alone = Emissions(tuple(block[place] for block in emissions.blocks), batch.word_mask[place])
        own = make_batch([batch.targets[row, :length].tolist()], batch.annotated[place[:1]].tolist())
        for key, value in head.distillation(alone, own, teacher[place], options).items():
            parts[key] += value.item() * length / int(batch.word_mask.sum())
    assert {key: value.item() for key, value in whole.items()} == pytest.approx(parts, rel=1e-5)


# --- decoding and scores


@EVERY
@given(seed=SEEDS, steps=st.integers(1, 5), chosen=st.none() | st.sets(st.sampled_from(["PER", "LOC", "MISC", "GENE"])))
@settings(max_examples=60)
def test_decoding_is_legal_and_says_only_what_is_asked_for(
    name: str, seed: int, steps: int, chosen: set[str] | None
) -> None:
    head = make_head(name, steps, seed=seed)
    mask = torch.arange(9) < torch.tensor([9, 1, 5, 0])[:, None]
    tags = head.decode(head(normal(seed, 4, 9, HIDDEN), mask), types=chosen)
    assert not orphans(tags).any()
    assert not tags[~mask].any()
    found = {head.tagset.types[(tag - 1) // 2] for tag in tags.flatten().tolist() if tag}
    assert chosen is None or found <= chosen


@EVERY
def test_decoding_a_sentence_does_not_depend_on_its_batch(name: str) -> None:
    head = make_head(name, 4)
    mask = torch.arange(9) < torch.tensor([9, 1, 5, 3])[:, None]
    words = normal(2, 4, 9, HIDDEN)
    together = head(words, mask)
    tags = head.decode(together)
    assert tags.any()
    for row, length in enumerate([9, 1, 5, 3]):
        alone = Emissions(tuple(b[row : row + 1, :length] for b in together.blocks), mask[row : row + 1, :length])
        assert torch.equal(head.decode(alone)[0], tags[row, :length])


def test_asking_addner_for_the_types_of_one_step_silences_the_others() -> None:
    """A block that is not asked may not even take a word away: its votes are not counted."""
    head = make_head("addner", 2)
    with torch.no_grad():
        for block, begin in zip(head.blocks, (3.0, 9.0), strict=True):
            block.weight.zero_()
            block.bias.zero_()
            block.bias[1] = begin  # both blocks shout B-, the second one louder
    emissions = head(normal(0, 1, 3, HIDDEN), torch.ones(1, 3, dtype=torch.bool))
    assert head.decode(emissions).tolist() == [[3, 3, 3]]
    assert head.decode(emissions, types=["PER"]).tolist() == [[1, 1, 1]]
    assert head.decode(emissions, types=[]).tolist() == [[0, 0, 0]]


def test_addner_continuation_is_an_option() -> None:
    for continuation, expected in (("wins", [1, 2]), ("compare", [1, 3])):
        head = make_head("addner", 2, continuation=continuation)
        place = torch.tensor([[[0.0, 9.0, 0.0], [0.0, 0.0, 1.0]]])
        firm = torch.tensor([[[9.0, 0.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0, 0.0]]])
        emissions = Emissions((place, firm), torch.ones(1, 2, dtype=torch.bool))
        assert head.decode(emissions).tolist() == [expected]


@BOTH
@given(seed=SEEDS, steps=st.integers(1, 3))
@settings(max_examples=30)
def test_span_scores_are_probabilities_of_the_right_chain(name: str, seed: int, steps: int) -> None:
    head = make_head(name, steps, seed=seed, scale=20.0)
    emissions = head(normal(seed, 1, 3, HIDDEN), torch.ones(1, 3, dtype=torch.bool))
    types = len(head.tagset.types)
    spans = [(0, s, e, t) for s in range(3) for e in range(s + 1, 4) for t in range(types)]
    scores = head.span_scores(emissions, torch.tensor(spans))
    for (_, start, end, type_), score in zip(spans, scores.tolist(), strict=True):
        block, first = 0, 0
        if name == "addner":
            block = head.tagset.step_of(head.tagset.types[type_]) - 1
            first = head.tagset.type_offset(block + 1)
        expected = enumerate_span(emissions.blocks[block][0].log_softmax(-1), start, end, type_ - first)
        assert score == pytest.approx(expected, abs=1e-5)
        assert 0 <= score <= 1


def enumerate_span(log_probs: Tensor, start: int, end: int, type_: int) -> float:
    """Probability of a span by listing all legal paths of three words."""
    paths = torch.cartesian_prod(*[torch.arange(log_probs.shape[1])] * 3)
    paths = paths[~orphans(paths).any(-1)]
    weights = log_probs.double()[torch.arange(3), paths].sum(-1).exp()
    wanted = torch.tensor([1 + 2 * type_, *[2 + 2 * type_] * (end - start - 1)])
    hit = (paths[:, start:end] == wanted).all(-1)
    if end < 3:
        hit &= paths[:, end] != 2 + 2 * type_
    return (weights[hit].sum() / weights.sum()).item()


@EVERY
def test_no_spans_have_no_scores(name: str) -> None:
    head, emissions, _, _ = random_case(name, 0)
    assert head.span_scores(emissions, torch.zeros(0, 4, dtype=torch.long)).shape == (0,)


def test_heads_are_registered_under_their_names() -> None:
    assert [heads[name] for name in ("addner", "extendner", "spankl")] == [AddNer, ExtendNer, SpanKl]
    assert all(heads[name].name == name for name in heads)  # type: ignore[attr-defined]
