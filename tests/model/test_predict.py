"""Prediction: offsets that fit the text, the same answers however texts are batched and cut, and odd texts."""

import itertools
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ner_cl.data.words import split_words
from ner_cl.errors import ModelError
from ner_cl.model.decode import span_log_probability
from ner_cl.model.emissions import emissions_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import predict_sentences, score_sentences
from ner_cl.types import Entity, Sentence, Span
from tests.tiny import SENTENCES, TOY_WORDS, tiny_encoder, tiny_model, toy_sentences, trained_model

EVERY = pytest.mark.parametrize("head", ["addner", "extendner", "spankl"])
BOTH = pytest.mark.parametrize("head", ["addner", "extendner"])  # that learn all of a toy
PROPERTY = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.lists(
    st.one_of(st.text(max_size=30), st.lists(st.sampled_from(TOY_WORDS), max_size=12).map(" ".join)), max_size=8
)
TEXT = "Ada Smith visited Rome North and Bob saw Oslo ."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), positions=512)


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, NerModel]:
    """Models that have really learned PER in step 1 and LOC in step 2."""
    return {head: trained_model(folder, head) for head in ("addner", "extendner", "spankl")}


def rebuilt(model: NerModel, folder: Path, *, max_pieces: int, window_overlap: int = 0) -> NerModel:
    """The same weights behind other windows."""
    other = tiny_model(
        folder, model.head.options, steps=model.tagset.steps, max_pieces=max_pieces, window_overlap=window_overlap
    )
    other.load_state_dict(model.state_dict())
    other.head.temperatures = list(model.head.temperatures)
    return other


def sentence_logits(model: NerModel, sentences: list[Sentence], *, batch_tokens: int = 4096) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    encoded = model.encode(sentences)
    for indices, emissions in emissions_of(model, encoded, batch_tokens=batch_tokens, precision="fp32"):
        for index, row, mask in zip(indices, emissions.flat(), emissions.word_mask, strict=True):
            assert index not in found
            found[index] = row[mask]
    assert sorted(found) == list(range(len(sentences)))
    return [found[index] for index in range(len(sentences))]


# --- what comes back


@BOTH
def test_entities_of_a_text(models: dict[str, NerModel], head: str) -> None:
    entities = models[head].predict(TEXT)
    assert isinstance(entities, list)
    assert [(entity.text, entity.type, entity.step) for entity in entities] == [
        ("Ada Smith", "PER", 1),
        ("Rome North", "LOC", 2),
        ("Bob", "PER", 1),
        ("Oslo", "LOC", 2),
    ]
    assert all(isinstance(entity, Entity) and 0.5 < entity.score <= 1 for entity in entities)


@EVERY
@given(texts=TEXTS)
@PROPERTY
def test_offsets_reproduce_the_text_for_any_text(models: dict[str, NerModel], head: str, texts: list[str]) -> None:
    model = models[head]
    for text, entities in zip(texts, model.predict(texts, precision="fp32"), strict=True):
        borders = split_words(text)
        for entity in entities:
            assert text[entity.start : entity.end] == entity.text
            assert entity.start in [start for start, _ in borders]
            assert entity.end in [end for _, end in borders]
            assert 0 <= entity.score <= 1
            assert model.tagset.step_of(entity.type) == entity.step
        assert all(before.end <= after.start for before, after in itertools.pairwise(entities))


@EVERY
def test_offsets_count_code_points_of_the_text_as_it_is(models: dict[str, NerModel], head: str) -> None:
    plain = "Ada met Bob 🙂 at Rome 🇫🇷 ."
    spaced = "\ufeff Ada\u00a0\u00a0met\u200b Bob 🙂\u2003\t at Rome\t🇫🇷 ."
    (starts, ends), (moved_starts, moved_ends) = (zip(*split_words(text), strict=True) for text in (plain, spaced))
    expected = [
        (moved_starts[starts.index(e.start)], moved_ends[ends.index(e.end)], e.type, e.score)
        for e in models[head].predict(plain)
    ]
    assert len(expected) > 1
    assert [(e.start, e.end, e.type, e.score) for e in models[head].predict(spaced)] == expected


