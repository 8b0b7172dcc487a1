"""The annotation of spaCy documents as sentences to learn from."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from spacy.tokens import Doc
from spacy.tokens import Span as DocSpan
from spacy.training import Example

from ner_cl.data.readers.docbin import ANNOTATED_TYPES
from ner_cl.errors import ConfigError
from ner_cl.types import Sentence, Span

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


def sentences_of(examples: Iterable[Example | Doc], types: Collection[str]) -> AnnotatedSentences:
    """The sentences of documents, or of the reference documents of examples; a document without sentences is one.

    A token whose entity is unset (`ent_iob == 0`) is unknown, not `O`: a sentence with such a token is left out,
    because nothing can be said about the mentions that it may hide. Tokens of whitespace only are no words.

    Args:
        examples: annotated documents. One that names its `annotated_types` in `user_data`, as those that ner_cl
            writes do, is believed; of the others each is taken to be annotated for `types` and for all types that
            occur in any of them.
        types: what is to be learned; a document that says it is not annotated for them is left out.

    Raises:
        ConfigError: if something else than documents or examples is given.
    """
    docs = [_doc(example) for example in examples]
    occurring = frozenset(types) | {entity.label_ for doc in docs for entity in doc.ents}
    sentences = []
    left_out = 0
    for number, doc in enumerate(docs, start=1):
        declared = doc.user_data.get(ANNOTATED_TYPES)
        annotated = occurring if declared is None else frozenset(declared)
        for stretch in _stretches(doc):
            tokens = [token for token in stretch if not token.text.isspace()]
            complete = declared is not None or all(token.ent_iob != 0 for token in tokens)
            if not tokens:
                continue
            if not complete or not annotated.issuperset(types):
                left_out += 1
                continue
            sentences.append(_sentence(stretch, annotated, f"document {number}"))
    return AnnotatedSentences(tuple(sentences), left_out)


def _doc(example: object) -> Doc:
    if isinstance(example, Example):
        return example.reference
    if isinstance(example, Doc):
        return example
    raise ConfigError(f"examples: expected spaCy Examples or Docs, not {type(example).__name__}")


def _stretches(doc: Doc) -> Iterator[DocSpan]:
    """The sentences; a border inside an entity is passed over."""
    if not doc.has_annotation("SENT_START"):
        yield doc[:]
        return
    start = 0
    for sentence in doc.sents:
        if sentence.end < len(doc) and doc[sentence.end].ent_iob == 1:
            continue
        yield doc[start : sentence.end]
        start = sentence.end


def _sentence(stretch: DocSpan, annotated: frozenset[str], source: str) -> Sentence:
    words: list[str] = []
    spans: list[Span] = []
    start = 0
    for token in stretch:
        if token.ent_iob == 3:
            start = len(words)
        if not token.text.isspace():
            words.append(token.text)
            if token.ent_iob in (1, 3) and token.ent_type_ in annotated:
                if spans and spans[-1].start == start:
                    spans.pop()
                spans.append(Span(start, len(words), token.ent_type_))
    return Sentence(tuple(words), tuple(spans), annotated, source=source)
