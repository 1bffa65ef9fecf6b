"""Checkpoints by Orbax: atomic, written in the background, and never used if any bit has changed.

A checkpoint is a folder of the state, the text of the training log, and the progress with the checksums of all three.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
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
from bigan_jax.training.saving.orbax_extras import BytesRestore, BytesSave, silence_abandoned_reads
from bigan_jax.training.saving.progress import Progress, validate_types
from bigan_jax.training.saving.train_log import MAX_BYTES
from bigan_jax.value_checks import POSITIVE_INTEGER, require

_NAME = re.compile(r"(\d+)(?:-(\d+))?")  # complete epochs, steps of the next
_UNFINISHED = (".orbax-checkpoint-tmp", ".deleting")
# Bytes of a state per byte on disk: two thirds of an initial state are Adam's zeros.
_MAX_RATIO = 100
_UNLIMITED_BYTES = 2**30  # states up to this size are exempt from the ratio
_NO_TIMEOUT = 10**9  # seconds
# One thread for all runs of the process: Orbax mixes up checkpoints that begin at the same time.
_executor = ThreadPoolExecutor(1, "checkpoint")


@dataclass(frozen=True)
class CheckpointSettings:
    """The validated fields of `config.checkpoint`; raises UserError unless `every` is a positive integer."""

    every: int = 10  # number of epochs between two checkpoints
    keep: int = 2  # number of latest checkpoints to keep, at least 1
    keep_every: int = 0  # epochs whose multiples keep their checkpoints, too; 0 for none

    def __post_init__(self):
        require("checkpoint.every", self.every, POSITIVE_INTEGER)


class CheckpointManager:
    """The checkpoints of one run: folders "<epochs>", or "<epochs>-<steps>" if it was stopped within an epoch."""

    def __init__(self, workdir: str | Path, keep: int = 2, keep_every: int = 0, read_only: bool = False):
        """Opens the run's folder of checkpoints, and removes unfinished ones unless read-only.

        Args:
          workdir: the run's folder.
          keep: number of latest checkpoints to keep; a checkpoint is deleted once later ones are complete.
          keep_every: epochs whose multiples keep their checkpoints, too; 0 for none.
          read_only: leaves all files as they are.

        Raises:
          UserError: the folder is missing (read-only), contains links, or cannot be written.
        """
        self.workdir = Path(workdir)
        self.folder = self.workdir.absolute() / "checkpoints"
        self._keep, self._keep_every, self._read_only = max(1, keep), keep_every, read_only
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: no run was trained there")
        refuse_links(self.workdir)
        if not read_only:
            with self._write_errors():
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in self.folder.iterdir():
                    if any(mark in path.name for mark in _UNFINISHED):
                        shutil.rmtree(path)
        # Each of several processes reads and writes alone: Orbax need not wait for the others.
        process = jax.process_index()
        multiprocessing = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=str(process)
        )
        options = ocp.CompositeOptions(multiprocessing_options=multiprocessing)
        handler = ocp.CompositeCheckpointHandler(composite_options=options)
        # Orbax measures timeouts by the wall clock, which jumps when it is set or a laptop wakes.
        no_timeout = ocp.options.AsyncOptions(timeout_secs=_NO_TIMEOUT, create_directories_asynchronously=False)
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=no_timeout, multiprocessing_options=multiprocessing)
        self._pending = None

    def names(self) -> list[tuple[int, int]]:
        """Returns (complete epochs, steps of the next) of each checkpoint, in order."""
        matches = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(m[1]), int(m[2] or 0)) for m in matches if m)

    def save(self, progress: Progress, state: TrainState) -> None:
        """Starts to write a checkpoint in the background.

        Training may continue at once, but must not donate the state's memory before `wait`. Of several processes,
        which all have the same state, only process 0 writes. If this fails, the next call, `raise_if_failed`, `wait`
        or `close` raises UserError.
        """
        name = progress.epochs, progress.step
        if name in self.names() or not distributed.is_primary():
            return
        self.wait()
        self._pending = _executor.submit(self._save, name, progress, state)

    def _save(self, name, progress, state):
        """Fetches and hashes the state, which takes the host of an accelerator a second, and writes."""
        tree = jax.device_get(state._asdict())
        content = progress._asdict()
        train_log = content.pop("train_log").encode()
        content["train_log_sha256"] = _sha256(train_log)
        content |= {"version": package_version("bigan_jax"), "leaves": _leaves(tree)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            train_log=BytesSave(train_log),
            progress=ocp.args.JsonSave({"content": content, "sha256": _sha256_json(content)}),
        )
        self._orbax.save(self._path(name), args=args)

    def raise_if_failed(self) -> None:
        """Raises UserError if the pending checkpoint is known to have failed; does not wait."""
        if self._pending and self._pending.done() and self._pending.exception():
            self.wait()

    def wait(self) -> None:
        """Waits for the pending checkpoint, then deletes those that need not be kept.

        Raises UserError if it could not be written.
        """
        with self._write_errors():
            pending, self._pending = self._pending, None
            if pending:
                pending.result()
            self._orbax.wait_until_finished()
            names = self.names()
            complete = [name for name in names if not name[1]]
            kept = {names[-1], *complete[-self._keep :]} if names else set()
            if self._keep_every:
                kept |= {name for name in complete if name[0] % self._keep_every == 0}
            for name in (name for name in names if name not in kept):
                path = self._path(name)
                # First renamed: it is never a checkpoint with missing files.
                shutil.rmtree(path.rename(path.with_name(path.name + ".deleting")))

    def restore(
        self, like: TrainState | Callable[[int, int], TrainState], complete_epochs: bool = False
    ) -> tuple[Progress, TrainState] | None:
        """Returns the latest valid checkpoint on the default device, or None if there is none.

        A damaged checkpoint is reported and, unless read-only, moved to the folder "damaged".

        Args:
          like: a state of the same shapes, abstract or not; or a function of (complete epochs, steps of the next).
          complete_epochs: skips checkpoints within an epoch, whose BatchNorm statistics are not those for inference.

        Raises:
          UserError: all checkpoints are damaged, or they have a state of other shapes.
        """
        if not self._read_only:
            self.wait()
        names = [name for name in self.names() if not (complete_epochs and name[1])]
        for name in reversed(names):
            of_name = like(*name) if callable(like) else like
            self._check_size(of_name)
            try:
                return self._read(name, of_name)
            except (UserError, MemoryError):
                raise
            except Exception as error:  # damaged files raise nearly any type
                silence_abandoned_reads()
                self._quarantine(name, error)
        if names:
            raise UserError(
                f"every checkpoint of {self.workdir} is damaged. Put back a copy, or start again in another --workdir."
            )
        return None

    def close(self) -> None:
        """Waits for the pending checkpoint as `wait` does, and closes Orbax."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _check_size(self, like):
        """Refuses a config with far more parameters than the files can hold: arrays of zeros take no room on disk,
        but all of their size in memory."""
        disk_bytes = sum(path.lstat().st_size for path in self.folder.rglob("*"))
        state_bytes = sum(x.size * np.dtype(x.dtype).itemsize for _, x in _paths(like._asdict()))
        if state_bytes > max(_UNLIMITED_BYTES, _MAX_RATIO * disk_bytes):
            raise UserError(
                f"config.json in {self.workdir} describes networks of {state_bytes / 2**30:,.0f} GiB, but the "
                f"checkpoints have {disk_bytes / 2**30:.2g} GiB. Put back the config.json that the run wrote."
            )

    def _path(self, name):
        return self.folder / "-".join(map(str, name[: 1 + bool(name[1])]))

    def _restore_items(self, path, **items):
        return self._orbax.restore(path, args=ocp.args.Composite(**items))

    def _read(self, name, like):
        path = self._path(name)
        saved = self._restore_items(path, progress=ocp.args.JsonRestore())["progress"]
        content = saved["content"]
        if _sha256_json(content) != saved["sha256"]:
            raise ValueError("the checksum of its progress does not match")
        leaves, version = content.pop("leaves"), content.pop("version")
        train_log = self._restore_items(path, train_log=BytesRestore(MAX_BYTES))["train_log"]
        if _sha256(train_log) != content.pop("train_log_sha256"):
            raise ValueError("the checksum of its training log does not match")
        progress = Progress(**content, train_log=train_log.decode())
        validate_types(progress)
        if (progress.epochs, progress.step) != name:
            raise ValueError("it was saved under another name")
        shapes = {path: shape for path, (*shape, _) in leaves.items()}
        if shapes != {path: [str(x.dtype), list(x.shape)] for path, x in _paths(like._asdict())}:
            raise UserError(
                f"{path} has a state of other shapes than this config describes; bigan_jax {version} wrote it. "
                "Resume with that version, or give another --workdir."
            )
        device = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like._asdict())
        tree = self._restore_items(path, state=ocp.args.StandardRestore(abstract))["state"]
        if _leaves(jax.device_get(tree)) != leaves:
            raise ValueError("the checksum of its state does not match")
        return progress, TrainState(**tree)

    def _quarantine(self, name, error):
        path, moved = self._path(name), ""
        if not self._read_only:
            folder = self.workdir / "damaged"
            with self._write_errors():
                folder.mkdir(exist_ok=True)
                shutil.rmtree(folder / path.name, ignore_errors=True)
                path.rename(folder / path.name)
            moved = f", and was moved to {folder / path.name}"
        print(
            f"Warning: {path} is damaged ({one_line(error, 200)}){moved}: the checkpoint before it is used",
            file=sys.stderr,
        )

    @contextmanager
    def _write_errors(self):
        try:
            yield
        except Exception as error:  # those of TensorStore are not OSErrors
            raise write_error(self.folder, error) from error


def tree_digest(tree: PyTree) -> str:
    """Returns the SHA-256 of a tree of arrays (names, shapes, dtypes, values) in hexadecimal."""
    return _sha256_json(_leaves(jax.device_get(tree)))


def _paths(tree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _leaves(tree) -> dict[str, list]:
    """[dtype, shape, SHA-256] of each array by its path."""

    def describe(leaf):
        path, array = leaf
        digest = _sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return path, [str(array.dtype), list(array.shape), digest]

    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        return dict(threads.map(describe, _paths(tree)))


def _sha256_json(content):
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
