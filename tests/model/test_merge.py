"""Merging blocks: against a search through all readings, and the invariants MJ2 to MJ4 of votes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.config import HeadOptions
from ner_cl.errors import ModelError
from ner_cl.model.decode import orphans, span_log_probability, viterbi
from ner_cl.model.heads.addner import AddNer
from ner_cl.model.heads.emissions import Emissions
from ner_cl.model.losses import marginal_cross_entropy
from ner_cl.model.merge import best_temperature, exclusive_scores, majority, span_probability, weighted_vote

SEEDS = st.integers(0, 10_000)
WAYS = ("majority", "resolver", "viterbi", "vote")
HIDDEN = 6


def logits_of(*types: int, seed: int = 0, words: int = 3) -> list[Tensor]:
    """A row of random logits of blocks that know so many types each."""
    draw = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(1, words, 1 + 2 * count, generator=draw) for count in types]


def whole(words: int, rows: int = 1) -> Tensor:
    return torch.ones(rows, words, dtype=torch.bool)


def head_of(*steps: str, seed: int = 0, covers: bool = False, **options: str) -> AddNer:
    """A head with a step a word, whose letters are its types; it may cover the older ones."""
    head = AddNer(HIDDEN, HeadOptions(name="addner", **options))
    draw = torch.Generator().manual_seed(seed)
    for types in steps:
        head.grow(list(types), generator=draw, covers=head.tagset.types if covers else ())
        with torch.no_grad():
            head.new_block().weight.mul_(50)
    return head


def emissions_of(head: AddNer, *, seed: int = 0, rows: int = 3, words: int = 6) -> Emissions:
    states = torch.randn(rows, words, HIDDEN, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return head(states, torch.arange(words) < torch.tensor([words, 2, 0])[:rows, None])


# --- viterbi over all blocks


@given(seed=SEEDS, types=st.sampled_from([(1,), (1, 1), (2, 1), (1, 1, 1)]))
@settings(max_examples=25)
def test_viterbi_is_the_best_reading_of_independent_blocks_that_name_a_word_at_most_once(
    seed: int, types: tuple[int, ...]
) -> None:
    """Brute force through the product distribution: every combination of all blocks' tags at every word."""
    blocks = logits_of(*types, seed=seed)
    probabilities = [block[0].double().softmax(-1) for block in blocks]
    offsets = [2 * sum(types[:number]) for number in range(len(types))]
    readings: list[dict[int, float]] = []  # joint tag -> probability, for each word
    for word in range(3):
        weights: dict[int, float] = {}
        for combination in itertools.product(*(range(block.shape[-1]) for block in blocks)):
            named = [offset + tag for offset, tag in zip(offsets, combination, strict=True) if tag]
            if len(named) <= 1:
                product = math.prod(float(p[word, tag]) for p, tag in zip(probabilities, combination, strict=True))
                weights[named[0] if named else 0] = product
        readings.append(weights)
    scores = exclusive_scores(blocks)
    for word, weights in enumerate(readings):  # it is that conditional probability
        expected = torch.tensor([weights[tag] for tag in sorted(weights)]) / sum(weights.values())
        torch.testing.assert_close(scores[0, word].softmax(-1), expected.float(), atol=1e-5, rtol=1e-4)
    paths = [p for p in itertools.product(*readings) if not orphans(torch.tensor([p])).any()]
    best = max(paths, key=lambda path: math.prod(weights[tag] for weights, tag in zip(readings, path, strict=True)))
    assert viterbi(scores, whole(3)).tolist() == [list(best)]


def test_viterbi_weighs_a_continuation_against_a_beginning() -> None:
    """The resolver goes from left to right and cannot take back; the best path can."""
    place = torch.tensor([[[0.3, 0.6, 0.1], [0.99, 0.005, 0.005]]]).log()
    firm = torch.tensor([[[0.41, 0.59, 0.0], [0.01, 0.0, 0.99]]]).log()
    mask = whole(2)
    found = {}
    for way in ("resolver", "viterbi"):
        head = AddNer(HIDDEN, HeadOptions(name="addner", merge=way))
        head.grow(["LOC"])
        head.grow(["ORG"])
        found[way] = head.decode(Emissions((place, firm), mask)).tolist()
    assert found == {"resolver": [[1, 0]], "viterbi": [[3, 4]]}


# --- votes


