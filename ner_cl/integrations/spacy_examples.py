"""The annotation of spaCy documents as sentences to learn from."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from spacy.tokens import Doc
from spacy.training import Example

from ner_cl.data.readers.base import ReadReport
from ner_cl.data.readers.docbin import drafts_of_doc
from ner_cl.errors import ConfigError
from ner_cl.types import Sentence

__all__ = ["AnnotatedSentences", "sentences_of"]


@dataclass(frozen=True)
class AnnotatedSentences:
    """What can be learned from.

    Attributes:
        sentences: those of whose every word it is known whether it is an entity.
        left_out: how many others there were.
    """

    sentences: tuple[Sentence, ...]
    left_out: int


def sentences_of(
    examples: Iterable[Example | Doc], types: Collection[str], *, all_types: bool = True
) -> AnnotatedSentences:
    """The sentences of documents, or of the reference documents of examples, read as from a `.spacy` file.

    A sentence with a token whose entity is unset (`ent_iob == 0`) is no example of anything, because nothing can be
    said about the mentions that it may hide.

    Args:
        examples: annotated documents. One that names its `annotated_types` in `user_data`, as those that ner_cl
            writes do, is believed; of the others each is taken to be annotated for `types` and for all types that
            occur in any of them.
        types: what is to be learned.
        all_types: leave out a document that says it is not annotated for all of `types`; else keep it, and keep
            sentences with unset tokens too, as annotated for nothing.

    Raises:
        ConfigError: if something else than documents or examples is given, or one type in place of a list.
        DataError: if an entity has no label, or covers whitespace only.
    """
    if isinstance(types, str):
        raise ConfigError(f"types: give a list of new types, such as ['DRUG'], not {types!r}")
    report = ReadReport("document")
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


def _doc(example: object) -> Doc:
    if isinstance(example, Example):
        return example.reference
    if isinstance(example, Doc):
        return example
    raise ConfigError(f"examples: expected spaCy Examples or Docs, not {type(example).__name__}")
