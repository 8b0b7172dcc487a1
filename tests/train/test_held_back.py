"""What is held back from training to measure on."""

import pytest

from ner_cl.train.held_back import hold_back_sentences, hold_back_texts
from ner_cl.types import Sentence, Span
from tests.tiny import toy_sentences

TRAINED = toy_sentences(120, seed=40, types=("PER", "LOC"))


@pytest.mark.parametrize(("texts", "held_back"), [(39, 0), (40, 10), (100, 10), (300, 30), (6000, 500)])
def test_a_tenth_of_raw_texts_is_held_back(texts: int, held_back: int) -> None:
    raw = [Sentence((f"w{number}",)) for number in range(texts)]
    kept, held = hold_back_texts(raw, TRAINED, 13)
    assert len(held) == held_back
    assert sorted([*kept, *held], key=lambda sentence: int(sentence.words[0][1:])) == raw
    staying = set(kept)
    assert kept == [sentence for sentence in raw if sentence in staying]  # in their order
    assert hold_back_texts(raw, TRAINED, 13) == (kept, held)


def test_texts_held_back_are_not_trained_on_as_copies_or_as_sentences() -> None:
    raw = [Sentence((f"w{number % 50}",)) for number in range(200)]
    kept, held = hold_back_texts(raw, [Sentence(("w0",))], 13)
    assert len(set(held)) == len(held) == 10
    assert (set(kept) & set(held), len(kept)) == (set(), 160)
    assert Sentence(("w0",)) in kept
    assert hold_back_texts(raw[:39] * 5, [], 13) == (raw[:39] * 5, [])  # so few different ones


@pytest.mark.parametrize(("count", "expected"), [(39, 0), (40, 10), (60, 10), (200, 20), (500, 50)])
def test_what_is_held_back_is_drawn_from_mentions_and_others_alike(count: int, expected: int) -> None:
    """Also where the two alternate, of which every second one would be all of a kind."""
    pairs = zip((s for s in TRAINED * 9 if s.spans), (s for s in TRAINED * 99 if not s.spans), strict=False)
    alternating = [sentence for pair in pairs for sentence in pair][:count]
    rest, held_back = hold_back_sentences(alternating, ("PER", "LOC"), 13)
    assert abs(len(held_back) - expected) <= 1
    assert len(rest) + len(held_back) == count
    mentioning = sum(bool(sentence.spans) for sentence in held_back)
    assert abs(mentioning - len(held_back) / 2) <= 1
    assert hold_back_sentences(alternating, ("PER", "LOC"), 13) == (rest, held_back)


@pytest.mark.parametrize("seed", range(12))
def test_a_rare_type_is_not_held_back_to_its_last_mentions(seed: int) -> None:
    common, rare = (Sentence(("Ada", "Oslo"), (Span(0, 1, type_),), frozenset("AB")) for type_ in "AB")
    rest, held_back = hold_back_sentences([*[common] * 37, *[rare] * 3], "AB", seed)
    assert len(held_back) == 10
    assert sum(sentence == rare for sentence in rest) >= 2
