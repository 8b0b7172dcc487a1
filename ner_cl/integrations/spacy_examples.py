"""Converts annotated spaCy documents to training sentences."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.vocab import Vocab

from ner_cl.data.readers.base import ReadReport
from ner_cl.data.readers.docbin import drafts_of_doc
from ner_cl.errors import ConfigError
from ner_cl.types import Sentence

__all__ = ["AnnotatedDocs", "AnnotatedSentences", "convert_docs", "sentences_of"]

AnnotatedDocs: TypeAlias = Iterable[Example | Doc] | DocBin
"""Documents with annotation."""


@dataclass(frozen=True)
class AnnotatedSentences:
    """The usable sentences of some documents.

    Attributes:
        sentences: the sentences that `sentences_of` kept.
        left_out: how many sentences it left out.
    """

    sentences: tuple[Sentence, ...]
    left_out: int


def sentences_of(examples: AnnotatedDocs, types: Collection[str], *, all_types: bool = True) -> AnnotatedSentences:
    """Converts documents, or the reference documents of examples, to sentences as if read from a `.spacy` file.

    A sentence with a token whose entity is unset (`ent_iob == 0`) cannot be learned from, because it may contain
    mentions that are not annotated.

    Args:
        examples: annotated documents, or a DocBin of them. If a document lists its `annotated_types` in `user_data`, as
            those written by ner_cl do, that list is used; all others are taken to be annotated for `types` and for
            every type that occurs in any document.
        types: the types to learn.
        all_types: leave out documents declared as not annotated for all of `types`, and sentences with unset tokens;
            if False, keep both, the latter as annotated for no type.

    Raises:
        ConfigError: if `examples` holds anything but documents or examples, or `types` is a string.
        DataError: if an entity has no label, or covers whitespace only.
    """
    if isinstance(types, str):
        raise ConfigError(f"types: give a list of new types, such as ['DRUG'], not {types!r}")
    report = ReadReport("document")
    if isinstance(examples, DocBin):
        examples = examples.get_docs(Vocab())
    drafts = [
        draft
        for number, example in enumerate(examples, start=1)
        for draft in drafts_of_doc(_doc(example), number, report)
    ]
    occurring = frozenset(types).union(span.type for draft in drafts for span in draft.spans)
    sentences = []
    for draft in drafts:
        annotated = occurring if draft.annotated_types is None else draft.annotated_types
        if all_types and (draft.incomplete or not annotated.issuperset(types)):
            continue
        if draft.incomplete:
            annotated = frozenset()
        spans = tuple({span for span in draft.spans if span.type in annotated})
        sentences.append(Sentence(draft.words, spans, annotated, source=f"document {draft.line}"))
    return AnnotatedSentences(tuple(sentences), len(drafts) - len(sentences))


def convert_docs(data: Any, convert: Callable[[list[Doc]], Any]) -> Any:
    """Returns what `convert` makes of documents or examples, in whatever holds them, and all other data as they are."""
    if isinstance(data, DocBin):
        data = list(data.get_docs(Vocab()))
    elif isinstance(data, Iterator):
        data = list(data)
    if isinstance(data, list | tuple) and data and all(isinstance(item, Doc | Example) for item in data):
        return convert([_doc(item) for item in data])
    return data


def _doc(example: object) -> Doc:
    if isinstance(example, Example):
        return example.reference
    if isinstance(example, Doc):
        return example
    raise ConfigError(f"examples: expected spaCy Examples or Docs, not {type(example).__name__}")
