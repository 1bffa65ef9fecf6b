"""The sweep command: many runs, each in a process, locally or on a Ray cluster, then a comparison.

A run is a command of its own. When a stopped sweep is started again, its runs resume from their checkpoints. The
process of the sweep itself uses no accelerator.
"""

import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from bigan_jax.commands.compare import Comparison, compare
from bigan_jax.commands.sweep_plan import PlannedRun, is_finished, plan
from bigan_jax.evaluation.finished_run import epochs_done
from bigan_jax.runtime import launchers
from bigan_jax.runtime.progress_bar import progress_bar

_LOG_LINES = 8  # of a failed run
# The start of a run's command line. Its other arguments are flags of launch.py, and work in any folder.
_RUN = (sys.executable, "-m", "bigan_jax.commands.cli", "--num_processes=1")


class Sweep(NamedTuple):
    failures: list[tuple[Path, int]]  # folder and exit status
    comparison: Comparison | None  # of all finished runs


def sweep(
    config: ConfigDict, file: str, overrides: Mapping[str, object], output: str | Path, command: Sequence[str] = _RUN
) -> Sweep:
    """Trains and evaluates the runs of a sweep that are not finished, then compares all runs.

    Failed runs are reported at the end and do not stop the sweep. An interrupt stops all runs.

    Args:
      config: the config of the command line.
      file: the config file and its argument, `configs/<model>.py:<dataset>,...`.
      overrides: fields to set in all runs, by dotted name.
      output: folder of the runs' folders and of the comparison.
      command: the start of a run's command line.

    Raises:
      UserError: a name in config.sweep is unknown, or a folder holds a run of another config. It is raised before a
        run starts.
    """
    runs = plan(config, file, overrides, output)
    unfinished = [run for run in runs if not is_finished(run)]
    print(f"{len(runs)} runs in {output}, {len(runs) - len(unfinished)} already finished")
    commands = {run.workdir: [*command, *run.arguments] for run in unfinished}
    if config.sweep.ray:
        polls = launchers.run_on_ray(commands, config.sweep.parallel, config.sweep.ray)
    else:
        polls = launchers.run_locally(commands, config.sweep.parallel)
    failures = []
    with _terminate_children(), closing(polls), closing(_ProgressBar(unfinished)) as bar:
        for statuses in polls:
            bar.update(statuses)
            failures += [(workdir, status) for workdir, status in statuses.items() if status]
    for workdir, status in failures:
        print(f"FAILED: {workdir} (exit status {status}). Last lines of {workdir / 'log.txt'}:")
        print("".join(f"    {line}\n" for line in _last_lines(workdir / "log.txt")), end="")
    finished = [run.workdir for run in runs if is_finished(run)]
    return Sweep(failures, compare(finished, output) if finished else None)


class _ProgressBar:
    """Progress in epochs of all runs."""

    def __init__(self, runs: Sequence[PlannedRun]):
        self._epochs = {run.workdir: run.epochs for run in runs}
        self._done = {workdir: self._count(workdir) for workdir in self._epochs}
        self._pending = set(self._epochs)
        total, done = sum(self._epochs.values()), sum(self._done.values())
        self._bar = progress_bar(total, "sweep", initial=done, unit="epoch", disable=not runs)

    def close(self) -> None:
        self._bar.close()

    def _count(self, workdir):
        return min(epochs_done(workdir / "train.jsonl") or 0, self._epochs[workdir])

    def update(self, statuses: Mapping[Path, int]) -> None:
        """Shows the progress; `statuses` are of the runs that ended since the last call."""
        for workdir in self._pending:
            self._done[workdir] = self._count(workdir)
        for workdir, status in statuses.items():
            self._pending.discard(workdir)
            if status:  # its remaining epochs do not count
                self._bar.total -= self._epochs[workdir] - self._done[workdir]
                self._bar.write(f"{workdir} failed", file=sys.stderr)
        total = len(self._epochs)
        self._bar.set_postfix_str(f"{total - len(self._pending)} of {total} runs", refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)


@contextmanager
def _terminate_children():
    """Turns SIGTERM, which schedulers send, into an exit that stops the children as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _last_lines(path):
    try:
        content = path.read_bytes()[-8192:].decode("utf-8", "replace")
    except OSError:
        return ["(no log)"]
    lines = [line.rstrip() for line in content.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-_LOG_LINES:]
