"""`--mode=sweep`: many runs, each a process, here or on a Ray cluster, and then a comparison.

A run is the same command that a user would type, so whatever stops a sweep, its runs go on from
their checkpoints when it is started again. This process never touches an accelerator.
"""

import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from bigan_jax.commands.compare import Comparison, compare
from bigan_jax.commands.sweep_plan import PlannedRun, is_finished, plan
from bigan_jax.evaluation.finished_run import epochs_done
from bigan_jax.runtime import launchers

_SHOWN_LINES = 8


def run_command(program: str = "launch.py") -> tuple[str, ...]:
    """What starts a run by launch.py, wherever that lies."""
    return sys.executable, program, "--num_processes=1"


class Sweep(NamedTuple):
    """What became of a sweep; failures are (folder, exit status)."""

    failures: list[tuple[Path, int]]
    comparison: Comparison | None


def sweep(
    config: ConfigDict,
    file: str,
    overrides: Mapping[str, object],
    output: str | Path,
    command: Sequence[str] = run_command(),
) -> Sweep:
    """Runs what is missing of a sweep, then compares all that is finished.

    config, file, overrides, output: as `plan` takes them. command: what starts a run.
    A run that fails does not end the sweep: it is told at the end. Interrupted, the sweep ends its
    runs, which go on from their last checkpoints next time.
    Raises UserError before anything is started: for what there is not, and for folders that hold
    runs of another config.
    """
    runs = plan(config, file, overrides, output)
    missing = [run for run in runs if not is_finished(run)]
    print(f"{len(runs)} runs in {output}, {len(runs) - len(missing)} of them finished before")
    tasks = {run.workdir: [*command, *run.arguments] for run in missing}
    if config.sweep.ray:
        ended = launchers.run_on_ray(tasks, config.sweep.parallel, config.sweep.ray)
    else:
        ended = launchers.run_locally(tasks, config.sweep.parallel)
    with _terminate_children(), closing(ended), _Bar(missing) as bar:
        failures = [pair for news in ended for pair in bar.show(news) if pair[1]]
    for workdir, status in failures:
        print(f"FAILED: {workdir} (exit status {status}); {workdir / 'log.txt'} ends:")
        print("".join(f"    {line}\n" for line in _last_lines(workdir / "log.txt")), end="")
    finished = [run.workdir for run in runs if is_finished(run)]
    return Sweep(failures, compare(finished, output) if finished else None)


class _Bar:
    """Progress in epochs, which tell of an ETA where runs take hours."""

    def __init__(self, runs: Sequence[PlannedRun]):
        self._wanted = {run.workdir: run.epochs for run in runs}
        self._done = {workdir: self._count(workdir) for workdir in self._wanted}
        self._pending = set(self._wanted)
        self._bar = tqdm(
            total=sum(self._wanted.values()),
            initial=sum(self._done.values()),
            desc="sweep",
            unit="epoch",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 60,
            disable=not runs,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def _count(self, workdir):
        return min(epochs_done(workdir / "train.jsonl") or 0, self._wanted[workdir])

    def show(self, ended: Mapping[Path, int]) -> list[tuple[Path, int]]:
        for workdir in self._pending:
            self._done[workdir] = self._count(workdir)
        for workdir, status in ended.items():
            self._pending.discard(workdir)
            if status:  # what it will not do is no part of what remains
                self._bar.total -= self._wanted[workdir] - self._done[workdir]
                self._bar.write(f"{workdir} failed", file=sys.stderr)
        runs = len(self._wanted)
        self._bar.set_postfix_str(f"{runs - len(self._pending)} of {runs} runs", refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)
        return list(ended.items())


@contextmanager
def _terminate_children():
    """Makes a polite kill, as schedulers send, an exit that ends the children too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_lines(path):
    try:
        content = path.read_bytes()[-8192:].decode("utf-8", "replace")
    except OSError:
        return ["(no log)"]
    lines = [line.rstrip() for line in content.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-_SHOWN_LINES:]
