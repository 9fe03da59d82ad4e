import platform
import subprocess
import sys

import pytest

from fastv2v import memory

MEASURE = """
import ctypes, resource, sys
from fastv2v.memory import keep_freed_memory
assert sys.argv[1] == "plain" or keep_freed_memory()
libc, size = ctypes.CDLL(None), 100_000_000
libc.malloc.restype = ctypes.c_void_p
def touch():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(ctypes.c_void_p(block))
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_large_block_is_not_cleared_again():
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, check=True, text=True).stdout)
        for how in ("plain", "kept")
    )
    assert plain > 20
    assert kept < plain / 4


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert not memory.keep_freed_memory()
