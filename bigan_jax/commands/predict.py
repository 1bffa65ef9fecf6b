"""The predict command: scores, maps, regions and a report of new images, from a run's folder alone.

Images are processed in blocks: memory use does not depend on their number, and finished blocks are kept.
"""

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from bigan_jax import errors
from bigan_jax.commands.load import load
from bigan_jax.data.audit.result import trained_paths
from bigan_jax.data.files.compression import compression_warning
from bigan_jax.data.files.images import image_size, map_in_threads, read_image
from bigan_jax.data.files.medical import split_slice
from bigan_jax.data.files.unreadable import MAX_LISTED, UnreadableFile, is_within_folder, try_read
from bigan_jax.data.inputs import open_inputs
from bigan_jax.data.loading import is_dark
from bigan_jax.data.streaming import prefetch
from bigan_jax.errors import UserError
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.metrics.drift import Drift, find_drift
from bigan_jax.reports.evaluation_files import score_rows
from bigan_jax.reports.gallery import write_gallery
from bigan_jax.reports.overlays import output_name, write_overlays
from bigan_jax.reports.prediction_files import ImagePrediction, append_predictions, write_coco
from bigan_jax.reports.regions import find_regions
from bigan_jax.runtime.files import csv_cell, write_json
from bigan_jax.runtime.jax_setup import require_platforms
from bigan_jax.runtime.progress_bar import progress_bar
from bigan_jax.runtime.run_config import package_version, read_config

BLOCK = 64  # images per block, as files and in the model's size; fewer if the files are large. Two are in memory.
BLOCK_BYTES = 2**27


class Predicted(NamedTuple):
    scored: int  # number of images
    anomalous: int  # number of these that were decided to be anomalous
    unreadable: list[UnreadableFile]  # not scored
    output: Path  # folder of the files
    drift: Drift  # whether images that look normal are like the calibration images


@require_platforms
def predict(
    workdir: str | Path, source: str | Path, output: str | Path, condition: str = "", maps: bool = True
) -> Predicted:
    """Scores images with the detector of a finished run, and writes the results to a folder.

    scores.csv and predictions.jsonl have a row for each image, with the warning "dark" if it is nearly black.
    error_maps/, overlays/ and masks/ (of the pixels that reach the pixel threshold) have a PNG for each image, in the
    image's own size and named by `output_name`. predictions.jsonl and coco.json have the regions of the masks,
    report.html shows all images, and drift.json compares them with the calibration images. unreadable.csv lists all
    other files, with the reason why they are not scored. The run's training data are not needed.

    Args:
      workdir: folder of the run.
      source: an image, a folder with images at any depth, an archive, or a pattern such as 'new/*.png'.
      output: folder for the results, new or empty.
      condition: condition of all images; by default `infer_conditions` takes it from their folders.
      maps: whether error maps, overlays, masks, regions and the report are written.

    Raises:
      UserError: the run is not finished, an argument is wrong, or the disk is full.
    """
    workdir, output = Path(workdir), Path(output)
    read_config(workdir)  # its message is better if there is no run
    result = require_evaluation(workdir)
    _create_output_folder(output, source)
    with open_inputs(source, output) as (folder, names, not_read):
        scorer = load(workdir)
        conditions = infer_conditions(names, folder.root, scorer, condition)
        try:
            predicted = _predict(scorer, result, folder, conditions, not_read, output, maps)
        except OSError as error:  # above all, a full disk
            raise UserError(f"{output} is incomplete: {error}") from error
    if warning := compression_warning(trained_paths(workdir), names):
        print(f"warning: {warning}", file=sys.stderr)
    return predicted


