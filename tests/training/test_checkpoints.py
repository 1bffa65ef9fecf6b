"""Checkpoints: atomic, verified to the last bit, small; which of them are kept."""

import errno
import gc
import json
import os
import re
import shutil
import sys
import threading
from collections import Counter
from concurrent import futures
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import improved_bigan
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.models import cae
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.orbax_extras import silence_abandoned_reads
from bigan_jax.training.saving.progress import Progress
from tests.helpers.runs import configured

DETECTOR = cae.create(shape=(16, 16, 1), conditions=1, dtype=np.float32, latent=4, widths=(4,))
TRAIN_LOG = '{"epoch": 1, "loss": 0.1}\n'
LOGS = {"loss": [0.1, 1 / 3]}


@pytest.fixture(scope="module")
def states():
    """Three states that differ in every array, scalars and moments of the optimizer included."""
    first = jax.device_get(jax.jit(lambda: init_state(DETECTOR, {"reconstruction": optax.adam(0.1)}, 7, (16, 16, 1)))())
    return [jax.tree.map(lambda x, n=n: x + np.array(n, x.dtype), first) for n in range(3)]


def saved(workdir, states, keep=2, **options):
    """Saves a checkpoint of each state: the first after one epoch, and so on."""
    checkpoints = CheckpointManager(workdir, keep, **options)
    for epochs, state in enumerate(states, 1):
        checkpoints.save(Progress(epochs, train_log=TRAIN_LOG * epochs), state)
    checkpoints.close()
    return checkpoints


def equal(a, b):
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_restored_checkpoint_equals_saved_one(states, tmp_path):
    progress = Progress(4, 2, 7, LOGS, 0.5, TRAIN_LOG, [{"epoch": 2, "objective": "a", "rolled_back_to": 1}])
    checkpoints = CheckpointManager(tmp_path)
    assert checkpoints.restore(states[0]) is None
    checkpoints.save(progress, states[1])
    restored, state = checkpoints.restore(states[0])
    assert restored == progress and equal(jax.device_get(state), states[1])
    assert checkpoints.restore(states[0], complete_epochs=True) is None
    assert [p.name for p in checkpoints.folder.iterdir()] == ["4-2"]


def test_save_does_not_wait_for_state_to_leave_device(states, tmp_path, monkeypatch):
    released, fetch = threading.Event(), jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: released.wait(60) and fetch(tree))
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(Progress(1), states[1])
    assert checkpoints.names() == []
    released.set()
    checkpoints.close()
    assert checkpoints.names() == [(1, 0)]
    assert equal(fetch(CheckpointManager(tmp_path, read_only=True).restore(states[0])[1]), states[1])


