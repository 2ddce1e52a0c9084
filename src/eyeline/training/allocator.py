"""Memory that a training step frees and asks for again in the next one, kept by the C library meanwhile."""

from __future__ import annotations

import ctypes

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next allocation, for the rest of the process.

    By default a large block goes back to the system when it is freed, and every page of the next one is a
    fault, in every step on a CPU. Answers whether it was done; elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # never map a block of its own, never give the heap's end back
    return all(mallopt(name, value) == 1 for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))
