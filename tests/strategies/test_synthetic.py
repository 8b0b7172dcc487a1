"""Synthetic sentences: other words where new types were mentioned, and nothing else changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as draw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ner_cl.data.batching import rows_from
from ner_cl.strategies.base import StepContext
from ner_cl.strategies.distill import Distill, DistillStrategyOptions
from ner_cl.strategies.synthetic import synthetic_sentences, vocabulary_words
from ner_cl.types import Sentence, Span
from tests.tiny import tiny_encoder, tiny_model, toy_context, toy_sentences

TRAIN = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(40, seed=3, types=("PER", "LOC")))
OWN = [sentence for sentence in TRAIN if sentence.spans]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def begin(folder: Path, head: str = "extendner", **options: object) -> tuple[Distill, StepContext]:
    """A strategy at the start of a step that teaches LOC to a model that knows PER."""
    context = toy_context(tiny_model(folder, head, steps=[["PER"]]), ["LOC"], grown=False)
    strategy = Distill(DistillStrategyOptions(**options))
    strategy.begin_step(context)
    return strategy, context


def test_there_is_one_for_each_sentence_with_a_mention_and_none_is_annotated(folder: Path) -> None:
    _, context = begin(folder)
    made = synthetic_sentences(context, TRAIN, most=1000)
    assert 0 < len(OWN) < len(TRAIN)
    assert len(made) == len(OWN)
    assert all(not sentence.spans and not sentence.annotated_types and sentence.words for sentence in made)
    assert made == synthetic_sentences(context, TRAIN, most=1000)
    assert len(synthetic_sentences(context, TRAIN, most=3)) == 3
    assert synthetic_sentences(context, [s for s in TRAIN if not s.spans], most=1000) == []


def test_words_come_from_the_sentence_and_from_the_vocabulary(folder: Path) -> None:
    _, context = begin(folder)
    words = set(vocabulary_words(context.model.encoder.tokenizer))
    strange = Sentence(("xqa", "went", "to", "xqb", "xqc", "today"), (Span(3, 5, "LOC"),), frozenset({"LOC"}))
    made = synthetic_sentences(context, [strange] * 200, most=1000)
    assert {(*s.words[:3], s.words[-1]) for s in made} == {("xqa", "went", "to", "today")}
    assert {word for s in made for word in s.words[3:-1]} <= words
    assert {len(s.words) for s in made} == {5, 6, 7}  # one to three words for the mention
    assert len({s.words for s in made}) > 50


@given(
    spans=draw.lists(draw.tuples(draw.integers(0, 5), draw.integers(1, 3)), max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_mentions_within_mentions_are_replaced_once(folder: Path, spans: list[tuple[int, int]]) -> None:
    words = tuple(f"xq{letter}" for letter in "abcdefgh")
    found = tuple(Span(start, start + length, "LOC") for start, length in dict.fromkeys(spans))
    covered = {word for span in found for word in words[span.start : span.end]}
    _, context = begin(folder)
    for sentence in synthetic_sentences(context, [Sentence(words, found, frozenset({"LOC"}))] * 3, most=9):
        assert not covered & set(sentence.words)
        old = [word for word in sentence.words if word in words]
        assert old == [word for word in words if word in old]  # in their order, each once


TEXTS = ["Paris and Zürich are cities", "the river of Paris", "Zürich has a river", "cities of the river"] * 20


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"]))
    return tokenizer


def sentence_pieces() -> Tokenizer:
    pieces = ["▁Paris", "▁Zürich", "▁river", "▁cities", "▁of", "▁", "arch", "s"]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -2.0) for piece in pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"]))
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, sentence_pieces, word_pieces])
def test_whole_words_of_any_vocabulary(make: Callable[[], Tokenizer]) -> None:
    """Letters outside ASCII are bytes in some vocabularies, and pieces within words are no words."""
    tokenizer = make()
    words = vocabulary_words(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert {"Paris", "Zürich", "river", "cities"} <= set(words) <= {word for text in TEXTS for word in text.split()}
    assert words == sorted(words)


def test_a_vocabulary_without_words_makes_no_sentences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, context = begin(folder)
    monkeypatch.setattr("ner_cl.strategies.synthetic.vocabulary_words", lambda tokenizer: [])
    assert synthetic_sentences(context, TRAIN, most=9) == []


@pytest.mark.parametrize("head", ["addner", "extendner", "spankl"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_every_batch_has_its_share(folder: Path, head: str, share: float) -> None:
    strategy, context = begin(folder, head, synthetic=share)
    sentences = strategy.sentences(context, TRAIN)
    assert len(sentences) == len(TRAIN) + len(OWN)
    context.model.grow(["LOC"])
    context.encoded = context.model.encode(sentences)
    batches = context.encoded.plan(context.encoded.annotated, batch_tokens=64)
    planned = strategy.plan(context, batches, context.generator("plan"))
    rows = [row for batch in planned for row in batch]
    made = set(rows_from(context.encoded.origins, "unlabeled"))
    assert len(made) == len(OWN)
    assert sum(row in made for row in rows) >= share * len(rows)
    assert {row for row in rows if row not in made} == set(range(len(TRAIN)))
    batch = context.encoded.batch(planned[0])
    assert "kd_raw" in strategy.losses(context, batch, context.model(batch))


@pytest.mark.parametrize("options", [{"synthetic": 0.0}, {"alpha": 0.0}])
def test_it_can_be_left_out(folder: Path, options: dict[str, float]) -> None:
    strategy, context = begin(folder, **options)
    assert strategy.sentences(context, TRAIN) is TRAIN


def test_in_step_1_there_is_nothing_to_find(folder: Path) -> None:
    context = toy_context(tiny_model(folder), ["LOC"], grown=False)
    strategy = Distill(DistillStrategyOptions())
    strategy.begin_step(context)
    assert strategy.sentences(context, TRAIN) is TRAIN


def test_raw_text_takes_their_place(folder: Path) -> None:
    strategy, context = begin(folder)
    context.unlabeled = (Sentence(("a", "text")),)
    assert list(strategy.sentences(context, TRAIN)) == [*TRAIN, Sentence(("a", "text"))]
    strategy, context = begin(folder, unlabeled=0.0)
    context.unlabeled = (Sentence(("a", "text")),)
    assert len(strategy.sentences(context, TRAIN)) == len(TRAIN) + len(OWN)
