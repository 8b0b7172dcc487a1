"""Column files: one word per line, its tag in the last column, a blank line after each sentence."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

from ner_cl.data.readers.base import Draft, Reader, ReadOptions, ReadReport, read_lines
from ner_cl.data.readers.tagged import TaggedSentence, drafts_of_tagged
from ner_cl.data.schemes import looks_like_tag
from ner_cl.data.words import is_invisible
from ner_cl.registry import readers

__all__ = ["ConllReader"]


_NUMBER = re.compile(r"([0-9]{1,6})(?:[-.][0-9]{1,6})?")


@dataclass(slots=True)
class _Block:
    """The lines of one sentence; `broken` if any of them could not be read."""

    lines: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    broken: bool = False


@dataclass(frozen=True, slots=True)
class _Shape:
    """Layout of a file: whether it is tab-separated, its number of columns, and the values of the last column."""

    tabbed: bool
    columns: int
    tags: frozenset[str]

    @classmethod
    def of(cls, lines: Sequence[str]) -> "_Shape":
        """Infer the layout from lines that surely hold data; those starting with `#` count if there are no others."""
        data = [line for line in lines if line.strip() and not line.startswith("-DOCSTART-")]
        data = [line for line in data if not line.startswith("#")] or data
        tabs, spaces = (sum(char in line for line in data) for char in "\t ")
        tabbed = tabs > 0 and tabs >= spaces
        widths: Counter[int] = Counter()
        last: set[str] = set()
        for line in data:
            columns = _split(line, tabbed=tabbed)
            widths[len(columns)] += 1
            last.add(columns[-1])
        usual = max(widths, key=lambda width: (width > 1, widths[width]), default=0)
        return cls(tabbed, usual, frozenset(last) | {"O"})

    def is_comment(self, line: str, columns: Sequence[str]) -> bool:
        """Whether a line is a comment: it starts with `#` and has no tag in the file's tag column."""
        if not line.startswith("#"):
            return False
        return len(columns) != self.columns or not (columns[-1] in self.tags or looks_like_tag(columns[-1]))


def _split(line: str, *, tabbed: bool) -> list[str]:
    """Split a line into columns: at tabs if it has any, else at runs of plain spaces (not at no-break spaces)."""
    if tabbed or "\t" in line:
        first, *rest = line.rstrip(" \t").split("\t")
        return [first, *(column.strip(" ") for column in rest)] if " " in line else [first, *rest]
    return re.split(" +", line.rstrip(" "))


@readers.register("conll")
@final
class ConllReader(Reader):
    r"""Reads `word … tag` lines in IOB1, IOB2, BIOES/BILOU or IO, separated by tabs or spaces.

    A line with a tab is split at tabs only, so its word may contain spaces. The type is everything after the first
    hyphen of the tag. Comment lines and `-DOCSTART-` lines are skipped; every skip and repair is counted.
    """

    suffixes = (".conll", ".iob", ".iob2", ".bio", ".bioes", ".tsv")

    def read(self, path: str, options: ReadOptions, report: ReadReport) -> list[Draft]:
        """Read the sentences of a column file; see `Reader.read`."""
        lines = read_lines(path, report)
        shape = _Shape.of(lines)
        if shape.columns == 1:
            return self._one_column(lines, report)
        if line := _numbered_from(lines, shape):
            report.refuse(
                line,
                "has the number of the word in its first column, as in CoNLL-U; keep only the columns of the words and "
                "of their tags, for instance the second and third with: cut -f2,3",
            )
            return []
        if shape.columns > 2 and shape.tags == {"O"}:
            _look_elsewhere(lines, shape, report)
        blocks = [block for block in _blocks(lines, shape, report) if not block.broken]
        return drafts_of_tagged(
            [TaggedSentence(block.words, block.tags, block.lines) for block in blocks if block.words],
            options.scheme,
            report,
        )

    @staticmethod
    def _one_column(lines: Sequence[str], report: ReadReport) -> list[Draft]:
        line = next(number for number, line in enumerate(lines, start=1) if line.strip())
        hint = (
            "replace the commas by tabs"
            if "," in lines[line - 1]
            else "add the tags, or name the format if it is not conll"
        )
        report.refuse(line, f"has one column only, a word needs a tag after a tab or a space; {hint}")
        return []


def _numbered_from(lines: Sequence[str], shape: _Shape) -> int:
    """The line of the first word if the words of every sentence are numbered from 1 in the first column, else 0.

    Numbers such as `1-2` and `1.1` (CoNLL-U: what several words or none are written as) count as their beginning.
    """
    start, before, furthest = 0, 0, 0
    for number, line in enumerate(lines, start=1):
        columns = _split(line, tabbed=shape.tabbed)
        if not line.strip():
            before = 0
        if not line.strip() or line.startswith(("#", "-DOCSTART-")):
            continue
        match = _NUMBER.fullmatch(columns[0])
        if shape.columns < 3 or match is None or int(match[1]) not in {before, before + 1}:
            return 0
        start, before = start or number, int(match[1])
        furthest = max(furthest, before)
    return start if furthest > 1 else 0


def _look_elsewhere(lines: Sequence[str], shape: _Shape, report: ReadReport) -> None:
    """For a file whose last column is always `O`, report the first other column that holds tags."""
    for number, line in enumerate(lines, start=1):
        for column, value in enumerate(_split(line, tabbed=shape.tabbed)[1:-1], start=2):
            if value != "O" and looks_like_tag(value):
                report.repaired(f"the last column is always O and was read, but column {column} holds tags", number)
                return


def _blocks(lines: Sequence[str], shape: _Shape, report: ReadReport) -> Iterator[_Block]:
    """Divide the file into sentences; a broken line invalidates only its own sentence."""
    block = _Block()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            if line:
                report.repaired("separator line that holds blanks", number)
        elif line.startswith("-DOCSTART-"):
            report.repaired("document marker skipped", number)
        else:
            columns = _split(line, tabbed=shape.tabbed)
            if shape.is_comment(line, columns):
                report.repaired("comment line skipped", number)
            else:
                _add(block, number, line, columns, shape, report)
            continue
        if block.lines or block.broken:
            yield block
            block = _Block()
    if block.lines or block.broken:
        yield block


def _add(block: _Block, number: int, line: str, columns: Sequence[str], shape: _Shape, report: ReadReport) -> None:
    """Add one line to its sentence, or refuse the line."""
    word, tag = columns[0], columns[-1]
    fault = ""
    if "\r" in line:
        fault = "holds a carriage return in its middle; make every line end a line feed"
    elif len(columns) == 1:
        fault = f"has no tag after the word {word!r}; add it (O outside every entity)"
    elif len(columns) != shape.columns:
        expected = f"{shape.columns}; make it {shape.columns}, a word a line with its tag last"
        fault = f"has {len(columns)} columns where the file has {expected}"
    elif not word.strip(" ") and tag != "O":
        fault = f"has the tag {tag!r} but no word; move the tag to its word"
    if fault:
        block.broken = True
        report.refuse(number, fault)
        return
    if not word.strip(" "):
        report.repaired("empty word with tag O dropped", number)
        return
    if not word.isalnum() and is_invisible(word):
        report.repaired("word without a visible character kept", number)
    block.lines.append(number)
    block.words.append(word)
    block.tags.append(tag)