def _create_output_folder(output: Path, source: str | Path) -> None:
    """Creates the folder; existing files are neither deleted nor mixed with new ones."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists and is not empty. Use a new folder.")
    if Path(source).is_dir() and is_within_folder(output, source):
        raise UserError(f"--output={output} must not be inside --input. Use another folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be created: {error.strerror}.") from error


def infer_conditions(names: Sequence[str], root: epath.Path, scorer: AnomalyScorer, condition: str) -> dict[str, int]:
    """Returns the index of each image's condition, by the image's name.

    With the condition "" it is that of the nearest folder, up to the parents of `root`, whose name, or the part before
    "___" as in PlantVillage, is a condition.

    Raises:
      UserError: the condition is unknown, or no folder above an image is named after one.
    """
    if condition or not scorer.conditions:
        return dict.fromkeys(names, scorer.condition_index(condition))

    def nearest(name: str) -> int:
        for folder in reversed((root / name).parts[:-1]):
            for candidate in (folder, folder.partition("___")[0]):
                if candidate in scorer.conditions:
                    return scorer.condition_index(candidate)
        raise UserError(
            f"The condition of {errors.printable(name)} is unknown: no folder above it is named after a condition. "
            f"Use --condition={'|'.join(scorer.conditions)}."
        )

    return {name: nearest(name) for name in names}


def _predict(scorer, evaluation, folder, conditions, not_read, output, maps):
    # Blocks of nearly equal size bound the memory and keep the progress even.
    n_bytes = sum(folder.files[name].size for name in conditions if split_slice(name)[1] is None)
    n_blocks = min(len(conditions), max(-(-len(conditions) // BLOCK), -(-n_bytes // BLOCK_BYTES)))
    blocks = np.array_split(np.array(list(conditions), object), n_blocks)
    scored = anomalous = n_dark = 0
    all_scores: dict[str, float] = {}  # by name
    unreadable: list[UnreadableFile] = not_read
    _append_unreadable(not_read, output / "unreadable.csv")
    append_predictions(output, [])
    with (
        (output / "scores.csv").open("w", newline="", encoding="utf-8") as file,
        progress_bar(len(conditions), "images", unit="image") as bar,
        # A block is read while the one before is scored and drawn.
        closing(prefetch(lambda names: _read(folder, names.tolist(), scorer.image_format), blocks, 1)) as reading,
    ):
        table = csv.writer(file)
        for names, contents, images, block_unreadable in reading:
            if images:
                indices = np.array([conditions[name] for name in images], np.int32)
                search = "search" if scorer.search_steps else ""
                scores = scorer.score(np.stack(list(images.values())), indices, progress=search)
                if maps:
                    limits = evaluation.color_limits["combined"], evaluation.pixel_threshold
                    drawn = contents, list(images), scores.error_map, *limits, output, scorer.image_format
                    block_unreadable += write_overlays(*drawn)
                skipped = {file.path for file in block_unreadable}
                percentiles = scorer.percentile(scores)
                dark = [is_dark(scorer.inside(image), scorer.image_format.window) for image in images.values()]
                after = {
                    "percentile": [f"{p:.4g}" for p in percentiles],
                    "warning": ["dark" if flag else "" for flag in dark],
                }
                rows = score_rows(list(images), scores, scorer.decide(scores), {}, after)
                kept = {name: i for i, name in enumerate(images) if name not in skipped}
                predictions = _predictions(scorer, evaluation, contents, scores, percentiles, rows, kept, maps)
                rows = [rows[i] for i in kept.values()]
                if rows and not scored:
                    table.writerow(rows[0])
                table.writerows(map(csv_cell, row.values()) for row in rows)
                file.flush()
                append_predictions(output, predictions)
                all_scores |= {name: scores.score[i] for name, i in kept.items()}
                scored += len(rows)
                anomalous += sum(row["decision"] == "anomalous" for row in rows)
                n_dark += sum(bool(row["warning"]) for row in rows)
            unreadable += block_unreadable
            _append_unreadable(block_unreadable, output / "unreadable.csv")
            bar.update(len(names))
    drift = _find_drift(evaluation, folder, all_scores)
    write_json(output / "drift.json", dataclasses.asdict(drift) | {"sentence": drift.sentence})
    if maps:
        description = f"anomalies found by {evaluation.model}, trained on {evaluation.dataset} {evaluation.category}"
        write_coco(output, {"description": description.strip(), "version": package_version("bigan_jax")})
        write_gallery(output, evaluation, drift, unreadable)
    result = Predicted(scored, anomalous, unreadable, output, drift)
    _print_summary(result, evaluation.main, maps)
    if n_dark:
        print(
            f"warning: {n_dark} of {scored} images are dark (see scores.csv): none of their pixels reaches a quarter "
            "of the range, as with 10, 12 or 14 bits stored in 16. Save them as the training images were saved, or "
            "train with --config.data.window=true.",
            file=sys.stderr,
        )
    return result


def _predictions(scorer, evaluation, contents, scores, percentiles, rows, kept, maps):
    """Yields the predictions of the images in `kept`, which has their indices by name."""
    for name, i in kept.items():
        # Not the size as decoded, which is smaller for large JPEG 2000 files.
        size = image_size(io.BytesIO(contents[name]))
        map_and_threshold = scores.error_map[i], evaluation.pixel_threshold
        yield ImagePrediction(
            file=name,
            score=float(scores.score[i]),
            percentile=float(percentiles[i]),
            decision=rows[i]["decision"],
            threshold=evaluation.main.threshold,
            warning=rows[i]["warning"],
            size=size,
            png=output_name(name) if maps else None,
            regions=find_regions(*map_and_threshold, size, scorer.image_format.fit) if maps else None,
        )


def _find_drift(evaluation, folder, scores):
    """Compares new scores, by image name, with the calibration scores."""
    main = evaluation.main
    numbers: dict[str, int] = {}  # of groups
    groups = [numbers.setdefault(folder.group(name), len(numbers)) for name in scores]
    return find_drift(
        np.array(main.calibration_scores),
        np.array(list(scores.values()), np.float64),
        main.threshold,
        n_calibration_groups=evaluation.n_calibration_groups,
        groups=np.array(groups),
        recall=main.recall,
        lowest_of_folds=bool(main.promise and main.promise.folds),
    )


def _read(folder, names, image_format):
    """Returns the names, the files' bytes and the decoded images by name, and the unreadable files."""
    contents = dict(zip(names, folder.read(names, False), strict=True))

    def decode(name):
        if isinstance(content := contents[name], UnreadableFile):
            return content
        return try_read(name, lambda: read_image(io.BytesIO(content), *image_format))

    results = dict(zip(names, map_in_threads(decode, names, "images"), strict=True))
    unreadable = [result for result in results.values() if isinstance(result, UnreadableFile)]
    images = {n: r for n, r in results.items() if not isinstance(r, UnreadableFile)}
    return names, contents, images, unreadable


def _append_unreadable(unreadable, path):
    if unreadable:
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerows([UnreadableFile._fields] * is_new)
            table.writerows(map(csv_cell, map(errors.printable, row)) for row in unreadable)


def _print_summary(result, decided_by, maps):
    scored, anomalous, unreadable, output, drift = result
    if scored:
        print(f"{scored} images scored, {anomalous} anomalous (score of at least {decided_by.threshold:.4g})")
        if decided_by.promise:
            print(f"Threshold: {decided_by.promise.sentence}")
        print(drift.sentence)
        print(f"Report: {output / 'report.html'}" if maps else f"Scores: {output}")
    else:
        print("0 images scored")
    if unreadable:
        lines = [f"  {errors.printable(f'{f.path}: {f.reason}')}" for f in unreadable[:MAX_LISTED]]
        if len(unreadable) > MAX_LISTED:
            lines.append(f"  and {len(unreadable) - MAX_LISTED} more")
        heading = f"{len(unreadable)} files were not scored (listed in {output / 'unreadable.csv'}):"
        print("\n".join([heading, *lines]), file=sys.stderr)
