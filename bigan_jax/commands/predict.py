"""`--mode=predict`: new pictures to scores, error maps and overlays, by what a workdir holds alone.

Block by block, so that memory stays flat however many there are, and what was finished stays.
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from bigan_jax import errors
from bigan_jax.commands.load import load
from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.images import map_in_threads, read_image
from bigan_jax.data.files.unreadable import MAX_LISTED, UnreadableFile, is_within_folder, try_read
from bigan_jax.data.inputs import open_inputs
from bigan_jax.errors import UserError
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.reports.evaluation_files import score_rows
from bigan_jax.reports.overlays import write_overlays
from bigan_jax.runtime.run_config import read_config

BLOCK = 64  # pictures in memory at once, as files and at the model's size


class Predicted(NamedTuple):
    """What was done with new pictures."""

    scored: int
    anomalous: int  # of the scored ones
    unreadable: list[UnreadableFile]
    output: Path


def predict(
    workdir: str | Path,
    source: str | Path,
    output: str | Path,
    condition: str = "",
    maps: bool = True,
) -> Predicted:
    """Scores pictures by a finished run, which needs none of the data it was trained on.

    source: a picture, a folder with all below it, an archive, or a pattern such as 'new/*.png'.
    output: a folder, new or empty. scores.csv has a row a picture; error_maps/ and overlays/ have
      a PNG of its size, named as `output_name` says; unreadable.csv has what could not be read.
    condition: what the pictures show, for a model that tells conditions apart; by default a
      condition that the nearest folder is called after.
    maps: False leaves error maps and overlays out: scores.csv alone.
    Raises UserError for what the user can mend; a picture that cannot be read is left out.
    """
    workdir, output = Path(workdir), Path(output)
    read_config(workdir)  # tells better what is wrong where no run is
    result = require_evaluation(workdir)
    _create_output_folder(output, source)
    with open_inputs(source, output) as (folder, names):
        scorer = load(workdir)
        known = infer_conditions(names, folder.root, scorer, condition)
        limit = result.color_limits["combined"]
        try:
            return _predict(scorer, limit, folder, known, output, maps)
        except OSError as error:  # a full disk above all
            raise UserError(f"{output} holds what was written until this: {error}") from error


def _create_output_folder(output: Path, source: str | Path) -> None:
    """Makes the folder. What is in one is never mixed with, and not deleted either."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is there and not empty: give a new folder")
    if Path(source).is_dir() and is_within_folder(output, source):
        raise UserError(f"--output={output} lies in --input, whose pictures its own would join")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be made: {error.strerror}") from error


def infer_conditions(
    names: Sequence[str], root: epath.Path, scorer: AnomalyScorer, asked: str
) -> dict[str, int]:
    """Each picture's condition by its name: the one asked for, or that of the nearest folder.

    A folder is called after a condition by its whole name or, as in PlantVillage, by what stands
    before "___". Raises UserError that names the conditions where there is none.
    """
    if asked or not scorer.conditions:
        return dict.fromkeys(names, scorer.condition_index(asked))

    def told(name: str) -> int:
        for folder in reversed((root / name).parts[:-1]):
            for called in (folder, folder.partition("___")[0]):
                if called in scorer.conditions:
                    return scorer.condition_index(called)
        raise UserError(
            f"what does {errors.printable(name)} show? No folder above it is called after one of "
            f"the model's conditions: say --condition={'|'.join(scorer.conditions)}"
        )

    return {name: told(name) for name in names}


def _predict(
    scorer: AnomalyScorer,
    limit: float,
    folder: DataFolder,
    condition: dict[str, int],
    output: Path,
    maps: bool,
) -> Predicted:
    # Blocks of nearly one size: a last small one would have the networks compiled again.
    blocks = np.array_split(np.array(list(condition), object), -(-len(condition) // BLOCK))
    scored = anomalous = 0
    unreadable: list[UnreadableFile] = []
    every = 0.2 if sys.stderr.isatty() else 30  # seconds; a log file wants few lines
    with (
        (output / "scores.csv").open("w", newline="", encoding="utf-8") as file,
        tqdm(total=len(condition), desc="pictures", unit="picture", mininterval=every) as bar,
    ):
        table = csv.writer(file)
        for names in blocks:
            contents, images, broken = _read(folder, names.tolist(), scorer.image_format)
            if images:
                known = np.array([condition[name] for name in images], np.int32)
                search = "search" if scorer.search_steps else ""
                scores = scorer.score(np.stack(list(images.values())), known, progress=search)
                if maps:
                    broken += write_overlays(
                        contents,
                        list(images),
                        scores.error_map,
                        limit,
                        output,
                        scorer.image_format.window,
                    )
                left_out = {b.path for b in broken}
                percentiles = [f"{p:.4g}" for p in scorer.percentile(scores)]
                judged = score_rows(
                    list(images), scores, scorer.decide(scores), {}, {"percentile": percentiles}
                )
                rows = [r for n, r in zip(images, judged, strict=True) if n not in left_out]
                if rows and not scored:
                    table.writerow(rows[0])
                table.writerows(row.values() for row in rows)
                file.flush()
                scored += len(rows)
                anomalous += sum(row["decision"] == "anomalous" for row in rows)
            unreadable += broken
            _list(broken, output / "unreadable.csv")
            bar.update(len(names))
    _print_summary(scored, anomalous, unreadable, scorer.threshold, output, maps)
    return Predicted(scored, anomalous, unreadable, output)


def _read(
    folder, names, form
) -> tuple[dict[str, bytes], dict[str, np.ndarray], list[UnreadableFile]]:
    """The files' bytes, the pictures as the networks take them, and what cannot be read."""
    contents = dict(zip(names, folder.read(names, False), strict=True))

    def decode(name: str) -> np.ndarray | UnreadableFile:
        if isinstance(content := contents[name], UnreadableFile):
            return content
        return try_read(name, lambda: read_image(io.BytesIO(content), *form))

    images = dict(zip(names, map_in_threads(decode, names, "pictures"), strict=True))
    broken = [image for image in images.values() if isinstance(image, UnreadableFile)]
    return contents, {n: i for n, i in images.items() if not isinstance(i, UnreadableFile)}, broken


def _list(broken: Sequence[UnreadableFile], path: Path) -> None:
    if broken:
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerows([UnreadableFile._fields] * new)
            table.writerows(map(errors.printable, b) for b in broken)


def _print_summary(scored, anomalous, unreadable, threshold, output, maps):
    written = "Scores, error maps and overlays" if maps else "Scores"
    print(
        f"{scored} pictures scored, {anomalous} of them anomalous (score of {threshold:.4g} or "
        f"more)\n{written}: {output}"
        if scored
        else "0 pictures scored"
    )
    if unreadable:
        lines = [f"  {errors.printable(f'{b.path}: {b.reason}')}" for b in unreadable[:MAX_LISTED]]
        if len(unreadable) > MAX_LISTED:
            lines.append(f"  and {len(unreadable) - MAX_LISTED} more")
        told = "\n".join(lines)
        which = output / "unreadable.csv"
        print(f"{len(unreadable)} could not be read (all in {which}):\n{told}", file=sys.stderr)
