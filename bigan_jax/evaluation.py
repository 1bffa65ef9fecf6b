"""Scores to threshold to metrics to files. Nothing here that decides looks at a test picture's
label, and no picture affects another's score, decision or colours."""

import csv
import importlib.metadata
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bigan_jax import controls, data, metrics, plots, report
from bigan_jax.build import picture_shape
from bigan_jax.data import Dataset
from bigan_jax.detector import Detector, State
from bigan_jax.errors import unknown
from bigan_jax.scorer import Scorer, Scores, restore
from bigan_jax.workdir import claim, read_config, read_history, write_json

_COLOUR_QUANTILE = (
    0.999  # of the calibration normals' pixels: what is above is as bright as it gets
)


def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict:
    """Scores the test pictures anew from the workdir's newest checkpoint, and writes the results.

    config: that of the workdir by default; another may differ in score and threshold only.
    Returns what evaluation.json holds. Raises UserError where there is no run.
    """
    workdir = Path(workdir)
    if config is None:
        config = read_config(workdir)
    else:
        read_config(workdir)
        claim(workdir, config)
    dataset = data.load(**data_fields(config))
    state, detector = restore(config, workdir, len(dataset.conditions))
    return evaluate_run(config, dataset, detector, state, workdir)


def data_fields(config: ConfigDict) -> dict:
    """The arguments of data.load."""
    return {name: value for name, value in config.data.items() if name != "name"}


def evaluate_run(
    config: ConfigDict, dataset: Dataset, detector: Detector, state: State, workdir: Path
) -> dict:
    """Evaluates a trained state and writes evaluation.json, scores.csv, figures and the report."""
    scorer = Scorer(detector, state, config.score, picture_shape(config), config.batch_size)
    test = dataset.test
    calibration = scorer.score(
        dataset.calibration.image, dataset.calibration.condition, progress="calibration"
    )
    scores = scorer.score(test.image, test.condition, progress="test")

    threshold = choose_threshold(config.threshold, calibration.score)
    evaluation = {
        "model": config.name,
        "dataset": config.data.name,
        "category": config.data.category,
        "conditions": dataset.conditions,
        "ablations": config.ablations,
        "quick": config.quick,
        "seed": config.seed,
        "n_train": len(dataset.train.label),
        "n_calibration": len(dataset.calibration.label),
        "n_normal": int((~test.label).sum()),
        "n_anomalous": int(test.label.sum()),
        **metrics.image_metrics(scores.score, test.label, threshold.value),
        "auroc_ci": metrics.auroc_interval(scores.score, test.label, test.group),
        "threshold": threshold.value,
        "threshold_rule": threshold.rule,
        "threshold_note": threshold.note,
        "oracle": metrics.oracle_threshold(scores.score, test.label)._asdict(),
        "predict_all": metrics.predict_all(test.label),
        "native": None
        if scores.native is None
        else {"name": config.name, "auroc": metrics.auroc(scores.native, test.label)},
        **_pixels(test, scores),
        "controls": _controls(scorer, dataset),
        "mse_auroc": metrics.auroc(scores.mse, test.label),
        "ssim_auroc": metrics.auroc(scores.ssim_error, test.label),
        "notes": dataset.notes,
        "warnings": [*detector.notes, *_health(workdir)],
        "versions": {
            name: importlib.metadata.version(name) for name in ("bigan_jax", "jax", "flax")
        },
    }
    write_json(workdir / "evaluation.json", evaluation)
    _write_scores(workdir / "scores.csv", test, scores, threshold.value)
    _write_pictures(workdir, evaluation, dataset, calibration, scores)
    _print_summary(evaluation, workdir)
    return evaluation


def _health(workdir):
    """What the last epoch's health check warned of, and how often any did before."""
    checks = [row.get("health", []) for row in read_history(workdir)]
    earlier = sum(map(bool, checks[:-1]))
    found = list(checks[-1]) if checks else []
    if earlier:
        found.append(f"the health check warned in {earlier} epochs before the last (train.jsonl)")
    return found


def _print_summary(evaluation, workdir):
    def show(name):
        return "-" if evaluation[name] is None else f"{evaluation[name]:.3f}"

    low, high = evaluation["auroc_ci"] or (None, None)
    interval = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
    print(
        f"{evaluation['model']} on {evaluation['dataset']}: AUROC {show('auroc')}{interval}\n"
        f"{report.verdict(evaluation).sentence}\n"
        f"At the threshold {evaluation['threshold']:.4g} ({evaluation['threshold_rule']}): "
        f"recall {show('recall')}, specificity {show('specificity')}, F1 {show('f1')}"
    )
    for warning in filter(None, [evaluation["threshold_note"], *evaluation["warnings"]]):
        print(f"Warning: {warning}")
    print(f"Report: {workdir / 'report.html'}")


