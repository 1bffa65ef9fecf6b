"""kill -9 at random moments of a run, and the same command again each time.

A run of a small model on a folder of pictures, from the preparation of its data to its report, is
watched from outside, and killed while data are prepared, between steps, in the middle of a save,
and while it is evaluated. It has to end as one that was left alone: parameters, optimizers,
history, scores and evaluation to the last bit.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bigan_jax.commands.load import restore
from bigan_jax.commands.settings import parse_settings
from bigan_jax.runtime.run_config import read_config
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import ROOT, command, environment, flags

FIELDS = {
    "data.image_size": 16,
    "model.hidden": (8, 4),
    "batch_size": 8,
    "checkpoint.every": 2,
}
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of small PNG files: bright squares, and with a dark spot where anomalous."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for kind, count in (("normal", 120), ("anomalous", 12)):
        (folder / kind).mkdir()
        for i in range(count):
            picture = rng.integers(90, 160, (24, 24), np.uint8)
            picture[8:12, 8:12] += 90 if kind == "normal" else 0
            Image.fromarray(picture).save(folder / kind / f"{i}.png")
    return folder


def arguments(pictures, home, epochs):
    fields = {**FIELDS, "phases.phase1.epochs": epochs}
    fields |= {"data.dir": pictures, "data.tfds_dir": home / "data"}
    return ["--config=configs/fcae.py:folder", f"--workdir={home / 'run'}", *flags(fields)]


def preparing(home):
    return any((home / "data").rglob("*")) and not finished(home)


def finished(home):
    return any((home / "data").rglob("metadata.json"))


def saving(home):
    return any((home / "run" / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def rows(home):
    path = home / "run" / "train.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def trained(home, epochs):
    return (home / "run" / "checkpoints" / str(epochs)).is_dir()


def started(home, since):
    """Whether a run has its folder; before, it only loads programs."""
    return written(home / "run" / "lock", since)


def reporting(home, since):
    """Whether a run that began then has written some of its results, and not the last of them."""
    done = written(home / "run" / "evaluation.json", since)
    return not done and any(written(p, since) for p in (home / "run" / "figures").glob("*"))


def written(path, since):
    try:
        return path.stat().st_mtime_ns > since
    except FileNotFoundError:  # also where it was put in another's place just now
        return False


def killed(process, stage, home, epochs, rng):
    """Kills the run at a moment of a stage; whether it was still running."""
    before, since = rows(home), time.time_ns()
    reached, most = {
        "data": (lambda: preparing(home), 0.1),
        "steps": (lambda: rows(home) > before, 0.1),
        "save": (lambda: rows(home) > before and saving(home), 0.01),
        "evaluation": (lambda: started(home, since) and trained(home, epochs), 2.0),
        "results": (lambda: reporting(home, since), 0.05),
    }[stage]
    while process.poll() is None and not reached():
        time.sleep(0.0005 if stage in ("save", "results") else 0.005)
    time.sleep(rng.uniform(0, most))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def no_torn_file(run: Path):
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    if (run / "evaluation.json").exists():  # the mark of all the others
        assert (run / "report.html").read_text().rstrip().endswith("</html>")
        assert "figures" in {path.name for path in run.iterdir()}


def survive(stages, pictures, home, epochs, seed=0):
    """Kills a run once in each stage and lets it end; how many kills were in the midst of it."""
    rng, met = random.Random(seed), dict.fromkeys(("data", "save", "results"), 0)
    for stage in stages:
        assert stage not in ("steps", "save") or rows(home) < epochs
        while True:
            if stage == "data" and finished(home):
                shutil.rmtree(home / "data")
            since = time.time_ns()
            process = subprocess.Popen(
                command(arguments(pictures, home, epochs)),
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if killed(process, stage, home, epochs, rng):
                break
            assert process.returncode == 0  # it was faster: once more
        met["data"] += stage == "data" and preparing(home)
        met["save"] += stage == "save" and saving(home)
        met["results"] += stage == "results" and reporting(home, since)
        if (home / "run").exists():
            no_torn_file(home / "run")
    last = subprocess.run(
        command(arguments(pictures, home, epochs)), cwd=ROOT, env=environment(), capture_output=True
    )
    assert last.returncode == 0, last.stderr
    return met


def ends_equal(whole, broken, epochs):
    states = []
    for home in (whole, broken):
        assert CheckpointManager(home / "run", read_only=True).names()[-1] == (epochs, 0)
        states.append(restore(parse_settings(read_config(home / "run")), home / "run", 1)[0])
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))
    for name in ("scores.csv", "split.csv", "audit.json"):
        assert (whole / "run" / name).read_bytes() == (broken / "run" / name).read_bytes()
    histories = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_train_log(home / "run")]
        for home in (whole, broken)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == epochs
    evaluations = [(home / "run" / "evaluation.json").read_text() for home in (whole, broken)]
    assert evaluations[0] == evaluations[1]
    assert not (broken / "run" / "damaged").exists()  # a kill never damages what was whole
    left = [p.name for p in (broken / "run").rglob("*") if re.search(r"tmp|\.part$", p.name)]
    assert left == []


def alone(pictures, home, epochs):
    subprocess.run(
        command(arguments(pictures, home, epochs)),
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
    )


def test_five_kills(pictures, tmp_path):
    epochs = 100
    alone(pictures, tmp_path / "whole", epochs)
    stages = ["data", "steps", "save", "evaluation", "results"]
    survive(stages, pictures, tmp_path / "broken", epochs)
    ends_equal(tmp_path / "whole", tmp_path / "broken", epochs)


@pytest.mark.long
def test_fifty_kills(pictures, tmp_path):
    epochs = 1200
    alone(pictures, tmp_path / "whole", epochs)
    between = ["steps"] * 16 + ["save"] * 16
    random.Random(1).shuffle(between)
    stages = ["data"] * 8 + between + ["evaluation"] * 5 + ["results"] * 5
    met = survive(stages, pictures, tmp_path / "broken", epochs)
    print(f"{len(stages)} kills; in the midst of it: {met}")
    assert met["data"] >= 2 and met["save"] >= 4 and met["results"] >= 1
    ends_equal(tmp_path / "whole", tmp_path / "broken", epochs)
