"""Batching, fairness, back-pressure and cancellation, with a model whose pace the test decides."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from ner_cl.types import Entity
from ner_cl_serve.batcher import Batcher
from ner_cl_serve.fair_queue import Kind, QueueFull
from ner_cl_serve.metrics import Metrics
from ner_cl_serve.settings import Batching

T = TypeVar("T")
LONG = "x" * 4000
PASSES = 5


class Echo:
    """Finds each text as one entity. Waits for permission before every pass; a long text takes five of them."""

    def __init__(self, *, permitted: bool = True) -> None:
        self.calls: list[list[str]] = []
        self.permits = threading.Semaphore(1_000_000 if permitted else 0)
        self.begun = threading.Event()
        self.threads: set[str] = set()

    def find(
        self,
        texts: Sequence[str],
        *,
        types: Sequence[str] | None = None,
        nested: bool = False,
        between: Callable[[], None] | None = None,
    ) -> list[list[Entity]]:
        self.threads.add(threading.current_thread().name)
        for _ in range(PASSES if between is not None else 1):
            if between is not None:
                between()
            self.begun.set()
            assert self.permits.acquire(timeout=20)
        self.calls.append(list(texts))
        if "poison" in texts:
            raise ValueError("poison")
        return [[Entity(0, len(text), "X", text, 1.0, 1)] for text in texts]


@asynccontextmanager
async def batching(metrics: Metrics | None = None, **options: float) -> AsyncIterator[Batcher]:
    batcher = Batcher(Batching(**{"batch_tokens": 100, **options}), metrics or Metrics())  # type: ignore[arg-type]
    batcher.start()
    try:
        yield batcher
    finally:
        await asyncio.wait_for(batcher.stop(), 30)


def run(test: Awaitable[T]) -> T:
    async def in_time() -> T:
        return await asyncio.wait_for(test, 40)

    return asyncio.run(in_time())


def value_of(metrics: Metrics, name: str) -> float:
    """A number as Prometheus is told it."""
    [value] = [line.split()[1] for line in metrics.text().decode().splitlines() if line.startswith(f"{name} ")]
    return float(value)


def texts_of(found: list[list[Entity]]) -> list[str]:
    return [entity.text for entities in found for entity in entities]


async def begun(echo: Echo) -> None:
    """Waits until the thread computes something."""
    assert await asyncio.to_thread(echo.begun.wait, 20)


async def cancelled(task: asyncio.Task[list[list[Entity]]]) -> None:
    """Cancels a task and waits until it has taken note."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_answers_come_back_in_order() -> None:
    async def test() -> None:
        async with batching() as batcher:
            texts = [f"text {number}" for number in range(200)]
            assert texts_of(await batcher.find(Kind(Echo()), texts)) == texts

    run(test())


def test_requests_that_wait_together_are_computed_together_in_one_thread() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        async with batching() as batcher:
            first = asyncio.create_task(batcher.find(Kind(echo), ["first"]))
            await begun(echo)
            others = [asyncio.create_task(batcher.find(Kind(echo), [str(number)])) for number in range(20)]
            await asyncio.sleep(0)
            echo.permits.release(10)
            found = await asyncio.gather(first, *others)
        assert [texts_of(answer) for answer in found] == [["first"], *([str(number)] for number in range(20))]
        assert echo.calls == [["first"], [str(number) for number in range(20)]]
        assert echo.threads == {"ner-cl-predict"}

    run(test())


def test_models_and_types_are_never_mixed_in_a_batch() -> None:
    async def test() -> None:
        old, new = Echo(permitted=False), Echo()
        async with batching() as batcher:
            blocked = asyncio.create_task(batcher.find(Kind(old), ["blocked"]))
            await begun(old)
            tasks = [
                asyncio.create_task(batcher.find(Kind(finder, types), [f"{name} {number}"]))
                for number in range(4)
                for name, finder, types in (("old", old, None), ("new", new, None), ("old PER", old, ("PER",)))
            ]
            await asyncio.sleep(0)
            old.permits.release(10)
            await asyncio.gather(blocked, *tasks)
        assert new.calls == [[f"new {number}" for number in range(4)]]
        assert old.calls[1:] == [[f"old {n}" for n in range(4)], [f"old PER {n}" for n in range(4)]]

    run(test())


def test_short_texts_are_computed_between_the_passes_of_a_long_one() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        async with batching() as batcher:
            long = asyncio.create_task(batcher.find(Kind(echo), [LONG]))
            await begun(echo)
            short = asyncio.create_task(batcher.find(Kind(echo), ["short"]))
            await asyncio.sleep(0)
            echo.permits.release(2)  # one pass of the long text, then the short text
            assert texts_of(await short) == ["short"]
            assert not long.done()
            echo.permits.release(PASSES)
            assert texts_of(await long) == [LONG]

    run(test())


def test_a_long_text_that_nobody_waits_for_is_given_up_between_passes() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        async with batching() as batcher:
            long = asyncio.create_task(batcher.find(Kind(echo), [LONG]))
            await begun(echo)
            await cancelled(long)
            echo.permits.release(2)
            assert texts_of(await batcher.find(Kind(echo), ["next"])) == ["next"]
            echo.permits.release(2 * PASSES)  # as many as the long text would need to be computed after all
        assert echo.calls == [["next"]]

    run(test())


