"""Memory that nobody needs any more, given back to the system."""

import ctypes
import sys

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Tells glibc, where it is the C library, to return what it keeps for later: the size of a model, once replaced."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
