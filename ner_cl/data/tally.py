"""Count the mentions of each entity type and the words annotated for it."""

from collections import Counter
from collections.abc import Iterable

from ner_cl.types import Sentence

__all__ = ["count_mentions", "tally"]


def count_mentions(sentences: Iterable[Sentence]) -> Counter[str]:
    """Return the number of mentions of each entity type."""
    return Counter(span.type for sentence in sentences for span in sentence.spans)


def tally(sentences: Iterable[Sentence]) -> tuple[Counter[str], Counter[str]]:
    """Return, per entity type, the number of mentions and the number of words annotated for it."""
    mentions: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for sentence in sentences:
        mentions.update(span.type for span in sentence.spans)
        for type_ in sentence.annotated_types:
            words[type_] += len(sentence.words)
    return mentions, words
