"""How this process's memory comes from the system."""

import ctypes
import os
import sys

_LEAST = 2**31 - 1  # bytes free at the end of the heap before any go back
_SETTINGS = {-8: 1, -4: 0, -1: _LEAST}  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h


def keep_freed() -> bool:
    """Lets glibc keep what is freed for what is asked for next. Returns whether it could.

    A step's intermediate results lie in one allocation of hundreds of MiB. Left alone it is mapped
    anew for each step, and each of its pages faults and is zeroed when it is first written: a sixth
    of a step's time. Only where memory is glibc's and the user has not set its allocator up; call
    it before JAX is imported, in a program and not in a library.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or any(x.startswith("MALLOC_") for x in os.environ)
    if sys.platform != "linux" or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in _SETTINGS.items())
