"""Load the corpus that a configuration names: its files, with one set of entity types for all of them."""

from collections.abc import Collection, Sequence, Set
from pathlib import Path

from ner_cl.config import CorpusOptions
from ner_cl.data.readers import ReadReport, read_with_report
from ner_cl.data.stream import Corpus
from ner_cl.data.tally import count_mentions
from ner_cl.data.unlabeled import read_unlabeled
from ner_cl.errors import DataError
from ner_cl.types import Sentence

__all__ = ["load_corpus", "load_test"]


def load_corpus(options: CorpusOptions, *, name: str = "corpus", steps: Sequence[Sequence[str]] = ()) -> Corpus:
    """Read train, dev and test; every sentence counts as annotated for every type that any part mentions.

    The parts of a corpus share one annotation scheme, so a part that lacks a type was still annotated for it. Three
    exceptions: a file that declares the annotated types of its sentences (JSONL) keeps them, a sentence with
    unannotated words (DocBin) stays annotated for no type, and a file that belongs to one step is annotated for the
    step's types and those that it mentions.

    Args:
        options: the files and how to read them.
        name: name of the corpus in reports.
        steps: the types of each step, for a corpus with a file for each.

    Raises:
        DataError: if a file is missing, empty or malformed; names the file and, where possible, the line.
    """
    files: dict[tuple[str, str], set[str] | None] = {}  # (part, path): types of the steps whose file it is
    for part in ("train", "dev", "test"):
        match getattr(options, part):
            case str(path):
                files[part, path] = None
            case tuple(paths):
                for path, types in zip(paths, steps, strict=True):
                    files[part, path] = {*(files.get((part, path)) or ()), *types}
    read = {file: _read(file[1], options) for file in files}
    everything = set(count_mentions(sentence for sentences, _ in read.values() for sentence in sentences))
    parts: dict[str, list[Sentence]] = {"train": [], "dev": [], "test": []}
    indices: dict[tuple[str, str], tuple[int, ...]] = {}
    for file, (sentences, report) in read.items():
        so_far, own = parts[file[0]], files[file]
        annotated_types = everything if own is None else own | count_mentions(sentences).keys()
        indices[file] = tuple(range(len(so_far), len(so_far) + len(sentences)))
        so_far += _annotated(sentences, report, annotated_types)
    train, dev = (getattr(options, part) for part in ("train", "dev"))
    return Corpus(
        tuple(parts["train"]),
        tuple(parts["dev"]),
        tuple(parts["test"]),
        name=name,
        unlabeled=_raw(options),
        slices=tuple(indices["train", path] for path in train) if isinstance(train, tuple) else (),
        dev_slices=tuple(indices["dev", path] for path in dev) if isinstance(dev, tuple) else (),
    )


def load_test(options: CorpusOptions, types: Collection[str]) -> tuple[Sentence, ...]:
    """Read the test sentences of a corpus for some of its types; its other files need not be there any more.

    Raises:
        DataError: if the file is missing, empty or malformed.
    """
    sentences, report = _read(options.test, options)
    return tuple(sentence.restrict(types) for sentence in _annotated(sentences, report, frozenset(types)))


def _annotated(sentences: Sequence[Sentence], report: ReadReport, types: Set[str]) -> list[Sentence]:
    """Counts sentences as annotated for some types, unless their file says what they are annotated for."""
    return [
        sentence if report.declares_types or index in report.incomplete else sentence.with_spans(sentence.spans, types)
        for index, sentence in enumerate(sentences)
    ]


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
