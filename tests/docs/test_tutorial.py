"""The commands and the Python of the first pages run as they stand."""

import csv
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

import bigan_jax
from bigan_jax import models
from tests.docs.pages import ROOT, blocks
from tests.docs.test_commands import commands
from tests.helpers.datasets import main_score
from tests.helpers.runs import SMALL

GET_STARTED = ROOT / "docs" / "get-started"

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(page):
    return [block.content for block in blocks(ROOT / "docs" / page) if block.language == "python"]


def run(command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    arguments = [sys.executable, "-m", "bigan_jax", *shlex.split(command)[1:]]  # in place of bigan-jax
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_own_images(folder):
    (draw_images,) = python("get-started/own-images.md")
    exec(draw_images, {})
    assert len(os.listdir("photos/normal")) == 400 and len(os.listdir("new")) == 6
    train, predict = commands(GET_STARTED / "own-images.md")
    output = run(train)
    assert (
        "patch_gaussian on bottles" in output
        and "at most 5 % of new normal images" in output
        and "80 calibration images" in output
    )
    assert "Baseline check: Mahalanobis distance of 16x16 thumbnails scores" in output
    assert "Report: results/report.html" in run(predict)
    with open("results/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and any(row["decision"] == "anomalous" for row in rows)
    assert {"error_maps", "masks", "overlays"} <= set(os.listdir("results"))


def test_notebook(folder, monkeypatch, capsys):
    shown = []
    display = SimpleNamespace(HTML=lambda filename: shown.append(os.path.getsize(filename)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    matplotlib.use("Agg")
    variables = {}
    for cell in python("get-started/notebook.md"):
        exec(cell, variables)
    assert variables["prediction"].error_map.shape == (2, 64, 64)
    assert shown[0] > 10_000
    assert "runs/missing" in capsys.readouterr().out


def test_model_of_the_how_to_page(tmp_path, monkeypatch):
    model, config_file, *_ = python("how-to/extend.md")
    (tmp_path / "projection.py").write_text(model)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    variables = {}
    exec(config_file, variables)
    config = variables["get_config"]("phantom")
    config.phases.phase1.epochs = 2
    with config.ignore_type():
        config.update_from_flattened_dict({name: v for name, v in SMALL.items() if name.startswith("data.")})
    evaluation = bigan_jax.train(config, tmp_path / "run")
    assert evaluation["model"] == "projection" and np.isfinite(main_score(evaluation)["auroc"])
