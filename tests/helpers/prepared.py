"""Draws folders of images, and compares what was read from prepared data."""

import hashlib

import numpy as np
from PIL import Image

from tests.helpers.datasets import everything


def draw(path, seed=None, size=(40, 40)):
    """Writes noise that depends on the file name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = seed or int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((48, 48), np.uint8)
    mask[3:33, 6:18] = 255
    Image.fromarray(mask).save(path)


def draw_mvtec(folder, categories=("bottle", "pill")):
    for category in categories:
        for i in range(12):
            draw(folder / category / "train" / "good" / f"{i:03d}.png")
        for defect_type in "good", "crack":
            for i in range(3):
                draw(folder / category / "test" / defect_type / f"{i:03d}.png", size=(48, 48))
        for i in range(3):
            draw_mask(folder / category / "ground_truth" / "crack" / f"{i:03d}_mask.png")
    return folder


def by_path(dataset):
    images = everything(dataset)
    return dict(zip(images.path.tolist(), images.image, strict=True))


def same(first, second):
    """Whether two datasets have the same splits with the same images."""
    return all(
        np.array_equal(a, b) for fields in zip(first[:3], second[:3], strict=True) for a, b in zip(*fields, strict=True)
    )


def pillow(path, size=16):
    """The expected array of an image, by Pillow."""
    gray = Image.open(path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(gray)[..., None]


def written(tmp_path):
    """When the prepared data were written."""
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds").rglob("metadata.json")}


def overwrite(file, content):
    file.write_bytes(content)


def replace(file, content):
    (new := file.with_name("new")).write_bytes(content)
    new.replace(file)
