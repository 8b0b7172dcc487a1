"""Texts that wait to be computed, in an order in which whoever asks for much does not hold up the others."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from ner_cl.types import Entity

__all__ = ["FairQueue", "Finder", "Job", "Kind", "QueueFull", "Work", "estimated_pieces"]


class Finder(Protocol):
    """What finds entities: a model in service."""

    def find(
        self,
        texts: Sequence[str],
        *,
        types: Sequence[str] | None,
        nested: bool,
        between: Callable[[], None] | None,
    ) -> list[list[Entity]]:
        """The entities of each text; `between`, where given, is called before every pass through the encoder."""
        ...


class QueueFull(Exception):
    """No more can be taken on.

    Args:
        seconds: after which it is worth trying again.
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
    """The texts of one request.

    Args:
        kind: how to compute them.
        texts: what to compute.
    """

    def __init__(self, kind: Kind, texts: Sequence[str]) -> None:
        self.kind = kind
        self.texts = texts
        self.pieces = [estimated_pieces(text) for text in texts]
        self.arrived = time.monotonic()
        self.abandoned = False


@dataclass(frozen=True, slots=True)
class Work:
    """Texts to compute in one go: each by its job and its position there."""

    kind: Kind
    parts: tuple[tuple[Job, int], ...]
    pieces: int

    @property
    def texts(self) -> list[str]:
        """The texts themselves."""
        return [job.texts[index] for job, index in self.parts]


def estimated_pieces(text: str) -> int:
    """About how many word pieces a text has; for CJK, whose characters take three bytes, nearly one a character."""
    return 3 + (len(text) if text.isascii() else len(text.encode())) // 4


@final
class FairQueue:
    """Waiting texts in two lanes: those that fit into one batch, and longer ones.

    Of the short ones every job gives one text in turn, and who was served goes to the end. So a request with a single
    text is in the next batch but one, however many texts others have sent. Not safe to use from several threads.

    Args:
        batch_tokens: word pieces of one batch; a longer text goes to the long lane.
        most_tokens: word pieces that may wait in all.
    """

    def __init__(self, *, batch_tokens: int, most_tokens: int) -> None:
        self.batch_tokens, self.most_tokens = batch_tokens, most_tokens
        self.pieces = 0
        self._short: deque[_Turns] = deque()
        self._long: deque[_Turns] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._short or self._long)

    def fits(self, job: Job) -> bool:
        """Whether a job may still be taken on; one that is too large by itself may when nothing else waits."""
        return not self.pieces or self.pieces + sum(job.pieces) <= self.most_tokens

    def put(self, job: Job) -> None:
        """Lets all texts of a job wait."""
        for lane, is_long in ((self._short, False), (self._long, True)):
            indices = deque(i for i, pieces in enumerate(job.pieces) if (pieces > self.batch_tokens) is is_long)
            if indices:
                lane.append(_Turns(job, indices))
        self.pieces += sum(job.pieces)

    def discard(self, job: Job) -> None:
        """Takes out what still waits of a job."""
        for lane in (self._short, self._long):
            for turns in [turns for turns in lane if turns.job is job]:
                self.pieces -= sum(job.pieces[index] for index in turns.indices)
                lane.remove(turns)

    def oldest(self) -> float:
        """When the job arrived that is next."""
        return (self._long or self._short)[0].job.arrived

    def take_short(self) -> Work | None:
        """A batch of short texts of one kind, from as many jobs as possible."""
        if not self._short:
            return None
        kind = self._short[0].job.kind
        order = deque(turns for turns in self._short if turns.job.kind == kind)
        parts: list[tuple[Job, int]] = []
        total = 0
        while order and (not parts or total + order[0].next_pieces <= self.batch_tokens):
            turns = order.popleft()
            total += turns.next_pieces
            parts.append((turns.job, turns.indices.popleft()))
            if turns.indices:
                order.append(turns)
        served = {id(job) for job, _ in parts}
        left = [turns for turns in self._short if turns.indices]
        self._short = deque(sorted(left, key=lambda turns: id(turns.job) in served))
        self.pieces -= total
        return Work(kind, tuple(parts), total)

    def take_long(self) -> Work | None:
        """One long text."""
        if not self._long:
            return None
        turns = self._long.popleft()
        index = turns.indices.popleft()
        if turns.indices:
            self._long.append(turns)
        pieces = turns.job.pieces[index]
        self.pieces -= pieces
        return Work(turns.job.kind, ((turns.job, index),), pieces)


@final
@dataclass(eq=False, slots=True)
class _Turns:
    """The texts of a job that wait in a lane, by their position in the job."""

    job: Job
    indices: deque[int]

    @property
    def next_pieces(self) -> int:
        return self.job.pieces[self.indices[0]]
