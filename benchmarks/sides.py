"""The common part of both sides of the comparison: tasks, a process for each side, memory.

Each side has a process of its own, so that their memory and threads stay apart; only one of them
works at a time.
"""

import ctypes
import importlib
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SCORE = "score"


class Task(NamedTuple):
    """What is timed: the detector of a config, on images of one size in batches."""

    config: str  # name of a file in configs/
    size: int = 128
    batch: int = 32
    dtype: str = "float32"  # dtype of computation
    platform: str = ""  # "cpu": ignore accelerators
    threads: int = 0  # processor cores; 0: all
    search_steps: int = 4  # timed steps of AnoGAN's search; a score takes hundreds
    compiled: bool = False  # torch.compile
    changes: Mapping[str, Any] = {}  # overrides of config fields


class Remote:
    """An object in another process; `remote("method", ...)` calls a method of it.

    Args:
      module: the module of its class, imported by the other process only.
      name: the name of the class.
      task: the argument of the class.
    """

    def __init__(self, module: str, name: str, task: Task):
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_pipe, module, name, task))
        self._process.start()
        child_pipe.close()

    def __call__(self, method: str, *args):
        self._pipe.send((method, args))
        try:
            succeeded, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"The process of {method} ended with status {self._process.exitcode}, "
                "probably because it ran out of memory."
            ) from None
        if not succeeded:
            raise RuntimeError(f"{method} failed:\n{result}")
        return result

    def close(self):
        self._pipe.close()
        self._process.join()


def _serve(pipe, module, name, task):
    with tempfile.TemporaryDirectory() as cache:
        _prepare(task, cache)
        _answer(pipe, module, name, task)


def _prepare(task, cache):
    """Prepares the process, before JAX or PyTorch is imported."""
    if task.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    if task.platform:
        os.environ["JAX_PLATFORMS"] = task.platform
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one device for either side
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # A fresh cache: a program that is compiled again for its analysis is found, one of an earlier
    # run is not.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def _answer(pipe, module, name, task):
    target = None
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        try:
            if method == "processor_seconds":
                pipe.send((True, time.process_time()))
                continue
            if target is None:
                target = getattr(importlib.import_module(module), name)(task)
            pipe.send((True, getattr(target, method)(*args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The name of the processor."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return name


class Stopwatch:
    """Measures the seconds since its creation, and the processor seconds of all threads of this process."""

    def __init__(self):
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        seconds, processor = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return {"seconds": seconds, "processor": processor}


# --- other processes ---


class OtherProcesses:
    """Measures how many cores other processes use from now on (Linux only).

    Args:
      own_seconds: returns the processor seconds of all processes of the benchmark.
    """

    def __init__(self, own_seconds: Callable[[], float]):
        self._own_seconds = own_seconds
        self._before = self._read()

    def cores(self) -> float | None:
        """The average number of cores since the start; None where it is unknown."""
        elapsed, busy, own = (b - a for a, b in zip(self._before, self._read(), strict=True))
        return max(0.0, busy - own) / elapsed if busy else None

    def _read(self):
        busy = 0
        if sys.platform == "linux":
            user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split()[1:9]
            busy = sum(map(int, (user, nice, system, *interrupts)))
        ticks = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy / ticks, self._own_seconds() + time.process_time()


# --- memory ---------------------------------------------------------------------------------------


def resident() -> int:
    """Resident bytes of this process, after freed memory is returned to the system."""
    _trim()
    return _status("VmRSS")


def forget_peak() -> None:
    """Resets the peak that `peak_resident` returns (Linux only)."""
    _trim()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """The peak of resident bytes of this process."""
    return _status("VmHWM")


def _trim():
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _status(field):
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
