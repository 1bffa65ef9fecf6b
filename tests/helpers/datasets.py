"""For several tests: a data set as a whole, workdirs as finished runs leave them, a tiled TIFF."""

import csv
import json
import struct
import zlib

import msgspec
import numpy as np

from bigan_jax.data.dataset import Images
from bigan_jax.data.files.images import read_files, read_image
from bigan_jax.data.files.unreadable import split_unreadable, unreadable_error
from bigan_jax.evaluation.result import CALIBRATED, PAPER, EvaluationResult
from bigan_jax.metrics.image import IMAGE_METRICS, auroc, image_metrics
from bigan_jax.metrics.thresholds import conformal_threshold


def decoded(root, paths, size):
    """The gray images, or the one error that names every file that cannot be read."""
    results = read_files(lambda x, _: read_image(x, size, 1), root, paths, "images")
    images, unreadable = split_unreadable(results)
    if unreadable:
        raise unreadable_error(unreadable, root, len(paths), "images")
    return np.stack(images)


def everything(dataset):
    """The images of all three splits."""
    return Images(*map(np.concatenate, zip(*dataset[:3], strict=True)))


def image_table(normal=40, anomalous=30, per_group=2, prefix="p"):
    """Paths, labels and groups of a test set."""
    n = normal + anomalous
    path = [f"{prefix}{i:03}.png" for i in range(n)]
    label = np.arange(n) >= normal
    group = [f"{'a' if anomalous_ else 'n'}{i // per_group}" for i, anomalous_ in enumerate(label)]
    return path, label, group


def promise_content():
    """The promise of a threshold, as in evaluation.json."""
    return msgspec.to_builtins(conformal_threshold(np.arange(19.0), 0.05).promise)


def score_content(**fields):
    """The result of one score, as in evaluation.json, with some fields replaced."""
    content = {
        **dict.fromkeys(IMAGE_METRICS, 0.9),
        "auroc_ci": [0.8, 0.95],
        "intervals": {name: [0.8, 0.95] for name in IMAGE_METRICS},
        "threshold": 0.5,
        "threshold_rule": "conformal, at most 5 % false alarms",
        "promise": promise_content(),
        "oracle": {"threshold": 0.4, "f1": 0.9, "accuracy": 0.9},
        "by_defect_type": None,
        "by_condition": None,
        "volumes": None,
        "baselines": {"pca_64": 0.88, "mahalanobis_16": 0.95, "corner_pixels": None},
        "over_baseline": None,
        "calibration_scores": [0.5, 0.75],
    }
    assert fields.keys() <= content.keys()
    return content | fields


SCORE_FIELDS = score_content().keys()


def evaluation_content(**fields):
    """A valid evaluation.json as a dict, with some fields replaced: those of SCORE_FIELDS in both scores.

    `paper` and `calibrated` replace fields of one score.
    """
    pixel = {"auroc": 0.9, "average_precision": 0.4, "aupro": 0.8}
    of_both = {name: fields.pop(name) for name in SCORE_FIELDS & fields.keys()}
    content = {
        "model": "cae",
        "group": "reconstruction",
        "dataset": "phantom",
        "category": "bottle",
        "ablations": [],
        "quick": False,
        "seed": 0,
        "conditions": ["bottle"],
        "epochs": 2,
        "steps": 3,
        "n_train": 80,
        "n_calibration": 10,
        "n_calibration_groups": 10,
        "n_normal": 25,
        "n_anomalous": 30,
        "score_name": "calibrated",
        "scores": {name: score_content(**of_both | fields.pop(name, {})) for name in (PAPER, CALIBRATED)},
        "predict_all": {"f1": 0.7, "accuracy": 0.55},
        "native": None,
        "pixel_threshold": 0.3,
        "pixel_promise": promise_content(),
        "pixel": {**pixel, "dice": 0.3, "intervals": None},
        "pixel_baselines": {"raw_intensity": pixel | {"auroc": 0.7, "aupro": None}},
        "term_aurocs": {"mse": 0.8, "ssim": 0.9},
        "score": {
            "weights": {"mse": 0.7, "ssim": 0.3},
            "name": "calibrated",
            "reduction": "mean",
            "standardize": False,
            "unit_features": True,
            "symmetry": "auto",
            "standard_deviations": {"mse": 0.1, "ssim": 0.2},
        },
        "score_table": [],
        "score_table_note": "",
        "symmetry": {"ratio": 1.5, "symmetric": False, "used": False},
        "color_limits": {"mse": 0.2, "ssim": 0.9, "combined": 0.5},
        "notes": [],
        "warnings": [],
        "versions": {"jax": "0.10.2"},
    }
    assert fields.keys() <= content.keys()
    return content | fields


def make_result(**fields):
    """An EvaluationResult with some fields replaced, as in `evaluation_content`."""
    return msgspec.convert(evaluation_content(**fields), EvaluationResult)


