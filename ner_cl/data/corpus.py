"""A corpus as a configuration names it: three files, read, with one set of types over all of them."""

from pathlib import Path

from ner_cl.config import CorpusOptions
from ner_cl.data.readers import read_with_report
from ner_cl.data.stream import Corpus
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["load_corpus"]


def load_corpus(options: CorpusOptions, *, name: str = "corpus") -> Corpus:
    """Reads train, dev and test; every sentence is annotated for every type that any part mentions.

    A part that happens to lack a type was still annotated for it: the parts of a corpus share one scheme. A file that
    says itself which types its sentences are annotated for (JSONL) is taken at its word.

    Raises:
        DataError: if a file is missing or malformed, naming file and line, or is empty.
    """
    files = {part: path for part in ("train", "dev", "test") if (path := getattr(options, part)) is not None}
    read = {part: _read(path, options) for part, path in files.items()}
    types = {span.type for sentences, _ in read.values() for sentence in sentences for span in sentence.spans}
    parts = {
        part: tuple(sentences if declares_types else (s.with_spans(s.spans, types) for s in sentences))
        for part, (sentences, declares_types) in read.items()
    }
    return Corpus(parts["train"], parts.get("dev", ()), parts["test"], name=name, unlabeled=_raw(options))


def _raw(options: CorpusOptions) -> tuple[Sentence, ...]:
    """The words of the raw text, without any annotation."""
    path = options.unlabeled
    if path is None:
        return ()
    sentences = read_unlabeled(path) if path.endswith(".txt") else _read(path, options)[0]
    return tuple(Sentence(sentence.words) for sentence in sentences)


def _read(path: str, options: CorpusOptions) -> tuple[list[Sentence], bool]:
    """The sentences, and whether the file says which types they are annotated for."""
    if options.format != "hub" and "#" not in path and not Path(path).exists():
        raise DataError(f"{path}: no such file; set NER_CL_DATA to your folder of corpora, or give paths with --set")
    sentences, report = read_with_report(
        path, format=options.format, scheme=options.scheme, on_overlap=options.on_overlap, alignment=options.alignment
    )
    return sentences, report.declares_types