def test_cancelled_requests_leave_the_queue() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        metrics = Metrics()
        async with batching(metrics=metrics) as batcher:
            blocked = asyncio.create_task(batcher.find(Kind(echo), ["blocked"]))
            await begun(echo)
            gone = asyncio.create_task(batcher.find(Kind(echo), ["gone"] * 500))
            kept = asyncio.create_task(batcher.find(Kind(echo), ["kept"]))
            await asyncio.sleep(0)
            assert value_of(metrics, "ner_cl_queue_tokens") > 100
            await cancelled(gone)
            assert value_of(metrics, "ner_cl_queue_tokens") < 10  # what is left is "kept"
            assert value_of(metrics, "ner_cl_abandoned_total") == 1  # a request, of whatever many parts
            echo.permits.release(10)
            await asyncio.gather(blocked, kept)
        assert echo.calls == [["blocked"], ["kept"]]

    run(test())


def test_of_several_texts_only_the_one_that_cannot_be_computed_fails() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        async with batching() as batcher:
            blocked = asyncio.create_task(batcher.find(Kind(echo), ["blocked"]))
            await begun(echo)
            tasks = [asyncio.create_task(batcher.find(Kind(echo), [text])) for text in ("a", "poison", "b")]
            await asyncio.sleep(0)
            echo.permits.release(10)
            await blocked
            first, failed, last = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(failed, ValueError)
            assert [first, last] == [[[Entity(0, 1, "X", text, 1.0, 1)]] for text in "ab"]

    run(test())


def test_what_does_not_fit_is_refused_with_the_time_to_wait() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        async with batching(queue_tokens=50) as batcher:
            tasks = [asyncio.create_task(batcher.find(Kind(echo), ["blocked"]))]
            await begun(echo)
            tasks.append(asyncio.create_task(batcher.find(Kind(echo), ["x" * 160])))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull) as refused:
                await batcher.find(Kind(echo), ["x" * 160])
            assert 1 <= refused.value.seconds <= 60
            unbounded = asyncio.create_task(batcher.find(Kind(echo), ["y" * 160], bounded=False))
            await asyncio.sleep(0)
            echo.permits.release(10)
            await asyncio.gather(*tasks, unbounded)

    run(test())


def test_a_large_request_leaves_room_for_small_ones() -> None:
    async def test() -> None:
        echo = Echo(permitted=False)
        async with batching(queue_tokens=300) as batcher:
            large = asyncio.create_task(batcher.find(Kind(echo), ["large"] * 5000))
            await begun(echo)
            small = asyncio.create_task(batcher.find(Kind(echo), ["small"]))
            await asyncio.sleep(0)
            echo.permits.release(3)
            assert texts_of(await small) == ["small"]
            await cancelled(large)
            echo.permits.release(10)

    run(test())


def test_only_so_many_requests_may_be_open() -> None:
    async def test() -> None:
        async with batching(queue_requests=2) as batcher:
            with batcher.admit(), batcher.admit(), pytest.raises(QueueFull), batcher.admit():
                pass
            with batcher.admit():
                pass

    run(test())


def test_a_stream_comes_in_order_and_keeps_little_in_the_queue() -> None:
    async def test() -> None:
        echo = Echo()
        texts = [f"text {number:4}" for number in range(500)]
        async with batching(queue_tokens=100) as batcher:
            found = [entities[0].text async for entities in batcher.stream(Kind(echo), texts)]
        assert found == texts
        assert max(map(len, echo.calls)) <= 100 // 5

    run(test())


def test_a_stream_that_is_closed_is_computed_no_further() -> None:
    async def test() -> None:
        echo = Echo()
        async with batching() as batcher:
            stream = batcher.stream(Kind(echo), [f"text {number:4}" for number in range(500)])
            assert (await anext(stream))[0].text == "text    0"
            await stream.aclose()
        assert sum(map(len, echo.calls)) < 100

    run(test())


def test_stopping_computes_what_waits() -> None:
    async def test() -> list[list[Entity]]:
        echo = Echo(permitted=False)
        async with batching() as batcher:
            waiting = asyncio.create_task(batcher.find(Kind(echo), ["a", LONG, "b"]))
            await begun(echo)
            stopping = asyncio.create_task(batcher.stop())
            await asyncio.sleep(0)
            echo.permits.release(20)
            await stopping
            assert not batcher.alive
            return await waiting

    assert texts_of(run(test())) == ["a", LONG, "b"]


def test_an_answer_that_comes_after_the_loop_has_closed_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a second Ctrl-C."""
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    echo = Echo(permitted=False)
    batcher = Batcher(Batching(), Metrics())

    async def test() -> None:
        batcher.start()
        task = asyncio.create_task(batcher.find(Kind(echo), ["late"]))
        await begun(echo)
        await cancelled(task)

    run(test())
    echo.permits.release(10)
    asyncio.run(batcher.stop())
    assert echo.calls == [["late"]]
    assert failed == []
