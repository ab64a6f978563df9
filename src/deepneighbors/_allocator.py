"""The C library's memory allocator, set for work that allocates the same large arrays again and again."""

import ctypes
import platform
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_ constants of malloc.h
_LARGEST_KEPT, _KEPT = 32 << 20, 1 << 30  # bytes: the most that glibc allows, and what stays at the top of the heap


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed arrays of up to 32 MiB for the next ones, up to 1 GiB; tells whether it does.

    By default it gives the free top of the heap back to the system, and each step of training pays for fresh pages: a
    seventh to a third of its time. Holds for the whole process. Elsewhere than on Linux with glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT), libc.mallopt(_TRIM_THRESHOLD, _KEPT)])