def choose_threshold(config: ConfigDict, calibration: np.ndarray) -> metrics.Threshold:
    """The threshold by the config's rule, from scores of normal pictures that trained nothing."""
    if config.rule == "conformal":
        return metrics.conformal_threshold(calibration, config.false_alarm_rate)
    if config.rule == "manual":
        return metrics.manual_threshold(config.value)
    raise unknown("config.threshold.rule", config.rule, ["conformal", "manual"])


def _pixels(test, scores):
    """Pixel metrics of the error map, and of the picture itself as a map: their control."""
    known = test.has_mask
    if not test.mask[known].any():
        nothing = {"auroc": None, "average_precision": None, "aupro": None}
        return {"pixel": nothing, "pixel_controls": {"raw_intensity": nothing}}
    raw = test.image[known].mean(-1).astype(np.float32) / 255
    return {
        "pixel": metrics.pixel_metrics(scores.error_map[known], test.mask[known]),
        "pixel_controls": {"raw_intensity": metrics.pixel_metrics(raw, test.mask[known])},
    }


def _controls(scorer, dataset):
    def common_score(images, reconstructions):
        batches = range(0, len(images), 256)
        parts = [
            scorer.errors(
                jnp.asarray(images[i : i + 256]), jnp.asarray(reconstructions[i : i + 256])
            )
            for i in batches
        ]
        return np.concatenate([part["score"] for part in parts])

    found = controls.control_scores(dataset.train.image, dataset.test.image, common_score)
    return controls.control_aurocs(found, dataset.test.label)


def _write_scores(path, test, scores, threshold):
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        decision = metrics.decide(scores.score, threshold)
        native = ["native"] if scores.native is not None else []
        rows.writerow(["path", "label", "group", "mse", "ssim_error", "score", "decision", *native])
        for i, name in enumerate(test.path):
            values = [scores.mse[i], scores.ssim_error[i], scores.score[i]]
            rows.writerow(
                [
                    name,
                    "anomalous" if test.label[i] else "normal",
                    test.group[i],
                    *(f"{v:.8g}" for v in values),
                    "anomalous" if decision[i] else "normal",
                    *([f"{scores.native[i]:.8g}"] if native else []),
                ]
            )


def _write_pictures(workdir, evaluation, dataset, calibration: Scores, scores: Scores):
    test, threshold = dataset.test, evaluation["threshold"]
    history = read_history(workdir)
    chosen = _for_show(test.label, scores.score)
    limits = [
        float(np.quantile(maps, _COLOUR_QUANTILE))
        for maps in (calibration.squared_error, calibration.ssim_map, calibration.error_map)
    ]
    rows = [_gallery_row(test, scores, i, threshold) for i in chosen]
    figures = {
        "score_histogram": plots.score_histogram(
            scores.score[~test.label], scores.score[test.label], calibration.score, threshold
        ),
        "roc_curve": plots.roc_curve(scores.score, test.label, threshold),
        "precision_recall_curve": plots.precision_recall_curve(scores.score, test.label, threshold),
        "training_curves": plots.training_curves(history),
        "error_maps": plots.gallery(rows, limits),
    }
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    pictures = {name: plots.to_png(figure) for name, figure in figures.items()}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    del pictures["error_maps"]  # the report's gallery shows the same, and more
    items = [
        report.GalleryItem(
            path=test.path[i],
            label=bool(test.label[i]),
            kind=test.kind[i],
            score=float(scores.score[i]),
            decision=bool(metrics.decide(scores.score[i], threshold)),
            image=report.png_bytes(test.image[i]),
            reconstruction=report.png_bytes(scores.reconstruction[i]),
            map=report.png_bytes(plots.error_map_rgb(scores.error_map[i], limits[2])),
            mask=report.png_bytes(test.mask[i].astype(np.uint8) * 255)
            if test.has_mask[i] and test.label[i]
            else None,
        )
        for i in _for_show(test.label, scores.score, each=30)
    ]
    report.write_report(workdir / "report.html", evaluation, history, pictures, items)


def _for_show(label, score, each: int = 2):
    """Of each class the lowest scores, those in the middle and the highest."""
    chosen = []
    for wanted in (True, False):
        ranked = np.flatnonzero(label == wanted)[np.argsort(score[label == wanted])]
        middle = max(0, len(ranked) // 2 - each // 2)
        parts = ranked[:each], ranked[middle : middle + each], ranked[::-1][:each]
        chosen += dict.fromkeys(np.concatenate(parts).tolist())
    return chosen


def _gallery_row(test, scores, i, threshold):
    def picture(x):
        x = x.astype(np.float32) / 255
        return x[..., 0] if x.shape[-1] == 1 else x

    return plots.GalleryRow(
        path=test.path[i],
        score=float(scores.score[i]),
        decision=bool(metrics.decide(scores.score[i], threshold)),
        label=bool(test.label[i]),
        image=picture(test.image[i]),
        reconstruction=picture(scores.reconstruction[i]),
        squared_error=scores.squared_error[i],
        ssim_error=scores.ssim_map[i],
        combined=scores.error_map[i],
        mask=test.mask[i] if test.has_mask[i] else None,
    )
