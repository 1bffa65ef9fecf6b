"""What happens to a workdir: a second run in it, no room, no right to write, a version to come, and
a clock that jumps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import jax
import numpy as np
import pytest

import bigan_jax
from bigan_jax.commands import train
from bigan_jax.configs import cae, fcae, improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import read_run
from bigan_jax.runtime.files import write_atomic, write_csv
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import FORMAT, read_config, write_config
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.datasets import write_run
from tests.helpers.runs import ROOT, configured

SMALL = {
    "data.image_size": 16,
    "data.phantom_normal": 40,
    "data.phantom_anomalous": 6,
    "model.hidden": (8, 4),
    "batch_size": 16,
    "phases.phase1.epochs": 4,
    "checkpoint.every": 1,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def small(**fields):
    return configured(fcae, "phantom", SMALL | fields)


# --- the lock -------------------------------------------------------------------------------------


def test_a_second_run_is_refused_by_name_and_a_dead_one_holds_nothing(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom bigan_jax.locking import alone\n"
        "with alone(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    host = os.uname().nodename
    with pytest.raises(UserError, match=f"in use .*process {holder.pid} on {host}.*--workdir"):
        bigan_jax.train(small(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with exclusive_lock(tmp_path):
        pass


def test_a_lock_is_held_against_threads_and_evaluations_too(tmp_path):
    write_config(tmp_path, small())
    with exclusive_lock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        bigan_jax.evaluate(tmp_path)


def test_a_folder_that_nothing_was_put_in_goes_again(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with exclusive_lock(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert (tmp_path / "new" / "lock").exists()


def test_of_many_at_once_one_holds_it(tmp_path):
    """Also while the folder comes and goes."""
    inside, most, refused = [], [], []

    def run():
        for _ in range(200):
            try:
                with exclusive_lock(tmp_path / "run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except UserError:
                refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) + len(refused) == 800


# --- no room, no right ----------------------------------------------------------------------------


@contextmanager
def mounted(where, options):
    """A small file system in memory; skips where this machine lets nobody mount one."""
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def unmounted_evaluation(monkeypatch):
    states = []
    monkeypatch.setattr(train, "evaluate_run", lambda *args: states.append(args[-2]))
    return states


def test_on_a_full_disk_nothing_is_lost(tmp_path, monkeypatch):
    """The disk fills up in the middle of the run; with room made, it ends as if nothing was."""
    states = unmounted_evaluation(monkeypatch)
    bigan_jax.train(small(), tmp_path / "whole")
    with mounted(tmp_path / "small", "size=4m") as disk:
        fill, save = disk / "fill", CheckpointManager.save

        def filling(self, progress, state):
            save(self, progress, state)
            if progress.epochs == 2:
                self.wait()
                with pytest.raises(OSError), fill.open("wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()

        monkeypatch.setattr(CheckpointManager, "save", filling)
        with pytest.raises(UserError, match=rf"{disk}/run/\S+ cannot be written .*make room"):
            bigan_jax.train(small(), disk / "run")
        assert CheckpointManager(disk / "run", read_only=True).names()[-1] == (2, 0)
        fill.unlink()
        monkeypatch.setattr(CheckpointManager, "save", save)
        bigan_jax.train(small(), disk / "run")
        assert [row["epoch"] for row in read_train_log(disk / "run")] == [1, 2, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_disk_that_may_not_be_written(tmp_path):
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        for workdir in (disk, disk / "run"):
            with pytest.raises(UserError, match=rf"{workdir} cannot be written \(Read-only file"):
                bigan_jax.train(small(), workdir)


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "file"
    write_atomic(path, "first")

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, full)
        with pytest.raises(UserError, match=rf"{path} cannot be written \(No space left"):
            write_atomic(path, b"second")
        assert path.read_text() == "first"
        monkeypatch.undo()
    write_csv(path, [["a", 'b"'], ["\udcff", 1]])
    assert path.read_bytes() == b'a,"b"""\r\n\xff,1\r\n'


