"""Complete runs on a small phantom: the command and its files, its errors, and kill and resume."""

import ast
import csv
import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
import time

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
from tests.helpers.datasets import main_score
from tests.helpers.runs import ROOT, SMALL, SMALL_BIGAN, command, configured, environment, flags, launch

CAE = "configs/cae.py"
BIGAN = "configs/improved_bigan.py:phantom,no_perceptual"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a small CAE that the command trained, and the finished process."""
    workdir = tmp_path_factory.mktemp("runs") / "cae"
    result = launch(f"--config={CAE}:phantom", f"--workdir={workdir}", *flags(SMALL | {"phases.phase1.epochs": 4}))
    return workdir, result


def test_train_command_writes_all_files(finished):
    workdir, result = finished
    assert "AUROC" in result.stdout and "report.html" in result.stdout
    for name in ("config.json", "audit.json", "split.csv", "train.jsonl"):
        assert (workdir / name).stat().st_size
    for name in ("evaluation.json", "scores.csv", "report.html", "pixel_statistics.npy"):
        assert (workdir / name).stat().st_size
    assert list((workdir / "events").iterdir()) and list((workdir / "checkpoints").iterdir())
    assert {p.stem for p in (workdir / "figures").iterdir()} >= {"error_maps", "score_histogram"}

    evaluation = json.loads((workdir / "evaluation.json").read_text())
    keys = "model dataset seed n_train n_calibration n_normal n_anomalous score_name native pixel"
    assert evaluation.keys() >= set(keys.split())
    keys = "auroc auroc_ci average_precision accuracy precision recall f1 specificity threshold"
    keys += " threshold_rule promise oracle baselines"
    assert evaluation["scores"].keys() == {"paper", "calibrated"}
    for score in evaluation["scores"].values():
        assert score.keys() >= set(keys.split())
    assert evaluation["model"] == "cae" and evaluation["dataset"] == "phantom"

    log = [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert log[-1]["reconstruction/loss"] < log[0]["reconstruction/loss"]
    assert all(row["images_per_second"] > 0 and row["phase"] == "phase1" for row in log)


def test_saved_batch_norm_statistics_are_those_of_the_training_images(finished):
    """Those of the first BatchNorm, computed from its convolution over the batches of epoch 1."""
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
    values = np.asarray(maps, np.float64).reshape(-1, kernel.shape[-1])
    statistics = state.collections["encoder"]["batch_stats"]["EncoderStage_0"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], values.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(statistics["var"], values.var(0), rtol=1e-3, atol=1e-6)


def test_paper_score_equals_weighted_components_and_the_calibrated_one_decides(finished):
    workdir, _ = finished
    threshold = main_score(json.loads((workdir / "evaluation.json").read_text()))["threshold"]
    rows = list(csv.DictReader((workdir / "scores.csv").open()))
    assert list(rows[0]) == ["path", "label", "group", "mse", "ssim_error", "paper", "calibrated", "decision"]
    assert {row["label"] for row in rows} == {"normal", "anomalous"}
    for row in rows:
        score = 0.7 * float(row["mse"]) + 0.3 * float(row["ssim_error"])
        assert float(row["paper"]) == pytest.approx(score, rel=1e-5)
        assert row["decision"] == ("anomalous" if float(row["calibrated"]) >= threshold else "normal")


def test_python_api_equals_command(finished, tmp_path):
    workdir, _ = finished
    config = configured(cae, "phantom", SMALL | {"phases.phase1.epochs": 4})
    evaluation = bigan_jax.train(config, tmp_path / "run")
    by_command = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["n_train"] == by_command["n_train"]
    assert evaluation["scores"].keys() == by_command["scores"].keys()
    for name, score in evaluation["scores"].items():
        assert score["auroc"] == pytest.approx(by_command["scores"][name]["auroc"], abs=0.02)

    scorer = bigan_jax.load(workdir)
    dataset = loading.load_dataset(parse_settings(config).data)
    scores = scorer.score(dataset.test.image)
    rows = list(csv.DictReader((workdir / "scores.csv").open()))
    assert scores.by_name.keys() == {"paper", "calibrated"} and scores.score is scores.by_name["calibrated"]
    for name, values in scores.by_name.items():
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], rtol=1e-4)
    decisions = ["anomalous" if d else "normal" for d in scorer.decide(scores)]
    assert decisions == [row["decision"] for row in rows]
    single = scorer.score(dataset.test.image[3:4])
    np.testing.assert_allclose(single.error_map[0], scores.error_map[3], atol=1e-5)
    with pytest.raises(UserError, match=r"uint8 \(n, 32, 32, 1\)"):
        scorer.score(dataset.test.image[:, :16])


def test_package_that_is_not_installed_trains(tmp_path, monkeypatch):
    installed_version = importlib.metadata.version

    def version(package):
        if package == "bigan_jax":
            raise importlib.metadata.PackageNotFoundError(package)
        return installed_version(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    config = configured(cae, "phantom", SMALL | {"phases.phase1.epochs": 1})
    assert bigan_jax.train(config, tmp_path)["versions"]["bigan_jax"] == "not installed"


def test_color_affects_score_and_error_map(tmp_path):
    config = configured(cae, "phantom", SMALL | {"data.channels": 3, "phases.phase1.epochs": 1})
    evaluation = bigan_jax.train(config, tmp_path)
    for score in evaluation["scores"].values():
        assert np.isfinite(score["auroc"]) and score["baselines"]["pca_8"] is not None
    images = loading.load_dataset(parse_settings(config).data).test.image
    assert images.shape[1:] == (32, 32, 3)
    scorer = bigan_jax.load(tmp_path)
    scores = scorer.score(images)
    assert scores.reconstruction.shape == images.shape
    assert scores.error_map.shape == images.shape[:3]
    swapped = scorer.score(images[..., ::-1])
    for name, values in scores.by_name.items():
        assert np.abs(swapped.by_name[name] - values).max() > 1e-4


def test_evaluate_again_gives_same_scores(finished, tmp_path):
    """Also in another folder."""
    workdir, _ = finished
    moved = shutil.copytree(workdir, tmp_path / "moved")
    launch("--mode=evaluate", f"--workdir={moved}")
    assert (moved / "scores.csv").read_text() == (workdir / "scores.csv").read_text()


@pytest.mark.parametrize("field", ["vgg16", "data"])
def test_incomplete_config_is_reported(finished, tmp_path, field):
    workdir, _ = finished
    moved = shutil.copytree(workdir, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config[field] = {}
    (moved / "config.json").write_text(json.dumps(config))
    result = launch("--mode=evaluate", f"--workdir={moved}", check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "config.json is invalid" in result.stderr


def test_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    fields = flags(SMALL | {"phases.phase1.epochs": 4, "model.latent": 8})
    result = launch(f"--config={CAE}:phantom", f"--workdir={workdir}", *fields, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "model.latent: 16 there, 8 now" in result.stderr


def check_error(arguments, words, tmp_path):
    """The command fails with a message that has the words, and creates no workdir.

    Returns what a command that reports whether it imported JAX printed last.
    """
    script = (
        "import runpy, sys\ntry: runpy.run_path('launch.py', run_name='__main__')\nfinally: print('jax' in sys.modules)"
    )
    workdir = [] if any("workdir" in a for a in arguments) else [f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments, *workdir],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"--config={CAE}:phantm"], ["'phantm'", "'phantom'", "mvtec"]),
        (["--config=configs/improved_bigan.py:brain,no_ssmi"], ["'no_ssmi'", "'no_ssim'"]),
        ([f"--config={CAE}", "--config.sed=3"], ["'config.sed'", "'config.seed'"]),
        ([f"--config={CAE}", "--config.seed.x=3"], ["config.seed", "'x'"]),
        (["--config=configs/caee.py"], ["'configs/caee.py'", "'configs/cae.py'"]),
        ([f"--config={CAE}", "--config.batch_size=abc"], ["config.batch_size", "abc"]),
        ([f"--config={CAE}", "--config.data=x"], ["group", "config.data.source"]),
        ([f"--config={CAE}:brain"], ["data/brain", "healthy/", "Kaggle", ":phantom"]),
        (["--config=configs/common.py"], ["'configs/common.py'", "configs/cae.py"]),
        (["--mode", "sweep", "--workdir=x"], ["one run", "--output=DIR"]),
        ([f"--config={CAE}", "--output=x"], ["--output", "--workdir=DIR"]),
        (["--mode=predict", "--workdir=x", "--input=", "--output=y"], ["--input=IMAGES"]),
        (["--config="], ["--config is empty"]),
        (["--config=CAE.py:folder"], ["'CAE.py'", "Did you mean 'configs/cae.py'"]),
        ([f"--config={CAE}", "--config.dir=x"], ["Did you mean config.data.dir"]),
        ([f"--config={CAE}", "--data.dir=x"], ["set by --config.data.dir"]),
        ([f"--config={CAE}", "--config.data.dir=x"], ["are drawn", "cae.py:folder"]),
        ([f"--config={CAE}", "--config.sweep.seeds=2"], ["--mode=sweep"]),
        (["--mode=predict", "--workdir=x", "--input=a", "--output=b", "c"], ["quoted"]),
        (["--mode=predict", "--workdir=no", "--input=.", "--output=b"], ["no does not exist"]),
        ([], ["--config=configs/improved_bigan.py:phantom"]),
        (["--mode=evaluate", "--config.seed=1"], ["--config.seed", "--config=configs/"]),
        (["--mode=evaluate", "--workdir=/nonexistent"], ["/nonexistent", "Train a run"]),
        ([f"--config={CAE}", "--bacth_size=3"], ["bacth_size"]),
    ],
)
def test_errors_of_flags_and_folders_are_reported_before_jax_is_imported(arguments, words, tmp_path):
    assert check_error(arguments, words, tmp_path) == "False"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([f"--config={CAE}", "--config.dtype=float8"], ["'float8'", "bfloat16"]),
        ([f"--config={CAE}", "--config.data.image_size=40"], ["40", "multiple of 16"]),
        ([f"--config={CAE}", "--config.seed=-1"], ["config.seed", "(got -1)"]),
        ([f"--config={CAE}", "--config.seed=-1", "--config.seeds=2"], ["config.seed", "(got -1)"]),
        ([f"--config={CAE}", "--config.checkpoint.every=0"], ["config.checkpoint.every"]),
        ([f"--config={CAE}", "--config.model.widths=()"], ["config.model.widths"]),
        (["--config=configs/anogan.py", "--config.model.search_steps=0"], ["search_steps"]),
        (["--config", BIGAN, "--config.model.pool=avg"], ["'avg'", "'average'"]),
        ([f"--config={CAE}", f"--workdir=x{'y' * 300}"], ["xyyy", "too long"]),
        ([f"--config={CAE}:folder", "--config.data.dir=.", "--workdir=x"], ["elsewhere"]),
    ],
)
def test_errors_of_config_values_are_reported_without_traceback(arguments, words, tmp_path):
    check_error(arguments, words, tmp_path)


def test_missing_data_folder_has_same_message_from_command_and_python(tmp_path, monkeypatch):
    """In the command it is reported before JAX is imported."""
    monkeypatch.chdir(tmp_path)
    config = configured(cae, "mvtec", {"data.dir": str(tmp_path / "none")})
    with pytest.raises(UserError) as error:
        loading.load_dataset(parse_settings(config).data)
    arguments = [f"--config={CAE}:mvtec", f"--config.data.dir={tmp_path / 'none'}"]
    assert check_error(arguments, [str(error.value)], tmp_path) == "False"


def test_help_imports_no_large_package():
    """Neither for the flags nor for the fields of a config."""
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['launch.py', '--config={CAE}', '--help']\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit: print([m for m in sys.modules if '.' not in m])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "--compilation_cache" in result.stdout and "--config:" in result.stdout
    loaded = ast.literal_eval(result.stdout.splitlines()[-1])
    large = {"jax", "jaxlib", "flax", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "torch"}
    assert not large & set(loaded)


def test_resume_after_kills_equals_uninterrupted_run(tmp_path):
    """kill -9 within the first and within the second phase, then the same command again."""
    workdirs = tmp_path / "uninterrupted", tmp_path / "killed"
    fields = flags(SMALL_BIGAN)
    launch(f"--config={BIGAN}", f"--workdir={workdirs[0]}", *fields)
    arguments = [f"--config={BIGAN}", f"--workdir={workdirs[1]}", *fields]
    for rows in (2, 5):
        with subprocess.Popen(
            command(arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            wait_for_rows(workdirs[1] / "train.jsonl", rows, process)
            process.send_signal(signal.SIGKILL)
    launch(*arguments)

    jax.tree.map(np.testing.assert_array_equal, *map(final_state, workdirs))
    scores = [(workdir / "scores.csv").read_text() for workdir in workdirs]
    assert scores[0] == scores[1]
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")}
            for line in (workdir / "train.jsonl").read_text().splitlines()
        ]
        for workdir in workdirs
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 6


def wait_for_rows(path, rows, process):
    deadline = time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) < rows:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final_state(workdir):
    assert CheckpointManager(workdir, read_only=True).names()[-1] == (6, 0)
    return restore(parse_settings(read_config(workdir)), workdir, 1)[0]


@pytest.mark.parametrize(("ablation", "last"), [("no_perceptual", "reconstruction"), ("plain", "adversarial")])
def test_last_objective_of_a_network_is_active(ablation, last):
    """Its statistics are those that `add_batch` selects for a network that reconstructions do not need."""
    objectives = build(parse_settings(improved_bigan.get_config(f"phantom,{ablation}")), 1, 10).detector.objectives
    assert [name for name, o in objectives.items() if "generator" in o.networks][-1] == last


def test_ablations_change_network_settings():
    full = improved_bigan.get_config("brain")
    plain = improved_bigan.get_config("brain,plain")
    assert (full.model.se_ratio, plain.model.se_ratio) == (16, 0)
    assert plain.model.reconstruction_terms.perceptual == 0 and not plain.model.residual
    assert plain.ablations == ("plain",)
