"""Signals and the time limit: the run stops after the current step, saves, and can be resumed."""

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
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.runtime import stop_signals
from bigan_jax.training import epoch_logger
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import ROOT, SMALL, SMALL_BIGAN, command, configured, environment, flags
from tests.helpers.training import record_trained_states, set_whole_epochs

EPOCHS = 20_000
CAE = "configs/cae.py:phantom"
FIELDS = SMALL | {"checkpoint.every": 1000, "batch_size": 8}  # 5 steps an epoch


def start(workdir, *more, **fields):
    """Starts the command and waits until it has trained some epochs."""
    arguments = flags(FIELDS | {"phases.phase1.epochs": EPOCHS} | fields)
    arguments = command([f"--config={CAE}", f"--workdir={workdir}", *arguments, *more])
    process = popen(arguments, subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (workdir / "train.jsonl").exists() or len(read_train_log(workdir)) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def start_patched(monitor, workdir, *more):
    """Starts the command with another function after each step."""
    program = (
        "import runpy, signal, sys, time\nfrom bigan_jax.training import epoch_logger\n"
        f"original = epoch_logger.StepMonitor.__call__\n"
        f"epoch_logger.StepMonitor.__call__ = {monitor}\n"
        "runpy.run_path('launch.py', run_name='__main__')"
    )
    arguments = flags(FIELDS | {"phases.phase1.epochs": EPOCHS})
    arguments = [f"--config={CAE}", f"--workdir={workdir}", *arguments, *more]
    return popen([sys.executable, "-c", program, *arguments], subprocess.PIPE)


def popen(arguments, stdout):
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        # Background processes of a shell ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("signum", "status", "reason"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_first_signal_saves_and_prints_how_to_resume(tmp_path, signum, status, reason):
    workdir = tmp_path / "run with a space"
    process = start(workdir)
    process.send_signal(signum)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == status and "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    epochs, step = map(int, re.search(r"saved after (\d+) epochs(?: and (\d+))?", last).groups(0))
    assert last.startswith(reason) and 3 <= epochs < EPOCHS
    assert CheckpointManager(workdir, read_only=True).names() == [(epochs, step)]
    assert len(read_train_log(workdir)) == epochs
    resume = shlex.split(last.partition("resume with: ")[2])
    assert resume[:2] == ["python", "launch.py"] and f"--workdir={workdir}" in resume


def test_second_interrupt_ends_immediately(tmp_path):
    """Even in a long step; nothing is saved."""
    slow = "lambda *_: print('step', flush=True) or __import__('time').sleep(600)"
    process = start_patched(slow, tmp_path)
    assert any(line == "step\n" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert any(line.startswith("interrupted: ") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert CheckpointManager(tmp_path).names() == []


def test_time_limit_saves_and_ends_with_status_75(tmp_path):
    """The timer is set to the flag's minutes, then shortened."""
    shorten = (
        "lambda self, *_: print(signal.getitimer(0)[0], flush=True)"
        " or signal.setitimer(0, 0.01) and time.sleep(1) or original(self, *_)"
    )
    process = start_patched(shorten, tmp_path, "--time_limit=100")
    stdout, stderr = process.communicate(timeout=120)
    left = float(re.search(r"^\d{4}\.\d+$", stdout, re.MULTILINE)[0])
    assert 5700 < left < 6000
    assert process.returncode == 75 and "out of time: saved after" in stderr
    assert CheckpointManager(tmp_path).names()


@pytest.mark.parametrize("scanned", [False, True])
def test_resume_equals_uninterrupted_run(tmp_path, monkeypatch, scanned):
    """Stops within an epoch, at the last step of an epoch of phase 2, and at the very last step.

    An epoch that is one program is finished first, and so is the one dispatched after it.
    """
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    set_whole_epochs(monkeypatch, scanned)
    states = record_trained_states(monkeypatch)
    fields = {"batch_size": 8, "checkpoint.every": 2}  # 4 steps an epoch, 6 epochs
    if scanned:  # an epoch of the Improved BiGAN as one program takes long to compile
        config = configured(cae, "phantom", SMALL | {"phases.phase1.epochs": 6} | fields)
    else:
        config = configured(improved_bigan, "phantom,no_perceptual", SMALL_BIGAN | fields)
    bigan_jax.train(config, tmp_path / "uninterrupted")

    original, calls = epoch_logger.StepMonitor.__call__, []

    def stop(self, fresh, logs):
        original(self, fresh, logs)
        calls.append(self.steps_done)
        if len(calls) in ((1, 4) if scanned else (6, 16, 24)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # for the listening thread
        return original(self, fresh, logs)

    monkeypatch.setattr(epoch_logger.StepMonitor, "__call__", stop)
    stops = []
    while len(states) < 2:
        try:
            bigan_jax.train(config, tmp_path / "interrupted")
        except stop_signals.Stopped as stopped:
            assert stopped.status == 143
            stops.append(CheckpointManager(tmp_path / "interrupted").names()[-1])
    assert stops == ([(1, 0), (4, 0)] if scanned else [(1, 2), (4, 0), (6, 0)])
    jax.tree.map(np.testing.assert_array_equal, *states)
    histories = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in read_train_log(tmp_path / name)
        ]
        for name in ("uninterrupted", "interrupted")
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 6


def test_signal_outside_of_training_ends_immediately():
    """While data are read or scores are computed there is nothing to save."""
    program = (
        "import time\nfrom bigan_jax.runtime import stop_signals\n"
        "stop_signals.install_handlers(0.01)\n"
        "try:\n    print('on', flush=True); time.sleep(60)\n"
        "except stop_signals.Stopped as stopped:\n    print(stopped.status, stopped)\n"
    )
    for signum, output in ((signal.SIGTERM, "143 terminated"), (None, "75 out of time")):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "on\n"
        if signum:
            process.send_signal(signum)
        assert process.communicate(timeout=20)[0].strip() == output


def test_ctrl_c_is_handled_during_a_long_call():
    """Such as a compilation, during which Python does not run signal handlers."""
    program = (
        "import hashlib\nfrom bigan_jax.runtime import stop_signals\n"
        "stop_signals.install_handlers()\n"
        "with stop_signals.defer_signals('soon'):\n"
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


def test_signals_are_not_deferred_in_another_thread():
    def defer():
        with stop_signals.defer_signals("") as request:
            results.append((request.received, signal.getsignal(signal.SIGTERM)))

    results = []
    thread = threading.Thread(target=defer)
    thread.start()
    thread.join()
    assert results == [(None, signal.getsignal(signal.SIGTERM))]
