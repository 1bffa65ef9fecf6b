"""Runs one command of `bigan-jax` and reports where its seconds went, for waiting.py.

python -m benchmarks.waiting_run REPORT COMMAND [ARGUMENT ...]
"""

import atexit
import importlib
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

_BEGAN = float(os.environ["BENCHMARK_BEGAN"])
seconds, marks, counts = Counter(), {}, Counter()


def _mark(name):
    marks.setdefault(name, time.time() - _BEGAN)


def _timed(owner, name, part):
    """Adds the seconds of a function or method to a part."""
    function = getattr(owner, name)

    def timed(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - began

    setattr(owner, name, timed)


def _listen():
    """Counts compiled programs and, in the main thread, the seconds of tracing and compilation."""
    import jax

    def listen(name, duration, **_):
        # Other threads compile ahead; the main thread's waiting for them is timed by itself.
        if name.startswith("/jax/core/compile/") and threading.current_thread() is threading.main_thread():
            seconds["compile"] += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))


def _instrument():
    from bigan_jax.commands import setup
    from bigan_jax.training.epoch_runner import EpochRunner

    _listen()
    _timed(setup.loading, "load_dataset", "data")
    _timed(setup, "audit_dataset", "audit")
    _timed(EpochRunner, "_wait_for_compilation", "compile")
    dispatch = EpochRunner.dispatch

    def marked_dispatch(self, state, objectives, indices, on_step=lambda *_: None):
        def after_step(*args):
            _mark("step")
            return on_step(*args)

        return dispatch(self, state, objectives, indices, after_step)

    EpochRunner.dispatch = marked_dispatch


def _first_output():
    write = sys.stdout.write

    def marked_write(text):
        _mark("output")
        return write(text)

    sys.stdout.write = marked_write


def main() -> None:
    """Runs the command of `sys.argv`."""
    report, *arguments = sys.argv[1:]
    _first_output()

    def write():
        _mark("result")
        requests, hits = (counts[f"/jax/compilation_cache/{x}"] for x in ("compile_requests_use_cache", "cache_hits"))
        Path(report).write_text(json.dumps({**marks, **seconds, "compiled": requests - hits}), encoding="utf-8")

    atexit.register(write)
    import bigan_jax
    from bigan_jax.commands import console

    def imported(name):
        def command(*args, **kwargs):
            delattr(bigan_jax, name)  # the package then finds its own
            function = getattr(importlib.import_module(f"bigan_jax.commands.{name}"), name)
            _instrument()
            seconds["import"] = time.time() - _BEGAN
            return function(*args, **kwargs)

        return command

    for name in ("train", "evaluate", "predict"):
        setattr(bigan_jax, name, imported(name))
    if arguments[:1] == ["export"]:
        _listen()
        seconds["import"] = time.time() - _BEGAN
    sys.argv = ["bigan-jax", *arguments]
    console.main()


if __name__ == "__main__":
    main()
