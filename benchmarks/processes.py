"""Independent tasks, several at a time, each in a process of its own."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

Task = Callable[[], str | None]


def in_processes(tasks: Mapping[str, Task], workers: int) -> list[str]:
    """Does tasks in order, so many at a time, and returns a line for each that failed.

    A process that is killed takes no other task with it. Ctrl-C and SIGTERM, which does the same here, end all of them.

    Args:
        tasks: what to do, by name; a task can be pickled, and returns a line if it failed.
        workers: number of processes at a time, which share the processor's cores.
    """
    processes = _context()
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, failed = deque(tasks.items()), []
    running: dict[Any, tuple[BaseProcess, Connection, str]] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, task = waiting.popleft()
                told, teller = processes.Pipe(duplex=False)
                process = processes.Process(target=_alone, args=(task, teller, threads), daemon=True)
                process.start()
                teller.close()
                running[process.sentinel] = (process, told, name)
            for sentinel in wait(list(running)):
                process, told, name = running.pop(sentinel)
                process.join()
                killed = f"{name}: its process ended with exit code {process.exitcode}; the same command resumes it"
                if line := killed if process.exitcode else told.recv():
                    failed.append(line)
    finally:
        for process, *_ in running.values():
            process.terminate()
            process.join()
        signal.signal(signal.SIGTERM, before)
    return failed


def _context() -> Any:
    """How to start processes: from one that has imported everything and, unlike this one, never used the GPU."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["transformers.models.bert.modeling_bert", "benchmarks.grid"])
    return found


def _alone(task: Task, teller: Connection, threads: int) -> None:
    """Does a task as the only one of a process, and tells how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(threads)
    teller.send(task())
