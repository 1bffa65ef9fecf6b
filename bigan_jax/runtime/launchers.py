"""Runs commands as processes, on this machine or on a Ray cluster.

Both launchers take a command for each folder, which gets its log.txt, and yield about twice a second the exit statuses
of the commands that have ended, by folder. Closing the generator terminates the commands that still run.
"""

import os
import socket
import subprocess
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from bigan_jax.errors import UserError

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10  # between SIGTERM and SIGKILL
_LOST = -1  # exit status of a command whose machine was lost
Statuses = Generator[dict[Path, int], None, None]


def run_locally(tasks: Mapping[Path, Sequence[str]], parallel: int) -> Statuses:
    """Runs commands on this machine, in order, `parallel` of them at a time."""
    waiting, running = deque(tasks.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                folder, command = waiting.popleft()
                running[folder] = _start(command, folder)
            time.sleep(_POLL_SECONDS)
            ended = {f: p.returncode for f, p in running.items() if p.poll() is not None}
            for folder in ended:
                del running[folder]
            yield ended
    finally:
        _terminate(running.values())


def run_on_ray(tasks: Mapping[Path, Sequence[str]], parallel: int, address: str) -> Statuses:
    """Runs commands on a Ray cluster whose machines share the working directory's file system.

    Args:
      tasks: command by folder. If its machine is lost, its status is -1.
      parallel: number of commands per machine. If the cluster has GPUs, each command gets one instead.
      address: a cluster's address, "auto" for the cluster of this machine, or "local" for a new one on this machine.

    Raises:
      UserError: Ray is not installed or the cluster does not answer.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise UserError("config.sweep.ray requires Ray: pip install 'bigan_jax[cluster]' on each machine.") from error
    try:
        if address not in ("local", "auto"):  # Ray would retry for ten minutes
            host, _, port = address.rpartition("://")[2].partition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        new = {"num_cpus": parallel, "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **new)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"config.sweep.ray={address}: no cluster answers at this address ({error}). "
            "Start one with `ray start --head`, or use this machine alone with config.sweep.ray=local."
        ) from error
    pending = {}
    try:
        cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        cpus = max(1, int(min(filter(None, cores), default=1)) // parallel)
        resources = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": cpus}
        run = ray.remote(max_retries=0, **resources)(_run)
        cwd = os.getcwd()
        pending = {run.remote(list(c), str(folder), cwd): folder for folder, c in tasks.items()}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_POLL_SECONDS)
            yield {pending.pop(reference): _status(ray, reference) for reference in done}
    finally:
        for reference in pending:
            ray.cancel(reference)  # interrupts _run, which terminates its process
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=2 * _GRACE_SECONDS)
        ray.shutdown()


def _status(ray, reference):
    try:
        return ray.get(reference)
    except ray.exceptions.RayError:
        return _LOST


def _run(command, folder, cwd):
    process = _start(command, Path(cwd, folder), cwd)
    try:
        return process.wait()
    finally:
        _terminate([process])


def _start(command, folder, cwd=None):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def _terminate(processes):
    processes = [process for process in processes if process.poll() is None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
