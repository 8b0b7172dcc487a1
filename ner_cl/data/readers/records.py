"""Convert a JSON object to a sentence: our own format and the exports of Prodigy, doccano, Label Studio and spaCy."""

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeAlias

from ner_cl.data.readers.align import CharSpan, align_spans
from ner_cl.data.readers.base import Draft, ReadOptions, ReadReport
from ner_cl.data.readers.tagged import TaggedSentence, drafts_of_tagged
from ner_cl.data.words import is_invisible, split_words
from ner_cl.types import Span

__all__ = [
    "RecordError",
    "check_declared",
    "declared_types",
    "drafts_of_records",
    "sentence_of_record",
    "word_offsets",
]

Record: TypeAlias = Mapping[str, Any]

_SPAN_KEYS = ("spans", "entities", "label", "labels")
_TAG_KEYS = ("ner_tags", "tags", "labels")
_SHAPE = '{"text": ..., "spans": [{"start": 0, "end": 3, "label": "PER"}]}'


class RecordError(ValueError):
    """A record that cannot be read; the message gives the reason without the location."""


def sentence_of_record(
    record: object, line: int, options: ReadOptions, report: ReadReport
) -> Draft | TaggedSentence | None:
    """Convert one JSON value to a sentence; None if it is refused, rejected by the annotator, or without words."""
    try:
        return _sentence(_unwrapped(record), line, options, report)
    except RecordError as error:
        report.refuse(line, str(error))
        return None


def drafts_of_records(records: Iterable[tuple[int, object]], options: ReadOptions, report: ReadReport) -> list[Draft]:
    """Convert numbered JSON values to drafts; tags are converted in one scheme for all."""
    items = (sentence_of_record(record, line, options, report) for line, record in records)
    return drafts_of_tagged((item for item in items if item is not None), options.scheme, report)


def _unwrapped(record: object) -> Record:
    """Return the object with text and spans; spaCy's `[text, {"entities": [...]}]` pairs are merged into one."""
    if isinstance(record, Mapping):
        return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in record.items()}
    if isinstance(record, list | tuple) and len(record) == 2:
        text, annotation = record
        if isinstance(text, str) and isinstance(annotation, Mapping):
            return {"text": text, **annotation}
    raise RecordError(f"is {type(record).__name__}, not a JSON object; write {_SHAPE}")


def _sentence(record: Record, line: int, options: ReadOptions, report: ReadReport) -> Draft | TaggedSentence | None:
    if record.get("answer", "accept") in ("reject", "ignore"):
        report.repaired(f"line with answer {record['answer']!r} skipped", line)
        return None
    declared = declared_types(record.get("annotated_types"))
    if isinstance(record.get("data"), Mapping) and ("annotations" in record or "text" not in record):
        return _label_studio(record, declared, line, options, report)
    words = record.get("tokens", record.get("words"))
    tag_key = next((key for key in _TAG_KEYS if _is_list_of_tags(record.get(key))), None)
    # If the record has a text, its spans are character offsets, whatever else it holds.
    spanned = isinstance(record.get("text"), str) and not (tag_key and _tags_say_more(record, words, tag_key))
    if isinstance(words, list | tuple) and not spanned:
        return _pretokenised(record, _words(words), tag_key, declared, line, report)
    if "text" not in record:
        raise RecordError(f"has no text; write {_SHAPE}")
    if not isinstance(record["text"], str):
        raise RecordError(f"has a text that is {type(record['text']).__name__}, not a string; quote it")
    own, given = record.get("word_offsets"), _offsets_of_tokens(words)
    return _annotated_text(
        record["text"], _span_items(record), declared, line, options, report, own_words=own, tokens=given
    )


def _tags_say_more(record: Record, words: object, tag_key: str) -> bool:
    """Whether the tags of words are the annotation, because there are no spans or only an empty list of them."""
    if "spans" not in record and "entities" not in record:
        return True
    one_a_word = isinstance(words, list | tuple) and len(words) == len(record[tag_key])
    return one_a_word and not record.get("spans") and not record.get("entities")


def _offsets_of_tokens(words: object) -> list[list[Any]] | None:
    """Offsets of tokens that all say where they are, as Prodigy's do; None otherwise."""
    if not isinstance(words, list) or not all(
        isinstance(word, Mapping) and {"start", "end"} <= word.keys() for word in words
    ):
        return None
    return [[word["start"], word["end"]] for word in words]


def declared_types(types: Any) -> frozenset[str] | None:
    """Check the types that a record says it is annotated for; None if it does not say."""
    if types is None:
        return None
    several = isinstance(types, list | tuple | set | frozenset)
    if not several or not all(isinstance(type_, str) and type_ for type_ in types):
        raise RecordError(f'has annotated_types {types!r}; write a list of names, such as ["PER"]')
    return frozenset(types)


