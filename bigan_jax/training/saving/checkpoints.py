"""Checkpoints by Orbax: written in the background, each whole or not there at all, and none that is
read passes for what was saved unless it is that to the last bit."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from bigan_jax.detector import TrainState
from bigan_jax.errors import UserError, one_line
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import refuse_links, write_error
from bigan_jax.runtime.run_config import package_version
from bigan_jax.training.saving import orbax_extras
from bigan_jax.training.saving.orbax_extras import silence_abandoned_reads
from bigan_jax.training.saving.progress import Progress, validate_types
from bigan_jax.training.saving.train_log import MOST_BYTES, train_log_until
from bigan_jax.validation import POSITIVE_INTEGER, require

_NAME = re.compile(r"(\d+)(?:-(\d+))?")  # epochs done, steps done of the next
# What is read over what lies on disk: two thirds of a fresh state are Adam's zeros.
_MOST_RATIO = 100
_FREE = 2**30  # bytes not held against the ratio
_FOR_EVER = 10**9  # seconds
# One for all runs that go side by side: Orbax mixes up what begins at the same time.
_saver = ThreadPoolExecutor(1, "checkpoint")
_UNFINISHED = (".orbax-checkpoint-tmp", ".deleting")


@dataclass(frozen=True)
class CheckpointSettings:
    """The fields of `config.checkpoint`, checked.

    Attributes:
      every: epochs between two checkpoints.
      keep: the number of latest checkpoints that stay.
      keep_every: epochs whose checkpoints stay in addition; 0 for none.

    Raises:
      UserError: a value is out of range.
    """

    every: int = 10
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self):
        require("checkpoint.every", self.every, POSITIVE_INTEGER)


class CheckpointManager:
    """The checkpoints of one run: folders named <epochs done>, or <epochs done>-<steps> where the
    run was stopped within an epoch."""

    def __init__(
        self, workdir: str | Path, keep: int = 2, keep_every: int = 0, read_only: bool = False
    ):
        """keep: the newest so many stay, beside those of every `keep_every`-th epoch (0: none);
        others are deleted, once a newer one is whole."""
        self.workdir = Path(workdir)
        self.folder = self.workdir.absolute() / "checkpoints"
        self._keep, self._keep_every, self._read_only = max(1, keep), keep_every, read_only
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: no run was trained there")
        refuse_links(self.workdir)
        if not read_only:
            with self._writable():
                self.folder.mkdir(parents=True, exist_ok=True)
                for left in self.folder.iterdir():
                    if any(mark in left.name for mark in _UNFINISHED):
                        shutil.rmtree(left)
        # Of several processes each reads and writes for itself: Orbax need not wait for the others.
        me = jax.process_index()
        own = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me)
        )
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=own)
        )
        # Orbax's limits of time go by a clock that may be set, and jumps when a laptop wakes up.
        patient = ocp.options.AsyncOptions(
            timeout_secs=_FOR_EVER, create_directories_asynchronously=False
        )
        self._orbax = ocp.AsyncCheckpointer(
            handler, async_options=patient, multiprocessing_options=own
        )
        self._begun = None

    def names(self) -> list[tuple[int, int]]:
        """(epochs, steps of the next) of each checkpoint that is there, in order."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(m[1]), int(m[2] or 0)) for m in found if m)

    def save(self, progress: Progress, state: TrainState) -> None:
        """Starts writing; training may go on at once, but not use the state's memory for another
        before `wait`. Of several processes, which all have the same state, only process 0 writes.

        Raises UserError where the checkpoint before this cannot be written; `look` and `wait` do of
        this.
        """
        name = progress.epochs, progress.step
        if name in self.names() or not distributed.is_primary():
            return
        self.wait()
        self._begun = _saver.submit(self._save, name, progress, state)

    def _save(self, name, progress, state):
        """What keeps an accelerator's host for a second: fetches the state and hashes it."""
        tree = jax.device_get(state._asdict())
        content = progress._asdict()
        history = content.pop("history").encode()
        content["history_sha256"] = _digest(history)
        content |= {"version": package_version("bigan_jax"), "leaves": _leaves(tree)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            history=orbax_extras.BytesSave(history),
            progress=ocp.args.JsonSave({"content": content, "sha256": _digest_json(content)}),
        )
        self._orbax.save(self._path(name), args=args)

    def raise_if_failed(self) -> None:
        """Raises UserError where it is known by now that what was begun cannot be written."""
        if self._begun and self._begun.done() and self._begun.exception():
            self.wait()

    def wait(self) -> None:
        """Waits for what is still being written, then deletes what need not stay.

        Raises UserError where it cannot be written.
        """
        with self._writable():
            begun, self._begun = self._begun, None
            if begun:
                begun.result()
            self._orbax.wait_until_finished()
            names = self.names()
            whole = [name for name in names if not name[1]]
            for name in names:
                newer = names[-1] > name
                asked = self._keep_every and not name[1] and name[0] % self._keep_every == 0
                if newer and not asked and name not in whole[-self._keep :]:
                    self._delete(name)

    def restore(self, like: TrainState, whole: bool = False) -> tuple[Progress, TrainState] | None:
        """The newest checkpoint that is what was saved, on the default device; None where there is
        none at all. One that is damaged is told of and, unless this is read-only, moved aside.

        like: a state of the same shapes, abstract or not.
        whole: only of those after an epoch's end, whose BatchNorm statistics are fit to score.
        Raises UserError where all are damaged, and where they hold a state of other shapes.
        """
        if not self._read_only:
            self.wait()
        names = [name for name in self.names() if not (whole and name[1])]
        self._check_amount(like)
        for name in reversed(names):
            try:
                return self._read(name, like)
            except (UserError, MemoryError):
                raise
            except Exception as error:  # of damaged files nearly anything comes
                silence_abandoned_reads()
                self._set_aside(name, error)
        if names:
            raise UserError(
                f"every checkpoint of {self.workdir} is damaged: put back a copy, or give another "
                "--workdir to start anew"
            )
        return None

    def close(self) -> None:
        """As wait, for the last time."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _check_amount(self, like):
        """What the config promises is not read from files that cannot hold it: arrays of nothing
        but zeros take no room on disk, and all of it in memory."""
        held = sum(path.lstat().st_size for path in self.folder.rglob("*"))
        promised = sum(x.size * np.dtype(x.dtype).itemsize for _, x in _paths(like._asdict()))
        if promised > max(_FREE, _MOST_RATIO * held):
            raise UserError(
                f"{self.workdir}: its config.json describes networks of {promised / 2**30:,.0f} "
                f"GiB, its checkpoints have {held / 2**30:.2g}: they do not belong together. "
                "Put back the config.json that the run wrote."
            )

    def _path(self, name):
        return self.folder / "-".join(map(str, name[: 1 + bool(name[1])]))

    def _read(self, name, like):
        path = self._path(name)
        if (path / "default").is_dir():  # of a version that kept no checksums
            state = self._orbax.restore(
                path, args=ocp.args.Composite(default=ocp.args.StandardRestore(_abstract(like)))
            )["default"]
            return Progress(name[0], history=train_log_until(self.workdir, name[0])), TrainState(
                **state
            )
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        found = self._orbax.restore(path, args=args)["progress"]
        content = found["content"]
        if _digest_json(content) != found["sha256"]:
            raise ValueError("the checksum of its progress is another")
        leaves, version = content.pop("leaves"), content.pop("version")
        if "history" not in content:  # which older versions had there
            args = ocp.args.Composite(history=orbax_extras.BytesRestore(MOST_BYTES))
            history = self._orbax.restore(path, args=args)["history"]
            if _digest(history) != content.pop("history_sha256"):
                raise ValueError("the checksum of its history is another")
            content["history"] = history.decode()
        progress = Progress(**content)
        validate_types(progress)
        if (progress.epochs, progress.step) != name:
            raise ValueError("it is another one, renamed")
        saved = {path: shape for path, (*shape, _) in leaves.items()}
        if saved != {path: [str(x.dtype), list(x.shape)] for path, x in _paths(like._asdict())}:
            raise UserError(
                f"{path} holds a state of other shapes than this config makes, as bigan_jax "
                f"{version} wrote it: go on with that version, or give another --workdir"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)))
        tree = self._orbax.restore(path, args=args)["state"]
        if _leaves(jax.device_get(tree)) != leaves:
            raise ValueError("the checksum of its state is another")
        return progress, TrainState(**tree)

    def _set_aside(self, name, error):
        path, why = self._path(name), one_line(error, 200)
        where = ""
        if not self._read_only:
            aside = self.workdir / "damaged"
            with self._writable():
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / path.name, ignore_errors=True)
                path.rename(aside / path.name)
            where = f", and is kept in {aside / path.name}"
        told = f"Warning: {path} is damaged ({why}){where}: the checkpoint before it is used"
        print(told, file=sys.stderr)

    def _delete(self, name):
        path = self._path(name)
        going = path.with_name(path.name + ".deleting")  # half of it is not taken for a whole one
        path.rename(going)
        shutil.rmtree(going)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore's are no OSErrors
            raise write_error(self.folder, error) from error


def tree_digest(tree: PyTree) -> str:
    """SHA-256 of a tree of arrays, as hexadecimal: of names, shapes, dtypes and values."""
    return _digest_json(_leaves(jax.device_get(tree)))


def _abstract(state):
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state._asdict()
    )


def _paths(tree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _leaves(tree) -> dict[str, list]:
    """[dtype, shape, SHA-256] of each array by its path."""
    paths, arrays = zip(*_paths(tree), strict=True)
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run
        digests = list(threads.map(_digest_array, arrays))
    return {
        path: [str(array.dtype), list(array.shape), tree_digest]
        for path, array, tree_digest in zip(paths, arrays, digests, strict=True)
    }


def _digest_array(array):
    return _digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _digest_json(content):
    return _digest(json.dumps(content, sort_keys=True).encode())


def _digest(content):
    return hashlib.sha256(content).hexdigest()