def test_the_vote_by_hand() -> None:
    """Block 1 knows a, block 2 knows b and a; weights 1 and 3."""
    one = torch.tensor([[[0.5, 0.4, 0.1]]])
    two = torch.tensor([[[0.2, 0.3, 0.1, 0.25, 0.15]]])
    scores = weighted_vote([one, two], [[0], [1, 0]], [1.0, 3.0], types=3)
    a = [(0.4 + 3 * 0.25) / 4, (0.1 + 3 * 0.15) / 4]
    expected = torch.tensor([[[(0.5 + 3 * 0.2) / 4, *a, 0.3, 0.1, 0.0, 0.0]]])
    torch.testing.assert_close(scores, expected)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_mj2_the_vote_of_one_block_is_that_block(seed: int) -> None:
    block = logits_of(2, seed=seed)[0].softmax(-1)
    assert torch.equal(weighted_vote([block], [[0, 1]], [0.37], types=2), block)
    spans = torch.tensor([[0, 0, 2, 1], [0, 1, 2, 0]])
    alone = span_log_probability(block.log(), whole(3), spans).exp().float()
    assert torch.equal(span_probability([block.log()], [[0, 1]], [1.0], whole(3), spans), alone)
    assert torch.equal(majority([block.log()], [[0, 1]], whole(3), types=2), viterbi(block.log(), whole(3)))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_mj3_the_vote_depends_neither_on_order_nor_on_the_scale_of_weights(seed: int) -> None:
    blocks, known, weights = logits_of(1, 2, 3, seed=seed), [[0], [1, 0], [2, 0, 1]], [0.5, 0.9, 0.2]
    probabilities = [block.softmax(-1) for block in blocks]
    found = weighted_vote(probabilities, known, weights, types=3)
    for order in itertools.permutations(range(3)):
        shuffled = ([sequence[i] for i in order] for sequence in (probabilities, known))
        scaled = [7.3 * weights[i] for i in order]
        torch.testing.assert_close(weighted_vote(*shuffled, scaled, types=3), found)
        logs = [probabilities[i].log() for i in order]
        assert torch.equal(
            majority(logs, [known[i] for i in order], whole(3), types=3),
            majority([p.log() for p in probabilities], known, whole(3), types=3),
        )


@given(seed=SEEDS, times=st.integers(2, 3))
@settings(max_examples=20)
def test_mj4_blocks_that_are_there_twice_change_nothing(seed: int, times: int) -> None:
    probabilities, known, weights = [b.softmax(-1) for b in logits_of(1, 3, seed=seed)], [[0], [1, 0, 2]], [0.5, 0.9]
    found = weighted_vote(probabilities, known, weights, types=3)
    torch.testing.assert_close(weighted_vote(probabilities * times, known * times, weights * times, types=3), found)
    alone = weighted_vote(probabilities[:1], known[:1], [0.5], types=1)
    torch.testing.assert_close(
        weighted_vote(probabilities[:1] * times, known[:1] * times, [0.5] * times, types=1), alone
    )
    # One of several that is there twice does not change what types score that no other knows; `O` all know.
    doubled = weighted_vote([*probabilities, probabilities[1]], [*known, known[1]], [*weights, 0.9], types=3)
    torch.testing.assert_close(doubled[..., 3:], found[..., 3:])


def test_a_majority_keeps_what_more_than_half_of_those_who_know_it_say() -> None:
    """Three blocks know a, one knows b."""
    sure = {tag: torch.eye(5)[tag] * 9 for tag in range(5)}
    said = [[1, 2, 0, 1], [1, 2, 0, 0], [1, 0, 0, 0]]  # a b-tagged third opinion: the span ends earlier
    blocks = [torch.stack([sure[tag] for tag in tags])[None, :, :3].log_softmax(-1) for tags in said]
    other = torch.stack([sure[tag] for tag in (0, 0, 1, 0)])[None, :, :3].log_softmax(-1)
    found = majority([*blocks, other], [[0], [0], [0], [1]], whole(4), types=2)
    assert found.tolist() == [[1, 2, 3, 0]]
    assert majority(blocks[1:], [[0], [0]], whole(4), types=2).tolist() == [[0, 0, 0, 0]]  # half is not enough


def test_of_spans_that_share_a_word_a_majority_keeps_the_likeliest() -> None:
    """With types of their own, all blocks' spans are united but for that."""
    one = torch.tensor([[[0.1, 0.8, 0.1], [0.2, 0.1, 0.7], [0.9, 0.05, 0.05]]]).log()
    two = torch.tensor([[[0.9, 0.05, 0.05], [0.02, 0.97, 0.01], [0.3, 0.6, 0.1]]]).log()
    assert majority([one, two], [[0], [1]], whole(3), types=2).tolist() == [[0, 3, 3]]


def test_nobody_votes_for_nothing() -> None:
    assert majority([torch.zeros(2, 0, 3)], [[0]], torch.ones(2, 0, dtype=torch.bool), types=1).shape == (2, 0)


# --- temperature


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_that_labels_were_drawn_at(true: float) -> None:
    draw = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4000, 5, generator=draw)
    targets = torch.multinomial((logits / true).softmax(-1), 1, generator=draw)[:, 0]
    annotated = torch.tensor([True, True])
    found = best_temperature(logits, targets, annotated)
    assert found == pytest.approx(true, rel=0.15)
    grid = torch.logspace(-1.2, 1.2, 60).tolist()
    costs = [float(marginal_cross_entropy((logits / t)[None], targets[None], annotated[None]).mean()) for t in grid]
    least = float(marginal_cross_entropy((logits / found)[None], targets[None], annotated[None]).mean())
    assert least <= min(costs) + 1e-6


