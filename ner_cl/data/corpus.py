"""Load the corpus that a configuration names: its files, with one set of entity types for all of them."""

from pathlib import Path

from ner_cl.config import CorpusOptions
from ner_cl.data.readers import ReadReport, read_with_report
from ner_cl.data.stream import Corpus
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["load_corpus"]


def load_corpus(options: CorpusOptions, *, name: str = "corpus") -> Corpus:
    """Read train, dev and test; every sentence counts as annotated for every type that any part mentions.

    The parts of a corpus share one annotation scheme, so a part that lacks a type was still annotated for it. Two
    exceptions: a file that declares the annotated types of its sentences (JSONL) keeps them, and a sentence with
    unannotated words (DocBin) stays annotated for no type.

    Raises:
        DataError: if a file is missing, empty or malformed; names the file and, where possible, the line.
    """
    files = {part: path for part in ("train", "dev", "test") if (path := getattr(options, part)) is not None}
    read = {part: _read(path, options) for part, path in files.items()}
    types = {span.type for sentences, _ in read.values() for sentence in sentences for span in sentence.spans}
    parts = {
        part: tuple(
            sentence
            if report.declares_types or index in report.incomplete
            else sentence.with_spans(sentence.spans, types)
            for index, sentence in enumerate(sentences)
        )
        for part, (sentences, report) in read.items()
    }
    return Corpus(parts["train"], parts.get("dev", ()), parts["test"], name=name, unlabeled=_raw(options))


def _raw(options: CorpusOptions) -> tuple[Sentence, ...]:
    """Read the raw text as sentences without annotation."""
    if options.unlabeled is None:
        return ()
    _check_there(options.unlabeled, options)
    return tuple(
        read_unlabeled(options.unlabeled, format=options.format, scheme=options.scheme, alignment=options.alignment)
    )


def _read(path: str, options: CorpusOptions) -> tuple[list[Sentence], ReadReport]:
    _check_there(path, options)
    return read_with_report(
        path, format=options.format, scheme=options.scheme, on_overlap=options.on_overlap, alignment=options.alignment
    )


def _check_there(path: str, options: CorpusOptions) -> None:
    if options.format != "hub" and "#" not in path and not Path(path).exists():
        raise DataError(f"{path}: no such file; set NER_CL_DATA to your folder of corpora, or give paths with --set")
