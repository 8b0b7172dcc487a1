"""Writes the component's predictions into a spaCy document."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from spacy.tokens import Doc, Span, SpanGroup

from ner_cl.errors import ConfigError

__all__ = ["Found", "register_extensions", "set_entities", "set_span_group"]

_EXTENSIONS = ("score", "step")


@dataclass(frozen=True)
class Found:
    """A predicted span of tokens, its score, and the step that taught its type."""

    span: Span
    score: float
    step: int


def set_span_group(doc: Doc, found: Sequence[Found], key: str) -> None:
    """Writes the predictions to `doc.spans[key]`, whose `attrs` hold each span's score and each type's step.

    A span that is an entity of the document already, perhaps another component's, keeps what `span._` says of it.
    """
    attrs = {
        "scores": [item.score for item in found],
        "steps": {item.span.label_: item.step for item in found},
    }
    doc.spans[key] = SpanGroup(doc, name=key, attrs=attrs, spans=[item.span for item in found])
    present = {_place(span) for span in doc.ents}
    _set_extensions(item for item in found if _place(item.span) not in present)


def set_entities(doc: Doc, entities: Sequence[Found], *, overwrite: bool) -> None:
    """Adds predictions to `doc.ents`, replacing overlapping entities if `overwrite`; other tokens become `O`.

    An entity that a prediction says again keeps its ids, such as those of an entity ruler.
    """
    present = list(doc.ents)
    # spaCy's "blocked" tokens: an entity rule or a person ruled out an entity here.
    iob, type_ = doc.to_array(["ENT_IOB", "ENT_TYPE"]).T
    blocked = [doc[token : token + 1] for token in ((iob == 3) & (type_ == 0)).nonzero()[0].tolist()]
    if overwrite:
        known = {_place(span) for span in present}
        found = [item.span for item in entities if _place(item.span) not in known]
        taken = _tokens(found)
        stay = [span for span in present if taken.isdisjoint(range(span.start, span.end))]
        for token in taken:
            doc[token].ent_id = 0  # it belongs to the entity being replaced
        doc.set_ents([*stay, *found], blocked=[span for span in blocked if span.start not in taken])
        _set_extensions(entities)
    else:
        taken = _tokens([*present, *blocked])
        free = [item for item in entities if taken.isdisjoint(range(item.span.start, item.span.end))]
        doc.set_ents([*present, *(item.span for item in free)], blocked=blocked)
        _set_extensions(free)


def _set_extensions(found: Iterable[Found]) -> None:
    for item in found:
        item.span._.score, item.span._.step = item.score, item.step


def _key(name: str, span: Span) -> tuple[str, str, int, int]:
    """Key in `doc.user_data` for a value of a span, distinct for each type.

    spaCy itself stores one value for all spans with the same boundaries. The key has spaCy's own form, so that values
    are carried along when documents are split and merged.
    """
    return ("._.", f"{name}:{span.label_}", span.start_char, span.end_char)


def _getter(name: str, span: Span) -> Any:
    data = span.doc.user_data
    # `Doc.from_json` sets values on spans without a label.
    return data.get(_key(name, span), data.get(("._.", f"{name}:", span.start_char, span.end_char)))


def _setter(name: str, span: Span, value: Any) -> None:
    span.doc.user_data[_key(name, span)] = value
    span.doc.user_data["._.", name, span.start_char, span.end_char] = value  # where `Doc.to_json` looks


def _place(span: Span) -> tuple[int, int, int]:
    return span.start, span.end, span.label


def _tokens(spans: Iterable[Span]) -> set[int]:
    return {token for span in spans for token in range(span.start, span.end)}


def register_extensions() -> None:
    """Registers the extensions `span._.score` and `span._.step`.

    Raises:
        ConfigError: if another extension of that name exists and cannot be set.
    """
    for name in _EXTENSIONS:
        if not Span.has_extension(name):
            Span.set_extension(name, getter=partial(_getter, name), setter=partial(_setter, name))
        _, method, getter, setter = Span.get_extension(name)
        if method is not None or (getter is not None and setter is None):
            raise ConfigError(
                f"span._.{name} is computed by another extension and cannot be set; rename that one, or remove it "
                f'with Span.remove_extension("{name}")'
            )
