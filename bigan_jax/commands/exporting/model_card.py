"""MODEL_CARD.md: what an exported detector is for, how good it is, and what it does not promise."""

from typing import Any

from bigan_jax.errors import printable
from bigan_jax.evaluation.result import EvaluationResult

_CARD = """# {model} on {dataset}

Finds images, and places in them, that differ from the normal images that it was trained on.

## Use
- Input: uint8 images [b {height} {width} {channels}], {colors}. `preprocess.py` makes them from files: {preprocessing}.
- Output: an anomaly score for each image, and an anomaly map of the size of the input.
- Decision: an image is anomalous from a score of {threshold!r} on, a pixel from {pixel_threshold!r} on.
- Example: `python example.py {condition}IMAGE ...`.
- Classes: {classes}.{conditions}

## Training
{n_train} normal images, {epochs} epochs, {steps} steps, seed {seed}.

## Evaluation
Test images: {n_normal} normal, {n_anomalous} anomalous. {n_calibration} further normal images set the threshold.

- Image AUROC by the score "{score}": {auroc}
- Pixel AUROC of the anomaly map: {pixel_auroc}
- Threshold: {rule}. {promise}

## Limits
- The promise is for images that are taken like the calibration images. Another camera, scanner or light needs another
  threshold.
- A score says how unusual an image is, not what is in it. It is no diagnosis.
- `verification.npz` holds calibration images: share it only if you may share these.
{warnings}
## Versions
{versions}
"""


def model_card(result: EvaluationResult, metadata: dict[str, Any]) -> str:
    """Returns the text of the card."""
    image, main, conditions = metadata["image"], result.main, metadata["conditions"]
    steps = [
        *["stretched from their 1st to their 99th percentile"] * image["window"],
        {"stretch": "resized", "pad": "resized and padded to a square", "crop": "cropped to a square and resized"}[
            image["fit"]
        ],
    ]
    return _CARD.format(
        model=result.model,
        dataset=" ".join(filter(None, [result.dataset, result.category])),
        height=image["size"],
        width=image["size"],
        channels=image["channels"],
        colors="gray" if image["channels"] == 1 else "RGB",
        preprocessing=", ".join(steps),
        threshold=metadata["threshold"],
        pixel_threshold=metadata["pixel_threshold"],
        condition="CONDITION " * bool(conditions),
        classes=printable(", ".join(metadata["classes"])) or "none",
        conditions=' The input "condition" is the index of the image\'s class.' * bool(conditions),
        **{name: getattr(result, name) for name in ("n_train", "epochs", "steps", "seed", "n_normal", "n_anomalous")},
        n_calibration=result.n_calibration,
        score=metadata["score"],
        auroc=_value(main.auroc) + _interval(main.auroc_ci),  # pyright: ignore[reportAttributeAccessIssue]
        pixel_auroc=_value(result.pixel.auroc),  # pyright: ignore[reportAttributeAccessIssue]
        rule=main.threshold_rule,
        promise=metadata["promise"] or "It was set by hand and promises nothing.",
        warnings="".join(f"- {printable(warning)}\n" for warning in result.warnings),
        versions=printable(", ".join(f"{k} {v}" for k, v in metadata["versions"].items())),
    )


def _value(auroc):
    return "not known, as there are no labels" if auroc is None else f"{auroc:.3f}"


def _interval(limits):
    return f" (95 % interval {limits[0]:.3f} to {limits[1]:.3f})" if limits else ""
