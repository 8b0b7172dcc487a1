"""Which sentences of a step are worth keeping: rankings, best first, of which any prefix can be kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional as F

from ner_cl.model.ner_model import NerModel
from ner_cl.types import Sentence

__all__ = ["balanced", "enough_mentions", "herding", "in_turn", "reservoir", "type_features"]


def reservoir(items: Iterable[int], size: int, generator: np.random.Generator) -> list[int]:
    """A uniform sample of a stream of unknown length (Vitter 1985, algorithm R), in random order.

    Item n (from 1) is appended while there is room; later it replaces slot j, drawn from 1 to n, if there is such a
    slot. Every item draws once, so the result does not depend on how the stream is cut into batches. A slot favours
    the item it started with, so the sample is shuffled at the end: every prefix is then a uniform sample too.

    Args:
        items: the stream.
        size: maximum size of the sample.
        generator: random generator of the draws.
    """
    slots: list[int] = []
    for number, item in enumerate(items, start=1):
        slot = int(generator.integers(number))
        if number <= size:
            slots.append(item)
        elif slot < size:
            slots[slot] = item
    return [slots[index] for index in generator.permutation(len(slots))]


def balanced(mentions: Float[np.ndarray, "sentence type"], generator: np.random.Generator) -> Iterator[int]:
    """All sentences, each time the one that most raises the count of the type that is rarest so far.

    Args:
        mentions: number of mentions of each type in each sentence.
        generator: breaks ties, and orders the sentences without mentions, which come last.
    """
    order = generator.permutation(len(mentions))
    left = mentions[order].copy()
    counts = np.zeros(mentions.shape[1])
    open_rows = np.ones(len(order), dtype=bool)
    while left.any():
        rarest = int(np.where(left.any(axis=0), counts, np.inf).argmin())
        row = int(left[:, rarest].argmax())
        counts += left[row]
        left[row], open_rows[row] = 0, False
        yield int(order[row])
    yield from order[open_rows].tolist()


def herding(features: Float[np.ndarray, "item feature"]) -> Iterator[int]:
    """All items, in the order in which their running mean comes nearest to the mean of all (iCaRL, algorithm 4).

    Item m is the one with the least `‖μ - (φ(x) + Σ_{i<m} φ(x_i)) / m‖`; the first one on ties.

    Args:
        features: φ of each item.
    """
    mean = features.mean(axis=0)
    half_squares = 0.5 * (features**2).sum(axis=1)
    missing = np.zeros_like(mean)
    open_items = np.ones(len(features), dtype=bool)
    for _ in range(len(features)):
        missing += mean  # m·μ - Σ_{i<m} φ(x_i)
        gain = np.where(open_items, features @ missing - half_squares, -np.inf)
        item = int(gain.argmax())
        missing -= features[item]
        open_items[item] = False
        yield item


def in_turn(queues: Sequence[Iterator[int]]) -> Iterator[int]:
    """Items of several rankings, taken from each in turn, without repeats."""
    waiting, seen = list(queues), set[int]()
    while waiting:
        for queue in list(waiting):
            item = next((item for item in queue if item not in seen), None)
            if item is None:
                waiting.remove(queue)
            else:
                seen.add(item)
                yield item


def enough_mentions(ranking: Iterable[int], mentions: Float[np.ndarray, "sentence type"], least: int) -> Iterator[int]:
    """The sentences of a ranking that are needed until every type has `least` mentions, or all it has."""
    needed = np.minimum(mentions.sum(axis=0), least)
    counts = np.zeros_like(needed)
    for index in ranking:
        if not (counts < needed).any():
            return
        if (mentions[index] > 0)[counts < needed].any():
            counts += mentions[index]
            yield index


def type_features(
    model: NerModel, sentences: Sequence[Sentence], types: Sequence[str], *, batch_tokens: int
) -> Mapping[str, tuple[list[int], Float[np.ndarray, "_ hidden"]]]:
    """Features of each type in each sentence: the normalised mean of its words' normalised vectors.

    Args:
        model: the model, in eval mode.
        sentences: annotated sentences.
        types: the types to use.
        batch_tokens: word pieces of a batch.

    Returns:
        For each type with mentions, the sentences that mention it, and a feature for each of these.
    """
    columns = np.array([model.types.index(type_) for type_ in types])
    starts = np.cumsum([0, *(len(sentence.words) for sentence in sentences)])
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for _, batch in model.encode(sentences).in_length_order(batch_tokens):
        batch = batch.to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            words = F.normalize(model.encoder(batch).float(), dim=-1)
        typed = batch.targets > 0
        vectors = words[typed].cpu().double().numpy()
        kinds = ((batch.targets[typed] - 1) // 2).cpu().numpy()
        owners = np.searchsorted(starts, batch.word_numbers[typed].cpu().numpy(), side="right") - 1
        for column in np.intersect1d(kinds, columns).tolist():
            found.setdefault(column, []).append((owners[kinds == column], vectors[kinds == column]))
    return {
        type_: _means(found[column]) for type_, column in zip(types, columns.tolist(), strict=True) if column in found
    }


def _means(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[int], np.ndarray]:
    owners, place = np.unique(np.concatenate([owner for owner, _ in parts]), return_inverse=True)
    vectors = np.concatenate([vector for _, vector in parts])
    sums = np.zeros((len(owners), vectors.shape[1]))
    np.add.at(sums, place, vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return owners.tolist(), sums / np.maximum(lengths, 1e-12)
