"""Convert words with tag strings to drafts; shared by all formats that use tags."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ner_cl.data.readers.base import Draft, ReadReport
from ner_cl.data.schemes import TagTable, spans_of_tags

__all__ = ["TaggedSentence", "drafts_of_tagged"]


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """Words with one tag string each.

    Attributes:
        words: the words.
        tags: the tags, as written.
        lines: the line of each word.
        annotated_types: the types the file declares for this sentence, or None without a declaration.
    """

    words: Sequence[str]
    tags: Sequence[str]
    lines: Sequence[int]
    annotated_types: frozenset[str] | None = None


def drafts_of_tagged(items: Iterable[TaggedSentence | Draft], scheme: str, report: ReadReport) -> list[Draft]:
    """Read all tags of a file in one scheme; drafts pass through, and an unreadable tag refuses its sentence."""
    items = list(items)
    tagged = [item for item in items if isinstance(item, TaggedSentence)]
    if not tagged:
        return [item for item in items if isinstance(item, Draft)]
    table = TagTable.of((sentence.tags for sentence in tagged), scheme)
    report.scheme = table.scheme
    drafts = (item if isinstance(item, Draft) else _draft(item, table, report) for item in items)
    return [draft for draft in drafts if draft is not None]


def _draft(sentence: TaggedSentence, table: TagTable, report: ReadReport) -> Draft | None:
    wrong = [(line, tag) for line, tag in zip(sentence.lines, sentence.tags, strict=True) if tag in table.refused]
    for line, tag in wrong:
        report.refuse(line, table.refused[tag])
    if wrong:
        return None
    spans, faults = spans_of_tags([table.tags[tag] for tag in sentence.tags], table.scheme)
    for word, what in faults:
        report.repaired(what, sentence.lines[word])
    return Draft(tuple(sentence.words), tuple(spans), sentence.annotated_types, sentence.lines[0])
