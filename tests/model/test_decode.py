"""Constrained decoding against enumeration of all legal paths, pytorch-crf and seqeval."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities
from torch import Tensor
from torchcrf import CRF

from ner_cl.data.tagset import Tagset, spans_of_tags
from ner_cl.model.decode import coupling, orphans, span_log_probability, spans_of_rows, viterbi

SEEDS = st.integers(0, 2**32 - 1)


def random_scores(seed: int, rows: int, words: int, tags: int, *, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, words, tags, generator=generator)).log_softmax(-1)


def mask_of(lengths: list[int], words: int) -> Tensor:
    return torch.arange(words) < torch.tensor(lengths)[:, None]


def is_legal(path: tuple[int, ...]) -> bool:
    before = (0, *path)
    return all(tag == 0 or tag % 2 == 1 or before[t] in (tag, tag - 1) for t, tag in enumerate(path))


def legal_paths(scores: Tensor) -> list[tuple[float, tuple[int, ...]]]:
    """Every legal path of one sentence with its score."""
    table = scores.double().tolist()
    paths = itertools.product(range(scores.shape[1]), repeat=len(table))
    return [(sum(table[t][tag] for t, tag in enumerate(path)), path) for path in paths if is_legal(path)]


def best_path(scores: Tensor) -> list[int]:
    """The best legal path; among equals the lowest tag at the last word, then at the word before, and so on."""
    paths = legal_paths(scores)
    highest = max(score for score, _ in paths)
    return list(min((path for score, path in paths if score == highest), key=lambda path: path[::-1]))


def log_sum(values: list[float]) -> float:
    return torch.tensor([-math.inf, *values], dtype=torch.float64).logsumexp(0).item()


def crf_of(tags: int) -> CRF:
    """pytorch-crf with the IOB2 constraint as its only transition scores, in fp64."""
    crf = CRF(tags, batch_first=True).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.zero_()
        for tag in range(2, tags, 2):
            crf.start_transitions[tag] = -1e4
            illegal = [before for before in range(tags) if before not in (tag, tag - 1)]
            crf.transitions[illegal, tag] = -1e4
    return crf


@st.composite
def small_problems(draw: st.DrawFn, words: int = 5) -> Tensor:
    """Scores of one sentence on a coarse grid, so that sums are exact and ties are common."""
    types = draw(st.integers(0, 2))
    length = draw(st.integers(0, words))
    values = st.sampled_from([0.0, -0.25, -0.5, -1.0, -3.0])
    table = draw(
        st.lists(st.lists(values, min_size=1 + 2 * types, max_size=1 + 2 * types), min_size=length, max_size=length)
    )
    return torch.tensor(table, dtype=torch.float32).reshape(length, 1 + 2 * types)


@given(small_problems())
@settings(max_examples=200)
def test_viterbi_is_the_brute_force_optimum_and_keeps_its_tie_rule(scores: Tensor) -> None:
    found = viterbi(scores[None], torch.ones(1, len(scores), dtype=torch.bool))[0].tolist()
    assert found == best_path(scores)


@pytest.mark.parametrize("seed", range(8))
def test_viterbi_is_the_brute_force_optimum_on_six_words(seed: int) -> None:
    scores = random_scores(seed, 1, 6, 5)
    assert viterbi(scores, torch.ones(1, 6, dtype=torch.bool))[0].tolist() == best_path(scores[0])


def test_a_batch_of_ties_is_decoded_row_by_row_by_the_same_rule() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = -torch.randint(0, 3, (200, 4, 5), generator=generator).float()
    lengths = [row % 5 for row in range(200)]
    found = viterbi(scores, mask_of(lengths, 4))
    for row, length in enumerate(lengths):
        assert found[row, :length].tolist() == best_path(scores[row, :length])


@pytest.mark.parametrize(
    ("tags", "words", "spread"), [(3, 12, 2.0), (9, 30, 1.0), (37, 20, 4.0), (133, 16, 2.0), (133, 8, 0.1)]
)
def test_viterbi_equals_pytorch_crf_in_path_and_score(tags: int, words: int, spread: float) -> None:
    scores = random_scores(tags + words, 8, words, tags, spread=spread)
    lengths = [1 + (row * 5) % words for row in range(8)]
    mask, crf = mask_of(lengths, words), crf_of(tags)
    with torch.no_grad():
        expected = crf.decode(scores.double(), mask)
    found = viterbi(scores, mask)
    padded = torch.tensor([path + [0] * (words - len(path)) for path in expected])
    assert found.tolist() == padded.tolist()
    with torch.no_grad():
        best = [crf._compute_score(scores.double().transpose(0, 1), path.T, mask.T) for path in (found, padded)]
    assert torch.equal(*best)
    plain = scores.argmax(-1).masked_fill(~mask, 0)
    assert orphans(plain).any(), "the constraint had nothing to do"


@given(SEEDS, st.integers(0, 6), st.integers(0, 12), st.integers(0, 8))
@settings(max_examples=100)
def test_viterbi_is_legal_for_any_size(seed: int, rows: int, words: int, types: int) -> None:
    scores = random_scores(seed, rows, words, 1 + 2 * types)
    mask = mask_of([(row * 7 + seed) % (words + 1) for row in range(rows)], words) if rows else torch.ones(0, words) > 0
    tags = viterbi(scores, mask)
    assert tags.shape == mask.shape
    assert not orphans(tags).any()
    assert not tags[~mask].any()
    assert all(is_legal(tuple(row)) for row in tags.tolist())


@given(st.lists(st.integers(0, 6), max_size=8))
def test_orphans_are_the_insides_that_continue_nothing(tags: list[int]) -> None:
    flags = orphans(torch.tensor(tags, dtype=torch.long)[None])[0].tolist()
    assert flags == [
        tag in (2, 4, 6) and before not in (tag, tag - 1) for before, tag in zip([0, *tags], tags, strict=False)
    ]


def test_rows_whose_argmax_is_legal_are_returned_as_they_are() -> None:
    scores = random_scores(3, 400, 4, 5)
    mask = torch.ones(400, 4, dtype=torch.bool)
    plain = scores.argmax(-1)
    legal = ~orphans(plain).any(-1)
    assert 0 < legal.sum() < 400
    assert torch.equal(viterbi(scores, mask)[legal], plain[legal])


def test_padding_and_neighbours_change_nothing() -> None:
    scores = random_scores(4, 6, 9, 7)
    lengths = [9, 0, 1, 4, 6, 2]
    mask = mask_of(lengths, 9)
    spans = torch.tensor([[0, 2, 4, 1], [3, 0, 4, 0], [4, 5, 6, 2], [5, 1, 2, 0]])
    dirty = scores.masked_fill(~mask[..., None], math.nan)
    together, scored = viterbi(dirty, mask), span_log_probability(dirty, mask, spans)
    for row, length in enumerate(lengths):
        alone, ones = scores[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool)
        assert torch.equal(viterbi(alone, ones)[0], together[row, :length])
        own = spans[:, 0] == row
        shifted = torch.cat([torch.zeros(int(own.sum()), 1, dtype=torch.long), spans[own, 1:]], dim=1)
        torch.testing.assert_close(span_log_probability(alone, ones, shifted), scored[own], rtol=0, atol=1e-12)


def test_strict_and_lenient_readings_of_the_decoded_tags_agree() -> None:
    tagset = Tagset().grow(["PER", "LOC"]).grow(["ORG"])
    scores = random_scores(5, 50, 12, len(tagset))
    plain = scores.argmax(-1)
    assert orphans(plain).any(), "the two readings would agree anyway"
    for row in viterbi(scores, torch.ones(50, 12, dtype=torch.bool)).tolist():
        names = [tagset.tags[tag] for tag in row]
        strict = {(e.start, e.end, e.tag) for e in Entities([names], IOB2).entities[0]}
        lenient = {(start, end + 1, type_) for type_, start, end in get_entities(names)}
        own = {(span.start, span.end, span.type) for span in tagset.decode(row)}
        assert own == strict == lenient


def test_half_precision_and_gradients_are_accepted() -> None:
    scores = random_scores(6, 4, 6, 5)
    mask = torch.ones(4, 6, dtype=torch.bool)
    rounded = scores.bfloat16()
    assert torch.equal(viterbi(rounded, mask), viterbi(rounded.float(), mask))
    assert torch.equal(viterbi(scores.clone().requires_grad_(), mask), viterbi(scores, mask))
    spans = torch.tensor([[1, 0, 2, 1]])
    assert torch.equal(span_log_probability(rounded, mask, spans), span_log_probability(rounded.float(), mask, spans))


def test_an_impossible_tag_is_never_chosen_where_another_path_exists() -> None:
    scores = torch.tensor([[[-math.inf, -1.0, 0.0], [-math.inf, -math.inf, 0.0], [0.0, -math.inf, -math.inf]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert viterbi(scores, mask).tolist() == [[1, 2, 0]]
    assert span_log_probability(scores, mask, torch.tensor([[0, 0, 2, 0], [0, 0, 3, 0]])).exp().tolist() == [1.0, 0.0]


def all_spans(words: int, types: int) -> list[tuple[int, int, int]]:
    return [(s, e, i) for s in range(words) for e in range(s + 1, words + 1) for i in range(types)]


def brute_force_span(scores: Tensor, start: int, end: int, type_: int) -> float:
    """The span read off every legal path by the tagset's own reader."""
    paths = legal_paths(scores)
    names = [str(index) for index in range(scores.shape[1] // 2)]
    wanted = (start, end, str(type_))
    having = [
        score for score, path in paths if wanted in {(x.start, x.end, x.type) for x in spans_of_tags(path, names)}
    ]
    return log_sum(having) - log_sum([score for score, _ in paths])


@pytest.mark.parametrize(("words", "types"), [(1, 1), (1, 2), (3, 1), (4, 2), (5, 2)])
def test_span_probability_is_the_share_of_legal_paths_that_have_the_span(words: int, types: int) -> None:
    scores = random_scores(10 * words + types, 1, words + 1, 1 + 2 * types)
    spans = all_spans(words, types)
    found = span_log_probability(scores, mask_of([words], words + 1), torch.tensor([[0, *span] for span in spans]))
    expected = [brute_force_span(scores[0, :words], *span) for span in spans]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("types", [1, 9, 66])
def test_the_spans_over_a_word_and_its_outside_share_all_probability(types: int) -> None:
    """The probability of `O` comes from pytorch-crf: the derivative of its log-partition by the score of `O`."""
    words, lengths = 9, [9, 6]
    scores, mask = random_scores(types, 2, words, 1 + 2 * types), mask_of(lengths, words)
    emissions = scores.double().requires_grad_()
    partition = crf_of(1 + 2 * types)._compute_normalizer(emissions.transpose(0, 1), mask.T).sum()
    (marginal,) = torch.autograd.grad(partition, emissions)
    for row, length in enumerate(lengths):
        spans = torch.tensor([[row, *span] for span in all_spans(length, types)])
        probability = span_log_probability(scores, mask, spans).exp()
        for word in range(length):
            over = probability[(spans[:, 1] <= word) & (word < spans[:, 2])].sum().item()
            assert over + marginal[row, word, 0].item() == pytest.approx(1, abs=1e-9)


def test_span_probability_equals_the_ratio_of_two_pytorch_crf_partitions() -> None:
    words, types = 8, 66
    scores, mask = random_scores(8, 1, words, 1 + 2 * types).double(), torch.ones(1, words, dtype=torch.bool)
    crf = crf_of(1 + 2 * types)
    spans = [(0, 1, 0), (2, 5, 17), (7, 8, 65), (0, 8, 3)]
    found = span_log_probability(scores, mask, torch.tensor([[0, *span] for span in spans]))
    with torch.no_grad():
        whole = crf._compute_normalizer(scores.transpose(0, 1), mask.T)
        for value, (start, end, type_) in zip(found, spans, strict=True):
            forced = scores.clone()
            for word in range(start, end):
                tag = 1 + 2 * type_ + (word > start)
                forced[0, word] = -1e6
                forced[0, word, tag] = scores[0, word, tag]
            if end < words:
                forced[0, end, 2 + 2 * type_] = -1e6
            part = crf._compute_normalizer(forced.transpose(0, 1), mask.T)
            torch.testing.assert_close(value[None], part - whole, rtol=0, atol=1e-9)


def test_a_certain_span_has_probability_one_and_a_long_row_stays_finite() -> None:
    scores = torch.full((1, 400, 133), -60.0)
    scores[..., 0] = -1e-4
    scores[0, 7, 0], scores[0, 7, 9] = -60.0, -1e-4
    spans = torch.tensor([[0, 7, 8, 4], [0, 7, 9, 4], [0, 399, 400, 0]])
    found = span_log_probability(scores, torch.ones(1, 400, dtype=torch.bool), spans)
    assert found.isfinite().all()
    assert (found <= 0).all()
    assert found[0].item() == pytest.approx(0, abs=1e-12)
    assert found[1].item() == pytest.approx(-59.9999, abs=1e-6)


def test_no_spans_no_words_and_no_rows() -> None:
    nothing = torch.zeros(0, 4, dtype=torch.long)
    for rows, words in [(2, 3), (2, 0), (0, 3), (0, 0)]:
        scores, mask = torch.zeros(rows, words, 5), torch.ones(rows, words, dtype=torch.bool)
        assert viterbi(scores, mask).shape == (rows, words)
        assert span_log_probability(scores, mask, nothing).shape == (0,)


def test_a_span_that_reaches_into_the_padding_is_impossible() -> None:
    found = span_log_probability(torch.zeros(1, 4, 3), mask_of([2], 4), torch.tensor([[0, 1, 3, 0], [0, 2, 3, 0]]))
    assert found.tolist() == [-math.inf, -math.inf]


# --- rows cut in two


@given(seed=SEEDS, words=st.integers(2, 12), types=st.integers(1, 3), spread=st.sampled_from([0.5, 2.0, 6.0]))
@settings(max_examples=150)
def test_a_row_cut_where_words_hang_loosely_decodes_as_a_whole(
    seed: int, words: int, types: int, spread: float
) -> None:
    scores = random_scores(seed, 8, words, 1 + 2 * types, spread=spread)
    mask = torch.ones(8, words, dtype=torch.bool)
    whole = viterbi(scores, mask)
    for row, word in coupling(scores, mask).isfinite().nonzero().tolist():
        parts = [scores[row : row + 1, :word], scores[row : row + 1, word:]]
        tags = [viterbi(part, mask[:1, : part.shape[1]]) for part in parts if part.shape[1]]
        assert torch.equal(torch.cat(tags, dim=1)[0], whole[row])


def test_coupling_is_the_probability_of_going_on_here_or_next() -> None:
    """By hand: in `tied` the second word may well be the `I-X` of a span that the first one opens."""
    tied = torch.tensor([[[0.2, 0.8, 0.0], [0.6, 0.1, 0.3]]]).log()
    loose = torch.tensor([[[0.9, 0.05, 0.05], [0.6, 0.3, 0.1]]]).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert coupling(tied, mask).tolist() == [[0.0, math.inf]]
    assert coupling(loose, mask)[0].tolist() == pytest.approx([0.0, 0.1])
    assert coupling(loose, torch.tensor([[True, False]])).tolist() == [[0.0, math.inf]]
    # With `O` then `B-X` exactly as good as `B-X` then `I-X`, rounding might decide, so nothing is cut.
    even = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]]).log()
    assert coupling(even, mask).tolist() == [[0.0, math.inf]]
    longer = torch.cat([loose, torch.tensor([[[0.1, 0.7, 0.2]]]).log()], dim=1)
    assert coupling(longer, torch.ones(1, 3, dtype=torch.bool))[0].tolist() == pytest.approx([0.0, 0.2, 0.2])


