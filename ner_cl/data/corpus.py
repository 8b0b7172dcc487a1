"""A corpus as a configuration names it: three files, read, with one set of types over all of them."""

from pathlib import Path

from ner_cl.config import CorpusOptions
from ner_cl.data.readers import ReadReport, read_with_report
from ner_cl.data.stream import Corpus
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["load_corpus"]


def load_corpus(options: CorpusOptions, *, name: str = "corpus") -> Corpus:
    """Reads train, dev and test; every sentence is annotated for every type that any part mentions.

    A part that happens to lack a type was still annotated for it: the parts of a corpus share one scheme. A file that
    says itself which types its sentences are annotated for (JSONL) is taken at its word. A sentence with words that
    nobody annotated (DocBin) stays annotated for nothing.

    Raises:
        DataError: if a file is missing or malformed, naming file and line, or is empty.
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
    """The words of the raw text, without any annotation."""
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
