"""Processes without the seconds that imports take: they are forked from one that has imported everything.

Two that train together meet as under a launcher; that launchers start the real command is tested with the launchers
themselves. Here nothing stops a process whose partner has failed: it must notice by itself.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from ner_cl.config import load_config

__all__ = ["FORKS", "Command", "Pair", "run_without", "train", "train_disturbed", "train_together"]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["transformers.models.bert.modeling_bert", "ner_cl.train.run", "ner_cl_serve.app", "tests.forks"]
)
_STREAMS = ("out", "err")


def train(path: Path) -> None:
    """Runs a configuration, or goes on with its run."""
    from ner_cl.train.run import run_stream

    run_stream(load_config(path, environment={}), resume=True)


class Command:
    """A command line in a process of its own, with the part of `subprocess.Popen`'s interface that tests need.

    Args:
        words: of the command line, without the program's name.

    Attributes:
        stderr: what it says, as text.
    """

    def __init__(self, *words: str) -> None:
        told, teller = FORKS.Pipe(duplex=False)
        self.stderr = os.fdopen(os.dup(told.fileno()), encoding="utf-8")
        self._process = FORKS.Process(target=_say_to, args=(teller, words))
        self._process.start()
        teller.close()
        told.close()

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """The same, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("ner-cl", timeout)
        return self._process.exitcode


class Pair:
    """Two processes of one command line.

    Args:
        words: of the command line, without the program's name.
        told: a new folder for what they say.
    """

    def __init__(self, *words: str, told: Path) -> None:
        self.words, self.told = words, told
        told.mkdir()
        # As with `torchrun` the processes meet at a store of their parent's, at a port that is free.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = [FORKS.Process(target=_meet, args=(rank, self.store.port, words, told)) for rank in (0, 1)]
        for process in self.processes:
            process.start()

    def kill(self) -> None:
        """Kills both, before one can miss the other."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(10)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Waits for both; they are killed if they hang."""
        for process in self.processes:
            process.join(120)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert None not in codes, f"one waits for the other: {codes}"
        out, err = ("".join(_read(self.told, rank, name) for rank in (0, 1)) for name in _STREAMS)
        return subprocess.CompletedProcess(self.words, max(map(abs, codes)), out, err)


def train_together(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a configuration in two processes to its end."""
    return Pair("train", str(path), *flags, told=path.with_suffix(".told")).wait()


def train_disturbed(path: Path, told: Path) -> None:
    """Runs a configuration in two processes, the second of which computes a little otherwise at the end of each step.

    Args:
        path: of the configuration.
        told: a new folder for the weights that each process has after each step, as `RANK-STEP.pt`.
    """
    told.mkdir()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [FORKS.Process(target=_disturbed, args=(rank, store.port, path, told)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0], codes


def run_without(package: str, *words: str, told: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a process where a package is not installed.

    Args:
        package: that cannot be imported.
        words: of the command line, without the program's name.
        told: a folder for what it says.
    """
    process = FORKS.Process(target=_do_without, args=(package, words, told))
    process.start()
    process.join(120)
    return subprocess.CompletedProcess(words, process.exitcode, *(_read(told, 0, name) for name in _STREAMS))


def _disturbed(rank: int, port: int, path: Path, told: Path) -> None:
    import torch

    from ner_cl.config import load_config
    from ner_cl.train.learner import Learner
    from ner_cl.train.run import run_stream

    finish, agree = Learner._finish, Learner._agree

    def disturb(learner: Learner, context: Any) -> Iterator[Any]:
        yield from finish(learner, context)
        if rank == 1:
            for tensor in learner.model.state_dict().values():
                tensor.detach().add_(1e-3)
            for strategy in learner.strategies:
                strategy.load_state_dict({name: tensor + 1 for name, tensor in strategy.state_dict().items()})

    def look(learner: Learner) -> None:
        agree(learner)
        kept = {f"{s.options.name}/{name}": t for s in learner.strategies for name, t in s.state_dict().items()}
        torch.save({**learner.model.state_dict(), **kept}, told / f"{rank}-{len(learner.model.tagset.steps)}.pt")

    Learner._finish, Learner._agree = disturb, look  # type: ignore[method-assign]
    _place(rank, port)
    run_stream(load_config(path, environment={}))


def _meet(rank: int, port: int, words: tuple[str, ...], told: Path) -> None:
    _place(rank, port)
    _run(rank, words, told)


def _place(rank: int, port: int) -> None:
    """Tells this process where it stands among two, as a launcher does."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update(meeting, TOKENIZERS_PARALLELISM="false", **{name: str(value) for name, value in place.items()})


def _do_without(package: str, words: tuple[str, ...], told: Path) -> None:
    assert package not in sys.modules
    sys.modules[package] = None  # type: ignore[assignment]
    _run(0, words, told)


def _run(rank: int, words: tuple[str, ...], told: Path) -> None:
    """A command line, with all it says written to files."""
    from ner_cl.cli.app import main

    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context((told / f"{rank}.{name}").open("w", encoding="utf-8")) for name in _STREAMS)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = main(words)
    sys.exit(code)


def _say_to(teller: Connection, words: tuple[str, ...]) -> None:
    from ner_cl.cli.app import main

    os.dup2(teller.fileno(), 2)
    teller.close()
    sys.argv = ["ner-cl", *words]  # as a process that handles its signals
    sys.exit(main())


def _read(told: Path, rank: int, name: str) -> str:
    return (told / f"{rank}.{name}").read_text("utf-8")
