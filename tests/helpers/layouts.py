"""Draws folders of images with defects, and counts what was read."""

import numpy as np
from PIL import Image

from tests.helpers.datasets import everything


def draw(path, defect=False, seed=None):
    """Draws a gradient with noise; a defect is a dark square, whose mask is returned."""
    rng = np.random.default_rng(seed if seed is not None else sum(map(ord, str(path))))
    image = np.tile(np.linspace(80, 200, 32), (32, 1)) + rng.normal(0, 5, (32, 32))
    mask = np.zeros((32, 32), np.uint8)
    if defect:
        mask[8:16, 4:12] = 255
        image[mask > 0] = 5
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return mask


def normals(folder, n=20, name="{:03d}.png"):
    for i in range(n):
        draw(folder / name.format(i))


def anomalies(folder, n=5, name="{:03d}.png", masks=None, mask_name="{:03d}.png", change=lambda mask: mask):
    for i in range(n):
        mask = draw(folder / name.format(i), defect=True)
        if masks:
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(change(mask)).save(masks / mask_name.format(i))


def counts(loaded):
    """Returns the numbers of normal and anomalous images, and of masks with the drawn defect."""
    images = everything(loaded)
    expected = np.zeros((16, 16), bool)
    expected[4:8, 2:6] = True
    is_drawn = (images.mask == expected).all(axis=(1, 2))
    assert not images.mask[~is_drawn].any()
    return (~images.label).sum(), images.label.sum(), is_drawn.sum()
