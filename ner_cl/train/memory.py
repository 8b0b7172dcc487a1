"""Peak memory of a step."""

import sys
from pathlib import Path

import torch

__all__ = ["peak_memory", "reset_peak_memory"]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak_memory() -> None:
    """Resets the peak where the system allows it: on a GPU, and for a process under Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory() -> int:
    """Peak memory in bytes since the last reset, of the GPU if there is one, else of this process.

    Where the peak cannot be reset, it is the peak since the process started; 0 where the system does not report it.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        return _peak_of_process()


def _peak_of_process() -> int:
    try:
        import resource  # not available on Windows
    except ModuleNotFoundError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
