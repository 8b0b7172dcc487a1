"""A tiny trained model and pipelines around it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.util import get_words_and_spaces
from spacy.vocab import Vocab

from ner_cl.types import Sentence
from tests.tiny import toy_sentences, trained_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned PER, then LOC."""
    folder = tmp_path_factory.mktemp("spacy")
    trained_model(folder / "encoder").save(folder / "model")
    return folder / "model"


@pytest.fixture
def pipeline(model_folder: Path) -> Callable[..., Language]:
    """Builds a blank English pipeline with the component."""

    def build(**options: Any) -> Language:
        nlp = spacy.blank("en")
        nlp.add_pipe("ner_cl", config={"model": str(model_folder), "precision": "fp32", **options})
        return nlp

    return build


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts with mentions, of different lengths."""
    return [" ".join(sentence.words) for sentence in toy_sentences(30, seed=7, types=("PER", "LOC"))]


@pytest.fixture(scope="session")
def gold_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DocBin with gold entities."""
    path = tmp_path_factory.mktemp("gold") / "gold.spacy"
    vocab = Vocab()
    docs = [gold_doc(sentence, vocab) for sentence in toy_sentences(20, seed=8, types=("PER", "LOC"))]
    DocBin(docs=docs).to_disk(path)
    return path


def gold_doc(sentence: Sentence, vocab: Vocab) -> Doc:
    """A document annotated throughout."""
    words, spaces = get_words_and_spaces(list(sentence.words), " ".join(sentence.words))
    doc = Doc(vocab, words=words, spaces=spaces)
    doc.ents = [spacy.tokens.Span(doc, span.start, span.end, span.type) for span in sentence.spans]
    return doc


class Score(float):
    """A probability; batches of another shape change its last digits."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-4

    __hash__ = None  # type: ignore[assignment]


def entities(doc: Doc) -> list[tuple[int, int, str, Score]]:
    """Everything that was found."""
    return [(e.start_char, e.end_char, e.label_, Score(e._.score)) for e in doc.ents]
