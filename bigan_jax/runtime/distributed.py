"""What the processes that train one run tell each other: who writes, what process 0 knows, whether
all are agreed. One process alone is told what it says itself."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its client has no public name; Orbax uses it as well
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from bigan_jax.errors import UserError

PAUSE = 1.0  # seconds between two looks at the store


def is_multiprocess() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is the one process that writes and speaks."""
    return jax.process_index() == 0


def broadcast(tree: PyTree) -> PyTree:
    """Process 0's values, in every process. tree: of arrays and numbers of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if is_multiprocess() else tree


def broadcast_json(content: dict) -> dict:
    """Process 0's content, of what JSON can hold, in every process."""
    if not is_multiprocess():
        return content
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    length = int(broadcast(np.array(len(text))))
    return json.loads(broadcast(np.resize(text, length)).tobytes())


def all_max(value: int) -> int:
    """The highest of the processes' values, in every process; all of them have to call this."""
    if not is_multiprocess():
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def require_equal(what: str, value: str) -> None:
    """Raises UserError, in every process, where the processes' values are not the same."""
    if is_multiprocess():
        digest = blake2b(value.encode(), digest_size=16).digest()
        all_of_them = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        others = np.flatnonzero((all_of_them != all_of_them[0]).any(1))
        if len(others):
            raise UserError(
                f"process {', '.join(map(str, others))} of {jax.process_count()} has other {what} "
                "than process 0: give each the same command and the same data"
            )


@contextmanager
def primary_first(task: str) -> Iterator[None]:
    """Within, process 0 does something alone; the others do it when it is through."""
    while is_multiprocess() and not is_primary():
        if await_key(f"done/{task}", PAUSE) is not None:  # a signal is heard in between
            break
    yield
    if is_multiprocess() and is_primary():
        store().key_value_set(f"done/{task}", "", allow_overwrite=True)


def shared_folder(workdir: Path) -> Path:
    """Where this process writes what a run leaves: process 0 in the workdir, any other in a folder
    that goes when it ends, so that the workdir need not be shared."""
    return workdir if is_primary() else scratch() / workdir.name


@cache
def scratch() -> Path:
    """The folder of a process that is not process 0; whoever ends the process deletes it."""
    return Path(tempfile.mkdtemp(prefix="bigan_jax-process-"))


def store() -> Any:
    """The keys and values that process 0 holds for all."""
    return distributed.global_state.client


def await_key(key: str, seconds: float) -> str | None:
    """The value of a key of the store as soon as it is there; None when it is not in time."""
    try:
        return store().blocking_key_value_get(key, int(1000 * seconds))
    except JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise
