"""Memory that nobody needs any more, given back to the system."""

import ctypes
import ctypes.util
import gc

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Frees what is held in circles, and tells the C library to return what it keeps for later, where it is glibc."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if ctypes.util.find_library("c") else None
    if trim is not None:
        trim(0)
