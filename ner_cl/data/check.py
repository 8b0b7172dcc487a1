"""Looking at a corpus before training: what is in it, what was repaired, what is wrong."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

from ner_cl.data.readers import ReadReport, read_with_report
from ner_cl.errors import ConfigError, DataError
from ner_cl.types import Sentence

__all__ = ["CheckReport", "SplitCheck", "check"]

_LONG = 400
"""Words above which a sentence is likely several whose separators are missing."""


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """What one file holds.

    Attributes:
        path: the file.
        format: the format it was read as.
        scheme: its tag scheme, or "".
        sentences: sentences read (those that could not be read are not among them).
        words: words in them.
        mentions: type → number of spans, the most frequent first.
        annotated_types: type → number of sentences annotated for it.
        longest: words of the longest sentence.
        longest_source: where that one is.
        problems: kind ("broken", "misaligned", "overlap") → how many.
        repairs: what was repaired or skipped → the lines.
        duplicates: sentences that repeat an earlier one of the file word by word.
        contradictions: those of them whose annotation differs from the earlier one's.
        leaked: sentences that stand in the first split word by word (0 for the first split itself).
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
    """What `check` found.

    Attributes:
        splits: name of the split → what it holds.
        problems: one line each; a corpus with any of them cannot be trained on as it stands.
        notes: one line each; worth knowing, nothing that stops training.
    """

    splits: Mapping[str, SplitCheck]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The report in the types of JSON; of each repair the number and the first lines."""
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
    """Problems and notes on the way, each list cut off after `listed` lines of one kind in one split."""

    listed: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def places(self, lines: Sequence[str]) -> str:
        """The first lines, and how many more there are."""
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
    """Read every split of a corpus to its end and say what is in it and what is wrong with it.

    Broken lines, spans that cut a word and overlapping spans are problems, unless `alignment` and `on_overlap` say how
    to take them. Repairs, repeated sentences, sentences of the first split that come back in another one, and types
    that the first split lacks are notes.

    Args:
        paths: name of each split → its file; the training split first.
        format, scheme, types, on_overlap, alignment: for every file, as in `read_sentences`.
        listed: how many problems of one kind in one split are listed, the rest being counted.

    Raises:
        ConfigError: if `paths` is empty, or for an unknown format, scheme or option. Nothing else: a file that cannot
            be opened is a problem.

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
        found.notes += _notes_across(name, next(iter(paths)), split, splits, leaked, first, found)
        first = first if splits else seen
        splits[name] = split
    return CheckReport(splits, tuple(found.problems), tuple(found.notes))


def _read(path: str, found: _Findings, **options: Any) -> tuple[list[Sentence], ReadReport]:
    """Read tolerantly; note every problem, up to the limit of each kind."""
    try:
        sentences, report = read_with_report(path, tolerant=True, **options)
    except DataError as error:
        found.problems.append(str(error))
        return [], ReadReport(path, tolerant=True)
    for kind, count in Counter(problem.kind for problem in report.problems).items():
        messages = [problem.message for problem in report.problems if problem.kind == kind]
        found.problems += messages[: found.listed]
        if count > found.listed:
            found.problems.append(f"{path}: {count - found.listed} more like these ({kind})")
    return sentences, report


def _repeated(
    sentences: Sequence[Sentence],
) -> tuple[dict[tuple[str, ...], Sentence], list[Sentence], list[tuple[Sentence, Sentence]]]:
    """Sentences by their words, those that repeat an earlier one, and pairs of them that contradict each other."""
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
    mentions = Counter(span.type for sentence in sentences for span in sentence.spans)
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
    """What there is to know about one split on its own."""
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
    """What there is to know about one split beside the first one."""
    if leaked:
        places = found.places([f"{_line(sentence)} (as {_line(first[sentence.words])})" for sentence in leaked])
        yield f"{name}: {len(leaked)} sentences stand in {first_name} too, scores on them are too high: {places}"
    missing = set(split.mentions) - set(before[first_name].mentions) if before else set()
    if missing:
        yield f"{name}: types that {first_name} never shows: {', '.join(sorted(missing))}"


def _line(sentence: Sentence) -> str:
    return sentence.source.rpartition(":")[2]
