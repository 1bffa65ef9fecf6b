"""Decoding of masks."""

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files.images import read_mask
from bigan_jax.errors import UserError


def test_mask_is_majority_of_cell_and_never_vanishes(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[0:3, 0:4] = 1  # three quarters of a cell of 4 x 4, and any value counts
    mask[8:9, 8:12] = 255  # a quarter of one
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.argwhere(read_mask(tmp_path / "mask.png", 8)).tolist() == [[0, 0]]
    mask[0:3, 0:4] = 0
    Image.fromarray(mask).save(tmp_path / "small.png")
    assert np.argwhere(read_mask(tmp_path / "small.png", 8)).tolist() == [[2, 2]]
    Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", 8).any()


def test_mask_may_be_scaled_but_not_cropped_or_rotated(tmp_path):
    Image.new("L", (33, 22), 255).save(tmp_path / "mask.png")
    for size in (33, 22), (66, 44), (100, 67), (16, 11):
        assert read_mask(tmp_path / "mask.png", 8, size).all()
    for size in (22, 33), (33, 24), (32, 32), (300, 190):
        with pytest.raises(UserError, match=f"33x22 for an image of {size[0]}x{size[1]}"):
            read_mask(tmp_path / "mask.png", 8, size)
