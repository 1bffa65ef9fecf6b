"""Training in several processes, here two of one CPU device each, over the loopback: the result of
one process, also after one was killed, by what is said when one is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
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
from tests.helpers.runs import ROOT, command, configured, environment, flags

EPOCHS = 12
TIMEOUT = 15  # seconds: of --peer_timeout
SMALL = {
    "data.image_size": 16,
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 10,
    "model.hidden": (8, 4),
    "batch_size": 16,
    "checkpoint.every": 1,
    "phases.phase1.epochs": EPOCHS,
    # Adam makes steps of this size also from gradients that are little but rounding.
    "optimizers.reconstruction.learning_rate": 3e-4,
}


class Pair:
    """Two processes that train one run."""

    def __init__(self, workdir, slurm=False, **others):
        """slurm: joined by the environment that `srun` gives instead of by flags.
        others: fields of process 1 that are not those of process 0."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.processes = []
        for i in range(2):
            fields = SMALL | (others if i else {})
            arguments = ["--config=configs/fcae.py:phantom", f"--workdir={workdir}", *flags(fields)]
            arguments.append(f"--peer_timeout={TIMEOUT}")
            variables = environment()
            if slurm:
                variables |= srun(port, i)
            else:
                where = f"--coordinator=localhost:{port}"
                arguments += [where, "--num_processes=2", f"--process_id={i}"]
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
        """Sends a signal once train.jsonl has so many rows."""
        history, deadline = Path(workdir, "train.jsonl"), time.monotonic() + 200
        while not history.exists() or history.read_text().count("\n") < rows:
            if self.ended() or time.monotonic() > deadline:
                pytest.fail(str(self.wait()))
            time.sleep(0.01)
        self.processes[process].send_signal(signum)

    def ended(self):
        return [i for i, p in enumerate(self.processes) if p.poll() is not None]

    def wait(self):
        """[(exit status, stdout, stderr)] of each."""
        told = [p.communicate(timeout=200) for p in self.processes]
        return [(p.returncode, *t) for p, t in zip(self.processes, told, strict=True)]


