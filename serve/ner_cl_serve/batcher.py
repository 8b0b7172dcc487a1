"""Texts of concurrent requests computed together, by one thread."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import final

from ner_cl.types import Entity
from ner_cl_serve.fair_queue import FairQueue, Job, Kind, QueueFull, Work, estimated_pieces
from ner_cl_serve.metrics import Metrics
from ner_cl_serve.settings import Batching

__all__ = ["Batcher"]

# A request has this many slices of its texts in the queue: one that is computed, and one that is next.
_SLICES_AHEAD = 2
_LONGEST_RETRY = 60
_LONGEST_STOP = 30.0
_Answer = asyncio.Future[list[Entity]]


class _Abandoned(Exception):
    """Nobody waits any more for the text that is being computed."""


@final
class Batcher:
    """Gathers texts from the event loop and computes them in a thread of its own, the only one that runs models.

    A batch holds texts of one kind only, so that whatever a response says was found by one model. Between two passes
    over a long text a batch of short ones is computed, if any wait. What is cancelled leaves the queue.

    Args:
        options: of batches and the queue.
        metrics: told of every batch.
    """

    def __init__(self, options: Batching, metrics: Metrics) -> None:
        self._options, self._metrics = options, metrics
        self._queue = FairQueue(batch_tokens=options.batch_tokens, most_tokens=options.queue_tokens)
        metrics.watch_queue(lambda: self._queue.pieces)
        self._answers: dict[Job, list[_Answer]] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ner-cl-predict", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = 0
        self._stopping = self._between_passes = self._company = False
        self._seconds_per_piece = 0.0

    # --- on the event loop

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread; called once, on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Computes what was asked, also those texts of a large request that do not wait yet, then ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join, _LONGEST_STOP)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts an open request, from before its body is read; QueueFull if there are too many."""
        if self._open >= self._options.queue_requests:
            raise self._full(0)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def find(self, kind: Kind, texts: Sequence[str], *, bounded: bool = True) -> list[list[Entity]]:
        """The entities of each text; see `stream`."""
        async with aclosing(self.stream(kind, texts, bounded=bounded)) as answers:
            return [entities async for entities in answers]

    async def stream(
        self, kind: Kind, texts: Sequence[str], *, bounded: bool = True
    ) -> AsyncGenerator[list[Entity], None]:
        """The entities of each text in order, as they are found; only the next few texts wait in the queue.

        Args:
            kind: which model, and what it is asked.
            texts: one or many.
            bounded: whether to raise QueueFull, at the start, where no more may wait.
        """
        slices = _slices(texts, self._options.batch_tokens)
        jobs: list[Job] = []
        try:
            for number in range(len(slices)):
                while len(jobs) < min(number + _SLICES_AHEAD, len(slices)):
                    jobs.append(self._submit(kind, slices[len(jobs)], bounded=bounded and not jobs))
                for answer in self._answers[jobs[number]]:
                    yield await answer
                self._withdraw(jobs[number])
        finally:
            abandoned = [job for job in jobs if self._withdraw(job)]
            if abandoned:
                self._metrics.abandoned.inc()

    def _submit(self, kind: Kind, texts: Sequence[str], *, bounded: bool) -> Job:
        assert self._loop is not None
        job = Job(kind, texts)
        with self._changed:
            if bounded and not self._queue.fits(job):
                raise self._full(sum(job.pieces))
            self._queue.put(job)
            self._changed.notify()
        self._answers[job] = [self._loop.create_future() for _ in texts]
        return job

    def _withdraw(self, job: Job) -> bool:
        """Ends a job; whether there was something left of it to do."""
        answers = self._answers.pop(job, [])
        if self._stopping:
            with self._changed:
                self._changed.notify_all()
        job.abandoned = not all(answer.done() and not answer.cancelled() for answer in answers)
        if job.abandoned:
            with self._changed:
                self._queue.discard(job)
        for answer in answers:
            answer.cancel()
            if not answer.cancelled():
                answer.exception()  # or asyncio says that nobody looked at it
        return job.abandoned

    def _full(self, pieces: int) -> QueueFull:
        seconds = math.ceil((self._queue.pieces + pieces) * self._seconds_per_piece)
        return QueueFull(max(1, min(_LONGEST_RETRY, seconds)))

    def _deliver(self, work: Work, found: Sequence[list[Entity] | Exception]) -> None:
        for (job, index), entities in zip(work.parts, found, strict=True):
            answers = self._answers.get(job)
            if answers is None or answers[index].done():
                continue
            if isinstance(entities, Exception):
                answers[index].set_exception(entities)
            else:
                answers[index].set_result(entities)

    # --- in the thread

    def _run(self) -> None:
        while (work := self._next()) is not None:
            self._compute(work)

    def _next(self) -> Work | None:
        """What to compute next; waits for it, and None at the end."""
        with self._changed:
            while not self._queue:
                if self._stopping and not self._answers:
                    return None
                self._changed.wait()
            self._gather()
            return self._queue.take_long() or self._queue.take_short()

    def _gather(self) -> None:
        """Holds a batch back a moment for company, where the one before it had some."""
        until = self._queue.oldest() + self._options.wait_seconds if self._company and self._queue else 0.0
        while self._queue and self._queue.pieces < self._options.batch_tokens and not self._stopping:
            if (seconds := until - time.monotonic()) <= 0:
                break
            self._changed.wait(seconds)

    def _compute(self, work: Work) -> None:
        is_long = work.pieces > self._options.batch_tokens
        between = (lambda: self._serve_between(work.parts[0][0])) if is_long else None
        started = time.perf_counter()
        try:
            found: Sequence[list[Entity] | Exception] = self._find(work, between)
        except _Abandoned:
            return
        except Exception as error:
            if len(work.parts) > 1:  # of several texts only the one that cannot be computed is to fail
                for job, index in work.parts:
                    self._compute(Work(work.kind, ((job, index),), job.pieces[index]))
                return
            found = [error]
        if not is_long:  # whose time holds that of short texts between its passes
            self._measure(work, time.perf_counter() - started)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deliver, work, found)

    def _find(self, work: Work, between: Callable[[], None] | None) -> list[list[Entity]]:
        kind = work.kind
        return kind.finder.find(work.texts, types=kind.types, nested=kind.nested, between=between)

    def _serve_between(self, job: Job) -> None:
        """Before a pass over a long text: stops if nobody wants it any more, and computes a batch of short texts."""
        if self._between_passes:  # the short texts' own passes, through the same model
            return
        if job.abandoned:
            raise _Abandoned
        with self._changed:
            work = self._queue.take_short()
        if work is not None:
            self._between_passes = True
            try:
                self._compute(work)
            finally:
                self._between_passes = False

    def _measure(self, work: Work, seconds: float) -> None:
        self._company = len({id(job) for job, _ in work.parts}) > 1
        recent = seconds / work.pieces
        self._seconds_per_piece = 0.8 * self._seconds_per_piece + 0.2 * recent if self._seconds_per_piece else recent
        self._metrics.batch_texts.observe(len(work.parts))
        self._metrics.batch_seconds.observe(seconds)


def _slices(texts: Sequence[str], most_pieces: int) -> list[list[str]]:
    """The texts in order, cut so that a slice is about a batch."""
    slices: list[list[str]] = [[]]
    size = 0
    for text in texts:
        pieces = estimated_pieces(text)
        if slices[-1] and size + pieces > most_pieces:
            slices.append([])
            size = 0
        slices[-1].append(text)
        size += pieces
    return slices