def _annotated_text(
    text: str,
    items: Sequence[object],
    declared: frozenset[str] | None,
    line: int,
    options: ReadOptions,
    report: ReadReport,
    *,
    own_words: object = None,
    tokens: object = None,
) -> Draft | None:
    """Build a draft from a text and its character spans; words come from `split_words` or from the record itself.

    With `own_words` they are these. `tokens`, on which spans were marked, are the words only where spans cut those of
    `split_words`, which `predict` finds in a text.
    """
    _check_characters(text)
    spans = [span for item in items for span in _char_spans(item, text, line, report)]
    offsets = split_words(text) if own_words is None else word_offsets(own_words, text)
    if own_words is None and tokens and not _on_borders(spans, offsets):
        marked = [(start, end) for start, end in word_offsets(tokens, text) if not is_invisible(text[start:end])]
        offsets = marked if _on_borders(spans, marked) else offsets
    if not offsets and not spans:
        report.repaired("text without a word skipped", line)
        return None
    aligned = align_spans(text, spans, offsets, alignment=options.alignment, line=line, report=report)
    if aligned is None:
        return None
    words = tuple(text[start:end] for start, end in offsets)
    check_declared(aligned, declared)
    return Draft(words, tuple(aligned), declared, line, text, tuple(offsets))


def _on_borders(spans: Iterable[CharSpan], offsets: Iterable[tuple[int, int]]) -> bool:
    """Whether every span begins with a word and ends with one."""
    starts, ends = ({pair[side] for pair in offsets} for side in (0, 1))
    return all(span.start in starts and span.end in ends for span in spans)


def word_offsets(pairs: object, text: str) -> list[tuple[int, int]]:
    """Check the record's own word offsets: `[[start, end], ...]` in code points, in order and without overlap."""
    offsets: list[tuple[int, int]] = []
    before = 0
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        start, end = map(_whole_number, pair) if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        if start is None or end is None:
            raise RecordError(f"has word_offsets that hold {pair!r}; write pairs such as [0, 3]")
        if not before <= start < end <= len(text):
            raise RecordError(f"has a word at {start}..{end}; words must be in order and inside the text")
        offsets.append((start, end))
        before = end
    return offsets


def _pretokenised(
    record: Record,
    words: Sequence[str],
    tag_key: str | None,
    declared: frozenset[str] | None,
    line: int,
    report: ReadReport,
) -> Draft | TaggedSentence | None:
    """Read a record of words with tags, or of words with spans in word offsets."""
    if not words:
        report.repaired("text without a word skipped", line)
        return None
    if tag_key is None:
        spans = [span for item in _span_items(record) for span in _word_spans(item, len(words), line, report)]
        check_declared(spans, declared)
        return Draft(tuple(words), tuple(spans), declared, line)
    tags = record[tag_key]
    if not all(isinstance(tag, str) for tag in tags):
        raise RecordError(
            f"has numbers in {tag_key}; write the names of the tags, or give a data set (not its rows) whose {tag_key} "
            "are class labels, as by ds.cast_column(name, List(ClassLabel(names=[...])))"
        )
    if len(tags) != len(words):
        raise RecordError(f"has {len(words)} words but {len(tags)} {tag_key}; give one for each word")
    return TaggedSentence(words, tags, [line] * len(words), declared)


def _label_studio(
    record: Record, declared: frozenset[str] | None, line: int, options: ReadOptions, report: ReadReport
) -> Draft | None:
    """Read a task of a Label Studio export: its first annotation that was not cancelled."""
    annotations = [
        one for one in record.get("annotations") or [] if isinstance(one, Mapping) and not one.get("was_cancelled")
    ]
    if not annotations:
        report.repaired("task without an annotation skipped", line)
        return None
    for _ in annotations[1:]:
        report.repaired("further annotation of one task ignored", line)
    results = annotations[0].get("result")
    values = [one.get("value") for one in results if isinstance(one, Mapping)] if isinstance(results, list) else []
    items = [value for value in values if isinstance(value, Mapping) and "labels" in value]
    texts = {key: text for key, text in record["data"].items() if isinstance(text, str)}
    if "text" not in texts and len(texts) != 1:
        raise RecordError(f"has {len(texts)} texts in its data, none of them called text; name the annotated one text")
    text = texts["text"] if "text" in texts else next(iter(texts.values()))
    return _annotated_text(text, items, declared, line, options, report)


