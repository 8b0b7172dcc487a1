"""SpanKL against a reading of its equations in Python floats, span by span."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import HeadOptions, validate
from ner_cl.data.batching import Batch
from ner_cl.data.encode import PieceEncoder
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.emissions import emissions_of
from ner_cl.model.heads import DistillOptions, Emissions, SpanKl
from ner_cl.types import Sentence, Span
from tests.model.test_heads import HIDDEN, SEEDS, STEPS, grow, make_batch, normal
from tests.tiny import tiny_model

LENGTHS = (7, 1, 4)
PROPERTY = settings(max_examples=25)


def make_head(steps: int, *, seed: int = 0, width: int = 6, max_words: int = 3) -> SpanKl:
    """A head that knows the first steps of STEPS, with rows large enough for decided opinions."""
    head = SpanKl(HIDDEN, HeadOptions(name="spankl", width=width, max_words=max_words))
    for number in range(steps):
        grow(head, STEPS[number], seed=seed + number, scale=1.5)
    return head


def random_case(seed: int, *, steps: int = 3) -> tuple[SpanKl, Emissions, Batch, Tensor]:
    """A head, its emissions for three rows annotated for the newest step, and a teacher's logits."""
    head = make_head(steps, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    first = 1 + 2 * head.tagset.type_offset(steps)
    rows = []
    for length in LENGTHS:
        row: list[int] = []
        for choice in torch.randint(4, (length,), generator=draw).tolist():
            goes_on = bool(row) and row[-1] > 0 and choice == 3
            row.append((row[-1] + row[-1] % 2 if goes_on else first) if choice > 1 else 0)
        rows.append(row)
    batch = make_batch(rows, [[head.tagset.step_of(type_) == steps for type_ in head.tagset.types]] * 3)
    emissions = head(normal(seed, 3, 7, HIDDEN), batch.word_mask)
    old = emissions.flat().shape[-1] - head.new_block().out_features
    teacher = emissions.flat()[..., :old].detach() + normal(seed + 1, 3, 7, old)
    return head, emissions, batch, teacher


def logit(head: SpanKl, columns: Tensor, row: int, start: int, end: int, type_: int) -> float:
    """Of one span: the product of its first word's and its last word's vector."""
    vectors = columns.view(*columns.shape[:2], -1, 2, head.options.width).tolist()
    first, last = vectors[row][start][type_][0], vectors[row][end - 1][type_][1]
    return sum(a * b for a, b in zip(first, last, strict=True)) / math.sqrt(head.options.width)


def every_span(longest: int = 3) -> list[tuple[int, int, int]]:
    return [
        (row, start, end)
        for row, length in enumerate(LENGTHS)
        for start in range(length)
        for end in range(start + 1, min(start + longest, length) + 1)
    ]


def entropy_to(target: float, said: float) -> float:
    """The cross entropy of a yes or no, of a logit."""
    return target * math.log1p(math.exp(-said)) + (1 - target) * math.log1p(math.exp(said))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# --- learning


@given(seed=SEEDS)
@PROPERTY
def test_the_cost_is_the_sum_over_spans_span_by_span(seed: int) -> None:
    head, emissions, batch, _ = random_case(seed)
    first, types = head.tagset.type_offset(3), len(STEPS[2])
    gold = {
        (row, span.start, span.end, span.type)
        for row, length in enumerate(LENGTHS)
        for span in head.tagset.decode(batch.targets[row, :length].tolist())
    }
    total = 0.0
    for row, start, end in every_span():
        for type_, name in enumerate(STEPS[2], start=first):
            said = logit(head, emissions.flat(), row, start, end, type_)
            total += entropy_to(float((row, start, end, name) in gold), said) / types
    for unannotated in ("negative", "unknown"):
        found = head.supervised(emissions, batch, unannotated=unannotated)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(total / sum(LENGTHS), rel=1e-4)


@given(
    seed=SEEDS,
    temperature=st.sampled_from([1.0, 2.5]),
    blocks=st.sampled_from(["sum", "mean"]),
    weight=st.sampled_from([1.0, 3.0]),
)
@PROPERTY
def test_the_divergence_is_that_of_every_span_and_old_type(
    seed: int, temperature: float, blocks: Literal["sum", "mean"], weight: float
) -> None:
    head, emissions, batch, teacher = random_case(seed)
    options = DistillOptions(temperature=temperature, blocks=blocks, mention_weight=weight, alpha=0.7, beta=1.3)
    terms = head.distillation(emissions, batch, teacher, options)
    expected = [0.0, 0.0]
    for row, start, end in every_span():
        for type_, block in ((0, 0), (1, 1), (2, 1)):  # PER, then LOC and ORG
            wanted = logit(head, teacher, row, start, end, type_) / temperature
            said = logit(head, emissions.flat(), row, start, end, type_) / temperature
            target = sigmoid(wanted)
            counts = 1 + (weight - 1) * sigmoid(wanted * temperature)
            expected[block] += counts * (entropy_to(target, said) - entropy_to(target, wanted)) / (1, 2)[block]
    kl = sum(expected) / sum(LENGTHS) * temperature**2 / (2 if blocks == "mean" else 1)
    assert terms["kd"].item() == pytest.approx(0.7 * kl, rel=1e-3, abs=1e-5)
    ce = head.supervised(emissions, batch, unannotated="unknown")
    torch.testing.assert_close(terms["ce"], 1.3 * ce)


def test_sk1_old_scores_of_spans_do_not_change_by_a_bit() -> None:
    head = make_head(2)
    words, mask = normal(3, 4, 40, HIDDEN), torch.arange(40) < torch.tensor([40, 1, 25, 8])[:, None]
    spans = torch.tensor([[0, 0, 3, 0], [0, 37, 40, 2], [2, 5, 6, 1], [1, 0, 1, 0]])
    before = head(words, mask)
    scores, found = head.span_scores(before, spans), head.spans(before, nested=True)
    for number in (2, 3, 4):
        head.grow(STEPS[number], generator=torch.Generator().manual_seed(number))
        after = head(words, mask)
        assert torch.equal(head.span_scores(after, spans), scores)
        assert torch.equal(head.spans(after, types=["PER", "LOC", "ORG"], nested=True), found)
    assert len(found) > 10


def test_sk3_gold_touches_only_the_annotated_types_of_a_block() -> None:
    """The block of LOC and ORG, annotated for ORG alone; taken at its word, `O` denies LOC too."""
    head = make_head(2)
    batch = make_batch([[0, 5, 6], [0, 0, 0]], [[False, False, True]] * 2)
    for unannotated, touched in (("unknown", [False, True]), ("negative", [True, True])):
        head.zero_grad()
        emissions = head(normal(0, 2, 3, HIDDEN), batch.word_mask)
        head.supervised(emissions, batch, unannotated=unannotated).backward()  # type: ignore[arg-type]
        assert head.blocks[0].weight.grad is None
        slopes = head.new_block().weight.grad
        assert slopes is not None
        assert slopes.view(2, -1).any(dim=1).tolist() == touched


def test_rows_annotated_for_different_types_are_told_apart() -> None:
    """The cost of a batch is that of its rows, weighted by their words, whatever each is annotated for."""
    head = make_head(2)
    rows, annotated = [[0, 3, 0, 1], [1, 2], [0]], [[False, True, True], [True, False, False], [False, False, False]]
    emissions = head(normal(1, 3, 4, HIDDEN), make_batch(rows, annotated).word_mask)
    whole = head.supervised(emissions, make_batch(rows, annotated), unannotated="unknown").item()
    alone = 0.0
    for row, targets in enumerate(rows):
        part = emissions.part(row, 0, len(targets))
        batch = make_batch([targets], [annotated[row]])
        alone += head.supervised(part, batch, unannotated="unknown").item() * len(targets) / 7
    assert whole == pytest.approx(alone, rel=1e-5)


def test_a_mention_longer_than_the_limit_is_no_gold() -> None:
    head = make_head(1, max_words=2)
    short, long = make_batch([[0, 0, 0, 0]], [[True]]), make_batch([[1, 2, 2, 0]], [[True]])
    emissions = head(normal(0, 1, 4, HIDDEN), short.word_mask)
    costs = [head.supervised(emissions, batch, unannotated="unknown") for batch in (short, long)]
    assert torch.equal(*costs)


def test_the_beginning_of_a_mention_that_a_window_cuts_off_is_no_gold(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny_model(tmp_path_factory.mktemp("m"), "spankl", steps=[("PER",)], max_pieces=12, window_overlap=2)
    sentence = Sentence(("met",) * 30, tuple(Span(n, n + 3, "PER") for n in range(0, 30, 3)), frozenset({"PER"}))
    encoded = model.encode([sentence])
    batch = encoded.batch(range(len(encoded)))
    ends = [window.first_word + len(window.word_pieces) for window in encoded.windows]
    assert 0 < sum(end % 3 != 0 for end in ends) < len(ends)
    first, second = (batch.spans[batch.spans[:, 0] == row, 1:] for row in (0, 1))
    chosen = batch.select([1, 0])
    assert torch.equal(chosen.spans[chosen.spans[:, 0] == 0, 1:], second)
    assert torch.equal(chosen.spans[chosen.spans[:, 0] == 1, 1:], first)
    gold = 0
    for row, window in enumerate(encoded.windows):
        whole = [s for s in sentence.spans if window.first_word <= s.start and s.end <= ends[row]]
        gold += len(whole)
        emissions = model(encoded.batch([row]))
        assert isinstance(emissions, Emissions)
        # With every vector at one value the sum of gold logits counts mentions.
        ones = Emissions((torch.ones_like(emissions.blocks[0]),), emissions.word_mask)
        count = model.head.gold_logits(ones, encoded.batch([row])).item() / math.sqrt(50)
        assert count == pytest.approx(len(whole))
    assert 0 < gold < len(sentence.spans)


# --- reading


@given(seed=SEEDS, asked=st.sampled_from([None, ("PER",), ("ORG", "MISC"), ()]))
@PROPERTY
def test_what_is_found_by_brute_force(seed: int, asked: tuple[str, ...] | None) -> None:
    head, emissions, _, _ = random_case(seed)
    likely = {}
    for row, start, end in every_span():
        for type_, name in enumerate(head.tagset.types):
            said = logit(head, emissions.flat(), row, start, end, type_)
            if said > 0 and (asked is None or name in asked):
                likely[row, start, end, type_] = said
    nested = head.spans(emissions, types=asked, nested=True)
    assert {tuple(span) for span in nested.tolist()} == set(likely)
    flat: list[tuple[int, int, int, int]] = []
    for span in sorted(likely, key=lambda span: -likely[span]):
        if not any(span[0] == row and span[1] < end and start < span[2] for row, start, end, _ in flat):
            flat.append(span)
    assert [tuple(span) for span in head.spans(emissions, types=asked).tolist()] == sorted(flat)
    tags = head.decode(emissions, types=asked)
    for row, length in enumerate(LENGTHS):
        spans = [(row, s.start, s.end, head.tagset.types.index(s.type)) for s in head.tagset.decode(tags[row].tolist())]
        assert sorted(spans) == sorted(span for span in flat if span[0] == row)
        assert not tags[row, length:].any()


def crafted(*yes: tuple[int, int, int, float]) -> tuple[SpanKl, Emissions]:
    """A row of four words with these spans of PER (type 0) and LOC (1), each with a logit, and no others."""
    head = SpanKl(HIDDEN, HeadOptions(name="spankl", width=8, max_words=4))
    for types in (("PER",), ("LOC",)):
        head.grow(types)
    vectors = torch.zeros(1, 4, 2, 2, 8)
    for place, (start, end, type_, value) in enumerate(yes):
        vectors[0, start, type_, 0, place] = value * math.sqrt(8)
        vectors[0, end - 1, type_, 1, place] = 1
    vectors[..., 0, 7], vectors[..., 1, 7] = -1.0, 1e-3  # all others just unlikely
    return head, head.of_scores(vectors.flatten(2), torch.ones(1, 4, dtype=torch.bool))


def test_university_of_london_in_the_two_readings() -> None:
    """Nested, the place in the name is found too; flat, the likelier one of the two wins, whatever its length."""
    head, emissions = crafted((0, 3, 0, 2.0), (2, 3, 1, 3.0), (3, 4, 1, 1.0))
    assert head.spans(emissions, nested=True).tolist() == [[0, 0, 3, 0], [0, 2, 3, 1], [0, 3, 4, 1]]
    assert head.spans(emissions).tolist() == [[0, 2, 3, 1], [0, 3, 4, 1]]  # side by side, and two spans all the same
    assert head.decode(emissions).tolist() == [[0, 0, 3, 3]]
    assert head.spans(emissions, types=["PER"]).tolist() == [[0, 0, 3, 0]]  # what is not asked for does not compete
    scores = head.span_scores(emissions, torch.tensor([[0, 0, 3, 0], [0, 2, 3, 1]]))
    assert scores.tolist() == pytest.approx([sigmoid(2.0), sigmoid(3.0)], abs=1e-3)


def test_the_temperature_of_a_block_changes_its_scores_and_no_reading() -> None:
    head, emissions = crafted((0, 3, 0, 2.0), (2, 3, 1, 3.0))
    found = head.spans(emissions)
    head.temperatures = [1.0, 6.0]
    assert torch.equal(head.spans(emissions), found)
    scores = head.span_scores(emissions, torch.tensor([[0, 0, 3, 0], [0, 2, 3, 1]]))
    assert scores.tolist() == pytest.approx([sigmoid(2.0), sigmoid(0.5)], abs=1e-3)


@given(seed=SEEDS)
@PROPERTY
def test_a_row_may_be_cut_wherever_nothing_crosses(seed: int) -> None:
    head = make_head(2, seed=seed)
    emissions = head(normal(seed, 1, 12, HIDDEN) - 0.2, torch.ones(1, 12, dtype=torch.bool))
    coupling = head.coupling(emissions)
    assert coupling[0, 0] == 0
    for nested in (False, True):
        whole = head.spans(emissions, nested=nested).tolist()
        for border in range(1, 12):
            over = any(start < border < end for _, start, end, _ in head.spans(emissions, nested=True).tolist())
            assert bool(coupling[0, border].isinf()) == over
            if not over:
                left = head.spans(emissions.part(0, 0, border), nested=nested).tolist()
                right = head.spans(emissions.part(0, border, 12), nested=nested).tolist()
                assert whole == [*left, *([0, s + border, e + border, t] for _, s, e, t in right)]


def test_blocks_that_are_not_asked_for_do_not_couple_words() -> None:
    head, emissions = crafted((0, 3, 0, 2.0))
    assert head.coupling(emissions).isinf().tolist() == [[False, True, True, False]]
    assert not head.coupling(emissions, types=["LOC"]).isinf().any()
    assert head.coupling(emissions, types=[]).tolist() == [[0.0] * 4]


def test_blocks_of_steps_that_were_not_computed_find_nothing() -> None:
    head = make_head(2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    views = normal(0, 2, 5, HIDDEN)
    emissions = head.of_views({2: views}, mask)
    assert torch.equal(emissions.blocks[1], head(views, mask).blocks[1])
    assert emissions.blocks[0].shape == head(views, mask).blocks[0].shape
    found = head.spans(emissions, nested=True)
    assert len(found) > 0
    assert 0 not in found[:, 3].tolist()
    assert len(head.spans(emissions, types=["PER"])) == 0
    silent = head.span_scores(emissions, torch.tensor([[0, 0, 1, 0], [1, 2, 5, 0]]))
    assert silent.tolist() == [0.0, 0.0]
    assert len(head.spans(head.of_scores(emissions.flat(), mask), types=["PER"])) == 0


# --- what strategies ask


def test_decisions_are_a_no_and_a_yes_of_every_span() -> None:
    head, emissions, _, _ = random_case(5, steps=2)
    decisions = head.decisions(emissions)
    assert [len(block) for block in decisions] == [len(every_span()), 2 * len(every_span())]
    for block, first in zip(decisions, (0, 1), strict=True):
        types = block.view(len(every_span()), -1, 2).shape[1]
        expected = [
            logit(head, emissions.flat(), *span, first + type_) for span in every_span() for type_ in range(types)
        ]
        assert block[:, 1].tolist() == pytest.approx(expected, abs=1e-4)
        assert not block[:, 0].any()


def test_summed_logits_are_those_of_all_spans() -> None:
    head = make_head(2)
    words, mask = normal(2, 3, 7, HIDDEN), torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    columns = head(words, mask).flat()
    for found, types in zip(head.summed_logits(words, mask), ((0,), (1, 2)), strict=True):
        expected = sum(logit(head, columns, *span, type_) for span in every_span() for type_ in types)
        assert found.item() == pytest.approx(expected, rel=1e-4)


# --- starting and options


def test_a_new_block_finds_every_span_unlikely() -> None:
    head = SpanKl(384, HeadOptions(name="spankl"))
    head.grow(("PER", "LOC"), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 40, dtype=torch.bool)
    [logits] = (yes[:, 1] for yes in head.decisions(head(0.3 * normal(0, 8, 40, 384), mask)))
    assert logits.mean().item() == pytest.approx(-4.0, abs=0.1)
    assert 0.05 < logits.std().item() < 0.8
    weight = head.new_block().weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    same = SpanKl(384, HeadOptions(name="spankl"))
    same.grow(("PER", "LOC"), generator=torch.Generator().manual_seed(0))
    assert torch.equal(same.new_block().weight, weight)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("spankl", "new_rows", "outside"),
        ("spankl", "continuation", "compare"),
        ("spankl", "merge", "vote"),
        ("extendner", "width", 20),
        ("extendner", "continuation", "compare"),
        ("extendner", "merge", "viterbi"),
        ("addner", "new_rows", "outside"),
        ("addner", "max_words", 8),
    ],
)
def test_options_of_other_heads_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"head: {option}: has no effect with head {name}; leave it out"):
        validate(HeadOptions, {"name": name, option: value}, "head")
    default = HeadOptions().model_dump()[option]
    assert validate(HeadOptions, {"name": name, option: default}, "head") == HeadOptions(name=name)


def test_what_it_cannot_do_is_refused() -> None:
    head = make_head(1)
    with pytest.raises(ModelError, match="blocks of head spankl do not vote"):
        head.grow(("LOC",), covers=("PER",))
    with pytest.raises(ModelError, match="no votes to merge"):
        head.merge_by("vote")
    assert head.tagset.types == ("PER",)


def test_windows_are_read_as_one_row(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A span may have its first word in one window and its last one in the next."""
    model = tiny_model(tmp_path_factory.mktemp("m"), "spankl", steps=[("PER",)], max_pieces=12, window_overlap=2)
    assert isinstance(model.encoder.pieces, PieceEncoder)
    with torch.no_grad():
        block = model.head.new_block()
        block.weight.zero_()
        block.bias.view(2, -1)[:] = 1.0  # every span is likely, the shortest as well as the longest
    [(_, emissions)] = emissions_of(model, model.encode([Sentence(("met",) * 20)]), precision="fp32")
    found = model.head.spans(emissions, nested=True)
    assert len(found) == 20 * 21 // 2
