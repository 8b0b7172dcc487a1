"""Sentences and raw texts held back from training, to measure on where no dev sentences are given."""

from collections import Counter
from collections.abc import Sequence

from ner_cl.data.draws import generator
from ner_cl.data.tally import tally
from ner_cl.types import Sentence

__all__ = ["FEWEST_TO_HOLD_BACK_FROM", "hold_back_sentences", "hold_back_texts"]

# A tenth is held back, but at least this many: fewer would show too little. If that is more than a quarter of what
# there is, nothing is held back.
_FEWEST_HELD_BACK = 10
FEWEST_TO_HOLD_BACK_FROM = 4 * _FEWEST_HELD_BACK
_MOST_TEXTS_HELD_BACK = 500
_FEWEST_TAUGHT = 2  # mentions of each type that must stay in the training sentences


def hold_back_sentences(
    sentences: list[Sentence], types: Sequence[str], seed: int
) -> tuple[list[Sentence], list[Sentence]]:
    """Splits off dev sentences, taking the same share of sentences with mentions of `types` and of those without.

    Returns:
        The sentences to train on and those held back, each in the given order.
    """
    if len(sentences) < FEWEST_TO_HOLD_BACK_FROM:
        return sentences, []
    share = max(0.1, _FEWEST_HELD_BACK / len(sentences))
    draw = generator(seed, "held back")
    held_back: set[int] = set()
    visible = [sentence.restrict(types) for sentence in sentences]
    left, _ = tally(visible)
    for mentions in (True, False):
        group = [index for index, sentence in enumerate(visible) if bool(sentence.spans) == mentions]
        wanted = round(share * len(group))
        for index in draw.permutation(group).tolist():
            mentioned = Counter(span.type for span in visible[index].spans)
            if wanted and all(left[type_] - count >= _FEWEST_TAUGHT for type_, count in mentioned.items()):
                left -= mentioned
                held_back.add(index)
                wanted -= 1
    parts = [[s for index, s in enumerate(sentences) if (index in held_back) == held] for held in (False, True)]
    return parts[0], parts[1]


def hold_back_texts(raw: list[Sentence], train: Sequence[Sentence], seed: int) -> tuple[list[Sentence], list[Sentence]]:
    """Splits off raw texts, with their copies, on which old types are measured by agreement with the model before.

    Texts that are trained on anyway, as sentences of the step, are not held back.

    Returns:
        The texts to train on, and those held back, once each.
    """
    trained = {sentence.words for sentence in train}
    texts = [words for words in dict.fromkeys(sentence.words for sentence in raw) if words not in trained]
    if len(texts) < FEWEST_TO_HOLD_BACK_FROM:
        return raw, []
    count = min(max(_FEWEST_HELD_BACK, len(texts) // 10), _MOST_TEXTS_HELD_BACK)
    drawn = generator(seed, "texts held back").choice(len(texts), size=count, replace=False)
    held_back = {texts[index] for index in drawn.tolist()}
    return [s for s in raw if s.words not in held_back], [Sentence(words) for words in texts if words in held_back]