@EVERY
def test_one_text_gives_a_list_and_many_an_iterator_in_order(models: dict[str, NerModel], head: str) -> None:
    model = models[head]
    texts = [" ".join(sentence.words) for sentence in toy_sentences(60, seed=8)] + ["", TEXT]
    alone = [model.predict(text, precision="fp32") for text in texts]
    together = model.predict(texts, precision="fp32", batch_tokens=64)
    assert isinstance(together, Iterator)
    for one, other in zip(alone, together, strict=True):
        assert [(e.start, e.end, e.type) for e in one] == [(e.start, e.end, e.type) for e in other]
        assert [e.score for e in one] == pytest.approx([e.score for e in other], abs=1e-4)
    assert any(alone)


def test_an_endless_stream_is_read_bit_by_bit(models: dict[str, NerModel]) -> None:
    found = models["extendner"].predict(TEXT if number % 2 else "the report" for number in itertools.count())
    assert [len(entities) for entities in itertools.islice(found, 1500)] == [0, 4] * 750  # over the border of a chunk


def test_no_texts_give_nothing(models: dict[str, NerModel]) -> None:
    assert list(models["extendner"].predict([])) == []


@BOTH
def test_min_score_leaves_out_what_is_below(models: dict[str, NerModel], head: str) -> None:
    model = models[head]
    text = "Ada Smith near Rome at Acme Bank with Jones and Lagos"
    everything = model.predict(text, precision="fp32")
    scores = sorted(entity.score for entity in everything)
    assert len(set(scores)) > 2
    for threshold in (0.0, scores[0], scores[1], scores[-1], 1.0):
        kept = model.predict(text, min_score=threshold, precision="fp32")
        assert kept == [entity for entity in everything if entity.score >= threshold]


@BOTH
def test_types_are_asked_for_by_name(models: dict[str, NerModel], head: str) -> None:
    model = models[head]
    assert {entity.type for entity in model.predict(TEXT, types=["LOC"])} == {"LOC"}
    assert len(model.predict(TEXT, types=("LOC", "PER"))) == 4
    assert model.predict(TEXT, types=[]) == model.predict(TEXT, types=[], nested=True) == []
    with pytest.raises(ModelError, match="unknown type GPE; this model knows PER, LOC"):
        model.predict([TEXT], types=["GPE"])


def test_a_head_of_spans_is_asked_in_the_same_ways(models: dict[str, NerModel]) -> None:
    """A toy hardly sees from a first name alone that no second one follows, so what it finds is not spelled out."""
    model, sentences = models["spankl"], toy_sentences(40, seed=8)
    texts = [" ".join(sentence.words) for sentence in sentences]
    found = list(model.predict(texts, precision="fp32"))
    assert sum(map(len, found)) > 30
    assert all(0.0 < entity.score <= 1.0 for entities in found for entity in entities)
    for entities, spans, text in zip(found, predict_sentences(model, sentences, precision="fp32"), texts, strict=True):
        borders = split_words(text)
        assert [(e.start, e.end, e.type) for e in entities] == [
            (borders[span.start][0], borders[span.end - 1][1], span.type) for span in spans
        ]
    for entities, places in zip(found, model.predict(texts, types=["LOC"], precision="fp32"), strict=True):
        assert {entity.type for entity in places} <= {"LOC"}
        assert all(any(p.start < e.end and e.start < p.end for p in places) for e in entities if e.type == "LOC")
    kept = list(model.predict(texts, min_score=0.9, precision="fp32"))
    assert kept == [[entity for entity in entities if entity.score >= 0.9] for entities in found]
    assert kept != found


