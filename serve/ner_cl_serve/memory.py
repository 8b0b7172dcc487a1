"""Returns unused memory to the operating system."""

import ctypes
import sys

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Tells glibc, if it is the C library, to release free memory: as much as a model after one was replaced."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
