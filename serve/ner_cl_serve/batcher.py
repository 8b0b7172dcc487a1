"""Batches the texts of concurrent requests and computes them in one thread."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import final

from ner_cl.types import Entity
from ner_cl_serve.fair_queue import FairQueue, Job, Kind, QueueFull, Work, estimated_pieces
from ner_cl_serve.metrics import Metrics
from ner_cl_serve.settings import Batching

__all__ = ["Batcher"]

# The slices of its texts that a request has in the queue: one being computed, and the next one.
_SLICES_AHEAD = 2
_LONGEST_RETRY = 60
_LONGEST_STOP = 30.0
_Answer = asyncio.Future[list[Entity]]


class _Abandoned(Exception):
    """Nobody is waiting any more for the text being computed."""


@final
class Batcher:
    """Collects texts on the event loop and computes them in its own thread, the only one that runs models.

    A batch holds texts of one kind only, so each response comes from a single model. Between two passes over a long
    text, it computes a batch of short ones if any are waiting. Cancelled texts leave the queue.

    Args:
        options: batch and queue limits.
        metrics: records every batch.
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
        """Whether the thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread; call once, on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Finishes all open requests, including texts that are not queued yet, then ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join, _LONGEST_STOP)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts an open request, body still unread; raises QueueFull if too many are open."""
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
        """Yields the entities of each text in order, as they are found; only the next few texts wait in the queue.

        Args:
            kind: the model and the request's options.
            texts: one or many.
            bounded: whether to raise QueueFull if the first texts do not fit.
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
        """Ends a job; returns whether it was unfinished."""
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
                answer.exception()  # or asyncio logs an exception that was never retrieved
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
        """Waits for the next work; None after `stop`, once nothing is left."""
        with self._changed:
            while not self._queue:
                if self._stopping and not self._answers:
                    return None
                self._changed.wait()
            self._gather()
            return self._queue.take_long() or self._queue.take_short()

    def _gather(self) -> None:
        """Waits briefly for a batch to fill up, if the previous one mixed several requests."""
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
            if len(work.parts) > 1:  # retry one by one, so that only the faulty text fails
                for job, index in work.parts:
                    self._compute(Work(work.kind, ((job, index),), job.pieces[index]))
                return
            found = [error]
        if not is_long:  # a long text's time includes short texts between its passes
            self._measure(work, time.perf_counter() - started)
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: the service was told to stop at once, and nobody waits
            self._loop.call_soon_threadsafe(self._deliver, work, found)

    def _find(self, work: Work, between: Callable[[], None] | None) -> list[list[Entity]]:
        kind = work.kind
        return kind.finder.find(work.texts, types=kind.types, nested=kind.nested, between=between)

    def _serve_between(self, job: Job) -> None:
        """Runs before each pass over a long text: aborts if the job was abandoned, else computes a short batch."""
        if self._between_passes:  # called from the short batch itself, which runs the same model
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
    """The texts in order, cut into slices of about one batch each."""
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
