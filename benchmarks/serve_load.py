"""What the HTTP service costs compared with calling predict directly, and how it behaves under overload.

    python -m benchmarks.serve_load [--model DIR] [--data FILE] [--sentences N] [--seconds S] [--rounds R] [--threads T]
                                    [--swaps N] [--output FILE]

The service is `ner-cl serve` in its own process; a second process queries it over 127.0.0.1, one sentence per request.
    direct      sentences per second of `NerModel.predict` on all sentences, in this process, nothing else running
    clients     1, 8 and 64, each sending one request after another: requests per second, as a ratio to `direct` of the
                same round (the median of rounds), and the time from request to answer
    beside      8 clients, alone and beside one that sends texts of 50,000 characters: the time from request to answer
    overload    twice the rate that 64 clients reached, whether or not earlier requests are answered, with a queue of 64
                requests: how many are answered, how many get a 429, and how long the answered ones take
    swaps       two models published in turn under the load of 8 clients: failed requests, answers that do not match the
                version they name, seconds per swap, and the memory of the process before and after
Without --model, a MiniLM learns the quickstart corpus for one epoch, so that it finds about as much as a real tagger.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import ner_cl
from benchmarks.load_report import LONG, QUEUE, Level, Overload, Swaps, quantile, report
from ner_cl.config import TrainingOptions
from ner_cl.data.readers import read_sentences
from ner_cl.model.ner_model import NerModel
from ner_cl.train.environment import environment
from ner_cl_serve.tokens import add_token

DEFAULT_DATA = Path(__file__).parents[1] / "data" / "quickstart"
CLIENTS = (1, 8, 64)


@dataclass(frozen=True)
class Load:
    """The results of a load client; see `benchmarks.load_client`."""

    seconds: float
    results: list[tuple[float, int, int, Any]]

    @property
    def answered_per_second(self) -> float:
        return len(self.times(200)) / self.seconds

    def times(self, status: int) -> list[float]:
        """The seconds taken by each request that ended with `status`."""
        return [taken for taken, found, _, _ in self.results if found == status]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    texts = [s.text or " ".join(s.words) for s in read_sentences(arguments.data)][: arguments.sentences]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        first, second = models(root, arguments.model)
        model = ner_cl.load(first)
        found: dict[str, Any] = {"direct_per_second": [], "one_by_one_per_second": one_by_one(model, texts)}
        with service(first, arguments.threads) as (port, _):
            rounds = [one_round(model, texts, port, arguments.seconds, found) for _ in range(arguments.rounds)]
            found["alone"], found["beside"] = beside_long_texts(texts, port, arguments.seconds)
        found["levels"] = levels(rounds, found["direct_per_second"])
        capacity = found["levels"][-1].per_second
        with service(first, arguments.threads, f"--queue-requests={QUEUE}") as (port, _):
            found["overload"] = overload(texts, port, arguments.seconds, capacity)
        if arguments.swaps:
            found["swaps"] = swaps(first, second, texts[:50], arguments.swaps, arguments.threads)
    print(report(found, arguments, texts))
    if arguments.output:
        plain = json.loads(json.dumps(found, default=asdict))
        record = {"environment": environment(), "arguments": {k: str(v) for k, v in vars(arguments).items()}, **plain}
        arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def models(root: Path, given: Path | None) -> tuple[Path, Path]:
    """Folders of the model to serve, and of one with one more type."""
    sentences = read_sentences(DEFAULT_DATA / "train.jsonl")
    types = sorted({span.type for sentence in sentences for span in sentence.spans})
    training = TrainingOptions(epochs=1)
    if given is not None:
        shutil.copytree(given, root / "first")
        first = ner_cl.load(root / "first")
    else:
        known = types[:-1]
        restricted = [sentence.restrict(known) for sentence in sentences[:600]]
        first = ner_cl.learn(NerModel.from_encoder(), train=restricted, types=known, training=training).model
        first.save(root / "first")
    new = [sentence.restrict(types[-1:]) for sentence in sentences if types[-1] in {s.type for s in sentence.spans}]
    ner_cl.learn(first, train=new[:60], types=types[-1:], training=training).model.save(root / "second")
    return root / "first", root / "second"


@contextmanager
def service(model: Path, threads: int, *flags: str) -> Iterator[tuple[int, int]]:
    """Runs `ner-cl serve`; yields its port and process id."""
    command = [sys.executable, "-m", "ner_cl", "serve", str(model), "--port=0", f"--threads={threads}", "--state=none"]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, bufsize=1)
    assert process.stderr is not None
    line = json.loads(process.stderr.readline())
    if line["event"] != "serving":
        raise RuntimeError(f"the service did not start: {line}")
    drain = subprocess.Popen([sys.executable, "-c", "import sys\nfor _ in sys.stdin: pass"], stdin=process.stderr)
    try:
        yield line["port"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        drain.wait(timeout=60)
        process.stderr.close()


def one_by_one(model: NerModel, texts: Sequence[str]) -> float:
    """Sentences per second when each is predicted on its own."""
    some = texts[:50]
    model.predict(some[0])
    started = time.perf_counter()
    for text in some:
        model.predict(text)
    return len(some) / (time.perf_counter() - started)


def direct(model: NerModel, texts: Sequence[str]) -> float:
    """Sentences per second of a single call on all of them."""
    started = time.perf_counter()
    count = sum(1 for _ in model.predict(texts))
    return count / (time.perf_counter() - started)


def one_round(
    model: NerModel, texts: Sequence[str], port: int, seconds: float, found: dict[str, Any]
) -> dict[int, Load]:
    """Measures each number of clients once, between two direct runs whose mean is the reference."""
    before = direct(model, texts)
    results = {}
    for clients in CLIENTS:
        load(port, texts, seconds=min(1.0, seconds), clients=clients)  # warm-up
        results[clients] = load(port, texts, seconds=seconds, clients=clients)
    found["direct_per_second"].append((before + direct(model, texts)) / 2)
    return results


def load(port: int, texts: Sequence[str], **plan: Any) -> Load:
    """The results of a second process that sends the texts in turn."""
    given = json.dumps({"port": port, "bodies": [{"texts": [text]} for text in texts], **plan})
    command = [sys.executable, "-m", "benchmarks.load_client"]
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return Load(**json.loads(done.stdout))


def levels(rounds: Sequence[dict[int, Load]], directly: Sequence[float]) -> list[Level]:
    """One row per number of clients, over all rounds."""
    rows = []
    for clients in CLIENTS:
        rates = [results[clients].answered_per_second for results in rounds]
        times = [taken for results in rounds for taken in results[clients].times(200)]
        ratio = statistics.median(own / other for own, other in zip(rates, directly, strict=True))
        rows.append(Level(clients, statistics.median(rates), ratio, *(quantile(times, q) for q in (0.5, 0.95, 0.99))))
    return rows


def beside_long_texts(texts: Sequence[str], port: int, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """How long short texts take alone, and while long ones are processed."""
    alone = load(port, texts, seconds=seconds, clients=8)
    long = (" ".join(texts) * (1 + LONG // sum(map(len, texts))))[:LONG]
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(load, port, [long], seconds=2 * seconds, clients=1)
        time.sleep(1)  # until the first long text has arrived
        beside = load(port, texts, seconds=seconds, clients=8)
        read = len(reading.result().times(200))
    figures = ({"p50": quantile(one.times(200), 0.5), "p99": quantile(one.times(200), 0.99)} for one in (alone, beside))
    first, second = figures
    return first, {**second, "long": read}


def overload(texts: Sequence[str], port: int, seconds: float, capacity: float) -> Overload:
    """Sends twice as many requests as can be answered, over more connections than the queue holds."""
    sent = 2 * capacity
    met = load(port, texts, seconds=seconds, rate=sent, connections=4 * QUEUE)
    return Overload(
        sent_per_second=sent,
        answered_per_second=met.answered_per_second,
        of_capacity=met.answered_per_second / capacity,
        statuses={str(status): count for status, count in sorted(Counter(s for _, s, _, _ in met.results).items())},
        p50=quantile(met.times(200), 0.5),
        p99=quantile(met.times(200), 0.99),
        refused_p50=quantile(met.times(429), 0.5),
    )


def swaps(first: Path, second: Path, texts: Sequence[str], count: int, threads: int) -> Swaps:
    """Publishes two models in turn under load, and compares each answer with what the named version finds alone."""
    tokens = first.parent / "tokens.json"
    token = add_token(tokens, "benchmark", "admin")
    with service(first, threads, f"--tokens={tokens}") as (port, process):
        for name in ("second", "first"):
            publish(port, name, token)
        truth = {}
        for name in ("second", "first"):
            version = publish(port, name, token)
            answers = load(port, texts, seconds=5, clients=1, keep=True).results
            truth.update({(version, index): spans(answer) for _, _, index, answer in answers})
        asked = json.dumps(
            {"port": port, "bodies": [{"texts": [text]} for text in texts], "seconds": 300, "clients": 8, "keep": True}
        )
        megabytes = [resident_megabytes(process)]
        command = [sys.executable, "-m", "benchmarks.load_client", "--until-closed"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdin is not None
            clients.stdin.write(f"{asked}\n")
            clients.stdin.flush()
            started = time.perf_counter()
            for number in range(count):
                publish(port, ("second", "first")[number % 2], token)
                if number + 1 in (count // 4, count // 2, 3 * count // 4):
                    megabytes.append(resident_megabytes(process))
            seconds = (time.perf_counter() - started) / count
            output, _ = clients.communicate()
        met = Load(**json.loads(output))
        time.sleep(1)
        megabytes.append(resident_megabytes(process))
    right = [s == 200 and truth[answer["model"], index] == spans(answer) for _, s, index, answer in met.results]
    failed = sum(1 for _, status, _, _ in met.results if status != 200)
    return Swaps(count, len(right), failed, right.count(False) - failed, seconds, megabytes)


def spans(answer: Any) -> list[tuple[int, int, str]]:
    """The spans of an answer, without scores: their last digit depends on the other texts in the batch."""
    return [(entity["start"], entity["end"], entity["type"]) for entity in answer["documents"][0]["entities"]]


def publish(port: int, name: str, token: str) -> str:
    """Publishes a model and returns its version."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"model": name}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/model", body, headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.load(response)["model"])


def resident_megabytes(process: int) -> float:
    """Resident memory of a process; 0 without `/proc`."""
    path = Path(f"/proc/{process}/statm")
    pages = int(path.read_text().split()[1]) if path.exists() else 0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="a model folder (default: one is taught quickly)")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA / "test.jsonl", help="any annotated file")
    parser.add_argument("--sentences", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--swaps", type=int, default=100, help="0 for none")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
