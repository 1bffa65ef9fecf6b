"""An exported detector: a folder or a zip file that runs without this package.

It holds the graph, metadata.json, MODEL_CARD.md, verification.npz, and an example with its preprocessing.
"""

import inspect
import io
import json
import os
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import bigan_jax
from bigan_jax.commands.export import require_new
from bigan_jax.commands.exporting import graphs, preprocess
from bigan_jax.commands.exporting.check import Checked, Reference, check
from bigan_jax.commands.exporting.examples import example
from bigan_jax.commands.exporting.model_card import model_card
from bigan_jax.commands.folds import fold_configs
from bigan_jax.commands.load import load
from bigan_jax.commands.settings import parse_settings
from bigan_jax.data.audit.result import trained_paths
from bigan_jax.data.loading import load_dataset
from bigan_jax.errors import UserError
from bigan_jax.evaluation.result import EvaluationResult, require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.runtime.files import write_error
from bigan_jax.runtime.run_config import package_version, read_config

FORMAT = 1  # of metadata.json
_KEPT = 8  # calibration images in verification.npz
_PACKAGES = {"stablehlo": ("bigan_jax", "jax"), "onnx": ("bigan_jax", "jax", "jax2onnx", "onnxruntime")}


def export(workdir: Path, output: Path, kind: str) -> Checked:
    """Exports the detector of a finished run, whose data must be there: its calibration images check the result.

    Args:
      workdir: folder of the run.
      output: a new folder, or a new file that ends in .zip.
      kind: "stablehlo" or "onnx".

    Raises:
      UserError: the run cannot be read or exported, JAX does not use the CPU, or the check fails. No file is left then.
    """
    require_new(output)
    if jax.default_backend() != "cpu":
        raise UserError(f"the export is checked on a CPU (got {jax.default_backend()}). Set JAX_PLATFORMS=cpu.")
    config, result, scorer = read_config(workdir), require_evaluation(workdir), load(workdir)
    graphs.require_exportable(scorer)
    reference = _reference(scorer, *_calibration_images(config, workdir))
    graph = graphs.to_onnx(scorer) if kind == "onnx" else graphs.to_stablehlo(scorer)
    metadata = _metadata(result, scorer, kind)
    verification = io.BytesIO()
    np.savez(verification, allow_pickle=False, **reference.first(_KEPT))
    files = {
        metadata["graph"]["file"]: graph,
        "metadata.json": json.dumps(metadata, indent=2).encode() + b"\n",
        "MODEL_CARD.md": model_card(result, metadata).encode(),
        "verification.npz": verification.getvalue(),
        "preprocess.py": inspect.getsource(preprocess).encode(),
        "example.py": example(kind, bool(scorer.conditions)).encode(),
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as temporary:
            return _write_checked(
                files,
                Path(temporary),
                output,
                lambda folder: check(folder / metadata["graph"]["file"], reference, metadata["threshold"]),
            )
    except OSError as error:
        raise write_error(output, error) from error


def _write_checked(files, temporary, output, check_folder) -> Checked:
    """Writes the files, checks them, and only then gives them their name."""
    (folder := temporary / "folder").mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checked = check_folder(folder)
    if output.suffix.lower() == ".zip":
        with zipfile.ZipFile(temporary / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in files:
                archive.write(folder / name, f"{output.stem}/{name}")
        folder = temporary / "zip"
    os.rename(folder, output)
    return checked


def _calibration_images(config: ConfigDict, workdir: Path):
    """Returns the calibration images; of several folds, those of the first."""
    settings = parse_settings(config, workdir)
    if settings.threshold.folds:
        workdir, config = next(iter(fold_configs(config, workdir).items()))
        settings = parse_settings(config, workdir)
    try:
        # Also what is outside of a region of interest, so that the check shows that the graph ignores it.
        images = load_dataset(replace(settings.data, roi=""), trained_paths(workdir)).calibration
    except UserError as error:
        raise UserError(f"An export is checked with the run's calibration images: {error}") from error
    return np.asarray(images.image), images.condition


def _reference(scorer: AnomalyScorer, images: np.ndarray, condition: np.ndarray) -> Reference:
    scores = scorer.score(images, condition, progress="calibration")
    inputs = {"images": images, "condition": condition}
    return Reference({name: inputs[name] for name in graphs.input_names(scorer)}, scores.score, scores.error_map)


def _metadata(result: EvaluationResult, scorer: AnomalyScorer, kind: str) -> dict[str, Any]:
    size, channels, window, fit = scorer.image_format
    types = {"images": ("uint8", ["b", *scorer.shape]), "condition": ("int32", ["b"])}
    inputs = [{"name": n, "type": types[n][0], "shape": types[n][1]} for n in graphs.input_names(scorer)]
    shapes = {"score": ["b"], "anomaly_map": ["b", *scorer.shape[:2]]}
    return {
        "format": FORMAT,
        "model": result.model,
        "dataset": result.dataset,
        "category": result.category,
        "graph": {
            "file": f"model.{kind}",
            "platforms": graphs.PLATFORMS if kind == "stablehlo" else None,
            "inputs": inputs,
            "outputs": [{"name": name, "type": "float32", "shape": shapes[name]} for name in graphs.OUTPUTS],
        },
        "image": {"size": size, "channels": channels, "window": window, "fit": fit},
        "score": scorer.name,
        "threshold": result.main.threshold,  # a score of at least this is anomalous
        "pixel_threshold": result.pixel_threshold,  # likewise of the anomaly map
        "promise": result.main.promise.sentence if result.main.promise else None,
        "calibration_scores": result.main.calibration_scores,
        "classes": result.conditions,
        "conditions": list(scorer.conditions),  # the input "condition" is an index into these
        "versions": {
            "bigan_jax": bigan_jax.__version__,
            **{name: package_version(name) for name in _PACKAGES[kind] if name != "bigan_jax"},
        },
        "trained_with": result.versions,
    }
