"""The three common protocols for splitting one corpus into the training data of a stream's steps.

    disjoint   every sentence goes to one step, at random             (P-A; Monaikul et al. 2021, SpanKL "split")
    greedy     every sentence goes to one step, rare types first      (P-C; FG-a-PG-b of CFNER and its followers)
    overlap    a step gets every sentence that mentions its types     (P-B; SpanKL "filter")

Scores under different protocols are not comparable. Under every protocol a step sees its sentences annotated for its
own types only. All functions are pure; randomness comes from `draws.generator`, so a result depends only on the
sentences, the steps and the seed.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from ner_cl.data.draws import generator
from ner_cl.data.tally import count_mentions
from ner_cl.errors import ConfigError
from ner_cl.registry import nearest
from ner_cl.types import Sentence

__all__ = [
    "PROTOCOLS",
    "ProtocolName",
    "allocate",
    "check_protocol",
    "check_steps",
]

ProtocolName = Literal["disjoint", "greedy", "overlap"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


def allocate(
    sentences: Sequence[Sentence], steps: Sequence[Sequence[str]], *, protocol: ProtocolName, seed: int
) -> list[list[int]]:
    """Return the indices of the sentences that go to each step under a protocol, before anything is hidden.

    Args:
        sentences: the corpus, with its full annotation.
        steps: the types of each step, in learning order.
        protocol: which of the protocols.
        seed: seed of the draws; `overlap` makes none.

    Raises:
        ConfigError: if a step is empty, a type is in two steps, or the protocol is unknown.

    Example:
        >>> from ner_cl.types import Sentence, Span
        >>> both = frozenset({"PER", "LOC"})
        >>> ada = Sentence(("Ada", "sleeps"), (Span(0, 1, "PER"),), both)
        >>> rome = Sentence(("Rome", "burns"), (Span(0, 1, "LOC"),), both)
        >>> allocate([ada, rome, ada], [["PER"], ["LOC"]], protocol="overlap", seed=13)
        [[0, 2], [1]]
    """
    step_of = check_steps(steps)
    check_protocol(protocol)
    if protocol == "disjoint":
        return _allocate_disjoint(len(sentences), len(steps), seed)
    if protocol == "greedy":
        return _allocate_greedy(sentences, step_of, [len(types) for types in steps], seed)
    return _allocate_overlap(sentences, step_of, len(steps))


def check_protocol(name: str) -> ProtocolName:
    """Return the protocol of that name; ConfigError with the nearest name if there is none."""
    for protocol in PROTOCOLS:
        if protocol == name:
            return protocol
    raise ConfigError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}")


def check_steps(steps: Sequence[Sequence[str]]) -> dict[str, int]:
    """Map each type to the index (from 0) of its step.

    Raises:
        ConfigError: if there is no step, a step is empty or not a list, or a type is named twice.
    """
    if not steps:
        raise ConfigError("stream.steps is empty; name the types of each step, for instance [[PER], [LOC]]")
    step_of: dict[str, int] = {}
    for index, types in enumerate(steps):
        if isinstance(types, str):
            raise ConfigError(f"stream.steps[{index}] is the single name {types!r}; write a list, [{types}]")
        if not types:
            raise ConfigError(f"stream.steps[{index}] is empty; a step must learn at least one type")
        for type_ in types:
            if type_ in step_of:
                raise ConfigError(
                    f"stream.steps[{index}]: type {type_} is already in step {step_of[type_] + 1}; name each type once"
                )
            step_of[type_] = index
    return step_of


def _allocate_disjoint(sentences: int, steps: int, seed: int) -> list[list[int]]:
    """Cut the shuffled corpus into equal slices; the last step also gets the remainder.

    Monaikul et al. (AAAI 2021), as re-created by SpanKL (AAAI 2023). Slices also hold sentences without any entity of
    the step. A slice keeps the shuffled order, so its beginning is itself a random sample.
    """
    order: list[int] = generator(seed, "disjoint protocol").permutation(sentences).tolist()
    size = sentences // steps
    ends = [size * number for number in range(1, steps)] + [sentences]
    return [order[size * step : end] for step, end in enumerate(ends)]


def _allocate_greedy(
    sentences: Sequence[Sentence], step_of: dict[str, int], sizes: list[int], seed: int
) -> list[list[int]]:
    """Size slices by the number of types; give each sentence to the step of its rarest type that still has room.

    The allocation of CFNER (EMNLP 2022) and its followers. A slice holds `floor(N · |types of step| / |all types|)`
    sentences. In file order, each sentence tries the steps of its types, the type with the fewest mentions in the
    corpus first (ties by name). If it has no type, or none of their steps has room, one of the steps with room is drawn
    uniformly. Once all slices are full the rest is dropped; rounding makes this fewer sentences than steps. A slice
    keeps the file order.
    """
    mentions = count_mentions(sentences)
    rarest_first = sorted(step_of, key=lambda type_: (mentions[type_], type_))
    rank = {type_: position for position, type_ in enumerate(rarest_first)}
    room = [len(sentences) * size // len(step_of) for size in sizes]
    random = generator(seed, "greedy protocol")
    slices: list[list[int]] = [[] for _ in sizes]
    for index, sentence in enumerate(sentences):
        present = sorted({rank[span.type] for span in sentence.spans if span.type in rank})
        wanted = (step_of[rarest_first[position]] for position in present)
        step = next((candidate for candidate in wanted if room[candidate]), None)
        if step is None:
            with_room = [candidate for candidate, left in enumerate(room) if left]
            if not with_room:
                break  # every slice is full, so this sentence and all after it are dropped
            step = with_room[random.integers(len(with_room))]
        slices[step].append(index)
        room[step] -= 1
    return slices


def _allocate_overlap(sentences: Sequence[Sentence], step_of: dict[str, int], steps: int) -> list[list[int]]:
    """Give each step every sentence that mentions one of its types, in file order; a sentence may be in several steps.

    SpanKL's "filter" setting: no step holds a sentence without an entity of its own.
    """
    slices: list[list[int]] = [[] for _ in range(steps)]
    for index, sentence in enumerate(sentences):
        for step in {step_of[span.type] for span in sentence.spans if span.type in step_of}:
            slices[step].append(index)
    return slices
