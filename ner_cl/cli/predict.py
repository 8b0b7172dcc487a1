"""`ner-cl predict`: find entities in text."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ner_cl.cli.options import Types, names
from ner_cl.data.documents import Document, read_documents
from ner_cl.errors import ConfigError
from ner_cl.files import replace_file

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.types import Entity, Sentence

__all__ = ["predict"]

_FORMATS = ("jsonl", "conll", "docbin")


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="[FILE|-]", help="Text with one document per line, or JSON lines with text.", show_default=False
        ),
    ] = "-",
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write to FILE, not stdout.")] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Output format: jsonl, conll or docbin; only jsonl holds scores.")
    ] = "jsonl",
    min_score: Annotated[
        float, typer.Option("--min-score", min=0.0, max=1.0, help="Leave out entities whose score is below this.")
    ] = 0.0,
    types: Types = None,
    nested: Annotated[
        bool, typer.Option("--nested", help="Let entities overlap: of different steps (head addner), or any (spankl).")
    ] = False,
) -> None:
    """Find entities in text.

    Each input line is a document, even if it is blank, and gives one output record.

    A JSONL record holds text, spans (start and end in code points, label, score, step), and id and meta of the input. A
    DocBin with scores and steps is written by `spacy apply` with an exported pipeline.
    """
    from ner_cl.model.store import load_model

    _check(source, output, format_, nested=nested)
    tagger = load_model(model, device="auto")
    asked = names(types)
    tagger.check_types(asked)
    documents, again = tee(read_documents(source))
    texts = (document.sentence for document in documents)
    found = tagger.predict(texts, types=asked, min_score=min_score, nested=nested)
    pairs = zip(again, found, strict=True)
    annotated = frozenset(asked or tagger.types)
    if format_ == "docbin":
        from ner_cl.data.writers import write_sentences

        assert output is not None
        write_sentences(output, [_sentence(*pair, annotated) for pair in pairs], format="docbin", empty=True)
        return
    from ner_cl.data.writers import columns

    with _opened(output) as file:
        for document, entities in pairs:
            if format_ == "jsonl":
                file.write(document.with_entities(entities))
            else:
                sentence = _sentence(document, entities, annotated)
                file.write(columns(sentence, "iob2", sentence.where).encode())


def _check(source: str, output: Path | None, format_: str, *, nested: bool) -> None:
    """Refuse formats that do not exist or do not fit."""
    from ner_cl.data.readers.conll import ConllReader
    from ner_cl.data.readers.docbin import DocBinReader
    from ner_cl.registry import nearest

    if format_ not in _FORMATS:
        raise ConfigError(f"--format {format_!r} is unknown{nearest(format_, _FORMATS)}; choose {', '.join(_FORMATS)}")
    if format_ == "docbin" and output is None:
        raise ConfigError("--format docbin is binary; name a file with --output")
    if format_ == "conll" and nested:
        raise ConfigError("--format conll has one tag a word and cannot say --nested; choose jsonl or docbin")
    if Path(source).suffix.lower() == ".conllu":
        raise ConfigError(
            f"{source}: is a file of analysed sentences, and predict reads texts; take these from it, for instance "
            "with: sed -n 's/^# text = //p'"
        )
    if Path(source).suffix.lower() in {*ConllReader.suffixes, *DocBinReader.suffixes}:
        raise ConfigError(
            f"{source}: is a file of annotated sentences, and predict reads texts; make one of them with: "
            f"ner-cl data convert {source} {Path(source).with_suffix('.jsonl').name}"
        )


@contextmanager
def _opened(output: Path | None) -> "Iterator[BinaryIO]":
    if output is not None:
        with replace_file(output) as file:
            yield file
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


def _sentence(document: Document, entities: "Sequence[Entity]", annotated: frozenset[str]) -> "Sentence":
    """Convert a document's entities to spans of its words."""
    from ner_cl.types import Span

    sentence = document.sentence
    starts = {start: index for index, (start, _) in enumerate(sentence.offsets or ())}
    ends = {end: index + 1 for index, (_, end) in enumerate(sentence.offsets or ())}
    return sentence.with_spans((Span(starts[e.start], ends[e.end], e.type) for e in entities), annotated)
