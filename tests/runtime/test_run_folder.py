"""A run's folder: the lock, full and read-only disks, other formats, clock changes."""

import csv
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
from bigan_jax.configs import fcae
from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import read_run
from bigan_jax.runtime.files import write_atomic, write_csv
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import FORMAT, read_config, write_config
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.datasets import write_run
from tests.helpers.runs import ROOT, TINY_FCAE, configured
from tests.helpers.training import record_trained_states


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def small(**fields):
    return configured(fcae, "phantom", TINY_FCAE | fields)


# --- the lock -------------------------------------------------------------------------------------


def test_lock_names_its_holder_and_ends_with_its_process(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from bigan_jax.runtime.lock import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    host = os.uname().nodename
    with pytest.raises(UserError, match=f"in use .*process {holder.pid} on {host}.*--workdir"):
        bigan_jax.train(small(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with exclusive_lock(tmp_path):
        pass


def test_lock_excludes_an_evaluation_in_the_same_process(tmp_path):
    write_config(tmp_path, small())
    with exclusive_lock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        bigan_jax.evaluate(tmp_path)


def test_unused_folder_is_deleted(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with exclusive_lock(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert (tmp_path / "new" / "lock").exists()


def test_lock_is_exclusive_among_threads(tmp_path):
    """Even while the folder is created and deleted."""
    inside, n_inside, refused = [], [], []

    def run():
        for _ in range(200):
            try:
                with exclusive_lock(tmp_path / "run"):
                    inside.append(1)
                    n_inside.append(len(inside))
                    inside.pop()
            except UserError:
                refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(n_inside) == {1} and len(n_inside) + len(refused) == 800


# --- full and read-only disks ---------------------------------------------------------------------


@contextmanager
def mounted(path, options):
    """Mounts a small file system in memory; skips the test without the right to do so."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_run_resumes_after_a_full_disk(tmp_path, monkeypatch):
    """The disk fills up during the run; after space is freed, the result is the same."""
    states = record_trained_states(monkeypatch)
    bigan_jax.train(small(), tmp_path / "uninterrupted")
    with mounted(tmp_path / "small", "size=4m") as disk:
        fill, save = disk / "fill", CheckpointManager.save

        def save_and_fill(self, progress, state):
            save(self, progress, state)
            if progress.epochs == 2:
                self.wait()
                with pytest.raises(OSError), fill.open("wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()

        monkeypatch.setattr(CheckpointManager, "save", save_and_fill)
        with pytest.raises(UserError, match=rf"{disk}/run/\S+ cannot be written .*Free some space"):
            bigan_jax.train(small(), disk / "run")
        assert CheckpointManager(disk / "run", read_only=True).names()[-1] == (2, 0)
        fill.unlink()
        monkeypatch.setattr(CheckpointManager, "save", save)
        bigan_jax.train(small(), disk / "run")
        assert [row["epoch"] for row in read_train_log(disk / "run")] == [1, 2, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_read_only_disk_is_reported(tmp_path):
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        for workdir in (disk, disk / "run"):
            with pytest.raises(UserError, match=rf"{workdir} cannot be written \(Read-only file"):
                bigan_jax.train(small(), workdir)


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
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


def test_files_of_a_run_are_written_atomically():
    """Only these modules write files directly; others use runtime/files.py."""
    direct = {
        "runtime/files.py",
        "runtime/lock.py",
        "runtime/launchers.py",  # log.txt of other processes
        "nn/vgg16/formats.py",  # the user's cache
        "commands/predict.py",  # a new folder
        "reports/prediction_files.py",  # likewise, image by image
        "commands/exporting/artifact.py",  # a temporary folder, renamed when complete
        "training/saving/orbax_extras.py",  # within a checkpoint that Orbax renames when complete
    }
    for path in (ROOT / "bigan_jax").rglob("*.py"):
        name = path.relative_to(ROOT / "bigan_jax").as_posix()
        if name not in direct and not name.startswith("data/"):
            for call in ('.open("w', 'open("r+', "write_text(", "write_bytes(", "json.dump("):
                assert call not in path.read_text(), (name, call)


# --- formats and clocks ---------------------------------------------------------------------------


def test_other_formats_are_refused_and_left_unchanged(tmp_path):
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    assert read_run(tmp_path / "run").fields
    content = json.loads(path.read_text())
    for number in (FORMAT + 1, FORMAT - 1, str(FORMAT), None):
        path.write_text(json.dumps({**content, "format": number}))
        before = path.read_bytes()
        for use in (
            lambda: bigan_jax.train(small(), tmp_path / "run"),
            lambda: bigan_jax.evaluate(tmp_path / "run"),
            lambda: bigan_jax.load(tmp_path / "run"),
            lambda: read_run(tmp_path / "run"),
        ):
            with pytest.raises(UserError, match=r"another version of bigan_jax .*Train again"):
                use()
        assert path.read_bytes() == before


def test_format_is_not_a_field_of_the_config(tmp_path):
    config = small()
    write_config(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == FORMAT
    assert read_config(tmp_path).to_dict() == json.loads(json.dumps(config.to_dict()))


def test_evaluation_of_another_config_is_deleted(tmp_path):
    """Otherwise a run that is killed while it is scored again would look complete."""
    write_config(tmp_path, small())
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text("{}")
    write_config(tmp_path, small())
    assert evaluation.exists()
    write_config(tmp_path, small(**{"score.reduction": "max"}))
    assert not evaluation.exists()


def test_changes_of_the_clock_have_no_effect(tmp_path, monkeypatch):
    """The clock jumps by days, forward and back, during the save of each epoch."""
    states, real_time, save = record_trained_states(monkeypatch), time.time, CheckpointManager.save
    bigan_jax.train(small(), tmp_path / "steady")
    days, jumps = [0], iter((3, -2, 5, -7))

    def save_and_jump(self, progress, state):
        save(self, progress, state)
        pattern = f"{progress.epochs}*/" + "{}*"
        while not all([*self.folder.glob(pattern.format(item))] for item in ("state", "progress")):
            time.sleep(0.001)
        days[0] = next(jumps)

    monkeypatch.setattr(CheckpointManager, "save", save_and_jump)
    monkeypatch.setattr(time, "time", lambda: real_time() + 86400 * days[0])
    bigan_jax.train(small(), tmp_path / "jumping")
    jax.tree.map(np.testing.assert_array_equal, *states)
    rows = read_train_log(tmp_path / "jumping")
    assert len(rows) == 4 and all(0 < row["seconds"] < 600 for row in rows)


def test_durations_are_measured_with_a_monotonic_clock():
    """The wall clock is only used for the age of files and for TensorBoard."""
    users = {
        path.name
        for path in (ROOT / "bigan_jax").rglob("*.py")
        if "time.time()" in path.read_text() or "datetime" in path.read_text()
    }
    assert users == {"files.py", "tensorboard.py"}


def test_cells_of_csv_files_are_not_formulas(tmp_path):
    """A file name or a group may be =HYPERLINK(...). Numbers stay numbers, also negative ones."""
    rows = [["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1"], ["-1.5", "+2", "-1e-05", -3, 0.5, "a=b"]]
    write_csv(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        formulas, others = csv.reader(file)
    assert formulas == ["'=1+1", "'+A1", "'-A1", "'@SUM(A1)", "'\t=1", "'\r=1"]
    assert others == ["-1.5", "+2", "-1e-05", "-3", "0.5", "a=b"]
    write_csv(tmp_path / "b.csv", [formulas])
    assert (tmp_path / "b.csv").read_text().startswith("'=1+1,'+A1")  # escaped once
