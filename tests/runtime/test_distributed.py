"""Training in two processes with one CPU device each: equal to one process, and safe to kill."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bigan_jax.commands import train
from bigan_jax.commands.load import restore
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import fcae
from bigan_jax.errors import EXIT_RESUME, UserError
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.runtime import distributed
from bigan_jax.runtime.watchdog import join_processes
from tests.helpers.runs import ROOT, TINY_FCAE, command, configured, environment, flags

EPOCHS = 12
TIMEOUT = 15  # seconds, of --peer_timeout
SMALL = TINY_FCAE | {
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 10,
    "phases.phase1.epochs": EPOCHS,
    # The size of Adam's steps even for gradients that are mostly rounding errors.
    "optimizers.reconstruction.learning_rate": 3e-4,
}


class Pair:
    """Two processes that train one run."""

    def __init__(self, workdir, slurm=False, **other_fields):
        """Starts the processes.

        Args:
          slurm: whether they find each other by the variables of `srun` instead of flags.
          other_fields: fields of process 1 that differ from process 0.
        """
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        self.processes = []
        for i in range(2):
            fields = SMALL | (other_fields if i else {})
            arguments = ["--config=configs/fcae.py:phantom", f"--workdir={workdir}", *flags(fields)]
            arguments.append(f"--peer_timeout={TIMEOUT}")
            variables = environment()
            if slurm:
                variables |= srun(port, i)
            else:
                coordinator = f"--coordinator=localhost:{port}"
                arguments += [coordinator, "--num_processes=2", f"--process_id={i}"]
            self.processes.append(
                subprocess.Popen(
                    command(arguments),
                    cwd=ROOT,
                    env=variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def signal_after(self, workdir, rows, process, signum):
        """Sends a signal once train.jsonl has a number of rows."""
        log, deadline = Path(workdir, "train.jsonl"), time.monotonic() + 200
        while not log.exists() or log.read_text().count("\n") < rows:
            if self.ended() or time.monotonic() > deadline:
                pytest.fail(str(self.wait()))
            time.sleep(0.01)
        self.processes[process].send_signal(signum)

    def ended(self):
        return [i for i, p in enumerate(self.processes) if p.poll() is not None]

    def wait(self):
        """Returns [(exit status, stdout, stderr)]."""
        outputs = [p.communicate(timeout=200) for p in self.processes]
        return [(p.returncode, *out) for p, out in zip(self.processes, outputs, strict=True)]


def srun(port, process):
    """The variables of a task of `srun -n 2` on one machine."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The workdir of the same run in one process."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    train_in_one_process(workdir)
    return workdir


