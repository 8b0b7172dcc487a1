"""Turn a reader's drafts into sentences: settle repeated spans, overlaps and annotated types."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ner_cl.data.readers.base import Draft, ReadReport
from ner_cl.errors import DataError
from ner_cl.registry import nearest
from ner_cl.types import Sentence, Span

__all__ = ["assemble", "first_overlap", "longest_spans"]


def assemble(
    drafts: Iterable[Draft],
    report: ReadReport,
    *,
    types: Collection[str] | None,
    on_overlap: str,
    explicit_types: bool = False,
) -> list[Sentence]:
    """Settle the spans and annotated types of a whole file.

    A sentence is annotated for the types the file declares for it, else for `types`, else for all types found in the
    file. If both are given, it is annotated for the types that both name. Spans of types not in `types` are left out.
    A sentence with unannotated words is annotated for no type unless `types` is given.

    Raises:
        DataError: if spans overlap and `on_overlap` is "error", if no sentence is left, if the file knows none of
            `types`, or if it lacks a declaration that `explicit_types` requires. A tolerant report collects these
            problems instead, except for unknown `types`.
    """
    settled = [draft for draft in (_settle(draft, report, on_overlap) for draft in drafts) if draft is not None]
    if not settled:
        if not report.problems:
            report.refuse(0, "holds no sentence; name a file with annotated sentences")
        return []
    found = frozenset(span.type for draft in settled for span in draft.spans)
    report.declares_types = any(draft.annotated_types is not None for draft in settled)
    report.incomplete = frozenset(index for index, draft in enumerate(settled) if draft.incomplete)
    if explicit_types:
        _check_explicit(settled, found, report)
    if types is not None:
        _check_known(types, found.union(*(draft.annotated_types or () for draft in settled)), report)
    return [_sentence(draft, report, found, types) for draft in settled]


def longest_spans(spans: Iterable[Span]) -> list[Span]:
    """Drop overlapping spans, keeping the longest and, among equally long ones, the first; sorted by position."""
    kept: list[Span] = []
    taken: set[int] = set()
    for span in sorted(spans, key=lambda span: (span.start - span.end, span)):
        words = range(span.start, span.end)
        if taken.isdisjoint(words):
            taken.update(words)
            kept.append(span)
    return sorted(kept)


def first_overlap(spans: Sequence[Span]) -> tuple[Span, Span] | None:
    """Return the first two of the sorted `spans` that share a word, or None."""
    furthest: Span | None = None
    for span in spans:
        if furthest is not None and span.start < furthest.end:
            return furthest, span
        furthest = span
    return None


def _settle(draft: Draft, report: ReadReport, on_overlap: str) -> Draft | None:
    """Remove repeated spans and handle overlaps as `on_overlap` says; None if the draft is refused."""
    spans = sorted(set(draft.spans))
    for _ in range(len(draft.spans) - len(spans)):
        report.repaired("span given twice kept once", draft.line)
    clash = first_overlap(spans)
    if clash is not None and on_overlap == "error":
        first, second = (f"{' '.join(draft.words[span.start : span.end])!r} {span.type}" for span in clash)
        report.refuse(
            draft.line,
            f"spans overlap: {first} and {second}; correct them, or read with on_overlap (--on-overlap) longest, or "
            "keep for head spankl",
            kind="overlap",
        )
        return None
    if clash is not None and on_overlap == "longest":
        kept = longest_spans(spans)
        for _ in range(len(spans) - len(kept)):
            report.repaired("overlapping span dropped, a longer one kept", draft.line)
        spans = kept
    elif clash is not None:
        report.repaired("overlapping spans kept", draft.line)
    return replace(draft, spans=tuple(spans))


def _check_known(types: Collection[str], known: Collection[str], report: ReadReport) -> None:
    """Raise DataError if the file knows other types but none of `types`, which is most likely a misspelling."""
    if known and types and not set(types) & set(known):
        hint = "".join(nearest(type_, known) for type_ in sorted(types))
        wanted, present = ", ".join(sorted(types)), ", ".join(sorted(known))
        raise DataError(f"{report.path}: knows none of the types {wanted}{hint}; it has {present}")


def _check_explicit(drafts: Sequence[Draft], found: frozenset[str], report: ReadReport) -> None:
    """Refuse sentences without declared types in a file that knows several types."""
    known = found.union(*(draft.annotated_types or () for draft in drafts))
    if len(known) < 2:
        return
    for draft in drafts:
        if draft.annotated_types is None:
            report.refuse(
                draft.line,
                f"does not say for which of {', '.join(sorted(known))} it is annotated; if for all, `ner-cl data "
                "convert` writes a file that says so; else say annotated_types on each line (JSONL)",
            )


def _sentence(draft: Draft, report: ReadReport, found: frozenset[str], types: Collection[str] | None) -> Sentence:
    declared = draft.annotated_types
    wanted = found if types is None else frozenset(types)
    annotated = wanted if declared is None else declared if types is None else declared & wanted
    reason = "span of a type that was not asked for left out"
    if draft.incomplete and types is None:
        annotated, reason = frozenset[str](), "span in a sentence with unannotated words left out"
    spans = tuple(span for span in draft.spans if span.type in annotated)
    for _ in range(len(draft.spans) - len(spans)):
        report.repaired(reason, draft.line)
    return Sentence(draft.words, spans, annotated, draft.text, draft.offsets, report.source(draft.line))
