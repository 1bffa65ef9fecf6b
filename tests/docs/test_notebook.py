"""The notebook of `AnomalyDetector` runs from top to bottom, as a script and in Jupyter."""

import os
import runpy
import subprocess
import sys

import matplotlib
import pytest
from sklearn.metrics import roc_auc_score

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs/get-started/anomaly_detector.py"


@pytest.mark.filterwarnings("ignore:On average")
def test_notebook_runs_as_a_script(tmp_path, monkeypatch, capsys):
    """It finds the drawn defects better than chance, and prints what it says."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(NOTEBOOK))
    output = capsys.readouterr().out
    assert "On average at most 5 % of new normal images" in output
    scores = [names["detector"].score_samples(names[name]) for name in ("new", "defective")]
    labels = [1] * len(scores[0]) + [-1] * len(scores[1])
    assert roc_auc_score(labels, [*scores[0], *scores[1]]) > 0.8


@pytest.mark.long
def test_notebook_runs_in_jupyter(tmp_path):
    for package in ("jupytext", "nbconvert", "ipykernel"):
        pytest.importorskip(package)
    output = tmp_path / "notebook.ipynb"
    arguments = ["--to", "ipynb", "--execute", "--output", str(output), str(NOTEBOOK)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "jupytext", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"image/png"' in output.read_text(encoding="utf-8")
