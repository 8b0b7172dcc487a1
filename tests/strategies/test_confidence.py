"""Which answers of a teacher are believed, and how much each word then weighs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ner_cl.strategies.confidence import confident_words, pseudo_labels_of, type_weight
from ner_cl.strategies.step_words import StepWords

OLD_TAGS = 5  # O and the tags of two old types; 5 and 6 are those of the new one


def entropy(logits: Tensor) -> list[float]:
    """In nats, by its definition."""
    found = []
    for row in logits.double().numpy():
        p = np.exp(row - row.max())
        p /= p.sum()
        found.append(-sum(x * math.log(x) for x in p if x > 0))
    return found


def random_step(seed: int, sentences: int = 9) -> tuple[StepWords, Tensor]:
    """Words with random tags, and a teacher's logits for them; the last sentence is a remembered one."""
    draw = np.random.default_rng(seed)
    of = np.repeat(np.arange(sentences), draw.integers(1, 9, size=sentences))
    targets = np.where(draw.random(len(of)) < 0.3, draw.integers(5, 7, size=len(of)), 0)
    own = of < sentences - 1
    words = StepWords(*(torch.from_numpy(x) for x in (targets, of, np.zeros_like(of), own)))
    return words, torch.from_numpy(2 * draw.standard_normal((len(of), OLD_TAGS))).float()


def test_a11_the_weight_of_old_types() -> None:
    found = type_weight(torch.tensor([4, 4, 0]), torch.tensor([2, 0, 3]))
    torch.testing.assert_close(found, torch.tensor([1.380797, 1.482014, 1.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_belief_is_what_a_loop_over_the_rule_says(seed: int) -> None:
    words, teacher = random_step(seed, sentences=40)
    found = confident_words(teacher, words.outside, floor=1e-3)
    entropies, answers = entropy(teacher), teacher.argmax(dim=-1).tolist()
    outside = [word for word in range(len(answers)) if words.outside[word]]
    for word in range(len(answers)):
        alike = sorted(entropies[other] for other in outside if answers[other] == answers[word])
        middle = len(alike) // 2
        median = alike[middle] if len(alike) % 2 else (alike[middle - 1] + alike[middle]) / 2 if alike else 0.0
        believed = bool(words.outside[word]) and entropies[word] < max(1e-3, median) - 1e-7
        assert found[word].item() == believed


def test_half_of_the_words_with_the_same_answer_are_believed() -> None:
    """Strictly below the median: of an odd number the smaller half, of a single word none."""
    words, teacher = random_step(1, sentences=60)
    found = confident_words(teacher, words.outside, floor=0.0)
    answers = teacher.argmax(dim=-1)
    for tag in range(OLD_TAGS):
        alike = words.outside & (answers == tag)
        assert int((found & alike).sum()) == int(alike.sum()) // 2
    alone = torch.zeros(len(answers), dtype=torch.bool)
    alone[0] = True
    assert not confident_words(teacher, alone, floor=0.0).any()


def test_whoever_is_surer_than_the_floor_is_believed() -> None:
    teacher = torch.tensor([[20.0, 0.0], [19.0, 0.0], [18.0, 0.0], [1.0, 0.0]])
    everyone = torch.ones(4, dtype=torch.bool)
    assert confident_words(teacher, everyone, floor=1e-3).tolist() == [True, True, True, False]
    assert confident_words(teacher, everyone, floor=0.0).tolist() == [True, True, False, False]


def test_a_tag_that_no_word_gets_harms_nobody() -> None:
    """The authors' median of nothing is not a number."""
    teacher = torch.tensor([[3.0, 0.0, -9.0], [1.0, 0.0, -9.0]])
    assert confident_words(teacher, torch.tensor([True, True]), floor=0.0).tolist() == [True, False]
    assert not confident_words(teacher, torch.tensor([False, False]), floor=1.0).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("least", "balance"), [(0.0, True), (0.3, True), (0.0, False)])
def test_lessons_are_what_loops_over_sentences_say(seed: int, least: float, balance: bool) -> None:
    words, teacher = random_step(seed)
    labels = pseudo_labels_of(words, teacher, floor=1e-3, least_share=least, type_balance=balance)
    sure, answers = confident_words(teacher, words.outside, floor=1e-3), teacher.argmax(dim=-1)
    for sentence in range(9):
        places = (words.sentences == sentence).nonzero().flatten().tolist()
        outside = [place for place in places if words.outside[place]]
        share = sum(bool(sure[place]) for place in outside) / len(outside) if outside else 1.0
        old = sum(bool(sure[place]) and bool(answers[place] > 0) for place in outside)
        new = sum(bool(words.typed[place]) for place in places)
        for place in places:
            weight = max(share, least) if words.typed[place] or sure[place] else 0.0
            if balance and sure[place] and answers[place] > 0:
                weight *= 0.5 + 1 / (1 + math.exp(-old / max(1, new)))
            assert labels.weights[place].item() == pytest.approx(weight, abs=1e-6)
            assert bool(labels.believed[place]) == bool(words.typed[place] or sure[place])
            label = words.targets[place] if words.typed[place] else answers[place]
            assert labels.labels[place] == label


def test_a_sentence_of_which_nothing_is_believed_teaches_nothing_unless_asked_to() -> None:
    """Its gold is dropped too, as published; and not if there is nothing in it to be unsure of."""
    teacher = torch.tensor([[0.1, 0.0], [0.2, 0.0], [5.0, 0.0], [6.0, 0.0], [0.0, 0.0]])
    words = StepWords(
        targets=torch.tensor([3, 0, 0, 0, 3]),
        sentences=torch.tensor([0, 0, 1, 1, 2]),
        rows=torch.zeros(5, dtype=torch.long),
        own=torch.ones(5, dtype=torch.bool),
    )
    options = {"floor": 0.0, "type_balance": True}
    assert pseudo_labels_of(words, teacher, least_share=0.0, **options).weights.tolist() == [0, 0, 0, 0.5, 1]
    clamped = pseudo_labels_of(words, teacher, least_share=0.75, **options).weights
    torch.testing.assert_close(clamped, torch.tensor([0.75, 0, 0, 0.75, 1]))
