"""Memory that a training step frees and asks for again in the next one, kept by the C library meanwhile."""

from __future__ import annotations

import ctypes

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# what it comes to by itself where large blocks are freed (DEFAULT_MMAP_THRESHOLD_MAX)
_USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 1024**2, M_TRIM_THRESHOLD: 64 * 1024**2}

_keeping = False


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next allocation, until :func:`release_freed_memory`.

    By default a large block goes back to the system when it is freed, and every page of the next one is a
    fault, in every step on a CPU. Answers whether it was done; elsewhere than on glibc nothing happens.
    """
    global _keeping
    # never map a block of its own, never give the heap's end back
    _keeping = _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})
    return _keeping


def release_freed_memory() -> None:
    """Undo that, and give what is free back to the system."""
    global _keeping
    if _keeping:
        _keeping = not _set(_USUAL)
        ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: on Windows
        return False
    return all(mallopt(name, value) == 1 for name, value in options.items())
