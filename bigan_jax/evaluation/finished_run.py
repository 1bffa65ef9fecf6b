"""Reads the files of a finished run for a comparison: its result, scores, config and progress.

A run may come from anybody, so all files are read as untrusted: sizes, types and ranges are checked.
"""

import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from bigan_jax.errors import UserError
from bigan_jax.evaluation.result import EvaluationResult, is_name, read_evaluation
from bigan_jax.metrics.image import auroc
from bigan_jax.runtime.files import read_bounded
from bigan_jax.runtime.run_config import FORMAT, require_format

_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_TABLE_BYTES = 64 * 2**20
_MAX_ROWS = 10**6
_MAX_FIELDS = 2000
_MAX_COLUMNS = 100


class FinishedRun(NamedTuple):
    """A finished run."""

    workdir: Path
    result: EvaluationResult
    fields: dict[str, str]  # the config by dotted name, as JSON; empty if config.json is unreadable
    total_epochs: int | None  # that the config asks for; None if unknown


class ImageScores(NamedTuple):
    """A score of the test images by path, so that runs tested on the same images agree in every row."""

    path: Shaped[np.ndarray, "n"]
    label: Bool[np.ndarray, "n"]
    group: Shaped[np.ndarray, "n"]
    score: Float[np.ndarray, "n"]


def read_run(workdir: Path) -> FinishedRun:
    """Reads a run; raises UserError as `read_evaluation` does."""
    return FinishedRun(workdir, read_evaluation(workdir), *_read_config(workdir))


def _read_config(workdir):
    """Returns a config's flat fields and its number of epochs; ({}, None) if it is unreadable."""
    try:
        config = json.loads(_read_text(workdir / "config.json", _MAX_CONFIG_BYTES))
    except (UserError, ValueError, RecursionError):
        return {}, None
    if not isinstance(config, dict):
        return {}, None
    require_format(config.pop("format", FORMAT), "config.json")
    try:
        return flat_fields(config), _total_epochs(config)
    except (UserError, AttributeError, TypeError):
        return {}, None


def read_scores(run: FinishedRun, name: str) -> ImageScores:
    """Reads a score (one of SCORE_NAMES) from scores.csv of a run; if it has none, the score that decides.

    Raises UserError if the file is missing, damaged, or contradicts evaluation.json.
    """
    name = run.result.name_of(name)
    return _read_scores(run, "scores.csv", name, run.result.scores[name].auroc)


def read_baseline_scores(run: FinishedRun, name: str, baseline: str) -> ImageScores:
    """Reads the scores of a baseline, with a score of this name, as `read_scores` does from baseline_scores.csv."""
    name = run.result.name_of(name)
    if baseline not in run.result.scores[name].baselines:
        raise UserError(f"evaluation.json has no baseline {baseline}")
    expected = run.result.scores[name].baselines[baseline]
    return _read_scores(run, "baseline_scores.csv", baseline_column(name, baseline), expected)


def baseline_column(name: str, baseline: str) -> str:
    """Returns the column of baseline_scores.csv for a baseline with a score of this name."""
    return f"{name}_{baseline}"


def _read_scores(run, file, column, expected):
    text = _read_text(run.workdir / file, _MAX_TABLE_BYTES)
    rows = []
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if len(table.fieldnames or ()) > _MAX_COLUMNS:
            raise ValueError
        for row in table:
            if row["label"] not in ("normal", "anomalous") or len(rows) >= _MAX_ROWS:
                raise ValueError
            rows.append((row["path"], row["label"] == "anomalous", row["group"], row[column]))
        rows.sort()
        path, label, group, score = zip(*rows, strict=True)
        # Names are objects: an array of text is as wide as its longest entry.
        columns = (path, object), (label, bool), (group, object), (score, float)
        scores = ImageScores(*(np.array(column, dtype) for column, dtype in columns))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{file} does not have the format that a run writes") from error
    if len(set(path)) < len(path):
        raise UserError(f"{file} lists an image twice")
    if not np.isfinite(scores.score).all():
        raise UserError(f"{file} has a score that is not finite")
    counts = int((~scores.label).sum()), int(scores.label.sum())
    if counts != (run.result.n_normal, run.result.n_anomalous):
        raise UserError(f"{file} and evaluation.json have different numbers of images")
    area = auroc(scores.score, scores.label)
    # The file has eight digits, which may tie two scores that were not quite equal.
    if (area is None) != (expected is None) or abs((area or 0) - (expected or 0)) > 1e-3:
        raise UserError(f"the AUROC of {file} is not that of evaluation.json")
    return scores


def _read_text(path, max_bytes):
    try:
        return read_bounded(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} cannot be read") from error


def flat_fields(config: dict) -> dict[str, str]:
    """Returns a config's fields by dotted name, as JSON; raises UserError if a name is invalid or they are too many."""
    fields, nodes = {}, [("", config)]
    while nodes:
        prefix, node = nodes.pop()
        for name, value in node.items():
            if not is_name(name) or len(fields) + len(nodes) >= _MAX_FIELDS:
                raise UserError("config.json does not have the format that a run writes")
            if isinstance(value, dict) and value:
                nodes.append((f"{prefix}{name}.", value))
            else:
                fields[prefix + name] = json.dumps(value)
    return dict(sorted(fields.items()))


def _total_epochs(config):
    phases = config.get("phases")
    if not isinstance(phases, dict):
        return None
    epochs = [phase.get("epochs") for phase in phases.values()]  # none of a fitted detector
    return sum(epochs) if all(map(_is_count, epochs)) else None


def epochs_done(path: Path) -> int | None:
    """Returns the last epoch in a train.jsonl; None if there is none."""
    try:
        lines = _read_text(path, _MAX_TABLE_BYTES).splitlines()
        epoch = json.loads(lines[-1])["epoch"]
    except (UserError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return epoch if _is_count(epoch) else None


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**53
