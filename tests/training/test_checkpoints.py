"""Checkpoints: whole, true to the last bit or not used, the right ones kept, small, and movable."""

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections import Counter
from concurrent import futures
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
HISTORY = '{"epoch": 1, "loss": 0.1}\n'
LOGS = {"loss": [0.1, 1 / 3]}


@pytest.fixture(scope="module")
def states():
    """Three that differ in every array, scalars and optimizer's moments included."""
    first = jax.device_get(
        jax.jit(lambda: init_state(DETECTOR, {"reconstruction": optax.adam(0.1)}, 7, (16, 16, 1)))()
    )
    return [jax.tree.map(lambda x, n=n: x + np.array(n, x.dtype), first) for n in range(3)]


def saved(workdir, states, keep=2, **options):
    """A workdir with a checkpoint of each state, after so many epochs."""
    checkpoints = CheckpointManager(workdir, keep, **options)
    for epochs, state in enumerate(states, 1):
        checkpoints.save(Progress(epochs, history=HISTORY * epochs), state)
    checkpoints.close()
    return checkpoints


def equal(a, b):
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_what_is_saved_comes_back(states, tmp_path):
    progress = Progress(4, 2, 7, LOGS, 0.5, HISTORY, [{"epoch": 2, "objective": "a", "back_to": 1}])
    checkpoints = CheckpointManager(tmp_path)
    assert checkpoints.restore(states[0]) is None
    checkpoints.save(progress, states[1])
    found, state = checkpoints.restore(states[0])
    assert found == progress and equal(jax.device_get(state), states[1])
    assert checkpoints.restore(states[0], whole=True) is None  # it is within an epoch
    assert [p.name for p in checkpoints.folder.iterdir()] == ["4-2"]


def test_a_training_does_not_wait_for_its_state_to_leave_the_device(states, tmp_path, monkeypatch):
    may_leave, fetch = threading.Event(), jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: may_leave.wait(60) and fetch(tree))
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(Progress(1), states[1])
    assert checkpoints.names() == []
    may_leave.set()
    checkpoints.close()
    assert checkpoints.names() == [(1, 0)]
    assert equal(
        fetch(CheckpointManager(tmp_path, read_only=True).restore(states[0])[1]), states[1]
    )