def main_score(content):
    """The result of the score that decides, in the content of an evaluation.json."""
    return content["scores"][content["score_name"]]


def write_run(
    workdir, *, model="cae", dataset="phantom", category="bottle", seed=0, strength=1.0,
    ablations=(), quick=False, test=None, config=(), evaluation=(), native=None, score=None, paper_score=None,
):  # fmt: skip
    """A workdir whose numbers belong together; returns its evaluation.

    strength: by how much anomalous images outscore normal ones, in standard deviations.
    test: of `image_table`. score: of each image, instead of drawn ones. paper_score: instead of the same as `score`.
    config: fields by dotted name. evaluation: keys to replace, as in `evaluation_content`.
    """
    path, label, group = test or image_table()
    name = f"{model}-{'-'.join(ablations)}-{seed}-{category}"
    rng = np.random.default_rng(list(name.encode()))
    score = rng.normal(size=len(label)) + strength * label if score is None else score
    by_name = {"paper": score if paper_score is None else paper_score, "calibrated": score}
    by_name = {name: np.array([float(f"{s:.8g}") for s in values]) for name, values in by_name.items()}
    replaced, baseline_scores = dict(evaluation), {}
    fields = {
        "model": model,
        "group": "reconstruction",
        "dataset": dataset,
        "category": category,
        "ablations": list(ablations),
        "quick": quick,
        "seed": seed,
        "n_normal": int((~label).sum()),
        "n_anomalous": int(label.sum()),
        "native": native and {"name": model, "auroc": native},
    }
    for name, values in by_name.items():
        threshold = float(np.quantile(values[~label], 0.9))
        metrics = image_metrics(values, label, threshold)
        limits = (metrics["auroc"] or 0) + np.array([-0.1, 0.05])
        of_score = {**metrics, "auroc_ci": limits.clip(0, 1).tolist(), "threshold": threshold}
        of_both = {field: replaced[field] for field in SCORE_FIELDS & replaced.keys()}
        fields[name] = of_score | of_both | replaced.pop(name, {})
        given = fields[name].get("baselines") or score_content()["baselines"]
        of_baselines = {key: scores_of_auroc(value, label) for key, value in given.items()}
        baseline_scores |= {f"{name}_{key}": values for key, values in of_baselines.items()}
        fields[name]["baselines"] = {key: auroc(values, label) for key, values in of_baselines.items()}
        fields[name]["baselines"] |= {key: None for key, value in given.items() if value is None}
    content = evaluation_content(**fields | {k: v for k, v in replaced.items() if k not in SCORE_FIELDS})
    workdir.mkdir(parents=True)
    (workdir / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    fields = {"seed": seed, "data.image_size": 64, "phases.phase1.epochs": 2} | dict(config)
    (workdir / "config.json").write_text(json.dumps(nested(fields)), encoding="utf-8")
    (workdir / "train.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n', encoding="utf-8")
    with (workdir / "baseline_scores.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "group", *baseline_scores])
        names = ["anomalous" if x else "normal" for x in label]
        rows.writerows(zip(path, names, group, *baseline_scores.values(), strict=True))
    decision = by_name[content["score_name"]] >= main_score(content)["threshold"]
    with (workdir / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "group", "mse", "ssim_error", *by_name, "decision"])
        for i, kinds in enumerate(zip(label, decision, strict=True)):
            kinds = ["anomalous" if x else "normal" for x in kinds]
            scores = [f"{values[i]:.8g}" for values in by_name.values()]
            rows.writerow([path[i], kinds[0], group[i], "0", "0", *scores, kinds[1]])
    return content


def scores_of_auroc(value, label):
    """Scores with this AUROC, or the nearest that is possible; with any, if `value` is None."""
    n_normal, n_anomalous = int((~label).sum()), int(label.sum())
    score = np.zeros(len(label))
    score[~label] = np.arange(n_normal)
    if n_anomalous:
        # Each anomalous image outscores a number of normal ones.
        pairs = round((0.5 if value is None else value) * n_normal * n_anomalous)
        won = np.full(n_anomalous, pairs // n_anomalous)
        won[: pairs % n_anomalous] += 1
        score[label] = won - 0.5
    return score


def nested(fields):
    """{"a.b": 1} to {"a": {"b": 1}}"""
    root = {}
    for name, value in fields.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return root


def tiled_tiff(side: int = 16, tile: int = 16) -> bytes:
    """Gray, deflated, of one tile, which Pillow reads and does not write."""
    data = zlib.compress(bytes(range(256)))
    fields = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    fields += [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(data))]
    start = 8 + len(data) + len(data) % 2
    table = struct.pack("<H", len(fields))
    table += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    return b"II*\0" + struct.pack("<I", start) + data.ljust(start - 8, b"\0") + table + bytes(4)
