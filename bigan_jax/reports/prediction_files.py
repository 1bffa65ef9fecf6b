"""The files of a prediction that other programs read: predictions.jsonl and coco.json.

predictions.jsonl is written as images are finished. What needs all images is made from it, line by line.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from bigan_jax.reports.regions import Polygon, Region

FILE, COCO_FILE = "predictions.jsonl", "coco.json"


class ImagePrediction(msgspec.Struct, frozen=True):
    """A line of predictions.jsonl."""

    file: str  # path in the folder of the images
    score: float
    percentile: float  # the percentage of calibration images with a lower score
    decision: Literal["normal", "anomalous"]
    threshold: float  # of the score
    warning: str
    size: tuple[int, int]  # width and height in pixels
    png: str | None = None  # its path in error_maps/, overlays/ and masks/; None if they were not written
    regions: list[Region] | None = None  # None likewise


def append_predictions(output: Path, predictions: Iterable[ImagePrediction]) -> None:
    """Appends lines to predictions.jsonl in the folder `output`."""
    with (output / FILE).open("ab") as file:
        file.writelines(msgspec.json.encode(prediction) + b"\n" for prediction in predictions)


def read_predictions(output: Path) -> Iterator[ImagePrediction]:
    """Yields the lines of predictions.jsonl."""
    decoder = msgspec.json.Decoder(ImagePrediction)
    with (output / FILE).open("rb") as file:
        yield from map(decoder.decode, file)


def write_coco(output: Path, info: Mapping[str, object]) -> None:
    """Writes coco.json: all images, and the regions of the anomalous ones as annotations.

    A region is a list of polygons; one with holes, which COCO's polygons cannot have, is an uncompressed RLE.
    """
    part = output / f"{COCO_FILE}.part"
    with part.open("wb") as file:
        head = {"info": info, "licenses": [], "categories": [{"id": 1, "name": "anomaly", "supercategory": ""}]}
        file.write(msgspec.json.encode(head).removesuffix(b"}"))
        for name, entries in (("images", _images(output)), ("annotations", _annotations(output))):
            file.write(f',\n"{name}": ['.encode())
            for index, entry in enumerate(entries):
                file.write(b",\n" * (index > 0) + msgspec.json.encode(entry))
            file.write(b"]")
        file.write(b"}\n")
    part.replace(output / COCO_FILE)


def _images(output):
    for index, image in enumerate(read_predictions(output), 1):
        width, height = image.size
        entry = {"id": index, "file_name": image.file, "width": width, "height": height}
        yield entry | {"score": image.score, "decision": image.decision}


def _annotations(output):
    number = itertools.count(1)
    for index, image in enumerate(read_predictions(output), 1):
        for region in image.regions or () if image.decision == "anomalous" else ():
            yield {
                "id": next(number),
                "image_id": index,
                "category_id": 1,
                "bbox": region.box,
                "area": region.area,
                "segmentation": _segmentation(region.polygons, *image.size),
                "iscrowd": 0,
                "score": region.peak,
            }


def _segmentation(polygons: list[Polygon], width: int, height: int):
    if all(len(polygon) == 1 for polygon in polygons):
        return [list(itertools.chain.from_iterable(outer)) for (outer,) in polygons]
    return {"size": [height, width], "counts": _run_lengths(polygons, width, height)}


def _run_lengths(polygons: list[Polygon], width: int, height: int) -> list[int]:
    """Returns the lengths of runs outside and inside of polygons, in turn, column by column from the upper left."""
    edges = [
        (*sorted((x, next_x)), y)
        for ring in itertools.chain.from_iterable(polygons)
        for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True)
        if y == next_y
    ]
    crossings = np.concatenate([np.arange(left, right) * height + y for left, right, y in edges])
    # The lower end of a column is the upper end of the next: a run goes on where both are inside.
    starts, times = np.unique(crossings, return_counts=True)
    starts = starts[(times == 1) & (starts < width * height)]
    return np.diff(starts, prepend=0, append=width * height).tolist()
