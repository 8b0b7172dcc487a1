"""Training labels of words where only confident answers of the teacher are used, in CPFD (Zhang et al. 2023)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ner_cl.strategies.step_words import StepWords

__all__ = ["PseudoLabels", "confident_words", "pseudo_labels_of", "type_weight"]


@dataclass(frozen=True)
class PseudoLabels:
    """The training labels of the words of a step, by `Batch.word_numbers`.

    Attributes:
        labels: the gold tag for words of new types, and the teacher's answer for words labelled `O`.
        believed: whether the label counts.
        weights: weight of the label; 0 where it does not count.
    """

    labels: Int[Tensor, " word"]
    believed: Bool[Tensor, " word"]
    weights: Float[Tensor, " word"]


def confident_words(
    teacher: Float[Tensor, "word old"], outside: Bool[Tensor, " word"], *, floor: float
) -> Bool[Tensor, " word"]:
    """Which words labelled `O` have a teacher's answer that is believed.

    Among the words with the same answer, those are believed whose entropy is *below* the median, or below the floor if
    that is higher. A tag that is no word's answer has no median and is skipped.

    Args:
        teacher: the teacher's logits.
        outside: words labelled `O`; only they count.
        floor: lower bound of the threshold, in nats.
    """
    log_probs = torch.log_softmax(teacher.float(), dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    answers = teacher.argmax(dim=-1)
    believed = torch.zeros_like(outside)
    for tag in torch.unique(answers[outside]).tolist():
        alike = outside & (answers == tag)
        threshold = max(floor, float(np.median(entropy[alike].cpu().numpy())))
        believed |= alike & (entropy < threshold)
    return believed


def type_weight(old: Int[Tensor, " sentence"], new: Int[Tensor, " sentence"]) -> Float[Tensor, " sentence"]:
    """The weight of a word pseudo-labelled with an old type, `0.5 + σ(old / max(1, new))`.

    Args:
        old: number of words of the sentence that are pseudo-labelled with old types.
        new: number of words of the sentence with a tag of a new type.
    """
    return 0.5 + torch.sigmoid(old / new.clamp(min=1))


def pseudo_labels_of(
    words: StepWords, teacher: Float[Tensor, "word old"], *, floor: float, least_share: float, type_balance: bool
) -> PseudoLabels:
    """The label and weight of every word, which are the same in all epochs.

    Args:
        words: the words of the step.
        teacher: the teacher's logits for them.
        floor: see `confident_words`.
        least_share: lower bound of a sentence's factor, which is the share of its words labelled `O` that are believed;
            a sentence without such words has the factor 1.
        type_balance: weight old types by `type_weight`.
    """
    answers = teacher.argmax(dim=-1)
    sure = confident_words(teacher, words.outside, floor=floor)
    old = sure & (answers > 0)

    def count(chosen: Bool[Tensor, " word"]) -> Int[Tensor, " sentence"]:
        return torch.bincount(words.sentences[chosen], minlength=int(words.sentences.max()) + 1)

    outside = count(words.outside)
    share = torch.where(outside > 0, count(sure) / outside.clamp(min=1), 1.0).clamp(min=least_share)
    weights = share[words.sentences] * (words.typed | sure)
    if type_balance:
        weights = torch.where(old, weights * type_weight(count(old), count(words.typed))[words.sentences], weights)
    return PseudoLabels(torch.where(words.typed, words.targets, answers), words.typed | sure, weights)