def test_what_cannot_be_written_is_told_of_at_the_next_look(states, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = saved(tmp_path, states[:1])
    checkpoints = CheckpointManager(tmp_path)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", fail)
    checkpoints.raise_if_failed()
    checkpoints.save(Progress(2), states[1])
    futures.wait([checkpoints._begun])
    with pytest.raises(UserError, match=r"cannot be written \(No space.*last checkpoint"):
        checkpoints.raise_if_failed()
    checkpoints.raise_if_failed()  # it was told
    checkpoints.save(Progress(3), states[2])
    with pytest.raises(UserError, match="cannot be written"):
        checkpoints.close()
    assert checkpoints.names() == [(1, 0)]


def damages(path):
    """The file's content, damaged: cut short, emptied, and with one bit turned in some places."""
    content = path.read_bytes()
    yield content[: len(content) // 2]
    yield b""
    for place in np.linspace(0, len(content) - 1, 7).astype(int):
        turned = bytearray(content)
        turned[place] ^= 0x10
        yield bytes(turned)


def test_no_damage_to_any_file_is_trusted(states, tmp_path, capsys):
    """Either the state is what was saved, as some bits have no part in it, or the one before is."""
    whole = tmp_path / "whole"
    saved(whole, states[:2])
    noticed, tried = Counter(), Counter()
    for path in files(whole / "checkpoints" / "2"):
        for content in damages(path):
            run = shutil.copytree(whole, tmp_path / "run")
            (run / path.relative_to(whole)).write_bytes(content)
            progress, state = CheckpointManager(run).restore(states[0])
            assert equal(jax.device_get(state), states[progress.epochs - 1])
            assert progress.history == HISTORY * progress.epochs
            if progress.epochs == 1:
                told = capsys.readouterr().err
                assert "checkpoints/2 is damaged" in told and "the checkpoint before" in told
                assert (run / "damaged" / "2").is_dir()
                assert not (run / "checkpoints" / "2").exists()
            part = path.relative_to(whole / "checkpoints" / "2").parts[0]
            noticed[part] += progress.epochs == 1
            tried[part] += 1
            shutil.rmtree(run)
    assert noticed["progress"] >= 9  # all there is to it; the state also has what nobody reads
    assert noticed["history"] == 9
    assert noticed["state"] > 20 and tried.total() > 80
    assert equal(jax.device_get(CheckpointManager(whole).restore(states[0])[1]), states[1])


def test_damage_is_told_in_one_line_and_no_more(states, tmp_path, capsys, caplog, monkeypatch):
    """Python and asyncio would make a page of each read that Orbax gave up, now or later."""
    left = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left.append(repr(found.exc_value)))
    silence_abandoned_reads.cache_clear()
    whole = tmp_path / "whole"
    saved(whole, states[:2])
    told = 0
    for path in files(whole / "checkpoints" / "2" / "state"):
        for content in islice(damages(path), 3):
            run = shutil.copytree(whole, tmp_path / "run")
            (run / path.relative_to(whole)).write_bytes(content)
            damaged = CheckpointManager(run).restore(states[0])[0].epochs == 1
            gc.collect()
            assert capsys.readouterr().err.count("\n") == damaged
            told += damaged
            shutil.rmtree(run)
    assert told > 5 and not left and not caplog.records


def test_each_array_and_the_progress_are_summed(states, tmp_path):
    """Damage that Orbax itself would not see: another value, written as it writes."""
    saved(tmp_path, states[:2])
    path = tmp_path / "checkpoints" / "2" / "progress" / "metadata"
    text = path.read_text()
    digest = re.search(r'"opt_state[^"]*": \["float32", \[[^]]*\], "(\w+)"', text)[1]
    for old, new in ((digest, "0" * 64), ("0.1", "0.2")):
        assert old in text
        path.write_text(text.replace(old, new))
        assert CheckpointManager(tmp_path, read_only=True).restore(states[0])[0].epochs == 1
    assert (tmp_path / "checkpoints" / "2").is_dir()  # read-only: it is not moved aside


def test_another_checkpoint_under_its_name_is_none(states, tmp_path):
    folder = saved(tmp_path, states[:2]).folder
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    assert CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1


def test_where_all_are_damaged_nothing_is_begun_anew(states, tmp_path):
    folder = saved(tmp_path, states[:2]).folder
    for path in folder.glob("*/progress/metadata"):
        path.write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        CheckpointManager(tmp_path).restore(states[0])
    assert {p.name for p in (tmp_path / "damaged").iterdir()} == {"1", "2"}


def test_another_architecture_is_told_from_damage(states, tmp_path):
    saved(tmp_path, states[:1])
    wider = jax.tree.map(lambda x: np.zeros((*x.shape, 2), x.dtype), states[0])
    with pytest.raises(UserError, match=r"other shapes .* bigan_jax \d"):
        CheckpointManager(tmp_path).restore(wider)
    assert not (tmp_path / "damaged").exists()


def test_which_checkpoints_stay(states, tmp_path):
    checkpoints = CheckpointManager(tmp_path, keep=2, keep_every=3)
    for name in ((1, 0), (2, 0), (2, 5), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (8, 1)):
        checkpoints.save(Progress(*name), states[0])
        checkpoints.wait()
        assert checkpoints.names()[-1] == name
    assert checkpoints.names() == [(3, 0), (6, 0), (7, 0), (8, 0), (8, 1)]
    checkpoints.close()


def test_what_was_begun_and_not_finished_goes(states, tmp_path):
    folder = saved(tmp_path, states[:1]).folder
    for name in ("3.orbax-checkpoint-tmp-123", "4.orbax-checkpoint-tmp", "2.deleting"):
        shutil.copytree(folder / "1", folder / name)
    shutil.copytree(folder / "1", folder / "mine")
    assert CheckpointManager(tmp_path, read_only=True).names() == [(1, 0)]
    assert len(list(folder.iterdir())) == 5  # who only reads deletes nothing
    assert CheckpointManager(tmp_path).names() == [(1, 0)]
    assert {p.name for p in folder.iterdir()} == {"1", "mine"}


def test_checkpoints_without_checksums_are_read(states, tmp_path):
    """Those of versions before: Orbax's CheckpointManager, and the history beside them."""
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(2, args=ocp.args.StandardSave(states[1]._asdict()))
    (tmp_path / "train.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n')
    progress, state = CheckpointManager(tmp_path).restore(states[0])
    assert progress == Progress(2, history='{"epoch": 1}\n{"epoch": 2}\n')
    assert equal(jax.device_get(state), states[1])


def test_checkpoints_with_the_history_in_their_progress_are_read(states, tmp_path):
    """Those of format 1."""
    folder = saved(tmp_path, states[:2]).folder / "2"
    shutil.rmtree(folder / "history")
    content = json.loads((folder / "progress" / "metadata").read_text())["content"]
    del content["history_sha256"]
    content["history"] = HISTORY * 2
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    written = json.dumps({"content": content, "sha256": digest})
    (folder / "progress" / "metadata").write_text(written)
    progress, state = CheckpointManager(tmp_path).restore(states[0])
    assert progress == Progress(2, history=HISTORY * 2, rollbacks=[])
    assert equal(jax.device_get(state), states[1])


def test_a_history_without_end_is_not_read(states, tmp_path, capsys):
    folder = saved(tmp_path, states[:2]).folder
    os.truncate(folder / "2" / "history" / "bytes", 2**40)  # it takes no room on the disk
    assert CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1
    assert "history is larger than 256 MiB" in capsys.readouterr().err


def test_frozen_weights_are_not_stored(tmp_path):
    """A perceptual loss's VGG16: the detector holds it, and the state nothing of it."""
    config = configured(
        improved_bigan,
        "phantom",
        {"data.image_size": 32, "model.latent": 8, "model.widths": (4, 8)}
        | {"model.discriminator_widths": (4, 8), "model.discriminator_hidden": 8},
    )
    built = build(parse_settings(config), conditions=1, steps_per_epoch=1)
    state = jax.jit(
        lambda: init_state(
            built.detector, built.optimizers, 0, parse_settings(config).data.image_shape
        )
    )()
    folder = saved(tmp_path, [state]).folder
    content = json.loads((folder / "1" / "progress" / "metadata").read_text())["content"]
    (name,) = built.detector.frozen
    kernels = {x.shape for x in jax.tree.leaves(built.detector.frozen) if x.ndim == 4}
    assert kernels and not [path for path in content["leaves"] if name in path]
    assert not kernels & {tuple(shape) for _, shape, _ in content["leaves"].values()}
    size = sum(path.stat().st_size for path in files(folder))
    assert size < 2 * sum(x.nbytes for x in jax.tree.leaves(state)) + 200_000


@pytest.mark.parametrize("broken", [OSError(28, "No space left on device"), ValueError("tensor")])
def test_a_full_disk_is_told_of_and_the_one_before_stays(states, tmp_path, monkeypatch, broken):
    checkpoints = saved(tmp_path, states[:1])
    checkpoints = CheckpointManager(tmp_path)

    def fail(*args, **kwargs):
        raise broken

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", fail)
    with pytest.raises(UserError, match=f"{Path(checkpoints.folder)} cannot be written"):
        checkpoints.save(Progress(2), states[1])
    monkeypatch.undo()
    assert CheckpointManager(tmp_path).restore(states[0])[0].epochs == 1
