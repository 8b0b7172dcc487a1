"""The results of the HTTP service's load test, and their report."""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

AIM = 0.7  # of the direct rate, at the largest number of clients
LONG = 50_000
QUEUE = 64


@dataclass(frozen=True)
class Level:
    """Results for a number of clients."""

    clients: int
    per_second: float
    ratio: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Overload:
    """The results under more requests than can be answered."""

    sent_per_second: float
    answered_per_second: float
    of_capacity: float
    statuses: dict[str, int]
    p50: float
    p99: float
    refused_p50: float


@dataclass(frozen=True)
class Swaps:
    """The results of publishing models under load."""

    swaps: int
    requests: int
    failed: int
    mixed: int
    seconds_a_swap: float
    megabytes: list[float]


def quantile(times: Sequence[float], share: float) -> float:
    """A quantile, in milliseconds."""
    ordered = sorted(times)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def report(found: dict[str, Any], arguments: argparse.Namespace, texts: Sequence[str]) -> str:
    """The report as Markdown.

    Args:
        found: the measurements, by part.
        arguments: the command line.
        texts: the texts that were sent.
    """
    per_second = statistics.median(found["direct_per_second"])
    size = statistics.mean(map(len, texts))
    lines = [
        f"{len(texts)} sentences of {size:.0f} characters, {arguments.rounds} rounds of {arguments.seconds:g} s, "
        f"{arguments.threads} torch threads, {os.cpu_count()} cores, torch {torch.__version__}; direct: "
        f"{per_second:.1f} sentences/s in one call, {found['one_by_one_per_second']:.1f} one by one",
        "",
        "| clients | requests/s | beside direct | aim | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["levels"]:
        aim = f"≥ {AIM}" if row is found["levels"][-1] else ""
        figures = f"{row.per_second:.1f} | {row.ratio:.2f} | {aim} | {row.p50:.0f} | {row.p95:.0f} | {row.p99:.0f}"
        lines.append(f"| {row.clients} | {figures} |")
    alone, beside = found["alone"], found["beside"]
    over = found["overload"]
    lines += [
        "",
        f"8 clients alone: p50 {alone['p50']:.0f} ms, p99 {alone['p99']:.0f} ms; beside one that sends {LONG:,} "
        f"characters at a time: p50 {beside['p50']:.0f} ms, p99 {beside['p99']:.0f} ms, and {beside['long']} such "
        "texts read.",
        "",
        f"At {over.sent_per_second:.1f} requests/s with a queue of {QUEUE}: {over.answered_per_second:.1f} answered a "
        f"second ({over.of_capacity:.2f} of what 64 clients got), p50 {over.p50:.0f} ms, p99 {over.p99:.0f} ms; "
        f"refused within {over.refused_p50:.0f} ms (p50); statuses {over.statuses}.",
    ]
    if "swaps" in found:
        swap = found["swaps"]
        lines += [
            "",
            f"{swap.swaps} swaps under 8 clients: {swap.requests} requests, {swap.failed} failed, {swap.mixed} not as "
            f"the version they name says, {swap.seconds_a_swap:.2f} s a swap, memory {swap.megabytes} MB.",
        ]
    return "\n".join(lines)
