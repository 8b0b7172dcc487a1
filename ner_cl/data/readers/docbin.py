"""spaCy's `DocBin` files (`.spacy`)."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, final

from ner_cl.data.readers.base import Draft, Reader, ReadOptions, ReadReport, read_bytes
from ner_cl.data.readers.records import RecordError, check_declared, declared_types
from ner_cl.errors import DataError, first_line
from ner_cl.registry import readers
from ner_cl.types import Span

__all__ = ["ANNOTATED_TYPES", "SPAN_GROUP", "DocBinReader", "drafts_of_doc"]

# spaCy takes a second to import, so it is imported only where it is used.
Doc: TypeAlias = Any
DocSpan: TypeAlias = Any

ANNOTATED_TYPES = "annotated_types"
"""Key of `Doc.user_data` that holds the annotated types."""

SPAN_GROUP = "sc"
"""Key of `Doc.spans` for overlapping spans; spaCy's own span categoriser uses it too."""


@readers.register("docbin")
@final
class DocBinReader(Reader):
    """Reads `doc.ents` and `doc.spans["sc"]`, sentence by sentence where sentence starts are set.

    A token whose entity is unset (`ent_iob == 0`) is unknown, not `O`: a sentence with such a token counts as annotated
    for no type, and its spans are left out and counted, unless annotated types are given. If a document has a span
    group and no token with a set entity, the span group is its annotation. Whitespace tokens are not words.
    """

    suffixes = (".spacy",)

    def read(self, path: str, options: ReadOptions, report: ReadReport) -> list[Draft]:
        """Read the sentences of a DocBin; see `Reader.read`. Line numbers count documents."""
        return [draft for number, doc in _docs(path) for draft in drafts_of_doc(doc, number, report)]


def _docs(path: str) -> Iterator[tuple[int, Doc]]:
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    data = read_bytes(path)
    try:
        yield from enumerate(DocBin(store_user_data=True).from_bytes(data).get_docs(Vocab()), start=1)
    except Exception as error:  # spaCy, msgpack and zlib raise a dozen unrelated exceptions on foreign files
        raise DataError(
            f"{path}: is not a spaCy DocBin ({first_line(error)}); name the format if it is another one"
        ) from error


def drafts_of_doc(doc: Doc, number: int, report: ReadReport) -> Iterator[Draft]:
    """Yield the sentences of a document; without sentence starts it is a single sentence.

    Args:
        doc: a document with `ents`, a span group `sc`, or both.
        number: number of the document, from 1, used as its line number.
        report: receives repairs and problems.
    """
    group = doc.spans.get(SPAN_GROUP, ())
    found = sorted([*doc.ents, *group], key=lambda span: span.start)
    unset_is_unknown = doc.has_annotation("ENT_IOB") or SPAN_GROUP not in doc.spans
    starts = [span.start for span in found]
    for start, end in _sentence_borders(doc, found, number, report):
        # No span crosses a sentence boundary, so the spans that start in the sentence lie entirely in it.
        spans = found[bisect_left(starts, start) : bisect_left(starts, end)]
        draft = _draft(doc[start:end], spans, number, report, unset_is_unknown=unset_is_unknown)
        if draft is not None:
            yield draft


def _sentence_borders(doc: Doc, spans: Sequence[DocSpan], number: int, report: ReadReport) -> Iterator[tuple[int, int]]:
    """Yield the token ranges of the sentences; a boundary inside a span is ignored."""
    if not doc.has_annotation("SENT_START"):
        yield 0, len(doc)
        return
    inside = {token for span in spans for token in range(span.start + 1, span.end)}
    start = 0
    for sentence in doc.sents:
        if sentence.end in inside:
            report.repaired("sentence border inside a span passed over", number)
            continue
        yield start, sentence.end
        start = sentence.end


def _draft(
    sentence: DocSpan, spans: Sequence[DocSpan], number: int, report: ReadReport, *, unset_is_unknown: bool
) -> Draft | None:
    tokens = [token for token in sentence if not token.text.isspace()]
    if not tokens:
        report.repaired("text without a word skipped", number)
        return None
    place = {token.i: index for index, token in enumerate(tokens)}
    aligned: list[Span] = []
    for span in spans:
        words = [place[index] for index in range(span.start, span.end) if index in place]
        if not words or not span.label_:
            fault = "covers whitespace only" if not words else "has no label"
            report.refuse(number, f"span {span.start_char}..{span.end_char} {span.text!r} {fault}; correct it")
            return None
        aligned.append(Span(words[0], words[-1] + 1, span.label_))
    try:
        declared = declared_types(sentence.doc.user_data.get(ANNOTATED_TYPES))
        check_declared(aligned, declared)
    except RecordError as error:
        report.refuse(number, str(error))
        return None
    return Draft(
        words=tuple(token.text for token in tokens),
        spans=tuple(aligned),
        annotated_types=declared,
        line=number,
        text=sentence.text,
        offsets=tuple(
            (token.idx - sentence.start_char, token.idx - sentence.start_char + len(token)) for token in tokens
        ),
        incomplete=unset_is_unknown and declared is None and any(token.ent_iob == 0 for token in tokens),
    )
