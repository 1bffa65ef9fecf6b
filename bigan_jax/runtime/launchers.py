"""Commands as processes, here or on a Ray cluster, each with a log in a folder of its own.

Both ways yield, about once a second, what ended since: {folder: exit status}. Closing the generator
ends what still runs.
"""

import os
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bigan_jax.errors import UserError

_PAUSE = 0.5  # seconds
_GRACE = 10  # seconds between asking a process to end and ending it
LOST = -1  # the exit status of a run whose machine was lost


def run_locally(tasks: Mapping[Path, Sequence[str]], parallel: int) -> Iterator[dict[Path, int]]:
    """Runs commands on this machine, so many at a time, in the order given."""
    waiting, running = deque(tasks.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                folder, command = waiting.popleft()
                running[folder] = _start(command, folder)
            time.sleep(_PAUSE)
            ended = {f: p.returncode for f, p in running.items() if p.poll() is not None}
            for folder in ended:
                del running[folder]
            yield ended
    finally:
        _end(running.values())


def run_on_ray(
    tasks: Mapping[Path, Sequence[str]], parallel: int, address: str
) -> Iterator[dict[Path, int]]:
    """Runs commands on a Ray cluster whose machines share this folder and its file system.

    Each takes one GPU where the cluster has any; otherwise `parallel` of them share a machine.
    address: "auto" for the cluster this machine is part of, "local" for one of this machine alone,
    or a cluster's address.
    Raises UserError where Ray is not installed or the cluster does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "config.sweep.ray needs Ray: pip install 'bigan_jax[cluster]', on every machine"
        ) from error
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            ray.init(address="local", num_cpus=parallel, include_dashboard=False, **quiet)
        else:
            if address != "auto":  # Ray itself would try for ten minutes
                host, _, port = address.rpartition("://")[2].partition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"config.sweep.ray={address}: no cluster answers there ({error}): start one by "
            "`ray start --head`, or use this machine alone by config.sweep.ray=local"
        ) from error
    pending = {}
    try:
        share = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else _cpus(ray, parallel)
        run = ray.remote(max_retries=0, **share)(_run)
        where = os.getcwd()
        pending = {run.remote(list(c), str(folder), where): folder for folder, c in tasks.items()}
        while pending:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_PAUSE)
            yield {pending.pop(reference): _status(ray, reference) for reference in done}
    finally:
        for reference in pending:
            ray.cancel(reference)  # an interrupt where it runs, on which _run ends its process
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=2 * _GRACE)
        ray.shutdown()


def _cpus(ray, parallel):
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": max(1, int(min(filter(None, cores), default=1)) // parallel)}


def _status(ray, reference):
    try:
        return ray.get(reference)
    except ray.exceptions.RayError:
        return LOST


def _run(command, folder, where):
    """What a worker does: one command from start to end."""
    process = _start(command, Path(where, folder), where)
    try:
        return process.wait()
    finally:
        _end([process])


def _start(command, folder, where=None):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, cwd=where, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def _end(processes):
    processes = [process for process in processes if process.poll() is None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
