"""The command `ner-cl`: its subcommands, exit codes and error messages.

Exit codes: 0 success, 1 a requested check failed, 2 wrong usage, configuration or data, 130 interrupted (SIGINT), 143
terminated (SIGTERM).
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from ner_cl.cli import data
from ner_cl.cli.compact import compact
from ner_cl.cli.compare import compare
from ner_cl.cli.console import is_main_process, replace_closed_streams, talk, use_utf8
from ner_cl.cli.evaluate import evaluate
from ner_cl.cli.export import export
from ner_cl.cli.info import info
from ner_cl.cli.init import init
from ner_cl.cli.learn import learn
from ner_cl.cli.predict import predict
from ner_cl.cli.report import report
from ner_cl.cli.serve import serve
from ner_cl.cli.sweep import sweep
from ner_cl.cli.train import train
from ner_cl.errors import CheckFailed, NerClError

__all__ = ["app", "main"]

_CHECK_FAILED, _WRONG, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch's RuntimeError on a CPU

# Global flags, accepted before or after the subcommand.
_GLOBAL_FLAGS = ("--quiet", "-q", "--debug")

# click's UsageError, whether typer bundles click or imports it.
_UsageError: Any = typer.BadParameter.__mro__[1]


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as an interrupt: locks and drafts are removed, and a run says how it goes on."""


app = typer.Typer(name="ner-cl", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for verb in (init, train, learn, evaluate, predict, serve, compact, export, report, compare, sweep):
    app.command()(verb)
app.add_typer(data.app, name="data")
app.command()(info)


@app.callback()
def settings(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Named entity recognition that keeps learning: new entity types without the old data.

    --quiet and --debug may also follow the command.
    """
    talk.quiet = quiet or not is_main_process()
    if not debug:
        # Silence the underlying libraries, which read these variables when they are imported later.
        for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
            os.environ.setdefault(variable, "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; only SystemExit and GeneratorExit are raised.

    Args:
        arguments: arguments without the program name; those of the process by default.
    """
    words = _globals_first(list(sys.argv[1:] if arguments is None else arguments))
    replace_closed_streams()
    use_utf8()
    if arguments is None and "RANK" not in os.environ:  # launchers of several processes end them in their own way
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run([*words])  # a copy, because click modifies its list
    except BrokenPipeError as error:
        _leave_pipe()
        return _outcome(error.__context__)[0] if isinstance(error.__context__, NerClError) else 0
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        code, message = _outcome(error)
        # Of several training processes only the main one prints expected errors; unexpected ones are always printed.
        if is_main_process() or message.startswith("unexpected"):
            with contextlib.suppress(OSError):  # the exit code counts, even if nobody can read why
                if "--debug" in words:
                    traceback.print_exception(error)
                sys.stderr.write(f"ner-cl: error: {' '.join(message.split())}\n")
                sys.stderr.flush()
        return code


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    raise _Terminated


def _globals_first(words: list[str]) -> list[str]:
    """Move the global flags before the subcommand; arguments after `--` are left alone."""
    end = words.index("--") if "--" in words else len(words)
    moved = [word for word in words[:end] if word in _GLOBAL_FLAGS]
    rest = [word for word in words[:end] if word not in _GLOBAL_FLAGS]
    return [*moved, *(rest or ["--help"]), *words[end:]]


def _run(words: list[str]) -> int:
    command = get_command(app)
    try:
        # Not `command.main`, which has its own exit codes for interrupts and broken pipes.
        with command.make_context("ner-cl", words) as context:
            command.invoke(context)
        _flush_output()
        _leave_group()
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _leave_pipe()  # or Python tries again as it exits
        error.filename = "stdout"
        raise


def _leave_group() -> None:
    """End the communication of processes that trained together: if one is gone, another can crash as it exits."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit code and message for an error."""
    if isinstance(error, CheckFailed):
        return _CHECK_FAILED, str(error)
    if isinstance(error, NerClError):
        return _WRONG, str(error)
    if isinstance(error, _Terminated):
        return _TERMINATED, "terminated"
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _INTERRUPTED, "interrupted"
    if isinstance(error, _UsageError):
        return _WRONG, _usage(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error):
        smaller = "training.batch_tokens, training.eval_batch_tokens"
        return _WRONG, f"out of memory; give smaller batches ({smaller}); a run goes on with --resume"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _WRONG, f"{where}{error.strerror or error}; check the path, its permissions and the space left"
    return _WRONG, f"unexpected {type(error).__name__}: {error}; --debug shows the trace, please report it"


def _usage(error: Any) -> str:
    """Return click's error message with a pointer to `--help`."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "ner-cl"
    return f"{message}{'' if message.endswith('?') else ';'} see {command} --help"


def _leave_pipe() -> None:
    """Redirect stdout to devnull if nothing can be written to it any more, so that Python exits silently."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