def test_nothing_in_a_workdir_is_written_in_place():
    """What writes files of a run does so through workdir, but for what is added line by line."""
    for path in (ROOT / "bigan_jax").rglob("*.py"):
        name = str(path.relative_to(ROOT / "bigan_jax"))
        if not name.startswith(("data/", "vgg16", "prediction", "processes", "locking", "caches")):
            for word in ('.open("w', "write_text(", "write_bytes(", "json.dump("):
                # Orbax makes a whole of what bytes_item writes.
                mine = ("workdir.py", "bytes_item.py")
                assert word not in path.read_text() or name in mine, (name, word)


# --- other versions, other clocks -----------------------------------------------------------------


def test_a_workdir_of_a_version_to_come_is_left_alone(tmp_path):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    assert read_run(tmp_path / "run").fields
    content = json.loads(path.read_text())
    for number in (FORMAT + 1, "2", None):
        path.write_text(json.dumps({**content, "format": number}))
        before = path.read_bytes()
        for use in (
            lambda: bigan_jax.train(small(), tmp_path / "run"),
            lambda: bigan_jax.evaluate(tmp_path / "run"),
            lambda: bigan_jax.load(tmp_path / "run"),
            lambda: read_run(tmp_path / "run"),
        ):
            with pytest.raises(UserError, match=r"newer version of bigan_jax .*update"):
                use()
        assert path.read_bytes() == before


def test_the_format_is_no_field_of_the_config(tmp_path):
    config = small()
    write_config(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == FORMAT
    assert read_config(tmp_path).to_dict() == json.loads(json.dumps(config.to_dict()))


def test_results_by_another_score_do_not_outlive_the_config(tmp_path):
    """Or a run that is killed while it scores anew would be taken for one that is done."""
    write_config(tmp_path, small())
    mark = tmp_path / "evaluation.json"
    mark.write_text("{}")
    write_config(tmp_path, small())
    assert mark.exists()
    write_config(tmp_path, small(**{"score.reduction": "max"}))
    assert not mark.exists()


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """By days, there and back, after each epoch and in the midst of its save."""
    states, sound, save = unmounted_evaluation(monkeypatch), time.time, CheckpointManager.save
    bigan_jax.train(small(), tmp_path / "steady")
    days, jumps = [0], iter((3, -2, 5, -7))

    def jumping(self, progress, state):
        save(self, progress, state)
        writing = f"{progress.epochs}*/" + "{}*"
        while not all([*self.folder.glob(writing.format(item))] for item in ("state", "progress")):
            time.sleep(0.001)
        days[0] = next(jumps)

    monkeypatch.setattr(CheckpointManager, "save", jumping)
    monkeypatch.setattr(time, "time", lambda: sound() + 86400 * days[0])
    bigan_jax.train(small(), tmp_path / "jumping")
    jax.tree.map(np.testing.assert_array_equal, *states)
    rows = read_train_log(tmp_path / "jumping")
    assert len(rows) == 4 and all(0 < row["seconds"] < 600 for row in rows)


def test_durations_are_taken_by_a_clock_that_nobody_sets():
    """Only the age of somebody else's files is told by the clock that files are stamped with, and
    what TensorBoard shows beside a curve."""
    users = {
        path.name
        for path in (ROOT / "bigan_jax").rglob("*.py")
        if "time.time()" in path.read_text() or "datetime" in path.read_text()
    }
    assert users == {"folders.py", "events.py"}


def test_a_config_from_before_a_field_means_what_it_meant(tmp_path):
    """VGG16's features were compared as they are, where a model has them, and pictures too."""
    for module, expected, perceptual in (improved_bigan, False, 0.0), (cae, None, 0.3):
        write_config(tmp_path, module.get_config("phantom"))
        fields = json.loads((tmp_path / "config.json").read_text())
        fields["model"].pop("unit_features", None)
        del fields["data"]["window"], fields["score"]["unit_features"]
        fields["score"]["perceptual"] = perceptual
        (tmp_path / "config.json").write_text(json.dumps(fields))
        older = read_config(tmp_path)
        assert older.model.get("unit_features") is expected and older.data.window is False
        assert older.score.unit_features is (not perceptual)  # without the term it says nothing
        (tmp_path / "config.json").unlink()
