"""The check of an exported graph: another process computes the scores of the calibration images again."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bigan_jax.commands.exporting import run_graph
from bigan_jax.errors import UserError, printable
from bigan_jax.metrics.thresholds import decide

TOLERANCE = 1e-5  # of the largest score
# Of the largest error of a pixel. Where an image is flat, SSIM divides by 0.0009, so that rounding of a reconstruction
# by another order of sums shows a thousandfold in a pixel; scores average it out.
MAP_TOLERANCE = 1e-4


class Reference(NamedTuple):
    """Calibration images by input of the graph, and what this package computes for them."""

    inputs: dict[str, np.ndarray]
    score: Float[np.ndarray, "n"]
    anomaly_map: Float[np.ndarray, "n h w"]

    def first(self, count: int) -> dict[str, np.ndarray]:
        """Returns the first images with their results, by name."""
        return {name: x[:count] for name, x in {**self.inputs, **self._asdict()}.items() if name != "inputs"}


class Checked(NamedTuple):
    """The result of a check that the graph passed."""

    images: int
    difference: float  # the largest one of a score


def check(graph: Path, reference: Reference, threshold: float) -> Checked:
    """Runs the graph and compares scores, decisions and maps.

    Raises UserError if the graph does not run, a score differs by more than TOLERANCE, a pixel of a map by more than
    MAP_TOLERANCE, or a decision differs.
    A score within TOLERANCE of the threshold may fall on either side of it.
    """
    score, anomaly_map = _run(graph, reference.inputs)
    for name, values, expected, tolerance in (
        ("scores", score, reference.score, TOLERANCE),
        ("anomaly maps", anomaly_map, reference.anomaly_map, MAP_TOLERANCE),
    ):
        difference, limit = _difference(values, expected), tolerance * np.abs(expected).max()
        if not difference <= limit:
            raise UserError(
                f"The {name} of the exported graph differ from those of the run by up to {difference:.2g} (at most "
                f"{limit:.2g} is allowed), so no file is kept. A detector in bfloat16 differs that much."
            )
    if changed := int(different_decisions(score, reference.score, threshold).sum()):
        raise UserError(f"The exported graph decides {changed} calibration images differently, so no file is kept.")
    return Checked(len(score), _difference(score, reference.score))


def different_decisions(
    score: Float[np.ndarray, "n"], expected: Float[np.ndarray, "n"], threshold: float
) -> Bool[np.ndarray, "n"]:
    """Returns where decisions differ, except for scores that are the threshold but for rounding, as some always is."""
    clear = np.abs(expected.astype(np.float64) - threshold) > TOLERANCE * np.abs(expected).max()
    return clear & (decide(score, threshold) != decide(expected, threshold))


def _difference(values, expected):
    if values.shape != expected.shape:
        return float("inf")
    return float(np.abs(values.astype(np.float64) - expected).max())


def _run(graph, inputs):
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "images.npz", Path(folder) / "scores.npz"
        np.savez(source, **inputs)
        # -P: the script's folder is not searched for modules.
        command = [sys.executable, "-P", run_graph.__file__, *map(str, (graph, source, target))]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
            raise UserError(f"The exported graph does not run ({printable(lines[-1])}), so no file is kept.")
        with np.load(target, allow_pickle=False) as file:
            return file["score"], file["anomaly_map"]