@given(seed=SEEDS, words=st.integers(8, 40))
@settings(max_examples=200)
def test_the_error_of_a_cut_is_about_its_coupling(seed: int, words: int) -> None:
    scores = random_scores(seed, 1, words, 5, spread=3.0)
    scores[..., 0] += 4  # mostly `O`, as text is
    mask = torch.ones(1, words, dtype=torch.bool)
    hold = coupling(scores, mask)[0]
    spans = spans_of_rows(viterbi(scores, mask))
    whole = span_log_probability(scores, mask, spans).exp()
    for word in hold[1:].isfinite().nonzero().flatten().add(1).tolist()[:8]:
        left, right = spans[spans[:, 2] <= word], spans[spans[:, 1] >= word] - torch.tensor([0, word, word, 0])
        assert len(left) + len(right) == len(spans)
        parts = [
            span_log_probability(scores[:, :word], mask[:, :word], left),
            span_log_probability(scores[:, word:], mask[:, word:], right),
        ]
        assert torch.allclose(torch.cat(parts).exp(), whole, rtol=0, atol=2 * float(hold[word]) + 1e-9)


@given(seed=SEEDS, rows=st.integers(1, 5), words=st.integers(1, 9), types=st.integers(1, 3))
@settings(max_examples=100)
def test_spans_of_many_rows_are_those_of_each(seed: int, rows: int, words: int, types: int) -> None:
    names = [f"T{index}" for index in range(types)]
    tags = viterbi(random_scores(seed, rows, words, 1 + 2 * types), torch.ones(rows, words, dtype=torch.bool))
    expected = [
        [row, span.start, span.end, names.index(span.type)]
        for row in range(rows)
        for span in spans_of_tags(tags[row].tolist(), names)
    ]
    assert spans_of_rows(tags).tolist() == expected


def test_rows_without_spans_are_not_looked_at() -> None:
    """Values that no recursion survives stand where no span is asked for."""
    scores = random_scores(3, 3, 4, 3)
    asked = torch.tensor([[1, 0, 2, 0]])
    mask = torch.ones(3, 4, dtype=torch.bool)
    alone = span_log_probability(scores[1:2], mask[:1], torch.tensor([[0, 0, 2, 0]]))
    scores[0], scores[2] = math.nan, math.nan
    assert torch.equal(span_log_probability(scores, mask, asked), alone)