def test_addner_modules_that_are_not_asked_do_not_matter(models: dict[str, NerModel], folder: Path) -> None:
    """Asking for the types of one step gives what the model of that step alone says."""
    both = models["addner"]
    alone = tiny_model(folder, "addner", steps=[["PER"]])
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if not k.startswith("head.blocks.1")})
    alone.head.temperatures = both.head.temperatures[:1]
    texts = [" ".join(sentence.words) for sentence in toy_sentences(30, seed=9)]
    assert list(both.predict(texts, types=["PER"])) == list(alone.predict(texts))


# --- odd texts


@EVERY
@pytest.mark.parametrize("text", ["", " ", "\n\t \n", "\u200b\u200d\ufeff", "\x00\x08"])
def test_a_text_that_shows_nothing_has_no_entities(models: dict[str, NerModel], head: str, text: str) -> None:
    assert models[head].predict(text) == []
    assert list(models[head].predict([text, TEXT, text])) == [[], models[head].predict(TEXT), []]


@EVERY
@pytest.mark.parametrize("word", ["a" * 100_000, "\u0301" * 50_000, "7" * 101])
def test_a_huge_word_is_one_unknown_word(models: dict[str, NerModel], head: str, word: str) -> None:
    short, long = (f"Ada met Bob and {unknown} in Rome ." for unknown in ("é", word))
    found = models[head].predict(long, precision="fp32")
    assert all(long[e.start : e.end] == e.text for e in found)
    shift = len(word) - 1
    expected = [
        (e.start + shift * (e.start > 16), e.end + shift * (e.end > 16), e.type, e.score)
        for e in models[head].predict(short, precision="fp32")
    ]
    assert [(e.start, e.end, e.type, e.score) for e in found] == expected
    assert expected