def train_in_one_process(workdir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate_run", lambda *_: {})
        train.train(configured(fcae, "phantom", SMALL), workdir)


def assert_equal_runs(workdir, expected):
    """Compares states to a thousandth of each array's norm, scores and losses to 1e-4."""
    config = configured(fcae, "phantom", SMALL)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    states, scores = [], []
    for folder in (workdir, expected):
        state, detector, _ = restore(parse_settings(config), folder, 1)
        scorer = AnomalyScorer(detector, state, ScoreFormula({"mse": 0.7, "ssim": 0.3}), (16, 16, 1), name="paper")
        scores.append(scorer.score(image).score)
        # The decoder's first BatchNorm removes the code's bias. Its gradient is rounding errors,
        # for which Adam's steps are as large as for any gradient. The same holds in the first
        # steps for the few weights whose gradient is near 0, hence norms.
        state.params["encoder"]["Dense_1"].pop("bias")
        state.collections["decoder"]["batch_stats"]["BatchNorm_0"].pop("mean")
        states.append(state)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.linalg.norm(np.subtract(a, b)) <= 1e-6 + 1e-3 * np.linalg.norm(b)
    np.testing.assert_allclose(*scores, rtol=1e-4)
    losses = [
        [json.loads(line)["reconstruction/loss"] for line in (w / "train.jsonl").open()] for w in (workdir, expected)
    ]
    assert len(losses[0]) == EPOCHS
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_two_processes_equal_one_after_kill_and_resume(single, tmp_path):
    """One process is killed; two resume and are terminated; then two, or one, finish the run."""
    workdir = tmp_path / "run"
    pair = Pair(workdir)
    pair.signal_after(workdir, 2, 1, signal.SIGKILL)
    killed = time.monotonic()
    (status, _, stderr), (killed_status, *_) = pair.wait()
    assert time.monotonic() - killed < TIMEOUT + 20 and killed_status == -signal.SIGKILL
    assert status == EXIT_RESUME and "Traceback" not in stderr, stderr
    assert "error: process 1 of 2 was lost. The same command" in stderr

    pair = Pair(workdir, slurm=True)
    pair.signal_after(workdir, 5, 1, signal.SIGTERM)
    ended = pair.wait()
    assert [status for status, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "saved after" in ended[0][2] and not any("Traceback" in stderr for *_, stderr in ended)
    shutil.copytree(workdir, tmp_path / "copy")

    ended = Pair(workdir).wait()
    assert [status for status, *_ in ended] == [0, 0], ended
    assert "report.html" in ended[0][1] and "resuming after" in ended[0][1]
    assert "audit" not in ended[1][1] and "step/s" not in ended[1][2]
    assert (workdir / "evaluation.json").exists()
    assert_equal_runs(workdir, single)

    train_in_one_process(tmp_path / "copy")
    assert_equal_runs(tmp_path / "copy", single)


@pytest.mark.long
def test_kill_of_process_0_ends_the_others(tmp_path):
    pair = Pair(tmp_path / "run")
    pair.signal_after(tmp_path / "run", 2, 0, signal.SIGKILL)
    killed = time.monotonic()
    _, (status, _, stderr) = pair.wait()
    assert time.monotonic() - killed < 3 * TIMEOUT + 20
    assert status == EXIT_RESUME and "Traceback" not in stderr, stderr
    assert stderr.rstrip().splitlines()[-1].startswith("error: process 0 of 2 was lost. The same")


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_hanging_process_ends_the_others(tmp_path, process):
    """As on a machine that no longer responds: its connections stay open."""
    pair = Pair(tmp_path / "run")
    pair.signal_after(tmp_path / "run", 2, process, signal.SIGSTOP)
    stopped = time.monotonic()
    other = pair.processes[1 - process]
    _, stderr = other.communicate(timeout=200)
    assert time.monotonic() - stopped < 3 * TIMEOUT + 20
    assert other.returncode == EXIT_RESUME, stderr
    assert f"error: process {process} of 2 was lost. The same command" in stderr
    pair.processes[process].kill()
    pair.wait()


@pytest.mark.long
def test_processes_with_different_configs_end(tmp_path):
    ended = Pair(tmp_path / "run", seed=1).wait()
    assert [status for status, *_ in ended] == [1, 1]
    for *_, stderr in ended:
        assert "process 1 of 2 has other config than process 0" in stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_error_of_one_process_ends_all(single, tmp_path):
    """Only process 0 reads the workdir, which holds another run."""
    shutil.copytree(single, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"seed": 7}))
    started = time.monotonic()
    ended = Pair(tmp_path / "run").wait()
    assert [status for status, *_ in ended] == [1, 1] and time.monotonic() - started < 100
    assert "seed: 7 there, 0 now" in ended[0][2] and "seed: 7 there, 0 now" in ended[1][2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("node1:1234", 2, None), "belong together"),
        (("node1:1234", 2, 2), "--process_id=2 must be from 0 to 1"),
        (("node1", 2, 0), "--coordinator=node1 must be host:port"),
    ],
)
def test_invalid_flags_are_refused(arguments, message):
    with pytest.raises(UserError, match=message), join_processes(*arguments, 60.0):
        pass


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_only_task_of_a_job_is_a_single_process(monkeypatch, variable):
    """It keeps all its devices."""
    for name, value in (srun(1, 0) | {variable: "1"}).items():
        monkeypatch.setitem(os.environ, name, value)
    with join_processes(None, None, None, 60.0):
        assert not distributed.is_multiprocess() and distributed.is_primary()


def test_single_process_does_not_communicate(tmp_path):
    content = {"a": [1.5]}
    assert distributed.broadcast_json(content) is content and distributed.broadcast(content) is content
    assert distributed.all_max(3) == 3 and distributed.shared_folder(tmp_path) == tmp_path
    distributed.require_equal("config", "anything")
    with distributed.primary_first("anything"):
        pass


def test_process_ends_although_nobody_reads_its_stderr():
    """Such as under a launcher that was killed: every thread of the process would wait forever."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = "from bigan_jax.runtime import watchdog; watchdog._leave(75, 'process 0 of 2 was lost')"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=write_end, timeout=120)
    os.close(write_end)
    assert ended.returncode == 75
