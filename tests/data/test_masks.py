"""Decoding of masks."""

import io

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files import pixel_values
from bigan_jax.data.files.images import read_mask
from bigan_jax.errors import UserError
from tests.helpers.encoded_images import saved


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


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["gray", "color", "cut out", "JPEG", "deep"])
def test_strips_do_not_change_a_mask(monkeypatch, kind, orientation):
    rng = np.random.default_rng(0)
    defect = rng.random((61, 47)) > 0.7
    values = {
        "gray": defect,
        "color": defect[..., None] * [0, 7, 0],
        "cut out": np.dstack([np.full((61, 47, 3), 40), 255 * defect]),  # of one color
        "JPEG": 255 * np.kron(defect[:8, :6], np.ones((8, 8))),
        "deep": defect * 300,
    }[kind]
    values = values.astype(np.uint16 if kind == "deep" else np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(values), "JPEG" if kind == "JPEG" else "PNG", exif=exif)
    expected = values > 0 if values.ndim == 2 else values[..., 3] > 0 if kind == "cut out" else values.any(-1)
    expected = expected if orientation == 1 else np.rot90(expected, -1)
    cover = np.asarray(Image.fromarray(expected.astype(np.float32)).resize((16, 16), Image.Resampling.BOX))
    monkeypatch.setattr(pixel_values, "STRIP_PIXELS", 47 * 7)
    np.testing.assert_array_equal(read_mask(io.BytesIO(content), 16), cover >= 0.5 - 1e-6)
