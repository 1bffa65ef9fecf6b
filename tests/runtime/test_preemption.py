"""Asked to stop: what was begun is ended and saved, the way to go on told; twice, at once."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import bigan_jax
from bigan_jax.commands import train
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.runtime import preemption
from bigan_jax.training import epoch_logger
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import (
    ROOT,
    SMALL,
    SMALL_BIGAN,
    command,
    configured,
    environment,
    flags,
)
from tests.helpers.training import set_whole_epochs as by_programs

EPOCHS = 20_000
CAE = "configs/cae.py:phantom"
FIELDS = SMALL | {"checkpoint.every": 1000, "batch_size": 8}  # 5 steps an epoch


def start(workdir, *more, **fields):
    """The command, once it has trained some epochs."""
    wanted = flags(FIELDS | {"phases.phase1.epochs": EPOCHS} | fields)
    words = command([f"--config={CAE}", f"--workdir={workdir}", *wanted, *more])
    process = started(words, subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (workdir / "train.jsonl").exists() or len(read_train_log(workdir)) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def patched(watch, workdir, *more):
    """The command, with something else done after each step."""
    program = (
        "import runpy, signal, sys, time\nfrom bigan_jax import record\n"
        f"look = record.Watch.__call__\nrecord.Watch.__call__ = {watch}\n"
        "runpy.run_path('launch.py', run_name='__main__')"
    )
    wanted = flags(FIELDS | {"phases.phase1.epochs": EPOCHS})
    words = [f"--config={CAE}", f"--workdir={workdir}", *wanted, *more]
    return started([sys.executable, "-c", program, *words], subprocess.PIPE)


def started(words, stdout):
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_asked_once_it_saves_and_tells_how_to_go_on(tmp_path, how, status, word):
    workdir = tmp_path / "run with a space"
    process = start(workdir)
    process.send_signal(how)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == status and "Traceback" not in told
    last = told.strip().splitlines()[-1]
    epochs, step = map(int, re.search(r"saved after (\d+) epochs(?: and (\d+))?", last).groups(0))
    assert last.startswith(word) and 3 <= epochs < EPOCHS
    assert CheckpointManager(workdir, read_only=True).names() == [(epochs, step)]
    assert len(read_train_log(workdir)) == epochs
    again = shlex.split(last.partition("resume with: ")[2])
    assert again[:2] == ["python", "launch.py"] and f"--workdir={workdir}" in again


def test_a_second_interrupt_ends_at_once(tmp_path):
    """In the midst of a step that takes long: nothing is waited for, and nothing is saved."""
    slow = "lambda *_: print('step', flush=True) or __import__('time').sleep(600)"
    process = patched(slow, tmp_path)
    assert any(line == "step\n" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert any(line.startswith("interrupted: ") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert CheckpointManager(tmp_path).names() == []


def test_out_of_time_ends_with_a_status_for_the_queue(tmp_path):
    """The limit is set as the flag says, in minutes; then time flies."""
    flies = (
        "lambda self, *_: print(signal.getitimer(0)[0], flush=True)"
        " or signal.setitimer(0, 0.01) and time.sleep(1) or look(self, *_)"
    )
    process = patched(flies, tmp_path, "--time_limit=100")
    output, told = process.communicate(timeout=120)
    left = float(re.search(r"^\d{4}\.\d+$", output, re.MULTILINE)[0])
    assert 5700 < left < 6000
    assert process.returncode == 75 and "out of time: saved after" in told
    assert CheckpointManager(tmp_path).names()


@pytest.mark.parametrize("scanned", [False, True])
def test_stopped_within_epochs_it_ends_as_if_never_stopped(tmp_path, monkeypatch, scanned):
    """Within an epoch, at an epoch's last step in the second phase, and in the last step of all.
    Where an epoch is one program it is finished first, and so is one that was begun behind it."""
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    by_programs(monkeypatch, scanned)
    states = []
    monkeypatch.setattr(train, "evaluate_run", lambda *args: states.append(args[-2]))
    fields = {"batch_size": 8, "checkpoint.every": 2}  # 5 steps an epoch, 6 epochs
    if scanned:  # an epoch of the Improved BiGAN as one program takes long to compile
        config = configured(cae, "phantom", SMALL | {"phases.phase1.epochs": 6} | fields)
    else:
        config = configured(improved_bigan, "phantom,no_perceptual", SMALL_BIGAN | fields)
    bigan_jax.train(config, tmp_path / "whole")

    watch, seen = epoch_logger.StepMonitor.__call__, []

    def stop(self, fresh, logs):
        watch(self, fresh, logs)
        seen.append(self.steps_done)
        if len(seen) in ((1, 4) if scanned else (7, 20, 30)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # for the thread that listens
        return watch(self, fresh, logs)

    monkeypatch.setattr(epoch_logger.StepMonitor, "__call__", stop)
    places = []
    while len(states) < 2:
        try:
            bigan_jax.train(config, tmp_path / "broken")
        except preemption.Stopped as stopped:
            assert stopped.status == 143
            places.append(CheckpointManager(tmp_path / "broken").names()[-1])
    assert places == ([(1, 0), (4, 0)] if scanned else [(1, 2), (4, 0), (6, 0)])
    jax.tree.map(np.testing.assert_array_equal, *states)
    histories = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in read_train_log(tmp_path / name)
        ]
        for name in ("whole", "broken")
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 6


def test_elsewhere_it_ends_at_once():
    """While data are read or scores computed: nothing is to be saved."""
    program = (
        "import time\nfrom bigan_jax import interrupts\ninterrupts.catch(0.01)\n"
        "try:\n    print('on', flush=True); time.sleep(60)\n"
        "except interrupts.Stopped as stopped:\n    print(stopped.status, stopped)\n"
    )
    for how, word in ((signal.SIGTERM, "143 terminated"), (None, "75 out of time")):
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "on\n"
        if how:
            process.send_signal(how)
        assert process.communicate(timeout=20)[0].strip() == word


def test_ctrl_c_is_heard_in_the_midst_of_a_long_call():
    """A compilation, say: Python itself would not hear the second before the call is over."""
    program = (
        "import hashlib\nfrom bigan_jax import interrupts\ninterrupts.catch()\n"
        "with interrupts.deferred('soon') as asked:\n"
        "    print('on', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"  # half an hour
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() + process.stderr.readline() == "\ninterrupted: soon\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


def test_in_another_thread_nothing_is_caught():
    def look():
        with preemption.defer_signals("") as asked:
            found.append((asked.received, signal.getsignal(signal.SIGTERM)))

    found = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(None, signal.getsignal(signal.SIGTERM))]
