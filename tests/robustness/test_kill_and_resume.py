"""Kills a run with SIGKILL at random times and repeats its command each time.

A run of a small model on a folder of images is killed while its data are prepared, between steps,
while a checkpoint is saved, and during the evaluation. The result must equal that of an
uninterrupted run bit by bit: parameters, optimizers, training log, scores and evaluation.
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

FIELDS = {"data.image_size": 16, "model.hidden": (8, 4), "batch_size": 8, "checkpoint.every": 2}
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A folder of small PNG files: bright squares, dark where anomalous."""
    folder, rng = tmp_path_factory.mktemp("image_folder"), np.random.default_rng(0)
    for kind, count in (("normal", 120), ("anomalous", 12)):
        (folder / kind).mkdir()
        for i in range(count):
            image = rng.integers(90, 160, (24, 24), np.uint8)
            image[8:12, 8:12] += 90 if kind == "normal" else 0
            Image.fromarray(image).save(folder / kind / f"{i}.png")
    return folder


def arguments(image_folder, home, epochs):
    fields = {**FIELDS, "phases.phase1.epochs": epochs}
    fields |= {"data.dir": image_folder, "data.tfds_dir": home / "data"}
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
    """Whether the run has locked its folder; before that it only imports modules."""
    return written(home / "run" / "lock", since)


def reporting(home, since):
    """Whether the run started at `since` has written some of its results, but not the last one."""
    done = written(home / "run" / "evaluation.json", since)
    return not done and any(written(p, since) for p in (home / "run" / "figures").glob("*"))


def written(path, since):
    try:
        return path.stat().st_mtime_ns > since
    except FileNotFoundError:  # also while it is replaced
        return False


def kill_in_stage(process, stage, home, epochs, rng):
    """Kills the run in a stage and returns whether it was still running."""
    before, since = rows(home), time.time_ns()
    reached, max_delay = {
        "data": (lambda: preparing(home), 0.1),
        "steps": (lambda: rows(home) > before, 0.1),
        "save": (lambda: rows(home) > before and saving(home), 0.01),
        "evaluation": (lambda: started(home, since) and trained(home, epochs), 2.0),
        "results": (lambda: reporting(home, since), 0.05),
    }[stage]
    while process.poll() is None and not reached():
        time.sleep(0.0005 if stage in ("save", "results") else 0.005)
    time.sleep(rng.uniform(0, max_delay))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def assert_no_truncated_file(run: Path):
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    if (run / "evaluation.json").exists():  # written last
        assert (run / "report.html").read_text().rstrip().endswith("</html>")
        assert "figures" in {path.name for path in run.iterdir()}


def kill_and_finish(stages, image_folder, home, epochs, seed=0):
    """Kills a run once per stage and finishes it; returns the number of kills in some stages."""
    rng, kills = random.Random(seed), dict.fromkeys(("data", "save", "results"), 0)
    for stage in stages:
        assert stage not in ("steps", "save") or rows(home) < epochs
        while True:
            if stage == "data" and finished(home):
                shutil.rmtree(home / "data")
            since = time.time_ns()
            process = subprocess.Popen(
                command(arguments(image_folder, home, epochs)),
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if kill_in_stage(process, stage, home, epochs, rng):
                break
            assert process.returncode == 0  # it finished before; try again
        kills["data"] += stage == "data" and preparing(home)
        kills["save"] += stage == "save" and saving(home)
        kills["results"] += stage == "results" and reporting(home, since)
        if (home / "run").exists():
            assert_no_truncated_file(home / "run")
    final = subprocess.run(
        command(arguments(image_folder, home, epochs)), cwd=ROOT, env=environment(), capture_output=True
    )
    assert final.returncode == 0, final.stderr
    return kills


def assert_equal_runs(expected, killed, epochs):
    states = []
    for home in (expected, killed):
        assert CheckpointManager(home / "run", read_only=True).names()[-1] == (epochs, 0)
        states.append(restore(parse_settings(read_config(home / "run")), home / "run", 1)[0])
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))
    for name in ("scores.csv", "split.csv", "audit.json"):
        assert (expected / "run" / name).read_bytes() == (killed / "run" / name).read_bytes()
    logs = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_train_log(home / "run")]
        for home in (expected, killed)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == epochs
    evaluations = [(home / "run" / "evaluation.json").read_text() for home in (expected, killed)]
    assert evaluations[0] == evaluations[1]
    assert not (killed / "run" / "damaged").exists()  # kills damage no file
    leftovers = [p for p in (killed / "run").rglob("*") if re.search(r"tmp|\.part$", p.name)]
    assert leftovers == []


def run_uninterrupted(image_folder, home, epochs):
    subprocess.run(
        command(arguments(image_folder, home, epochs)), cwd=ROOT, env=environment(), check=True, capture_output=True
    )


def test_run_survives_five_kills(image_folder, tmp_path):
    epochs = 100
    run_uninterrupted(image_folder, tmp_path / "uninterrupted", epochs)
    stages = ["data", "steps", "save", "evaluation", "results"]
    kill_and_finish(stages, image_folder, tmp_path / "killed", epochs)
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "killed", epochs)


@pytest.mark.long
def test_run_survives_fifty_kills(image_folder, tmp_path):
    epochs = 1200
    run_uninterrupted(image_folder, tmp_path / "uninterrupted", epochs)
    between = ["steps"] * 16 + ["save"] * 16
    random.Random(1).shuffle(between)
    stages = ["data"] * 8 + between + ["evaluation"] * 5 + ["results"] * 5
    kills = kill_and_finish(stages, image_folder, tmp_path / "killed", epochs)
    print(f"{len(stages)} kills, of which during: {kills}")
    assert kills["data"] >= 2 and kills["save"] >= 4 and kills["results"] >= 1
    assert_equal_runs(tmp_path / "uninterrupted", tmp_path / "killed", epochs)
