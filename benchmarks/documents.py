"""What a model finds in documents, as F1 relative to the same sentences read one by one.

    python -m benchmarks.documents MODEL [--data FILE] [--each N]

Sentences of the test set are joined into documents of N, in an order drawn at random so that each is about something
else, in several ways:
    lines         each sentence on a line of its own, as prediction reads them: line by line
    paragraph     all in one line, read in one go
    spacy         the same paragraph in spaCy, behind a `sentencizer`: sentence by sentence
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import spacy

import ner_cl
from ner_cl.data.draws import generator
from ner_cl.data.readers import read_sentences
from ner_cl.data.words import text_and_offsets
from ner_cl.model.ner_model import NerModel
from ner_cl.types import Sentence

DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart" / "test.jsonl"

Places: TypeAlias = set[tuple[int, int, str]]
Finder: TypeAlias = Callable[[str], Places]


def main() -> None:
    """Prints a line for every way to read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--each", type=int, default=10)
    flags = parser.parse_args()
    model = ner_cl.load(flags.model)
    sentences = read_sentences(flags.data)
    order = generator(0, "documents").permutation(len(sentences))
    sentences = [sentences[index].restrict(model.types) for index in order]
    print(f"{len(sentences)} sentences, {flags.each} a document; micro F1 × 100")
    for name, separator, each, find in (
        ("one by one", "\n", 1, _texts(model)),
        ("lines", "\n", flags.each, _texts(model)),
        ("paragraph", " ", flags.each, _texts(model)),
        ("spacy", " ", flags.each, _spacy(flags.model)),
    ):
        print(f"{name:<12}{100 * _f1(sentences, separator, each, find):5.1f}")


def _f1(sentences: Sequence[Sentence], separator: str, each: int, find: Finder) -> float:
    right = found = gold = 0
    for text, places in _documents(sentences, separator, each):
        said = find(text)
        right, found, gold = right + len(said & places), found + len(said), gold + len(places)
    return 2 * right / max(1, found + gold)


def _documents(sentences: Sequence[Sentence], separator: str, each: int) -> Iterator[tuple[str, Places]]:
    """Texts, and where their mentions are in them."""
    for first in range(0, len(sentences), each):
        document, places = "", set()
        for sentence in sentences[first : first + each]:
            text, offsets = text_and_offsets(sentence)
            for span in sentence.spans:
                begin, end = offsets[span.start][0], offsets[span.end - 1][1]
                places.add((len(document) + begin, len(document) + end, span.type))
            document += text + separator
        yield document, places


def _texts(model: NerModel) -> Finder:
    return lambda text: {(e.start, e.end, e.type) for e in model.predict(text)}


def _spacy(folder: Path) -> Finder:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("ner_cl", config={"model": str(folder)})
    return lambda text: {(e.start_char, e.end_char, e.label_) for e in nlp(text).ents}


if __name__ == "__main__":
    main()