def test_failed_save_is_raised_once_by_next_check(states, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = saved(tmp_path, states[:1])
    checkpoints = CheckpointManager(tmp_path)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", fail)
    checkpoints.raise_if_failed()
    checkpoints.save(Progress(2), states[1])
    futures.wait([checkpoints._pending])
    with pytest.raises(UserError, match=r"cannot be written \(No space"):
        checkpoints.raise_if_failed()
    checkpoints.raise_if_failed()  # once is enough
    checkpoints.save(Progress(3), states[2])
    with pytest.raises(UserError, match="cannot be written"):
        checkpoints.close()
    assert checkpoints.names() == [(1, 0)]


def damages(path):
    """Yields the file's content truncated, emptied, and with one bit flipped in some places."""
    content = path.read_bytes()
    yield content[: len(content) // 2]
    yield b""
    for place in np.linspace(0, len(content) - 1, 7).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        yield bytes(flipped)


@contextmanager
def damaged(run, path, content):
    """Replaces the content of a file of checkpoint 2; then undoes that, and the quarantine of the checkpoint."""
    intact = path.read_bytes()
    path.write_bytes(content)
    yield
    if (run / "damaged").exists():
        (run / "damaged" / "2").rename(run / "checkpoints" / "2")
        (run / "damaged").rmdir()
    path.write_bytes(intact)


def test_damage_to_any_file_is_noticed_or_harmless(states, tmp_path, capsys):
    """Restores the saved state, as some bits are not part of it, or the previous checkpoint."""
    saved(tmp_path, states[:2])
    checkpoint = tmp_path / "checkpoints" / "2"
    noticed, total = Counter(), Counter()
    for path in files(checkpoint):
        for content in damages(path):
            with damaged(tmp_path, path, content):
                progress, state = CheckpointManager(tmp_path).restore(states[0])
                assert equal(jax.device_get(state), states[progress.epochs - 1])
                assert progress.train_log == TRAIN_LOG * progress.epochs
                if progress.epochs == 1:
                    warning = capsys.readouterr().err
                    assert "checkpoints/2 is damaged" in warning
                    assert "the checkpoint before" in warning
                    assert (tmp_path / "damaged" / "2").is_dir()
                    assert not checkpoint.exists()
            item = path.relative_to(checkpoint).parts[0]
            noticed[item] += progress.epochs == 1
            total[item] += 1
    assert noticed["progress"] >= 9  # all; some files of the state are never read
    assert noticed["train_log"] == 9
    assert noticed["state"] > 20 and total.total() > 80
    restored, state = CheckpointManager(tmp_path).restore(states[0])
    assert restored.epochs == 2 and equal(jax.device_get(state), states[1])


def test_damage_is_reported_in_one_line(states, tmp_path, capsys, caplog, monkeypatch):
    """Python and asyncio would print a page for each read that Orbax abandoned, now or later."""
    others = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: others.append(repr(args.exc_value)))
    silence_abandoned_reads.cache_clear()
    saved(tmp_path, states[:2])
    reported = 0
    for path in files(tmp_path / "checkpoints" / "2" / "state"):
        for content in islice(damages(path), 3):
            with damaged(tmp_path, path, content):
                noticed = CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1
                gc.collect()
                assert capsys.readouterr().err.count("\n") == noticed
                reported += noticed
    assert reported > 5 and not others and not caplog.records


def test_arrays_and_progress_have_checksums(states, tmp_path):
    """Against damage that Orbax would not notice: another value in its own format."""
    saved(tmp_path, states[:2])
    path = tmp_path / "checkpoints" / "2" / "progress" / "metadata"
    text = path.read_text()
    digest = re.search(r'"opt_state[^"]*": \["float32", \[[^]]*\], "(\w+)"', text)[1]
    for old, new in ((digest, "0" * 64), ("0.1", "0.2")):
        assert old in text
        path.write_text(text.replace(old, new))
        assert CheckpointManager(tmp_path, read_only=True).restore(states[0])[0].epochs == 1
    assert (tmp_path / "checkpoints" / "2").is_dir()  # read-only: not moved


def test_renamed_checkpoint_is_not_used(states, tmp_path):
    folder = saved(tmp_path, states[:2]).folder
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    assert CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1


def test_all_damaged_is_an_error(states, tmp_path):
    folder = saved(tmp_path, states[:2]).folder
    for path in folder.glob("*/progress/metadata"):
        path.write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        CheckpointManager(tmp_path).restore(states[0])
    assert {p.name for p in (tmp_path / "damaged").iterdir()} == {"1", "2"}


def test_other_shapes_are_not_reported_as_damage(states, tmp_path):
    saved(tmp_path, states[:1])
    wider = jax.tree.map(lambda x: np.zeros((*x.shape, 2), x.dtype), states[0])
    with pytest.raises(UserError, match=r"other shapes .* bigan_jax \d"):
        CheckpointManager(tmp_path).restore(wider)
    assert not (tmp_path / "damaged").exists()


def test_latest_and_every_third_checkpoint_are_kept(states, tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=2, keep_every=3)
    for name in ((1, 0), (2, 0), (2, 5), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (8, 1)):
        checkpoints.save(Progress(*name), states[0])
        checkpoints.wait()
        assert checkpoints.names()[-1] == name
    assert checkpoints.names() == [(3, 0), (6, 0), (7, 0), (8, 0), (8, 1)]
    checkpoints.close()


def test_unfinished_checkpoints_are_removed(states, tmp_path):
    folder = saved(tmp_path, states[:1]).folder
    for name in ("3.orbax-checkpoint-tmp-123", "4.orbax-checkpoint-tmp", "2.deleting"):
        shutil.copytree(folder / "1", folder / name)
    shutil.copytree(folder / "1", folder / "mine")
    assert CheckpointManager(tmp_path, read_only=True).names() == [(1, 0)]
    assert len(list(folder.iterdir())) == 5  # read-only: nothing is deleted
    assert CheckpointManager(tmp_path).names() == [(1, 0)]
    assert {p.name for p in folder.iterdir()} == {"1", "mine"}


def test_earlier_format_is_not_read(states, tmp_path):
    """That of Orbax's own CheckpointManager, which has no checksums."""
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(2, args=ocp.args.StandardSave(states[1]._asdict()))
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        CheckpointManager(tmp_path).restore(states[0])


def test_oversized_train_log_is_not_read(states, tmp_path, capsys):
    folder = saved(tmp_path, states[:2]).folder
    os.truncate(folder / "2" / "train_log" / "bytes", 2**40)  # sparse, takes no room
    assert CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1
    assert "train_log is larger than 256 MiB" in capsys.readouterr().err


def test_frozen_weights_are_not_stored(tmp_path):
    """VGG16 of a perceptual loss is part of the detector, not of the state."""
    config = configured(
        improved_bigan,
        "phantom",
        {"data.image_size": 32, "model.latent": 8, "model.widths": (4, 8)}
        | {"model.discriminator_widths": (4, 8), "model.discriminator_hidden": 8},
    )
    built = build(parse_settings(config), conditions=1, steps_per_epoch=1)
    state = jax.jit(lambda: init_state(built.detector, built.optimizers, 0, parse_settings(config).data.image_shape))()
    folder = saved(tmp_path, [state]).folder
    content = json.loads((folder / "1" / "progress" / "metadata").read_text())["content"]
    (name,) = built.detector.frozen
    kernels = {x.shape for x in jax.tree.leaves(built.detector.frozen) if x.ndim == 4}
    assert kernels and not [path for path in content["leaves"] if name in path]
    assert not kernels & {tuple(shape) for _, shape, _ in content["leaves"].values()}
    size = sum(path.stat().st_size for path in files(folder))
    assert size < 2 * sum(x.nbytes for x in jax.tree.leaves(state)) + 200_000


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("tensor")])
def test_full_disk_is_reported_and_keeps_previous_checkpoint(states, tmp_path, monkeypatch, error):
    checkpoints = saved(tmp_path, states[:1])
    checkpoints = CheckpointManager(tmp_path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", fail)
    with pytest.raises(UserError, match=f"{Path(checkpoints.folder)} cannot be written"):
        checkpoints.save(Progress(2), states[1])
    monkeypatch.undo()
    assert CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1
