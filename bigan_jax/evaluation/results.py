"""What a finished run left in its workdir, read as a stranger's: types, ranges, sizes checked.

Whoever shares a workdir may have edited it. Nothing here is executed, and nothing passes that later
code would have to doubt: a name is short and printable, a metric is a number in [0, 1] or None.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from bigan_jax.errors import UserError
from bigan_jax.metrics.image import auroc
from bigan_jax.runtime.files import read_bounded
from bigan_jax.runtime.run_config import FORMAT, require_format

_MOST_JSON = 16 * 2**20  # bytes; the calibration scores are in it
_MOST_SCORES = 64 * 2**20
_MOST_ROWS = 10**6
_MOST_FIELDS = 2000
_MOST_COLUMNS = 100
_HUGE = 1e300


class FinishedRun(NamedTuple):
    """A finished run: its folder, its evaluation, its config's fields by dotted name."""

    workdir: Path
    evaluation: dict
    fields: dict[str, str]  # empty where config.json cannot be read
    trained: tuple[int, int] | None  # epochs done, epochs wanted; None where that is not known


class ImageScores(NamedTuple):
    """scores.csv, ordered by path, so that two runs on the same pictures agree in every row."""

    path: Shaped[np.ndarray, "n"]
    label: Bool[np.ndarray, "n"]
    group: Shaped[np.ndarray, "n"]
    score: Float[np.ndarray, "n"]


class DecisionSettings(NamedTuple):
    """What of an evaluation is needed to judge new pictures."""

    threshold: float
    conditions: tuple[str, ...]
    calibration: Float[np.ndarray, "c"] | None  # scores of normals; None in an older version's
    color_limit: float | None  # as bright as an error map gets; None in an older version's
    spread: dict[str, float]  # of each term of the score
    steps: int | None  # after which it was made


class FieldType(NamedTuple):
    """What a value of evaluation.json must be, in words and as a test."""

    words: str
    holds: Callable[[object], bool]


def is_name(value: object, most: int = 100) -> bool:
    """Whether it can name a detector or a set of pictures: printable, and not too long."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _is_number(value):
    # A comparison, as an int of JSON may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE


def _is_share(value):
    return value is None or (_is_number(value) and 0 <= value <= 1)


def _is_interval(value):
    return value is None or (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(end) and 0 <= end <= 1 for end in value)
        and value[0] <= value[1]
    )


def _are_names(value):
    return isinstance(value, list) and len(value) <= 20 and all(map(is_name, value))


def _are_shares(value):
    return (
        isinstance(value, dict)
        and len(value) <= 100
        and all(is_name(key) and _is_share(share) for key, share in value.items())
    )


def _is_native(value):
    return value is None or (
        isinstance(value, dict)
        and is_name(value.get("name", "native"))
        and _is_share(value.get("auroc"))
    )


def _is_pixel(value):
    keys = ("auroc", "average_precision", "aupro")
    return value is None or (
        isinstance(value, dict) and all(_is_share(value.get(key)) for key in keys)
    )


def _are_pixels(value):
    return value is None or (
        isinstance(value, dict)
        and len(value) <= 100
        and all(is_name(key) and _is_pixel(pixel) for key, pixel in value.items())
    )


def _are_numbers(value):
    return value is None or (isinstance(value, list) and value and all(map(_is_number, value)))


_NAME = FieldType("a printable name of 1 to 100 characters", is_name)
_COUNT = FieldType("a whole number from 0", lambda v: type(v) is int and 0 <= v < 2**53)
_SHARE = FieldType("a number from 0 to 1, or null", _is_share)
_NEEDED = {
    "model": _NAME,
    "dataset": _NAME,
    "category": FieldType(
        "a printable name of at most 1000 characters", lambda v: v == "" or is_name(v, 1000)
    ),
    "ablations": FieldType("a list of names", _are_names),
    "quick": FieldType("true or false", lambda v: isinstance(v, bool)),
    "seed": FieldType("a whole number", lambda v: type(v) is int and abs(v) < 2**53),
    **dict.fromkeys(("n_train", "n_calibration", "n_normal", "n_anomalous"), _COUNT),
    **dict.fromkeys(("auroc", "average_precision", "accuracy", "precision"), _SHARE),
    **dict.fromkeys(("recall", "f1", "specificity"), _SHARE),
    "auroc_ci": FieldType("null or two numbers from 0 to 1, the lower first", _is_interval),
    "threshold_rule": _NAME,
    "native": FieldType('null or {"name", "auroc"}', _is_native),
    "pixel": FieldType('null or {"auroc", "average_precision", "aupro"}', _is_pixel),
    "controls": FieldType("AUROCs by name", _are_shares),
}
_SCORES = FieldType("a list of numbers", _are_numbers)
_SINCE = {  # an older version's lacks them
    "pixel_controls": FieldType("pixel metrics by name", _are_pixels),
    "calibration_scores": _SCORES,
}

_JUDGING = {
    "threshold": FieldType("a number", _is_number),
    "conditions": FieldType(
        "a list of names", lambda v: isinstance(v, list) and all(isinstance(c, str) for c in v)
    ),
    "calibration_scores": _SCORES,
    "combined": FieldType("a number", lambda v: v is None or _is_number(v)),
    "spread": FieldType(
        "numbers by name",
        lambda v: v is None or (isinstance(v, dict) and all(map(_is_number, v.values()))),
    ),
    "steps": FieldType("a whole number from 0", lambda v: v is None or _COUNT.holds(v)),
}


def read_run(workdir: Path) -> FinishedRun:
    """The run in a folder.

    Raises UserError where evaluation.json is missing, broken, of an older version or not what a run
    writes; the message says which, without the folder's name.
    """
    content = _json_object(workdir / "evaluation.json")
    missing = [name for name in _NEEDED if name not in content]
    if missing:
        raise UserError(
            f"evaluation.json lacks {', '.join(missing)}: of an older version? Write it anew by "
            "--mode=evaluate"
        )
    evaluation = {name: content[name] for name in _NEEDED}
    evaluation |= {name: content.get(name) for name in _SINCE}
    for name, kind in (_NEEDED | _SINCE).items():
        if not kind.holds(evaluation[name]):
            raise UserError(f"evaluation.json: {name} is not {kind.words}")
    evaluation["doubted"] = bool(content.get("threshold_note"))
    fields, wanted = _fields_and_epochs(workdir)
    done = content.get("epochs")
    if not _COUNT.holds(done):
        done = epochs_done(workdir / "train.jsonl")
    trained = None if wanted is None or done is None else (done, wanted)
    return FinishedRun(workdir, evaluation, fields, trained)


def _fields_and_epochs(workdir):
    """A run's config, flat, and the epochs it asks for; nothing where it cannot be read."""
    try:
        config = _json_object(workdir / "config.json")
    except UserError:
        return {}, None
    require_format(config.pop("format", FORMAT), "config.json")
    try:
        return flat_fields(config), _epochs_wanted(config)
    except (UserError, AttributeError, TypeError):
        return {}, None


