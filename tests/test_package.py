"""What Python shows of the package: its version, its names, and its objects in a notebook."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np

import bigan_jax
from bigan_jax.commands.compare import compare
from bigan_jax.detector import Detector, TrainState
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.scorer import AnomalyScorer, Prediction
from tests.helpers.datasets import write_run


def test_names_are_listed_without_importing_jax():
    program = "import sys, bigan_jax; print(*dir(bigan_jax)); assert 'jax' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"train", "load", "UserError", "__version__", "__doc__"} <= set(result.stdout.split())
    assert all(getattr(bigan_jax, name) for name in ("train", "evaluate", "load", "predict", "compare", "sweep"))


def test_scorer_and_scores_are_shown_by_their_settings():
    detector = Detector({}, {}, lambda net, batch, keys: batch.image)
    state = TrainState(jnp.array(7), jnp.array(0), {}, {}, {}, {})
    formula = ScoreFormula({"mse": 1.0})
    scorer = AnomalyScorer(detector, state, formula, (16, 16, 1), name="paper", threshold=0.5, conditions=("a", "b"))
    fields = "shape=(16, 16, 1), score='paper', threshold=0.5, steps=7, conditions=('a', 'b')"
    assert repr(scorer) == f"AnomalyScorer({fields})"
    assert repr(scorer.score(np.zeros((2, 16, 16, 1), np.uint8))) == "Scores(2 images, paper 0 to 0)"


def test_prediction_is_shown_by_its_result_in_place_of_its_arrays():
    score = np.array([0.5, 2.25, 1.0], np.float32)
    prediction = Prediction(score, 100 * score, score > 1, np.zeros((3, 512, 512), np.float32))
    assert repr(prediction) == "Prediction(1 anomalous; 3 images, score 0.5 to 2.25)"
    empty = Prediction(score[:0], score[:0], score[:0] > 1, np.zeros((0, 512, 512), np.float32))
    assert repr(empty) == "Prediction(0 anomalous; no images)"


def test_comparison_is_shown_by_its_size(tmp_path):
    write_run(tmp_path / "a")
    result = compare(tmp_path / "a", tmp_path / "out")
    assert repr(result).startswith("Comparison(1 runs on ") and f"output={str(tmp_path / 'out')!r}" in repr(result)
    assert len(repr(result)) < 300
