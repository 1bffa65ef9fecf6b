"""Communication between the processes that train one run. In a single process, all functions return at once."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from bigan_jax.errors import UserError
from bigan_jax.runtime.peers import PeerChannel

channel: PeerChannel | None = None  # of this process, set by watchdog.join_processes


def is_multiprocess() -> bool:
    """Returns whether several processes train this run."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Returns whether this is process 0, the one that writes files and prints."""
    return jax.process_index() == 0


def broadcast(tree: PyTree) -> PyTree:
    """Returns process 0's arrays and numbers in every process; the shapes must be the same everywhere."""
    return multihost_utils.broadcast_one_to_all(tree) if is_multiprocess() else tree


def broadcast_json(content: dict) -> dict:
    """Returns process 0's content, anything that JSON can hold, in every process."""
    if not is_multiprocess():
        return content
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    length = int(broadcast(np.array(len(text))))
    return json.loads(broadcast(np.resize(text, length)).tobytes())


def all_max(value: int) -> int:
    """Returns the maximum over processes in every process; all of them must call it."""
    if not is_multiprocess():
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def require_equal(name: str, value: str) -> None:
    """Raises UserError in every process if their values differ; `name` is what the value is, for the message."""
    if is_multiprocess():
        digest = blake2b(value.encode(), digest_size=16).digest()
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        others = np.flatnonzero((digests != digests[0]).any(1))
        if len(others):
            raise UserError(
                f"process {', '.join(map(str, others))} of {jax.process_count()} has other {name} than process 0. "
                "Start each with the same command and the same data."
            )


@contextmanager
def primary_first(task: str) -> Iterator[None]:
    """Runs the body in process 0 first, then in the others; `task` is a name that is used once in a run."""
    if channel and not is_primary():
        channel.wait_for(task)
    yield
    if channel and is_primary():
        channel.announce(task)


def shared_folder(workdir: Path) -> Path:
    """Returns the workdir in process 0, and a temporary folder in the others: the disk need not be shared."""
    return workdir if is_primary() else scratch() / workdir.name


@cache
def scratch() -> Path:
    """Returns the temporary folder of this process; the watchdog deletes it at the end."""
    return Path(tempfile.mkdtemp(prefix="bigan_jax-process-"))
