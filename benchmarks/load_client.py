"""A client for load tests: many connections in one thread, with as little work per request as possible.

    python -m benchmarks.load_client [--until-closed] < PLAN

PLAN is one line with a JSON object: `port`, `bodies` (each a body for `POST /v1/entities`), `seconds`, and either
`clients`, which send one request after another, or `rate`, requests per second sent over at most `connections` whether
or not earlier ones are answered. Requests go to 127.0.0.1 only. --until-closed also stops when stdin is closed.

It prints a JSON object: `seconds` from the first request to the last answer, and `results`, a list of `[seconds,
status, index of the body, answer]`; the answer is null unless PLAN sets `keep`. Status 0 is a failed connection, -1 a
request not sent because no connection was free.
"""

import asyncio
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
MOST_SECONDS = 300.0


@dataclass
class Connection:
    """One keep-alive connection."""

    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Sends a request and reads its response."""
        if self.reader is None or self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(HOST, self.port)
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        status, length, closing = _head(head)
        body = await self.reader.readexactly(length)
        if closing:
            self.close()
        return status, body

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


@dataclass
class Load:
    """The requests to send, and their results."""

    port: int
    requests: list[bytes]
    keep: bool
    results: list[tuple[float, int, int, Any]] = field(default_factory=list)
    sent: int = 0
    stopped: bool = False

    def stop(self) -> None:
        """Makes clients stop after their current request."""
        self.stopped = True

    async def ask(self, connection: Connection) -> None:
        index = self.sent % len(self.requests)
        self.sent += 1
        started = time.perf_counter()
        try:
            status, body = await connection.ask(self.requests[index])
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
            status, body = 0, b""
        answer = json.loads(body) if self.keep and body else None
        self.results.append((time.perf_counter() - started, status, index, answer))

    async def closed(self, clients: int, seconds: float) -> None:
        """Runs clients that each send one request after another."""
        until = time.perf_counter() + seconds

        async def client() -> None:
            connection = Connection(self.port)
            while time.perf_counter() < until and not self.stopped:
                await self.ask(connection)
            connection.close()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, connections: int, seconds: float) -> None:
        """Sends requests at a fixed rate; one for which no connection is free is not sent, but counted."""
        free = [Connection(self.port) for _ in range(connections)]
        begun = time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()

        async def one(connection: Connection) -> None:
            await self.ask(connection)
            free.append(connection)

        for number in range(int(rate * seconds)):
            if (early := begun + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            if not free:
                self.results.append((0.0, -1, 0, None))
                continue
            task = asyncio.create_task(one(free.pop()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for connection in free:
            connection.close()


def _stop_when_closed(load: Load) -> None:
    sys.stdin.read()
    load.stop()


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    load = Load(plan["port"], [_request(body) for body in plan["bodies"]], plan.get("keep", False))
    seconds = min(plan["seconds"], MOST_SECONDS)
    run = (
        load.closed(plan["clients"], seconds)
        if "clients" in plan
        else load.open(plan["rate"], plan["connections"], seconds)
    )
    if "--until-closed" in sys.argv:
        threading.Thread(target=_stop_when_closed, args=(load,), daemon=True).start()
    started = time.perf_counter()
    asyncio.run(run)
    json.dump({"seconds": time.perf_counter() - started, "results": load.results}, sys.stdout)


def _request(body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/entities HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _head(head: bytes) -> tuple[int, int, bool]:
    """Status, length of the body, and whether the server closes the connection."""
    first, *lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    return int(first.split()[1]), int(headers.get("content-length", 0)), headers.get("connection") == "close"


if __name__ == "__main__":
    main()
