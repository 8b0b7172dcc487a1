"""Tag schemes of column files (IOB1, IOB2, BIOES, IO): convert tags to spans and back."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ner_cl.errors import ConfigError, DataError
from ner_cl.registry import nearest
from ner_cl.types import Span

__all__ = ["SCHEMES", "Tag", "TagTable", "check_scheme", "looks_like_tag", "spans_of_tags", "tags_of_spans"]

SchemeName = Literal["iob1", "iob2", "bioes", "io"]
SCHEMES: tuple[SchemeName, ...] = ("iob1", "iob2", "bioes", "io")

_ALIASES = {"iob": "auto", "bio": "iob2", "bilou": "bioes", "bmes": "bioes", "iobes": "bioes"}
_PREFIXES = {"iob1": "BI", "iob2": "BI", "bioes": "BIESLUM", "io": "I"}
_PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
_UNKNOWN_PREFIX = re.compile(r"(?![BIESLUM])[A-Z]-.+", re.DOTALL)
_OTHERWISE = (
    re.compile(r"([BIESLUM])[-_](.+)", re.DOTALL | re.IGNORECASE),
    re.compile(r"(.+)[-_]([BIESLUM])", re.DOTALL),
)
_NO_TAG = frozenset({"", "o", "0", "_", "-", "*"})


class Tag(NamedTuple):
    """A parsed tag: its prefix ("B", "I", "O", …) and its entity type ("" for `O`)."""

    prefix: str
    type: str


def check_scheme(scheme: str) -> str:
    """Return the canonical name of a tag scheme (the equivalent "BILOU" → "bioes"); ConfigError if unknown."""
    name = scheme.lower()
    name = _ALIASES.get(name, name)
    if name != "auto" and name not in SCHEMES:
        raise ConfigError(f"unknown tag scheme {scheme!r}{nearest(name, SCHEMES)}; known: auto, {', '.join(SCHEMES)}")
    return name


def looks_like_tag(text: str) -> bool:
    """Whether `text` is `O` or a prefixed tag."""
    return text == "O" or _PREFIXED.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class TagTable:
    """How to read the tags of one file.

    Attributes:
        scheme: the scheme, given or detected.
        tags: each distinct readable tag → its parts.
        refused: each distinct unreadable tag → the reason and what to do.
    """

    scheme: str
    tags: Mapping[str, Tag]
    refused: Mapping[str, str]

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], scheme: str = "auto") -> "TagTable":
        """Build the table from all tags of a file; "auto" detects the scheme that most of them follow."""
        scheme = check_scheme(scheme)
        sentences = [tags for tags in sentences if any(tag != "O" for tag in tags)]
        counts = Counter(tag for tags in sentences for tag in tags)
        prefixed = {tag: Tag(*match.groups()) for tag in counts if (match := _PREFIXED.fullmatch(tag))}
        others = [tag for tag in counts if tag != "O" and tag not in prefixed]
        if scheme in {"auto", "io"} and sum(counts[tag] for tag in others) > sum(counts[tag] for tag in prefixed):
            return cls._bare(counts, strict=scheme == "auto")
        resolved = _detect(counts, prefixed) if scheme == "auto" else scheme
        refused = {tag: _no_prefix(tag) for tag in others}
        for tag, (prefix, type_) in prefixed.items():
            if prefix not in _PREFIXES[resolved]:
                refused[tag] = (
                    f"tag {tag!r} is not {resolved}, which the rest of the file follows; correct it or name the scheme"
                )
            elif (
                scheme == "auto"
                and (inner := _PREFIXED.fullmatch(type_))
                and any(inner[2] == tag_.type for tag_ in prefixed.values())
            ):
                refused[tag] = (
                    f"tag {tag!r} has two prefixes; write {type_!r}, or name the scheme if the type is called {type_!r}"
                )
        if scheme == "auto":
            refused |= {tag: _two_schemes(tag) for tag in _rarer_marks(counts, prefixed)}
        table = {"O": Tag("O", "")} | {tag: parts for tag, parts in prefixed.items() if tag not in refused}
        refused |= {tag: _whitespace(tag) for tag in table if any(char.isspace() and char != " " for char in tag)}
        if scheme == "auto" and resolved == "iob2" and _is_iob1(sentences, table):
            resolved = "iob1"
        return cls(resolved, {tag: parts for tag, parts in table.items() if tag not in refused}, refused)

    @classmethod
    def _bare(cls, tags: Iterable[str], *, strict: bool) -> "TagTable":
        """Build the table of a file whose tags are unprefixed types.

        `strict`, for a scheme that was detected, also refuses tags that look as if they had a prefix other than `I-`.
        """
        refused = {tag: _no_prefix(tag) for tag in tags if tag in _NO_TAG or not any(map(str.isalnum, tag))}
        if strict:
            refused |= {tag: _unknown_prefix(tag) for tag in tags if _UNKNOWN_PREFIX.fullmatch(tag)}
            refused |= {tag: _written_otherwise(tag, meant) for tag, meant in _prefixed_otherwise(tags).items()}
        prefixed = {tag: match[1] for tag in tags if (match := _PREFIXED.fullmatch(tag))}
        refused |= {tag: _mixed(tag) for tag, prefix in prefixed.items() if strict or prefix in _PREFIXES["io"]}
        refused |= {tag: _whitespace(tag) for tag in tags if any(char.isspace() and char != " " for char in tag)}
        good = {tag: Tag("I", tag) for tag in tags if tag != "O" and tag not in refused}
        return cls("io", {"O": Tag("O", ""), **good}, refused)


def _no_prefix(tag: str) -> str:
    return f"tag {tag!r} is neither O nor a prefix, a hyphen and a type (such as B-PER); correct it"


def _unknown_prefix(tag: str) -> str:
    return (
        f"tag {tag!r} has an unknown prefix; write B-, I-, E- or S-, or name the scheme io if the type is called that"
    )


def _prefixed_otherwise(tags: Iterable[str]) -> dict[str, str]:
    """Tags such as `b-PER`, `B_PER` and `PER-B`, if a type occurs with both B and I, and how they are written here.

    Without such a pair, types may be called that: `B_cell`, `vitamin-B`.
    """
    found: dict[str, tuple[str, str]] = {}
    for tag in tags:
        if match := _OTHERWISE[0].fullmatch(tag):
            found[tag] = (match[1].upper(), match[2])
        elif match := _OTHERWISE[1].fullmatch(tag):
            found[tag] = (match[2], match[1])
    parts = set(found.values())
    if not any(("B", type_) in parts and ("I", type_) in parts for _, type_ in parts):
        return {}
    return {tag: f"{mark}-{type_}" for tag, (mark, type_) in found.items()}


def _written_otherwise(tag: str, meant: str) -> str:
    return f"tag {tag!r} looks like {meant}; write it so, or name the scheme io if the type is called {tag!r}"


def _two_schemes(tag: str) -> str:
    return (
        f"tag {tag!r}: the file mixes the end and single marks of BIOES (E-, S-) with those of BILOU (L-, U-); use one"
    )


def _mixed(tag: str) -> str:
    return f"tag {tag!r} has a prefix, but most tags of the file are bare types; write all of them one way"


def _whitespace(tag: str) -> str:
    return f"tag {tag!r} holds whitespace; separate the tag from what follows it"


def _detect(counts: Mapping[str, int], prefixed: Mapping[str, Tag]) -> str:
    """Detect the scheme from prefixes alone; IOB1 and IOB2 are told apart later, by the position of B- tags."""
    totals: Counter[str] = Counter()
    for tag, (prefix, _) in prefixed.items():
        totals[prefix] += counts[tag]
    ends = totals["E"] + totals["L"]
    if ends + totals["S"] + totals["U"] + totals["M"] and totals["B"] <= 2 * ends:
        return "bioes"
    return "iob2" if totals["B"] or not totals["I"] else "io"


def _rarer_marks(counts: Mapping[str, int], prefixed: Mapping[str, Tag]) -> list[str]:
    """Return the tags with the rarer end and single marks, those of BIOES (E, S) or of BILOU (L, U)."""
    families = [[tag for tag, (prefix, _) in prefixed.items() if prefix in marks] for marks in ("ES", "LU")]
    return min(families, key=lambda tags: sum(counts[tag] for tag in tags))


def _is_iob1(sentences: Iterable[Sequence[str]], table: Mapping[str, Tag]) -> bool:
    """Whether every B- follows a word of the same type and at least one I- does not."""
    opened_by_i = False
    for tags in sentences:
        before = ""
        for tag in tags:
            prefix, type_ = table.get(tag, Tag("O", ""))
            if prefix == "B" and type_ != before:
                return False
            opened_by_i |= prefix == "I" and type_ != before
            before = type_
    return opened_by_i


def spans_of_tags(tags: Sequence[Tag], scheme: str) -> tuple[list[Span], list[tuple[int, str]]]:
    """Read tags leniently: a tag that continues no span opens one.

    Returns:
        The spans, and the unambiguous violations of the scheme as `(word, what)`.
    """
    spans: list[Span] = []
    faults: list[tuple[int, str]] = []
    start, open_type = 0, ""
    for index, (prefix, type_) in enumerate([*tags, Tag("O", "")]):
        continues = prefix in "IMEL" and type_ == open_type
        if open_type and not continues:
            spans.append(Span(start, index, open_type))
            if scheme == "bioes":
                faults.append((index - 1, "span without an end tag closed"))
            open_type = ""
        if prefix == "O":
            continue
        if not continues:
            start, open_type = index, type_
            if prefix in "IMEL" and scheme in {"iob2", "bioes"}:
                faults.append((index, f"{prefix}- tag that continues nothing opened a span"))
        if prefix in "ELSU":
            spans.append(Span(start, index + 1, open_type))
            open_type = ""
    return spans, faults


def tags_of_spans(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Convert spans to the tags of `length` words.

    Raises:
        DataError: if spans overlap, or if two spans of one type touch and the scheme is `io`.
    """
    scheme = check_scheme(scheme)
    tags = ["O"] * length
    end, before = 0, ""
    for span in sorted(spans):
        if span.start < end:
            raise DataError(
                f"span {span.start}..{span.end} {span.type} overlaps another span; tags hold no overlaps, write JSONL"
            )
        touches = span.start == end and span.type == before
        if scheme == "io" and touches:
            raise DataError(f"two {span.type} spans touch at word {span.start}, which io tags would merge; write iob2")
        tags[span.start : span.end] = _span_tags(span, scheme, touches=touches)
        end, before = span.end, span.type
    return tags


def _span_tags(span: Span, scheme: str, *, touches: bool) -> list[str]:
    length = span.end - span.start
    prefixes = ["I"] * length
    if scheme in {"iob2", "auto"} or (scheme == "iob1" and touches):
        prefixes[0] = "B"
    elif scheme == "bioes":
        prefixes = ["S"] if length == 1 else ["B", *"I" * (length - 2), "E"]
    return [f"{prefix}-{span.type}" for prefix in prefixes]