def read_decision_settings(workdir: Path) -> DecisionSettings:
    """What a run's evaluation.json says of how to judge.

    Raises UserError where it is missing, broken or not what a run writes.
    """
    try:
        content = _json_object(workdir / "evaluation.json")
        limits, score = content.get("color_limits", {}), content.get("score", {})
        found = {name: content.get(name) for name in ("threshold", "conditions", "steps")}
        found["calibration_scores"] = content.get("calibration_scores")
        for name, part, field in ("color_limits", limits, "combined"), ("score", score, "spread"):
            if not isinstance(part, dict):
                raise UserError(f"evaluation.json: {name} is not an object")
            found[field] = part.get(field)
        for name, kind in _JUDGING.items():
            if not kind.holds(found[name]):
                raise UserError(f"evaluation.json: {name} is not {kind.words}")
    except UserError as error:
        raise UserError(
            f"{workdir} holds no finished run: {error}. --mode=evaluate writes it anew once it is "
            "trained; several seeds of one command are in its folders seed<k>"
        ) from error
    normals = found["calibration_scores"]
    return DecisionSettings(
        found["threshold"],
        tuple(found["conditions"]),
        None if normals is None else np.array(normals, float),
        found["combined"],
        found["spread"] or {},
        found["steps"],
    )


def read_scores(run: FinishedRun) -> ImageScores:
    """The scores of a run's test pictures.

    Raises UserError where scores.csv is missing, broken or at odds with evaluation.json.
    """
    text = _text(run.workdir / "scores.csv", _MOST_SCORES)
    rows = []
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if len(table.fieldnames or ()) > _MOST_COLUMNS:
            raise ValueError
        for row in table:
            if row["label"] not in ("normal", "anomalous") or len(rows) >= _MOST_ROWS:
                raise ValueError
            rows.append((row["path"], row["label"] == "anomalous", row["group"], row["score"]))
        rows.sort()
        path, label, group, score = zip(*rows, strict=True)
        # Names as objects: an array of text is everywhere as wide as its longest.
        scores = ImageScores(
            np.array(path, object),
            np.array(label, bool),
            np.array(group, object),
            np.array(score, float),
        )
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError("scores.csv is not what a run writes") from error
    if len(set(path)) < len(path):
        raise UserError("scores.csv names a picture twice")
    if not np.isfinite(scores.score).all():
        raise UserError("scores.csv has a score that is not finite")
    said = run.evaluation
    if (int((~scores.label).sum()), int(scores.label.sum())) != (
        said["n_normal"],
        said["n_anomalous"],
    ):
        raise UserError("scores.csv and evaluation.json speak of different numbers of pictures")
    found = auroc(scores.score, scores.label)
    # The file has eight digits, which may tie two scores that were not quite equal.
    same = (found is None) == (said["auroc"] is None)
    if not same or (found is not None and abs(found - said["auroc"]) > 1e-3):
        raise UserError("the AUROC of scores.csv is not that of evaluation.json")
    return scores


def _text(path, most):
    try:
        return read_bounded(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} cannot be read") from error


def _json_object(path):
    try:
        content = json.loads(_text(path, _MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is not JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is not an object")
    return content


def flat_fields(config: dict) -> dict[str, str]:
    """A config's fields by dotted name; values as JSON text, which compares whatever they are."""
    fields, nodes = {}, [("", config)]
    while nodes:
        prefix, node = nodes.pop()
        for name, value in node.items():
            if not is_name(name) or len(fields) + len(nodes) >= _MOST_FIELDS:
                raise UserError("config.json is not what a run writes")
            if isinstance(value, dict) and value:
                nodes.append((f"{prefix}{name}.", value))
            else:
                fields[prefix + name] = json.dumps(value)
    return dict(sorted(fields.items()))


def _epochs_wanted(config):
    phases = config.get("phases")
    epochs = [p.get("epochs") for p in phases.values()] if _is_table(phases) else []
    return sum(epochs) if epochs and all(map(_COUNT.holds, epochs)) else None


def _is_table(value):
    return isinstance(value, dict) and all(isinstance(row, dict) for row in value.values())


def epochs_done(path: Path) -> int | None:
    """The last epoch that a train.jsonl tells of; None where there is none."""
    try:
        lines = _text(path, _MOST_SCORES).splitlines()
        epoch = json.loads(lines[-1])["epoch"]
    except (UserError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return epoch if _COUNT.holds(epoch) else None