def test_scoring_many_spans_of_a_long_document_takes_little_memory() -> None:
    """A table of spans by words would take 800 MB here."""
    log_probs = torch.randn(1, 10_000, 3).log_softmax(-1)
    places = torch.arange(10_000)
    spans = torch.stack([torch.zeros_like(places), places, places + 1, torch.zeros_like(places)], dim=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = span_log_probability(log_probs, torch.ones(1, 10_000, dtype=torch.bool), spans)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert (scores < 0).all()


# --- batches and windows


@EVERY
@pytest.mark.parametrize("batch_tokens", [16, 100, 4096])
def test_logits_do_not_depend_on_the_batch(
    models: dict[str, NerModel], head: str, batch_tokens: int, folder: Path
) -> None:
    """Sentences that fit and sentences in several windows, in one list."""
    model = rebuilt(models[head], folder, max_pieces=14, window_overlap=4)
    sentences = [*toy_sentences(30, seed=5), *SENTENCES, Sentence(()), Sentence(("the", "Ada") * 20)]
    assert len(model.encode(sentences)) > len(sentences)
    together = sentence_logits(model, sentences, batch_tokens=batch_tokens)
    for sentence, found in zip(sentences, together, strict=True):
        [alone] = sentence_logits(model, [sentence])
        assert len(found) == len(sentence.words)
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


@EVERY
def test_a_sentence_that_fits_does_not_feel_the_window(models: dict[str, NerModel], head: str, folder: Path) -> None:
    sentences = list(toy_sentences(20, seed=6))
    wide = sentence_logits(rebuilt(models[head], folder, max_pieces=512, window_overlap=64), sentences)
    tight = sentence_logits(rebuilt(models[head], folder, max_pieces=64, window_overlap=16), sentences)
    assert all(torch.equal(one, other) for one, other in zip(wide, tight, strict=True))


@EVERY
@pytest.mark.parametrize(("max_pieces", "overlap"), [(8, 0), (12, 5), (30, 10), (64, 31)])
def test_windows_join_to_the_whole_where_context_plays_no_part(
    models: dict[str, NerModel], head: str, max_pieces: int, overlap: int, folder: Path
) -> None:
    """Without attention and positions a word's logits depend on its first piece only: any misplaced word would show."""
    whole = rebuilt(models[head], folder, max_pieces=512, window_overlap=64)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "attention.output.dense" in name or "position_embeddings" in name:
                parameter.zero_()
    windowed = rebuilt(whole, folder, max_pieces=max_pieces, window_overlap=overlap)
    # Every fifth word has many pieces, so that windows are of unequal length and are not read in their order.
    words = [
        word * (1 if number % 5 else 1 + number % 3)
        for number, word in enumerate(word for sentence in toy_sentences(30, seed=7) for word in sentence.words)
    ]
    document = [Sentence(tuple(words[:150])), Sentence(tuple(words[150:160]))]
    assert len(whole.encode(document)) == 2
    assert len(windowed.encode(document)) > 5
    for one, other in zip(sentence_logits(whole, document), sentence_logits(windowed, document), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert predict_sentences(whole, document) == predict_sentences(windowed, document)


@EVERY
def test_a_long_document_reads_in_windows_much_as_it_does_whole(
    models: dict[str, NerModel], head: str, folder: Path
) -> None:
    """Less context changes what a toy model says of 5 words in 100, at most; positions it never saw are left out."""
    whole = rebuilt(models[head], folder, max_pieces=128, window_overlap=32)
    with torch.no_grad():
        whole.encoder.backbone.embeddings.position_embeddings.weight.zero_()
    windowed = rebuilt(whole, folder, max_pieces=66, window_overlap=32)
    words = [word for sentence in toy_sentences(14, seed=7) for word in sentence.words][:100]
    document = [Sentence(tuple(words))]
    assert (len(whole.encode(document)), len(windowed.encode(document))) == (1, 3)
    spans = [predict_sentences(model, document, precision="fp32")[0] for model in (whole, windowed)]
    tags, same = (whole.tagset.encode(found, 100) for found in spans)
    assert sum(tag > 0 for tag in tags) > 10
    assert sum(tag != other for tag, other in zip(tags, same, strict=True)) <= 5


# --- sentences


@BOTH
def test_scored_spans_are_the_predicted_spans(models: dict[str, NerModel], head: str) -> None:
    model = models[head]
    sentences = [*toy_sentences(25, seed=11), Sentence(()), *SENTENCES]
    spans = predict_sentences(model, sentences, precision="fp32")
    scored = score_sentences(model, sentences, precision="fp32")
    assert [[item.span for item in row] for row in scored] == spans
    assert all(0 <= item.score <= 1 for row in scored for item in row)
    assert spans[25] == []
    assert spans[26] == [Span(0, 2, "PER"), Span(3, 4, "LOC")]
    assert predict_sentences(model, []) == []


def test_predicting_leaves_the_mode_of_the_model_alone(models: dict[str, NerModel]) -> None:
    model = models["extendner"]
    before = model.predict(TEXT, precision="fp32")
    model.train()
    assert model.predict(TEXT, precision="fp32") == before  # dropout is off meanwhile
    assert model.training
    model.eval()
    assert model.predict(TEXT, precision="fp32") == before
    assert not model.training


def test_predictions_carry_no_graph(models: dict[str, NerModel]) -> None:
    model = models["addner"]
    for _, emissions in emissions_of(model, model.encode(SENTENCES)):
        assert not any(block.requires_grad for block in emissions.blocks)


# --- what is asked


_WRONG = """
import sys, ner_cl
model = ner_cl.load(sys.argv[1])
for texts, options in (
    (["Ada"], {"precision": "fp8"}),
    (["Ada"], {"batch_tokens": 0}),
    (["Ada"], {"min_score": float("nan")}),
    (["Ada"], {"min_score": "0.5"}),
    (["Ada"], {"min_score": 50}),
    (None, {}),
    (b"Ada", {}),
    ({"text": "Ada"}, {}),
    (["Ada", None], {}),
):
    try:
        found = model.predict(texts, **options)
        if None in texts:
            list(found)
    except ner_cl.ConfigError as error:
        print(error)
for call in (
    lambda: ner_cl.load(None),
    lambda: ner_cl.learn(model, None, types=["DRUG"]),
    lambda: ner_cl.score(model, 5),
):
    try:
        call()
    except ner_cl.NerClError as error:
        print(error)
"""


@pytest.mark.slow
def test_what_cannot_be_read_is_refused_at_once(models: dict[str, NerModel], tmp_path: Path) -> None:
    """In a process whose types nobody checks, as those of users are."""
    models["addner"].save(tmp_path / "model")
    command = [sys.executable, "-c", _WRONG, str(tmp_path / "model")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.splitlines() == [
        "precision: 'fp8' is unknown; choose auto, fp32, bf16",
        "batch_tokens: 0 is not a whole number from 1 upward, or None",
        "min_score: nan is not a number from 0 to 1",
        "min_score: '0.5' is not a number from 0 to 1",
        "min_score: 50 is not a number from 0 to 1",
        "texts: expected a text or texts, not NoneType",
        "texts: expected a text or texts, not bytes",
        "texts: expected a text or texts, not dict",
        "texts: item 1 is of NoneType, not a text, a list of words or a Sentence",
        "a model is loaded by its folder, not by a value of type NoneType; name one",
        "the data are of type NoneType; name a file, or give a list or a data set",
        "the data are of type int; name a file, or give a list or a data set",
    ]


@EVERY
def test_words_are_read_as_given(models: dict[str, NerModel], head: str) -> None:
    """As evaluation reads them; a text is cut by the project's own rule."""
    model = models[head]
    words = ("the", "re-port", "met", "Ada", "Smith", "near", "Rome", ".")
    text = "the re-port met  Ada Smith near Rome."
    starts = [text.index(word) for word in words[:-1]] + [len(text) - 1]
    placed = Sentence(words, text=text, offsets=tuple((s, s + len(w)) for s, w in zip(starts, words, strict=True)))
    found = model.predict(placed)
    [spans] = predict_sentences(model, [placed])
    places = placed.offsets or ()
    assert spans
    assert [(e.start, e.end, e.type) for e in found] == [
        (places[span.start][0], places[span.end - 1][1], span.type) for span in spans
    ]
    assert [e.text for e in found] == [text[e.start : e.end] for e in found]
    alone, listed, same = model.predict([Sentence(words), list(words), " ".join(words)])
    joined = " ".join(words)
    assert alone == listed
    assert [(e.type, joined[e.start : e.end].replace(" ", "")) for e in alone] == [
        (span.type, "".join(words[span.start : span.end])) for span in spans
    ]
    single = model.predict(joined)
    assert [replace(e, score=0.0) for e in same] == [replace(e, score=0.0) for e in single]
    assert [e.score for e in same] == pytest.approx([e.score for e in single])  # batches differ in their last bits
    assert [e.score for e in alone] == pytest.approx([e.score for e in found])


@EVERY
def test_lines_are_read_one_by_one(models: dict[str, NerModel], head: str) -> None:
    """Names in a list are no single name, and what is found in a line does not depend on the others."""
    model = models[head]
    lines = ["Ada Smith", "", *(" ".join((*sentence.words, ".")) for sentence in toy_sentences(12, seed=5))]
    text = "\r\n".join(lines)
    alone = [entity for line in lines for entity in model.predict(line)]
    found = model.predict(text)
    assert [(entity.type, entity.text) for entity in found] == [(entity.type, entity.text) for entity in alone]
    assert [entity.score for entity in found] == pytest.approx([entity.score for entity in alone], abs=0.01)
    assert [text[entity.start : entity.end] for entity in found] == [entity.text for entity in found]
    assert len(found) >= 4
