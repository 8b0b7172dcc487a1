"""Check a corpus before training: what it contains, what was repaired, what is wrong."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

from ner_cl.data.readers import ReadReport, read_with_report
from ner_cl.data.tally import count_mentions
from ner_cl.data.words import cut_mentions
from ner_cl.errors import ConfigError, DataError
from ner_cl.types import Sentence

__all__ = ["CheckReport", "SplitCheck", "check"]

_LONG = 400
"""A sentence with more words than this is probably several sentences with missing separators."""


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """Contents of one file.

    Attributes:
        path: the file.
        format: the format it was read as.
        scheme: its tag scheme, or "".
        sentences: number of sentences that could be read.
        words: number of words in these sentences.
        mentions: entity type → number of spans, most frequent first.
        annotated_types: entity type → number of sentences annotated for it.
        longest: number of words in the longest sentence.
        longest_source: `file:line` of the longest sentence.
        problems: kind ("broken", "misaligned", "overlap") → number of problems.
        repairs: what was repaired or skipped → the affected lines.
        duplicates: number of sentences with the same words as an earlier one in the file.
        contradictions: number of duplicates whose annotation differs from that of the first occurrence.
        leaked: number of sentences whose words also occur in the first split (0 for the first split itself).
    """

    path: str
    format: str
    scheme: str
    sentences: int
    words: int
    mentions: Mapping[str, int]
    annotated_types: Mapping[str, int]
    longest: int
    longest_source: str
    problems: Mapping[str, int]
    repairs: Mapping[str, Sequence[int]]
    duplicates: int = 0
    contradictions: int = 0
    leaked: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of `check`.

    Attributes:
        splits: name of the split → its contents.
        problems: one line each; a corpus with any problem cannot be trained on as it is.
        notes: one line each; worth knowing, but no obstacle to training.
        count: number of problems, those that are not listed included.
    """

    splits: Mapping[str, SplitCheck]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    count: int

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-compatible values; each repair has its count and first lines."""
        splits: dict[str, Any] = {}
        for name, split in self.splits.items():
            values = {key: getattr(split, key) for key in SplitCheck.__slots__}
            for key in ("mentions", "annotated_types", "problems"):
                values[key] = dict(values[key])
            values["repairs"] = {
                what: {"count": len(lines), "first_lines": list(lines[:20])} for what, lines in split.repairs.items()
            }
            splits[name] = values
        return {"ok": self.ok, "problems": list(self.problems), "notes": list(self.notes), "splits": splits}


@dataclass(slots=True)
class _Findings:
    """Problems and notes collected so far, with at most `listed` entries per kind and split."""

    listed: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    count: int = 0

    def places(self, lines: Sequence[str]) -> str:
        """List the first lines and say how many more there are."""
        more = len(lines) - self.listed
        return f"line {', '.join(lines[: self.listed])}" + (f" and {more} more" if more > 0 else "")


def check(
    paths: Mapping[str, str | PathLike[str]],
    *,
    format: str = "auto",  # noqa: A002  the word users know
    scheme: str = "auto",
    types: Collection[str] | None = None,
    on_overlap: str = "error",
    alignment: str = "error",
    listed: int = 10,
) -> CheckReport:
    """Read every split of a corpus in full and report its contents and problems.

    Broken lines, spans that cut a word and overlapping spans are problems, unless `alignment` and `on_overlap` say how
    to handle the spans. Repairs, repeated sentences, sentences of the first split that recur in another one, and
    entity types that the first split lacks are notes.

    Args:
        paths: name of each split → its file; the training split first.
        format, scheme, types, on_overlap, alignment: for every file, as in `read_sentences`.
        listed: how many problems of one kind are listed per split; the rest are only counted.

    Raises:
        ConfigError: if `paths` is empty, or for an unknown format, scheme or option. A file that cannot be opened does
            not raise; it is reported as a problem.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "train.conll")
        >>> _ = path.write_text("Ada\\tB-PER\\n\\nBob\\n")
        >>> report = check({"train": path})
        >>> report.ok, report.splits["train"].sentences, report.problems[0].split("train.conll")[1]
        (False, 1, ":3: has no tag after the word 'Bob'; add it (O outside every entity)")
    """
    if not paths:
        raise ConfigError("no file to check; name at least one")
    found = _Findings(listed)
    options = {"format": format, "scheme": scheme, "types": types, "on_overlap": on_overlap, "alignment": alignment}
    splits: dict[str, SplitCheck] = {}
    first: dict[tuple[str, ...], Sentence] = {}
    for name, path in paths.items():
        sentences, report = _read(fspath(path), found, **options)
        seen, duplicates, contradictions = _repeated(sentences)
        leaked = [sentence for sentence in sentences if sentence.words in first]
        split = _split_check(sentences, report, len(duplicates), len(contradictions), len(leaked))
        found.notes += _notes(name, split, duplicates, contradictions, found)
        if cut := cut_mentions(sentences):
            found.notes.append(f"{name}: {cut}")
        found.notes += _notes_across(name, next(iter(paths)), split, splits, leaked, first, found)
        first = first if splits else seen
        splits[name] = split
    return CheckReport(splits, tuple(found.problems), tuple(found.notes), found.count)


def _read(path: str, found: _Findings, **options: Any) -> tuple[list[Sentence], ReadReport]:
    """Read a file tolerantly and record its problems, up to the limit for each kind."""
    try:
        sentences, report = read_with_report(path, tolerant=True, **options)
    except DataError as error:
        found.problems.append(str(error))
        found.count += 1
        return [], ReadReport(path, tolerant=True)
    for kind, count in Counter(problem.kind for problem in report.problems).items():
        messages = [problem.message for problem in report.problems if problem.kind == kind]
        found.problems += messages[: found.listed]
        found.count += count
        if count > found.listed:
            found.problems.append(f"{path}: {count - found.listed} more like these ({kind})")
    return sentences, report


def _repeated(
    sentences: Sequence[Sentence],
) -> tuple[dict[tuple[str, ...], Sentence], list[Sentence], list[tuple[Sentence, Sentence]]]:
    """Return the first sentence of each word sequence, the duplicates, and contradictory (first, duplicate) pairs."""
    seen: dict[tuple[str, ...], Sentence] = {}
    duplicates: list[Sentence] = []
    contradictions: list[tuple[Sentence, Sentence]] = []
    for sentence in sentences:
        first = seen.setdefault(sentence.words, sentence)
        if first is sentence:
            continue
        duplicates.append(sentence)
        shared = first.annotated_types & sentence.annotated_types
        if first.restrict(shared).spans != sentence.restrict(shared).spans:
            contradictions.append((first, sentence))
    return seen, duplicates, contradictions


def _split_check(
    sentences: Sequence[Sentence], report: ReadReport, duplicates: int, contradictions: int, leaked: int
) -> SplitCheck:
    longest = max(sentences, key=lambda sentence: len(sentence.words), default=None)
    mentions = count_mentions(sentences)
    annotated = Counter(type_ for sentence in sentences for type_ in sentence.annotated_types)
    return SplitCheck(
        path=report.path,
        format=report.format,
        scheme=report.scheme,
        sentences=len(sentences),
        words=sum(len(sentence.words) for sentence in sentences),
        mentions=dict(mentions.most_common()),
        annotated_types=dict(sorted(annotated.items())),
        longest=len(longest.words) if longest else 0,
        longest_source=longest.source if longest else "",
        problems=Counter(problem.kind for problem in report.problems),
        repairs=report.repairs,
        duplicates=duplicates,
        contradictions=contradictions,
        leaked=leaked,
    )


def _notes(
    name: str,
    split: SplitCheck,
    duplicates: Sequence[Sentence],
    contradictions: Sequence[tuple[Sentence, Sentence]],
    found: _Findings,
) -> Iterator[str]:
    """Yield the notes about one split on its own."""
    for what, lines in sorted(split.repairs.items()):
        yield f"{name}: {what}: {len(lines)} ({found.places([str(line) for line in lines])})"
    if split.longest > _LONG:
        place = split.longest_source.rpartition(":")[2]
        yield f"{name}: the longest sentence has {split.longest} words (line {place}); is a separator missing?"
    if duplicates:
        places = found.places([_line(sentence) for sentence in duplicates])
        yield f"{name}: {len(duplicates)} sentences repeat an earlier one: {places}"
    if contradictions:
        places = found.places([f"{_line(second)} (as {_line(first)})" for first, second in contradictions])
        yield f"{name}: {len(contradictions)} repeated sentences are annotated differently: {places}"


def _notes_across(
    name: str,
    first_name: str,
    split: SplitCheck,
    before: Mapping[str, SplitCheck],
    leaked: Sequence[Sentence],
    first: Mapping[tuple[str, ...], Sentence],
    found: _Findings,
) -> Iterator[str]:
    """Yield the notes about one split compared with the first one."""
    if leaked:
        places = found.places([f"{_line(sentence)} (as {_line(first[sentence.words])})" for sentence in leaked])
        yield f"{name}: {len(leaked)} sentences stand in {first_name} too, scores on them are too high: {places}"
    missing = set(split.mentions) - set(before[first_name].mentions) if before else set()
    if missing:
        yield f"{name}: types that {first_name} never shows: {', '.join(sorted(missing))}"


def _line(sentence: Sentence) -> str:
    return sentence.source.rpartition(":")[2]
