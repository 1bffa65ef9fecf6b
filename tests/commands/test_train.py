"""Whole runs on a small phantom: the command, its files, its mistakes, and being killed."""

import ast
import csv
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import bigan_jax
from bigan_jax.commands.build import build
from bigan_jax.commands.load import restore
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.data import loading
from bigan_jax.errors import UserError
from bigan_jax.runtime.run_config import read_config
from bigan_jax.training.loop import epoch_order
from bigan_jax.training.saving.checkpoints import CheckpointManager

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.image_size": 32,
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 10,
    "model.latent": 16,
    "model.widths": (8, 16),
    "batch_size": 16,
    "checkpoint.every": 1,
}
SMALL_BIGAN = SMALL | {
    "model.discriminator_widths": (8, 16),
    "model.discriminator_hidden": 16,
    "phases.phase1.epochs": 3,
    "phases.phase2.epochs": 3,
}
BIGAN = "configs/improved_bigan.py:phantom,no_perceptual"


def launch(*arguments, check=True):
    """The command as a user types it, on one CPU device."""
    return subprocess.run(
        command(arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, check=check
    )


def command(arguments):
    return [sys.executable, "launch.py", *map(str, arguments)]


def environment():
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def flags(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


def configured(module, argument, fields):
    config = module.get_config(argument)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small CAE's workdir, by the command."""
    workdir = tmp_path_factory.mktemp("runs") / "cae"
    result = launch(
        "--config=configs/cae.py:phantom",
        f"--workdir={workdir}",
        *flags(SMALL | {"phases.phase1.epochs": 4}),
    )
    return workdir, result


def test_the_command_leaves_what_it_promises(finished):
    workdir, result = finished
    assert "AUROC" in result.stdout and "report.html" in result.stdout
    for name in ("config.json", "audit.json", "split.csv", "train.jsonl"):
        assert (workdir / name).stat().st_size
    for name in ("evaluation.json", "scores.csv", "report.html"):
        assert (workdir / name).stat().st_size
    assert list((workdir / "events").iterdir()) and list((workdir / "checkpoints").iterdir())
    assert {p.stem for p in (workdir / "figures").iterdir()} >= {"error_maps", "score_histogram"}

    evaluation = json.loads((workdir / "evaluation.json").read_text())
    promised = "model dataset seed n_train n_calibration n_normal n_anomalous auroc auroc_ci"
    promised += " average_precision accuracy precision recall f1 specificity threshold"
    promised += " threshold_rule oracle native pixel baselines"
    assert evaluation.keys() >= set(promised.split())
    assert evaluation["model"] == "cae" and evaluation["dataset"] == "phantom"

    history = [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["reconstruction/loss"] < history[0]["reconstruction/loss"]
    assert all(row["images_per_second"] > 0 and row["phase"] == "phase1" for row in history)


def test_what_scores_has_the_statistics_of_the_training_pictures(finished):
    """The first BatchNorm's, from its convolution over the batches of the first epoch."""
    workdir, _ = finished
    config = read_config(workdir)
    state, *_ = restore(parse_settings(config), workdir, 1)
    images = loading.load_dataset(parse_settings(config).data).train.image
    shape = len(images), len(images) // config.batch_size, config.batch_size
    images = images[epoch_order(config.seed, 0, *shape).ravel()] / np.float32(255)
    kernel = state.params["encoder"]["EncoderStage_0"]["Downsample_0"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    batches = np.asarray(maps).reshape(-1, config.batch_size * 16 * 16, kernel.shape[-1])
    found = state.collections["encoder"]["batch_stats"]["EncoderStage_0"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], batches.mean((0, 1)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["var"], batches.var(1).mean(0), rtol=1e-3, atol=1e-6)


def test_scores_follow_from_their_parts(finished):
    workdir, _ = finished
    threshold = json.loads((workdir / "evaluation.json").read_text())["threshold"]
    rows = list(csv.DictReader((workdir / "scores.csv").open()))
    assert list(rows[0]) == ["path", "label", "group", "mse", "ssim_error", "score", "decision"]
    assert {row["label"] for row in rows} == {"normal", "anomalous"}
    for row in rows:
        score = 0.7 * float(row["mse"]) + 0.3 * float(row["ssim_error"])
        assert float(row["score"]) == pytest.approx(score, rel=1e-5)
        assert row["decision"] == ("anomalous" if float(row["score"]) >= threshold else "normal")


def test_python_does_as_the_command(finished, tmp_path):
    workdir, _ = finished
    config = configured(cae, "phantom", SMALL | {"phases.phase1.epochs": 4})
    evaluation = bigan_jax.train(config, tmp_path / "run")
    theirs = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["n_train"] == theirs["n_train"]
    assert evaluation["auroc"] == pytest.approx(theirs["auroc"], abs=0.02)

    scorer = bigan_jax.load(workdir)
    dataset = loading.load_dataset(parse_settings(config).data)
    scores = scorer.score(dataset.test.image)
    rows = list(csv.DictReader((workdir / "scores.csv").open()))
    np.testing.assert_allclose(scores.score, [float(row["score"]) for row in rows], rtol=1e-4)
    decisions = ["anomalous" if d else "normal" for d in scorer.decide(scores)]
    assert decisions == [row["decision"] for row in rows]
    alone = scorer.score(dataset.test.image[3:4])
    np.testing.assert_allclose(alone.error_map[0], scores.error_map[3], atol=1e-5)
    with pytest.raises(UserError, match=r"uint8 \(n, 32, 32, 1\)"):
        scorer.score(dataset.test.image[:, :16])


def test_a_checkout_that_is_not_installed_trains(tmp_path, monkeypatch):
    ask = importlib.metadata.version

    def version(package):
        if package == "bigan_jax":
            raise importlib.metadata.PackageNotFoundError(package)
        return ask(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    config = configured(cae, "phantom", SMALL | {"phases.phase1.epochs": 1})
    assert bigan_jax.train(config, tmp_path)["versions"]["bigan_jax"] == "not installed"


def test_color_reaches_score_and_map(tmp_path):
    fields = SMALL_BIGAN | {
        "data.channels": 3,
        "phases.phase1.epochs": 1,
        "phases.phase2.epochs": 0,
    }
    config = configured(improved_bigan, "phantom,no_perceptual", fields)
    evaluation = bigan_jax.train(config, tmp_path)
    assert np.isfinite(evaluation["auroc"]) and evaluation["baselines"]["pca_8"] is not None
    pictures = loading.load_dataset(parse_settings(config).data).test.image
    assert pictures.shape[1:] == (32, 32, 3)
    scores = bigan_jax.load(tmp_path).score(pictures)
    assert scores.reconstruction.shape == pictures.shape
    assert scores.error_map.shape == pictures.shape[:3]
    swapped = bigan_jax.load(tmp_path).score(pictures[..., ::-1])
    assert np.abs(swapped.score - scores.score).max() > 1e-4  # color counts


def test_evaluate_again_gives_the_same(finished, tmp_path):
    """Also in another place, and for a config that an older version wrote."""
    workdir, _ = finished
    moved = shutil.copytree(workdir, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    del config["vgg16"], config["score"]["reduction"], config["data"]["duplicates"]
    (moved / "config.json").write_text(json.dumps(config))
    launch("--mode=evaluate", f"--workdir={moved}")
    assert (moved / "scores.csv").read_text() == (workdir / "scores.csv").read_text()


def test_another_config_is_refused(finished):
    workdir, _ = finished
    fields = flags(SMALL | {"phases.phase1.epochs": 4, "model.latent": 8})
    result = launch("--config=configs/cae.py:phantom", f"--workdir={workdir}", *fields, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "model.latent: 16 there, 8 now" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/cae.py:phantm"], ["'phantm'", "'phantom'", "mvtec"]),
        (["--config=configs/improved_bigan.py:brain,no_ssmi"], ["'no_ssmi'", "'no_ssim'"]),
        (["--config=configs/cae.py", "--config.sed=3"], ["'config.sed'", "'config.seed'"]),
        (["--config=configs/cae.py", "--config.seed.x=3"], ["config.seed", "'x'"]),
        (["--config=configs/cea.py"], ["'configs/cea.py'", "'configs/cae.py'"]),
        (["--config=configs/cae.py", "--config.batch_size=abc"], ["config.batch_size", "abc"]),
        (["--config=configs/cae.py", "--config.dtype=float8"], ["'float8'", "bfloat16"]),
        (["--config=configs/cae.py", "--config.data.image_size=40"], ["40", "multiple of 16"]),
        (["--config=configs/cae.py:brain"], ["data/brain", "healthy/", "Kaggle", ":phantom"]),
        (["--config=configs/cae.py", "--config.seed=-1"], ["config.seed=-1"]),
        (["--config=configs/cae.py", "--config.seed=-1", "--config.seeds=2"], ["config.seed=-1"]),
        (["--config=configs/common.py"], ["'configs/common.py'", "configs/cae.py"]),
        (["--config=configs/cae.py", "--config.checkpoint.every=0"], ["config.checkpoint.every=0"]),
        (["--config=configs/cae.py", "--config.model.widths=()"], ["config.model.widths=()"]),
        (["--config=configs/anogan.py", "--config.model.search_steps=0"], ["search_steps=0"]),
        (["--config", BIGAN, "--config.model.pool=avg"], ["'avg'", "'average'"]),
        (["--mode", "sweep", "--workdir=x"], ["one run", "--output=DIR"]),
        (["--config=configs/cae.py", "--output=x"], ["--output", "--workdir=DIR"]),
        (["--config=configs/cae.py", f"--workdir=x{'y' * 300}"], ["xyyy", "too long"]),
        (["--mode=predict", "--workdir=x", "--input=", "--output=y"], ["--input=PICTURES"]),
        (["--config="], ["--config is empty"]),
        (["--config=CAE.py:folder"], ["'CAE.py'", "Did you mean 'configs/cae.py'"]),
        (["--config=configs/cae.py", "--config.dir=x"], ["It is config.data.dir"]),
        (["--config=configs/cae.py", "--data.dir=x"], ["set by --config.data.dir"]),
        (["--config=configs/cae.py", "--config.data.dir=x"], ["are drawn", "cae.py:folder"]),
        (["--config=configs/cae.py", "--config.sweep.seeds=2"], ["--mode=sweep"]),
        (["--config=configs/cae.py:folder", "--config.data.dir=.", "--workdir=x"], ["elsewhere"]),
        (["--mode=predict", "--workdir=x", "--input=a", "--output=b", "c"], ["quoted"]),
        (["--mode=predict", "--workdir=no", "--input=.", "--output=b"], ["no no: train a run"]),
        ([], ["--config=configs/improved_bigan.py:phantom"]),
        (["--mode=evaluate", "--config.seed=1"], ["--config.seed", "--config=configs/"]),
        (["--mode=evaluate", "--workdir=/nonexistent"], ["/nonexistent", "train a run"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, words, tmp_path):
    where = [] if any("workdir" in a for a in arguments) else [f"--workdir={tmp_path / 'run'}"]
    result = launch(*arguments, *where, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_imports_nothing_that_takes_long():
    """Neither before the flags are parsed, nor for a config's own help."""
    script = (
        "import runpy, sys\n"
        "sys.argv = ['launch.py', '--config=configs/cae.py', '--help']\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit: print([m for m in sys.modules if '.' not in m])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert "--compilation_cache" in result.stdout and "--config:" in result.stdout
    loaded = ast.literal_eval(result.stdout.splitlines()[-1])
    heavy = {"jax", "jaxlib", "flax", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "torch"}
    assert not heavy & set(loaded)


def test_killed_in_each_phase_ends_as_if_never_stopped(tmp_path):
    """kill -9 in the middle of the first and of the second phase, the same command each time."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fields = flags(SMALL_BIGAN)
    launch(f"--config={BIGAN}", f"--workdir={whole}", *fields)
    for rows in (2, 5):
        arguments = [f"--config={BIGAN}", f"--workdir={broken}", *fields]
        with subprocess.Popen(
            command(arguments),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            wait_for_rows(broken / "train.jsonl", rows, process)
            process.send_signal(signal.SIGKILL)
    launch(f"--config={BIGAN}", f"--workdir={broken}", *fields)

    states = [final_state(workdir) for workdir in (whole, broken)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (whole / "scores.csv").read_text() == (broken / "scores.csv").read_text()
    histories = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")}
            for line in (workdir / "train.jsonl").read_text().splitlines()
        ]
        for workdir in (whole, broken)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 6


def wait_for_rows(path, rows, process):
    deadline = time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) < rows:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final_state(workdir):
    assert CheckpointManager(workdir, read_only=True).names()[-1] == (6, 0)
    return restore(parse_settings(read_config(workdir)), workdir, 1)[0]


@pytest.mark.parametrize(
    ("ablation", "last"), [("no_perceptual", "reconstruction"), ("plain", "adversarial")]
)
def test_what_is_never_due_has_no_say_in_statistics(ablation, last):
    """Those of the last objective that owns a network are scored by (batch_statistics)."""
    objectives = build(
        parse_settings(improved_bigan.get_config(f"phantom,{ablation}")), 1, 10
    ).detector.objectives
    assert [name for name, o in objectives.items() if "generator" in o.networks][-1] == last


def test_ablations_reach_the_networks():
    full = improved_bigan.get_config("brain")
    plain = improved_bigan.get_config("brain,plain")
    assert (full.model.se_ratio, plain.model.se_ratio) == (16, 0)
    assert plain.model.reconstruction_terms.perceptual == 0 and not plain.model.residual
    assert plain.ablations == ("plain",)
