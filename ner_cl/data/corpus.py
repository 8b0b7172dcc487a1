"""A corpus as a configuration names it: three files, read, with one set of types over all of them."""

from pathlib import Path

from ner_cl.config import CorpusOptions
from ner_cl.data.readers import read_sentences
from ner_cl.data.stream import Corpus
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["load_corpus"]


def load_corpus(options: CorpusOptions, *, name: str = "corpus") -> Corpus:
    """Reads train, dev and test; every sentence is annotated for every type that any part mentions.

    A part that happens to lack a type was still annotated for it: the parts of a corpus share one scheme. Sentences
    that say themselves which types they are annotated for (JSONL) keep what they say.

    Raises:
        DataError: if a file is missing or malformed, naming file and line, or is empty.
    """
    parts = {part: _read(getattr(options, part), options) for part in ("train", "dev", "test")}
    types = {span.type for sentences in parts.values() for sentence in sentences for span in sentence.spans}
    for path in (options.train, options.dev, options.test):
        if path is not None and not _says_types(path, options.format):
            part = next(key for key in parts if getattr(options, key) == path)
            parts[part] = tuple(s.with_spans(s.spans, types) for s in parts[part])
    return Corpus(parts["train"], parts["dev"], parts["test"], name=name)


def _read(path: str | None, options: CorpusOptions) -> tuple[Sentence, ...]:
    if path is None:
        return ()
    if not Path(path).is_file() and options.format != "hub" and "#" not in path:
        raise DataError(
            f"{path}: no such file; set NER_CL_DATA to the folder of your corpora, or give paths with --set"
        )
    sentences = read_sentences(
        path, format=options.format, scheme=options.scheme, on_overlap=options.on_overlap, alignment=options.alignment
    )
    return tuple(sentences)


def _says_types(path: str, format_: str) -> bool:
    return format_ == "jsonl" or (format_ == "auto" and Path(path).suffix in (".jsonl", ".json"))
