"""Batches against a plain, slow reading of the same windows; and plans that use every row once within the budget."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ner_cl.data.batching import Batch, EncodedSentences, plan_batches
from ner_cl.data.encode import PieceEncoder
from ner_cl.data.tagset import Tagset
from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span
from tests.tiny import SENTENCES, tiny_encoder, tiny_model, toy_sentences

TAGSET = Tagset((("PER",), ("LOC", "ORG")))
LENGTHS = st.lists(st.integers(1, 60), max_size=80)
TENSORS = ("piece_ids", "piece_mask", "word_pieces", "word_mask", "targets", "annotated", "word_numbers", "spans")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> PieceEncoder:
    folder: Path = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    return tiny_model(folder, max_pieces=12, window_overlap=3).encoder.pieces


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    """Some longer than a window, some annotated for less, one empty."""
    toy = toy_sentences(20, seed=4)
    return [s.restrict({"PER", "LOC"}) if i % 3 == 0 else s for i, s in enumerate(toy)] + [*SENTENCES, Sentence(())]


@pytest.fixture(scope="module")
def encoded(pieces: PieceEncoder, sentences: list[Sentence]) -> EncodedSentences:
    return EncodedSentences(sentences, pieces, TAGSET)


def test_a_batch_says_what_its_windows_say(encoded: EncodedSentences, sentences: list[Sentence]) -> None:
    rows = list(range(len(encoded)))[::-1]
    batch = encoded.batch(rows)
    starts = [sum(len(s.words) for s in sentences[:index]) for index in range(len(sentences))]
    for r, row in enumerate(rows):
        window = encoded.windows[row]
        sentence = sentences[window.sentence]
        length, words = len(window.piece_ids), len(window.word_pieces)
        assert batch.piece_ids[r, :length].tolist() == window.piece_ids
        assert set(batch.piece_ids[r, length:].tolist()) <= {0}
        assert batch.piece_mask[r].tolist() == [1] * length + [0] * (batch.piece_mask.shape[1] - length)
        assert batch.word_mask[r].tolist() == [True] * words + [False] * (batch.word_mask.shape[1] - words)
        assert batch.annotated[r].tolist() == [type_ in sentence.annotated_types for type_ in TAGSET.types]
        tags = TAGSET.encode(sentence.spans, len(sentence.words))
        for w, place in enumerate(window.word_pieces):
            word = window.first_word + w
            assert batch.word_pieces[r, w] == place
            assert batch.targets[r, w] == tags[word]
            assert batch.word_numbers[r, w] == starts[window.sentence] + word
        for padded in (batch.word_pieces, batch.targets, batch.word_numbers):
            assert not padded[r, words:].any()


def test_every_word_has_a_number_of_its_own(encoded: EncodedSentences, sentences: list[Sentence]) -> None:
    batch = encoded.batch(range(len(encoded)))
    numbers = batch.word_numbers[batch.word_mask].tolist()
    assert sorted(numbers) == list(range(encoded.words))
    assert encoded.words == sum(len(sentence.words) for sentence in sentences)


def test_annotated_types_of_a_batch_are_those_of_its_rows(pieces: PieceEncoder) -> None:
    sentences = [SENTENCES[2].restrict({"LOC"}), SENTENCES[2].restrict({"MISC"}), SENTENCES[2]]
    encoded = EncodedSentences(sentences, pieces, TAGSET)
    assert [encoded.batch([row]).annotated_types for row in range(3)] == [{1}, set(), {0, 1, 2}]
    assert encoded.batch([0, 1]).annotated_types == {1}


def test_types_the_tagset_does_not_know_are_no_targets(pieces: PieceEncoder) -> None:
    encoded = EncodedSentences([SENTENCES[0]], pieces, Tagset((("LOC",),)))
    assert encoded.batch([0]).targets.tolist() == [[0, 0, 0, 1, 0]]


def test_overlapping_spans_are_refused_with_their_source(pieces: PieceEncoder) -> None:
    spans = (Span(0, 2, "PER"), Span(1, 2, "LOC"))
    nested = Sentence(("Ada", "Rome"), spans, frozenset({"PER", "LOC"}), source="n.jsonl:9")
    with pytest.raises(DataError, match=r"^n\.jsonl:9: the span LOC of words 1\.\.2 overlaps another span"):
        EncodedSentences([nested], pieces, TAGSET)
    EncodedSentences([nested], pieces, Tagset((("PER",),)))  # one of the two alone is no problem


def test_in_length_order_gives_every_window_once(encoded: EncodedSentences) -> None:
    seen: list[int] = []
    for rows, batch in encoded.in_length_order(40):
        assert batch.piece_ids.shape[0] == len(rows)
        assert batch.piece_ids.shape[1] == max(encoded.lengths[row] for row in rows)
        seen += rows
    assert sorted(seen) == list(range(len(encoded)))
    assert [encoded.lengths[row] for row in seen] == sorted(encoded.lengths, reverse=True)


def test_moving_a_batch_moves_every_tensor(encoded: EncodedSentences) -> None:
    batch = encoded.batch([0, 1])
    moved = batch.to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert moved.annotated_types == batch.annotated_types
    assert set(Batch.__dataclass_fields__) == {
        *TENSORS,
        "row_types",
        "source",
        "rows",
        "row_words",
        "origins",
    }  # none was forgotten above
    assert batch.to(torch.device("cpu")) is batch


@given(LENGTHS, st.integers(1, 100), st.none() | st.integers(0, 2**32 - 1))
def test_a_plan_uses_every_row_once_within_the_budget(lengths: list[int], budget: int, seed: int | None) -> None:
    generator = None if seed is None else np.random.default_rng(seed)
    plan = plan_batches(lengths, batch_tokens=budget, generator=generator)
    assert sorted(row for batch in plan for row in batch) == list(range(len(lengths)))
    for batch in plan:
        assert batch
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= budget
    if seed is None:
        longest_first = [lengths[row] for batch in plan for row in batch]
        assert longest_first == sorted(lengths, reverse=True)
    else:
        again = plan_batches(lengths, batch_tokens=budget, generator=np.random.default_rng(seed))
        assert plan == again


def test_plans_of_an_epoch_differ_by_generator_and_waste_little() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, size=3000).clip(3, 120).tolist()
    plans = [plan_batches(lengths, batch_tokens=1024, generator=np.random.default_rng(seed)) for seed in (1, 2)]
    assert plans[0] != plans[1]
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in plans[0])
    assert sum(lengths) / padded > 0.85
    # Batches come in random order of length: an epoch does not go from short to long.
    means = [float(np.mean([lengths[row] for row in batch])) for batch in plans[0]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
