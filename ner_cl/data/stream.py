"""The stream: the data of each step, with annotation of past and future types hidden from training."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ner_cl.data.draws import generator
from ner_cl.data.protocols import ProtocolName, allocate, check_steps
from ner_cl.data.tally import count_mentions
from ner_cl.errors import ConfigError, DataError
from ner_cl.registry import nearest
from ner_cl.types import Sentence

__all__ = ["Corpus", "DevMode", "Step", "Stream", "StreamProtocol", "build_stream", "fingerprint", "order_types"]

DevMode = Literal["auto", "slice", "whole"]
StreamProtocol = Literal[ProtocolName, "files"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus with its full annotation, before anything is hidden; `dev` may be empty.

    Attributes:
        train: training sentences.
        dev: development sentences, for model selection.
        test: test sentences.
        name: its name in reports.
        unlabeled: raw in-domain text, annotated for no type.
        slices: indices of the training sentences of each step, if they were given step by step; else empty.
        dev_slices: the same for the development sentences.
    """

    train: tuple[Sentence, ...]
    dev: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    name: str = "corpus"
    unlabeled: tuple[Sentence, ...] = ()
    slices: tuple[tuple[int, ...], ...] = ()
    dev_slices: tuple[tuple[int, ...], ...] = ()

    @property
    def types(self) -> tuple[str, ...]:
        """All entity types mentioned in any part, sorted by name."""
        return tuple(sorted(count_mentions((*self.train, *self.dev, *self.test))))


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its new entity types, and sentences annotated for these types only.

    Attributes:
        number: number of the step, from 1.
        types: the new types, in learning order.
        train: training sentences, restricted to `types`.
        dev: development sentences, restricted to `types`; may be empty.
    """

    number: int
    types: tuple[str, ...]
    train: tuple[Sentence, ...] = field(repr=False)
    dev: tuple[Sentence, ...] = field(repr=False)

    @property
    def data_hash(self) -> str:
        """`fingerprint` of the training sentences, as restricted to this step."""
        return fingerprint(self.train)


@dataclass(frozen=True, slots=True)
class Stream:
    """All steps of one continual-learning run, and the test set.

    Attributes:
        corpus_name: name of the corpus in reports.
        protocol: how sentences were allocated to steps.
        steps: the steps, in learning order.
        test: the whole test set, annotated for all types of the stream; score with `test_at`.
        unlabeled: raw text that every step may read.
    """

    corpus_name: str
    protocol: StreamProtocol
    steps: tuple[Step, ...]
    test: tuple[Sentence, ...] = field(repr=False)
    # Only for `everything_until` and `dev_everything_until`: these fields hold what the steps must not see.
    _unmasked: tuple[Sentence, ...] = field(repr=False)
    _allocation: tuple[tuple[int, ...], ...] = field(repr=False)
    _unmasked_dev: tuple[Sentence, ...] = field(repr=False)
    _dev_allocation: tuple[tuple[int, ...], ...] = field(repr=False)
    unlabeled: tuple[Sentence, ...] = field(default=(), repr=False)

    @property
    def types(self) -> tuple[str, ...]:
        """All types, in learning order."""
        return self.seen(len(self.steps))

    def seen(self, number: int) -> tuple[str, ...]:
        """Return the types learned in steps 1 to `number`; DataError if there is no such step."""
        if not 1 <= number <= len(self.steps):
            raise DataError(f"the stream has steps 1 to {len(self.steps)}, not {number}")
        return tuple(type_ for step in self.steps[:number] for type_ in step.types)

    def test_at(self, number: int) -> tuple[Sentence, ...]:
        """Return all test sentences, annotated for the types seen up to step `number`."""
        return _restrict(self.test, self.seen(number))

    def everything_until(self, number: int, *, own: bool = False) -> tuple[Sentence, ...]:
        """Return the training sentences of steps 1 to `number`, each once, annotated for **all** types seen so far.

        Only for the upper bound ("non-continual, complete data"): it reveals old types in new sentences and new types
        in old ones, which no other strategy may see.

        Args:
            number: the last of the steps.
            own: keep only the annotation that the steps had: a sentence's is that of the types of its own step or, if
                the protocol gave it to several, of all of these.
        """
        return self._until(number, self._unmasked, self._allocation, own=own)

    def dev_everything_until(self, number: int, *, own: bool = False) -> tuple[Sentence, ...]:
        """Like `everything_until`, for the development sentences; only for the same upper bound."""
        return self._until(number, self._unmasked_dev, self._dev_allocation, own=own)

    def _until(
        self, number: int, sentences: Sequence[Sentence], allocation: Sequence[Sequence[int]], *, own: bool
    ) -> tuple[Sentence, ...]:
        types_of: dict[int, list[str]] = {}
        for step, part in zip(self.steps[:number], allocation, strict=False):
            for index in part:
                types_of.setdefault(index, []).extend(step.types)
        seen = self.seen(number)
        return tuple(sentences[index].restrict(types if own else seen) for index, types in types_of.items())


def build_stream(
    corpus: Corpus,
    steps: Sequence[Sequence[str]],
    *,
    protocol: StreamProtocol = "disjoint",
    seed: int = 13,
    dev: DevMode = "auto",
) -> Stream:
    """Split a corpus into the steps of a stream and hide from each step all entity types but its own.

    Args:
        corpus: the data; types that no step names stay hidden everywhere, including the test set.
        steps: the types of each step, in learning order.
        protocol: how training sentences are allocated to steps, see `ner_cl.data.protocols`; `files` if the corpus says
            which are whose.
        seed: seed of the protocol's random choices.
        dev: "slice" divides the development set by the same protocol; "whole" gives all of it to every step (restricted
            to the step's types); "auto" follows the protocol's authors: whole for greedy, else slice.

    Raises:
        ConfigError: if a type is in two steps or never occurs in the corpus.
        DataError: if there are no training or no test sentences, or a step's training data lack one of its types.

    Example:
        >>> from ner_cl.types import Sentence, Span
        >>> train = Sentence(("Ada", "saw", "Rome"), (Span(0, 1, "PER"), Span(2, 3, "LOC")), frozenset({"PER", "LOC"}))
        >>> stream = build_stream(Corpus((train,), (), (train,)), [["PER"], ["LOC"]], protocol="overlap")
        >>> stream.steps[1].train[0].spans, [len(sentence.spans) for sentence in stream.test_at(1)]
        ((Span(start=2, end=3, type='LOC'),), [1])
    """
    _check_corpus(corpus, check_steps(steps))
    allocation: Sequence[Sequence[int]]
    dev_allocation: Sequence[Sequence[int]] = [range(len(corpus.dev))] * len(steps)
    if protocol == "files":
        allocation, dev_allocation = corpus.slices, corpus.dev_slices or dev_allocation
    else:
        allocation = allocate(corpus.train, steps, protocol=protocol, seed=seed)
        if dev == "slice" or (dev == "auto" and protocol != "greedy"):
            dev_allocation = allocate(corpus.dev, steps, protocol=protocol, seed=seed)
    built = tuple(
        Step(
            number,
            tuple(types),
            _restrict((corpus.train[index] for index in train_indices), types),
            _restrict((corpus.dev[index] for index in dev_indices), types),
        )
        for number, (types, train_indices, dev_indices) in enumerate(
            zip(steps, allocation, dev_allocation, strict=True), start=1
        )
    )
    for step in built:
        _check_step(step, protocol=protocol, seed=seed)
    test = _restrict(corpus.test, [type_ for types in steps for type_ in types])
    return Stream(
        corpus.name,
        protocol,
        built,
        test,
        corpus.train,
        tuple(tuple(part) for part in allocation),
        corpus.dev,
        tuple(tuple(part) for part in dev_allocation),
        corpus.unlabeled,
    )


def order_types(
    corpus: Corpus,
    *,
    order: Sequence[str] | Literal["alphabetical", "frequency", "random"] = "alphabetical",
    increment: int = 1,
    first: int | None = None,
    seed: int = 13,
) -> tuple[tuple[str, ...], ...]:
    """Group the types of a corpus into steps: `first` types in step 1, then `increment` per step (FG-a-PG-b).

    Args:
        corpus: the data; only types mentioned in its training part can be learned.
        order: the types themselves, or "alphabetical" (by code point), "frequency" (most training mentions first,
            ties by name), "random" (by `seed`).
        increment: types per step; the last step takes the rest and may be smaller.
        first: types in the first step; `increment` if None.
        seed: seed of the random order.

    Raises:
        ConfigError: for an unknown order or type, a type named twice, or a step size below 1.

    Example:
        >>> from ner_cl.types import Sentence, Span
        >>> names = ("A", "B", "C", "D")
        >>> spans = tuple(Span(place, place + 1, name) for place, name in enumerate(names))
        >>> order_types(Corpus((Sentence(names, spans, frozenset(names)),), (), ()), increment=1, first=2)
        (('A', 'B'), ('C',), ('D',))
    """
    start = increment if first is None else first
    if increment < 1 or start < 1:
        raise ConfigError(f"a step needs at least one type, but first is {start} and increment {increment}")
    mentions = count_mentions(corpus.train)
    if not isinstance(order, str):
        types = list(order)
        _check_known(check_steps([types]), f"the training part of {corpus.name}", mentions)
    elif order in ("alphabetical", "random"):
        types = sorted(mentions)
        if order == "random":
            types = [types[index] for index in generator(seed, "type order").permutation(len(types))]
    elif order == "frequency":
        types = sorted(mentions, key=lambda type_: (-mentions[type_], type_))
    else:
        known = ("alphabetical", "frequency", "random")
        raise ConfigError(f"unknown type order {order!r}{nearest(order, known)}; known: {', '.join(known)}, or a list")
    if not types:
        raise DataError(f"the training part of {corpus.name} mentions no type; nothing can be ordered")
    bounds = [0, *range(start, len(types), increment), len(types)]
    return tuple(tuple(types[low:high]) for low, high in itertools.pairwise(bounds))


def fingerprint(sentences: Iterable[Sentence]) -> str:
    """Return the hexadecimal SHA-256 of the words, spans and annotated types of the sentences, in order.

    Equal data give equal fingerprints on every machine, wherever the sentences were read from.
    """
    digest = hashlib.sha256()
    for sentence in sentences:
        spans = [(span.start, span.end, span.type) for span in sentence.spans]
        line = json.dumps([sentence.words, spans, sorted(sentence.annotated_types)])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _restrict(sentences: Iterable[Sentence], types: Sequence[str]) -> tuple[Sentence, ...]:
    return tuple(sentence.restrict(types) for sentence in sentences)


def _check_corpus(corpus: Corpus, types: Iterable[str]) -> None:
    for part, sentences in (("training", corpus.train), ("test", corpus.test)):
        if not sentences:
            raise DataError(f"{corpus.name} has no {part} sentences; check stream.corpus")
    _check_known(types, corpus.name, corpus.types)


def _check_known(types: Iterable[str], where: str, known: Iterable[str]) -> None:
    names = sorted(known)
    for type_ in types:
        if type_ not in names:
            raise ConfigError(
                f"type {type_!r} never occurs in {where}{nearest(type_, names)}; it has {', '.join(names) or 'no type'}"
            )


def _check_step(step: Step, *, protocol: str, seed: int) -> None:
    mentions = count_mentions(step.train)
    files = protocol == "files"
    for type_ in step.types:
        if not mentions[type_]:
            advice = "use protocol greedy or overlap, another seed, or more data"
            if files:
                advice = "check stream.steps and the order of the files in corpus.train"
                if silent := sum(not sentence.annotated_types for sentence in step.train):
                    advice += f"; {silent} of the sentences count as annotated for none of the step's types"
            raise DataError(
                f"step {step.number}: none of its {len(step.train)} training sentences mentions {type_}"
                f"{'' if files else f' (protocol {protocol}, seed {seed})'}; {advice}"
            )
    if files and step.dev and not count_mentions(step.dev):
        raise DataError(
            f"step {step.number}: none of its {len(step.dev)} dev sentences mentions {', '.join(step.types)}; "
            "check the order of the files in corpus.dev, or leave dev out"
        )
