"""How often types are mentioned, and in how many words somebody looked for them."""

from collections import Counter
from collections.abc import Iterable

from ner_cl.types import Sentence

__all__ = ["tally"]


def tally(sentences: Iterable[Sentence]) -> tuple[Counter[str], Counter[str]]:
    """Mentions of every type, and words that are annotated for it."""
    mentions: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for sentence in sentences:
        mentions.update(span.type for span in sentence.spans)
        for type_ in sentence.annotated_types:
            words[type_] += len(sentence.words)
    return mentions, words