def _span_items(record: Record) -> Sequence[object]:
    """Return the raw spans from the key that holds them."""
    given = {key: record[key] for key in _SPAN_KEYS if record.get(key) is not None}
    filled = {key: value for key, value in given.items() if value}
    if len(filled) > 1:
        raise RecordError(f"has spans in {' and in '.join(filled)}; keep one of them")
    if not given:
        if "answer" in record or "annotated_types" in record:
            return []
        raise RecordError('has no spans; write "spans": [] if nothing is to be found in it')
    key, value = next(iter((filled or given).items()))
    if not isinstance(value, list):
        raise RecordError(f"has {key} that is {type(value).__name__}, not a list; write {_SHAPE}")
    return value


def _span_parts(item: object) -> tuple[int, int, list[str]]:
    """Return start, end and types of a raw span: `[start, end, type]` or an object with the keys of a known export."""
    if isinstance(item, Mapping):
        start = item.get("start", item.get("start_offset"))
        end = item.get("end", item.get("end_offset"))
        label = item.get("label", item.get("type", item.get("labels")))
    elif isinstance(item, list | tuple) and len(item) == 3:
        start, end, label = item
    else:
        raise RecordError(f'has a span {item!r}; write {{"start": 0, "end": 3, "label": "PER"}} or [0, 3, "PER"]')
    first, last = _whole_number(start), _whole_number(end)
    if first is None or last is None:
        raise RecordError(f"has a span with offsets {start!r}..{end!r}; write whole numbers")
    labels = label if isinstance(label, list) else [label]
    if not labels or not all(isinstance(one, str) and one.strip() for one in labels):
        raise RecordError(f"has a span {start}..{end} whose label is {label!r}; write the name of a type")
    return first, last, labels


def _whole_number(value: object) -> int | None:
    """Return a whole number of any kind (NumPy has its own) as int; None for anything else, true and false included."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return index(value)
    except TypeError:  # arrays and NumPy's true and false
        return None


def _char_spans(item: object, text: str, line: int, report: ReadReport) -> list[CharSpan]:
    start, end, labels = _span_parts(item)
    surface = item.get("text") if isinstance(item, Mapping) else None
    if isinstance(surface, str) and text[start:end] != surface:
        start, end = _from_utf16(text, start, end, surface)
        report.repaired("offsets in UTF-16 units converted", line)
    return [CharSpan(start, end, _label(label, line, report)) for label in labels]


def _from_utf16(text: str, start: int, end: int, surface: str) -> tuple[int, int]:
    """Convert a span's UTF-16 offsets (as browsers count) to code points; RecordError if they do not give `surface`."""
    units = text.encode("utf-16-le")
    before, inside = (
        units[2 * a : 2 * b].decode("utf-16-le", "replace")
        for a, b in ((0, max(start, 0)), (max(start, 0), max(end, 0)))
    )
    if inside != surface:
        raise RecordError(
            f"has a span {start}..{end} for {surface!r}, but the text there is {text[start:end]!r}; correct the offsets"
        )
    return len(before), len(before) + len(inside)


def _word_spans(item: object, length: int, line: int, report: ReadReport) -> list[Span]:
    start, end, labels = _span_parts(item)
    if not 0 <= start < end <= length:
        raise RecordError(f"has a span {start}..{end} over {length} words; word offsets need start < end <= {length}")
    return [Span(start, end, _label(label, line, report)) for label in labels]


def _label(label: str, line: int, report: ReadReport) -> str:
    _check_characters(label)
    if label != label.strip():
        report.repaired("whitespace around a label removed", line)
    return label.strip()


def _words(words: Sequence[object]) -> list[str]:
    """Return the words as strings, which must not be empty; of Prodigy's `{"text": ...}` objects, take the text."""
    texts = [word.get("text") if isinstance(word, Mapping) else word for word in words]
    strings = [word for word in texts if isinstance(word, str) and word]
    if len(strings) != len(texts):
        bad = next(word for word in texts if not isinstance(word, str) or not word)
        raise RecordError(f"has a word {bad!r}; every word must be a string that is not empty")
    for word in strings:
        _check_characters(word)
    return strings


def _is_list_of_tags(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(tag, str | int) for tag in value)


def check_declared(spans: Sequence[Span], declared: frozenset[str] | None) -> None:
    """Refuse spans of types that the record does not say it is annotated for."""
    for span in spans:
        if declared is not None and span.type not in declared:
            known = ", ".join(sorted(declared))
            raise RecordError(f"has a span of type {span.type} that its annotated_types ({known}) lack; add it there")


def _check_characters(text: str) -> None:
    """Refuse lone surrogates, which JSON can express but UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            f"has half a character (U+{ord(text[error.start]):04X}) at {error.start}; write it as UTF-8"
        ) from None
