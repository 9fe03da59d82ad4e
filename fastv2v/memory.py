"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, in place of giving it back to the system and asking for it again.

    glibc asks the system anew for every tensor of more than 32 MB and the system clears each page of it: in training on
    a CPU that is several percent of the time. Memory then stays with the process at the most it has needed. It is a
    setting of the whole process, so only commands make it, before anything large is allocated.

    Returns:
        Whether it is done: False on systems with another C library than glibc, where nothing is changed.

    Source:
        mallopt(3) of the GNU C library: ``M_MMAP_MAX`` 0 takes every block from the heap, ``M_TRIM_THRESHOLD`` -1 never
        shrinks the heap.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