# --- the head


@pytest.mark.parametrize("way", WAYS)
@given(seed=SEEDS, chosen=st.none() | st.sets(st.sampled_from("abcd")))
@settings(max_examples=15)
def test_every_way_is_legal_and_says_only_what_is_asked(way: str, seed: int, chosen: set[str] | None) -> None:
    for covers in (False, True) if way in ("majority", "vote") else (False,):
        head = head_of("a", "bc", "d", seed=seed, covers=covers, merge=way)
        emissions = emissions_of(head, seed=seed)
        tags = head.decode(emissions, types=chosen)
        assert not orphans(tags).any()
        assert not tags[~emissions.word_mask].any()
        assert chosen is None or {head.tagset.types[(t - 1) // 2] for t in tags.flatten().tolist() if t} <= chosen


@pytest.mark.parametrize("way", WAYS)
def test_asking_for_the_types_of_one_step_is_asking_its_block_alone(way: str) -> None:
    head = head_of("a", "bc", merge=way)
    emissions = emissions_of(head)
    alone = head_of("a", merge=way)
    alone.load_state_dict({k: v for k, v in head.state_dict().items() if ".1." not in k})
    assert torch.equal(
        head.decode(emissions, types=["a"]), alone.decode(Emissions(emissions.blocks[:1], emissions.word_mask))
    )
    assert not head.decode(emissions, types=[]).any()


def test_a_block_that_was_not_computed_does_not_vote() -> None:
    """It says `O` for certain, which must not count."""
    head = head_of("a", "b", covers=True, merge="vote")
    emissions = emissions_of(head)
    words = {2: torch.randn(3, 6, HIDDEN, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        partial = head.of_views(words, emissions.word_mask)
    assert partial.steps == (2,)
    block = emissions.blocks[1].log_softmax(-1)
    best = viterbi(block, emissions.word_mask)
    local = torch.tensor([0, 3, 4, 1, 2])  # the block's own type comes first
    assert torch.equal(head.decode(partial), local[best])
    assert best.any()


def test_blocks_that_know_the_same_types_must_vote() -> None:
    head = head_of("a")
    with pytest.raises(ModelError, match=r"cannot be merged by resolver; set head\.merge: vote"):
        head.grow(["b"], covers=["a"])
    assert head.tagset.types == ("a",)


def test_plain_heads_keep_their_tensors() -> None:
    for way in ("resolver", "viterbi"):
        assert not [name for name in head_of("a", "b", merge=way).state_dict() if "ballot" in name]


def test_targets_are_told_in_a_blocks_own_ids() -> None:
    head = head_of("a", "bc", covers=True, merge="vote")
    assert head.known == [(0,), (1, 2, 0)]
    assert head.local(torch.tensor([0, 1, 2, 3, 4, 5, 6]), 2).tolist() == [0, 5, 6, 1, 2, 3, 4]
    assert head.local(torch.tensor([0, 1, 2, 3, 4, 5, 6]), 1).tolist() == [0, 1, 2, 0, 0, 0, 0]


def test_span_scores_are_means_over_the_blocks_that_know_the_type() -> None:
    head = head_of("a", "b", covers=True, merge="vote")
    head.ballot(1).measured(weight=0.5, temperature=2.0)
    head.ballot(2).measured(weight=1.5, temperature=0.5)
    emissions = emissions_of(head)
    spans = torch.tensor([[0, 1, 3, 0], [0, 2, 4, 1], [1, 0, 1, 0]])
    tempered = [(block / t).log_softmax(-1) for block, t in zip(emissions.blocks, (2.0, 0.5), strict=True)]
    one = span_log_probability(tempered[0], emissions.word_mask, spans[[0, 2]]).exp()
    own_first = torch.tensor([[0, 1, 3, 1], [0, 2, 4, 0], [1, 0, 1, 1]])
    two = span_log_probability(tempered[1], emissions.word_mask, own_first).exp()
    expected = torch.stack([(0.5 * one[0] + 1.5 * two[0]) / 2, two[1], (0.5 * one[1] + 1.5 * two[2]) / 2])
    torch.testing.assert_close(head.span_scores(emissions, spans), expected.float())


def test_a_vote_that_was_never_measured_has_the_mean_weight_of_the_others() -> None:
    head = head_of("a", "b", "c", covers=True, merge="vote")
    measured = head_of("a", "b", "c", covers=True, merge="vote")
    for weights, other in ((((1, 0.2), (3, 0.6)), head), (((1, 0.2), (2, 0.4), (3, 0.6)), measured)):
        for step, weight in weights:
            other.ballot(step).measured(weight=weight, temperature=1.0)
    emissions = emissions_of(head)
    spans = torch.tensor([[0, 1, 3, 0], [0, 2, 4, 1], [1, 0, 1, 0]])
    torch.testing.assert_close(head.span_scores(emissions, spans), measured.span_scores(emissions, spans))
    assert torch.equal(head.decode(emissions), measured.decode(emissions))
