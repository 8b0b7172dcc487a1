"""A queue of texts to compute, ordered so that large requests do not hold up small ones."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from ner_cl.types import Entity

__all__ = ["FairQueue", "Finder", "Job", "Kind", "QueueFull", "Work", "estimated_pieces"]


class Finder(Protocol):
    """Finds entities: a model in service."""

    def find(
        self,
        texts: Sequence[str],
        *,
        types: Sequence[str] | None,
        nested: bool,
        between: Callable[[], None] | None,
    ) -> list[list[Entity]]:
        """The entities of each text; `between`, if given, is called before every pass through the encoder."""
        ...


class QueueFull(Exception):
    """Too many requests or texts are waiting.

    Args:
        seconds: when to try again.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Kind:
    """What texts must have in common to be computed together."""

    finder: Finder
    types: tuple[str, ...] | None = None
    nested: bool = False


@final
class Job:
    """Texts of one request.

    Args:
        kind: how to compute them.
        texts: the texts to compute.
    """

    def __init__(self, kind: Kind, texts: Sequence[str]) -> None:
        self.kind = kind
        self.texts = texts
        self.pieces = [estimated_pieces(text) for text in texts]
        self.arrived = time.monotonic()
        self.abandoned = False


@dataclass(frozen=True, slots=True)
class Work:
    """Texts to compute together, each given by its job and its index there."""

    kind: Kind
    parts: tuple[tuple[Job, int], ...]
    pieces: int

    @property
    def texts(self) -> list[str]:
        """The texts themselves."""
        return [job.texts[index] for job, index in self.parts]


def estimated_pieces(text: str) -> int:
    """Roughly how many word pieces a text has; for CJK, at three bytes a character, nearly one per character."""
    return 3 + (len(text) if text.isascii() else len(text.encode())) // 4


@final
class FairQueue:
    """Waiting texts in two lanes: those that fit into one batch, and longer ones.

    In the short lane, jobs take turns at one text each, and jobs that were served go to the end. So how long a request
    with a single text waits depends on how many requests wait, not on how many texts each has. Not thread-safe.

    Args:
        batch_tokens: word pieces of one batch; a longer text goes to the long lane.
        most_tokens: word pieces that may wait in each lane.
    """

    def __init__(self, *, batch_tokens: int, most_tokens: int) -> None:
        self.batch_tokens, self.most_tokens = batch_tokens, most_tokens
        self._short, self._long = _Lane(), _Lane()

    def __bool__(self) -> bool:
        """Whether any text is waiting."""
        return bool(self._short.turns or self._long.turns)

    @property
    def pieces(self) -> int:
        """Word pieces that are waiting."""
        return self._short.pieces + self._long.pieces

    def fits(self, job: Job) -> bool:
        """Whether there is room for a job; an empty lane takes a job of any size."""
        return all(
            not lane.pieces or lane.pieces + sum(job.pieces[index] for index in indices) <= self.most_tokens
            for lane, indices in self._lanes(job)
        )

    def put(self, job: Job) -> None:
        """Queues all texts of a job."""
        for lane, indices in self._lanes(job):
            lane.turns.append(_Turns(job, deque(indices)))
            lane.pieces += sum(job.pieces[index] for index in indices)

    def discard(self, job: Job) -> None:
        """Removes the texts of a job that are still waiting."""
        for lane in (self._short, self._long):
            for turns in [turns for turns in lane.turns if turns.job is job]:
                lane.pieces -= sum(job.pieces[index] for index in turns.indices)
                lane.turns.remove(turns)

    def oldest(self) -> float:
        """When the next job arrived."""
        return (self._long.turns or self._short.turns)[0].job.arrived

    def take_short(self) -> Work | None:
        """Takes a batch of short texts of one kind, from as many jobs as possible."""
        lane = self._short
        if not lane.turns:
            return None
        kind = lane.turns[0].job.kind
        order = deque(turns for turns in lane.turns if turns.job.kind == kind)
        parts: list[tuple[Job, int]] = []
        total = 0
        while order and (not parts or total + order[0].next_pieces <= self.batch_tokens):
            turns = order.popleft()
            total += turns.next_pieces
            parts.append((turns.job, turns.indices.popleft()))
            if turns.indices:
                order.append(turns)
        served = {id(job) for job, _ in parts}
        left = [turns for turns in lane.turns if turns.indices]
        lane.turns = deque(sorted(left, key=lambda turns: id(turns.job) in served))
        lane.pieces -= total
        return Work(kind, tuple(parts), total)

    def take_long(self) -> Work | None:
        """Takes one long text."""
        lane = self._long
        if not lane.turns:
            return None
        turns = lane.turns.popleft()
        index = turns.indices.popleft()
        if turns.indices:
            lane.turns.append(turns)
        pieces = turns.job.pieces[index]
        lane.pieces -= pieces
        return Work(turns.job.kind, ((turns.job, index),), pieces)

    def _lanes(self, job: Job) -> "list[tuple[_Lane, list[int]]]":
        """The lanes of a job, each with the indices of its texts."""
        short = [index for index, pieces in enumerate(job.pieces) if pieces <= self.batch_tokens]
        long = [index for index, pieces in enumerate(job.pieces) if pieces > self.batch_tokens]
        return [(lane, indices) for lane, indices in ((self._short, short), (self._long, long)) if indices]


@final
@dataclass(eq=False, slots=True)
class _Turns:
    """The texts of a job that wait in a lane, by their index in the job."""

    job: Job
    indices: deque[int]

    @property
    def next_pieces(self) -> int:
        return self.job.pieces[self.indices[0]]


@final
@dataclass(eq=False, slots=True)
class _Lane:
    """Waiting jobs in the order they are served, and their total word pieces."""

    turns: deque[_Turns] = field(default_factory=deque)
    pieces: int = 0
