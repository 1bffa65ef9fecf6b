"""Freed memory is kept: seen by the page faults of a process that asks for it again."""

import subprocess
import sys

import pytest

from bigan_jax.runtime.jax_setup import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

AGAIN = """
import ctypes, resource, sys
from bigan_jax.runtime.jax_setup import keep_freed_memory

if "keep" in sys.argv and not keep_freed_memory():
    sys.exit("not glibc")
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 256 * 2**20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_the_second(*arguments, **environment):
    ran = subprocess.run(
        [sys.executable, "-c", AGAIN, *arguments], capture_output=True, text=True, env=environment
    )
    if "not glibc" in ran.stderr:
        pytest.skip("another C library")
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_freed_memory_is_kept_and_not_faulted_in_again():
    assert faults_of_the_second("keep", PYTHONPATH=":".join(sys.path)) < 100
    assert faults_of_the_second(PYTHONPATH=":".join(sys.path)) > 100


def test_what_the_user_set_up_is_left_as_it_is(monkeypatch):
    pass

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
