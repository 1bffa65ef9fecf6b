"""What both sides of the comparison share: a task, a process for each side, its memory.

Each side lives in a process of its own, so that neither holds the other's memory nor threads, and
only one of them works at a time.
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
    """What is timed: a config's detector on pictures of one size in batches of another."""

    config: str  # a file of configs/
    size: int = 128
    batch: int = 32
    dtype: str = "float32"  # of computation
    platform: str = ""  # "cpu" keeps both sides off an accelerator
    threads: int = 0  # processor cores; 0 takes all
    search_steps: int = 4  # of AnoGAN's search, of which a score takes hundreds
    compiled: bool = False  # torch.compile
    changes: Mapping[str, Any] = {}  # of the config's fields


class Remote:
    """An object in another process: `remote("method", ...)`.

    module, name: where its class is, that only the other process imports.
    """

    def __init__(self, module: str, name: str, task: Task):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, module, name, task))
        self._process.start()
        theirs.close()

    def __call__(self, method: str, *args):
        self._pipe.send((method, args))
        try:
            fine, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of {method} ended with status {self._process.exitcode}: "
                "out of memory, most likely"
            ) from None
        if not fine:
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
    """What has to be settled before JAX or PyTorch is imported."""
    if task.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    if task.platform:
        os.environ["JAX_PLATFORMS"] = task.platform
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one device, as for the other side
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # What is compiled a second time, to be analyzed, is found; nothing of an earlier run is.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def _answer(pipe, module, name, task):
    there = None
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return
        try:
            if method == "processor_seconds":
                pipe.send((True, time.process_time()))
                continue
            if there is None:
                there = getattr(importlib.import_module(module), name)(task)
            pipe.send((True, getattr(there, method)(*args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The processor's name."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return name


# --- who else is busy ---


class Bystanders:
    """How many cores others keep busy from now on; only Linux tells.

    own: gives the processor seconds of all processes that are not others.
    """

    def __init__(self, own: Callable[[], float]):
        self._own = own
        self._before = self._read()

    def cores(self) -> float | None:
        """On average since the start."""
        now, busy, own = (b - a for a, b in zip(self._before, self._read(), strict=True))
        return max(0.0, busy - own) / now if busy else None

    def _read(self):
        busy = 0
        if sys.platform == "linux":
            user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split()[1:9]
            busy = sum(map(int, (user, nice, system, *interrupts)))
        ticks = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy / ticks, self._own() + time.process_time()


# --- memory ---------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process that lie in memory now, after freed ones went back to the system."""
    _trim()
    return _status("VmRSS")


def forget_peak() -> None:
    """From now on `peak_resident` is that of what follows; only Linux can."""
    _trim()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """The most bytes of this process that lay in memory at once."""
    return _status("VmHWM")


def _trim():
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _status(field):
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