def srun(port, process):
    """As SLURM sets it for each task of `srun -n 2` on one machine."""
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
def alone(tmp_path_factory):
    """The workdir of the same run in one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish_alone(workdir)
    return workdir


def finish_alone(workdir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate_run", lambda *_: {})
        train.train(configured(fcae, "phantom", SMALL), workdir)


def assert_same(ours, theirs):
    """Trained states to a thousandth of each array's norm; scores and losses to 1e-4."""
    config = configured(fcae, "phantom", SMALL)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    states, scores = [], []
    for workdir in (ours, theirs):
        state, detector, _ = restore(parse_settings(config), workdir, 1)
        scorer = AnomalyScorer(
            detector, state, ScoreFormula({"mse": 0.7, "ssim": 0.3}), (16, 16, 1)
        )
        scores.append(scorer.score(image).score)
        # The decoder's first BatchNorm subtracts the code's bias again: its gradient is rounding
        # error, for which Adam steps as far as for any. So it does in the first steps for the few
        # weights whose first gradient is near zero, hence norms.
        state.params["encoder"]["Dense_1"].pop("bias")
        state.collections["decoder"]["batch_stats"]["BatchNorm_0"].pop("mean")
        states.append(state)
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.linalg.norm(np.subtract(a, b)) <= 1e-6 + 1e-3 * np.linalg.norm(b)
    np.testing.assert_allclose(*scores, rtol=1e-4)
    losses = [
        [json.loads(line)["reconstruction/loss"] for line in (w / "train.jsonl").open()]
        for w in (ours, theirs)
    ]
    assert len(losses[0]) == EPOCHS
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_two_processes_train_as_one_whatever_happens(alone, tmp_path):
    """One is killed; the run goes on in two, which are asked to end; and again in two, or one."""
    workdir = tmp_path / "run"
    pair = Pair(workdir)
    pair.signal_after(workdir, 2, 1, signal.SIGKILL)
    killed = time.monotonic()
    (status, _, told), (gone, *_) = pair.wait()
    print(told)
    assert time.monotonic() - killed < TIMEOUT + 20 and gone == -signal.SIGKILL
    assert status == EXIT_RESUME and "Traceback" not in told, told
    assert "error: process 1 of 2 was lost. The same command" in told

    pair = Pair(workdir, slurm=True)
    pair.signal_after(workdir, 5, 1, signal.SIGTERM)
    ended = pair.wait()
    assert [status for status, *_ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "saved after" in ended[0][2] and not any("Traceback" in told for *_, told in ended)
    shutil.copytree(workdir, tmp_path / "copy")

    ended = Pair(workdir).wait()
    assert [status for status, *_ in ended] == [0, 0], ended
    assert "report.html" in ended[0][1] and "resuming after" in ended[0][1]
    assert "audit" not in ended[1][1] and "step/s" not in ended[1][2]
    assert (workdir / "evaluation.json").exists()
    assert_same(workdir, alone)

    finish_alone(tmp_path / "copy")
    assert_same(tmp_path / "copy", alone)


@pytest.mark.long
def test_the_end_of_process_0_ends_the_others(tmp_path):
    pair = Pair(tmp_path / "run")
    pair.signal_after(tmp_path / "run", 2, 0, signal.SIGKILL)
    killed = time.monotonic()
    _, (status, _, told) = pair.wait()
    assert time.monotonic() - killed < 3 * TIMEOUT + 20
    assert status == EXIT_RESUME and "Traceback" not in told, told
    assert told.rstrip().splitlines()[-1].startswith("error: process 0 of 2 was lost. The same")


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_one_that_hangs_ends_the_others(tmp_path, process):
    """As on a machine that does not answer any more: nothing closes its connections."""
    pair = Pair(tmp_path / "run")
    pair.signal_after(tmp_path / "run", 2, process, signal.SIGSTOP)
    stopped = time.monotonic()
    other = pair.processes[1 - process]
    _, told = other.communicate(timeout=200)
    assert time.monotonic() - stopped < 3 * TIMEOUT + 20
    assert other.returncode == EXIT_RESUME, told
    assert f"error: process {process} of 2 was lost. The same command" in told
    pair.processes[process].kill()
    pair.wait()


@pytest.mark.long
def test_processes_of_different_runs_are_told_so(tmp_path):
    ended = Pair(tmp_path / "run", seed=1).wait()
    assert [status for status, *_ in ended] == [1, 1]
    for *_, told in ended:
        assert "process 1 of 2 has other config than process 0" in told and "Trace" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_what_one_process_finds_wrong_ends_all(alone, tmp_path):
    """Process 0 alone looks into the workdir, which here holds another run."""
    shutil.copytree(alone, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"seed": 7}))
    began = time.monotonic()
    ended = Pair(tmp_path / "run").wait()
    assert [status for status, *_ in ended] == [1, 1] and time.monotonic() - began < 100
    assert "seed: 7 there, 0 now" in ended[0][2] and "seed: 7 there, 0 now" in ended[1][2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("node1:1234", 2, None), "belong together"),
        (("node1:1234", 2, 2), "--process_id=2 is none of 0 to 1"),
        (("node1", 2, 0), "--coordinator=node1 is no host:port"),
    ],
)
def test_flags_that_make_no_sense(given, words):
    with pytest.raises(UserError, match=words), join_processes(*given, 60):
        pass


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_the_only_task_of_a_job_is_alone(monkeypatch, variable):
    """And keeps all its devices."""
    for name, value in (srun(1, 0) | {variable: "1"}).items():
        monkeypatch.setitem(os.environ, name, value)
    with join_processes(None, None, None, 60):
        assert not distributed.is_multiprocess() and distributed.is_primary()


def test_alone_nobody_is_asked(tmp_path):
    content = {"a": [1.5]}
    assert (
        distributed.broadcast_json(content) is content and distributed.broadcast(content) is content
    )
    assert distributed.all_max(3) == 3 and distributed.shared_folder(tmp_path) == tmp_path
    distributed.require_equal("config", "anything")
    with distributed.primary_first("anything"):
        pass
