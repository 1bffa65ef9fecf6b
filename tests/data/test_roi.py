"""The region of interest in data: its file, resizing, and images within it."""

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files.images import to_format
from bigan_jax.data.roi import read_roi, roi_pixels
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError

RNG = np.random.default_rng(0)


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return str(path)


def disk(height, width):
    y, x = np.mgrid[:height, :width]
    return np.hypot((y - 0.45 * height) / height, (x - 0.55 * width) / width) < 0.35


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("height", "width", "size"), [(61, 83, 24), (40, 23, 16), (16, 16, 16), (15, 19, 32)])
def test_no_pixel_outside_is_mixed_into_pixels_inside(tmp_path, fit, height, width, size):
    roi = disk(height, width)
    file = save(tmp_path / "roi.png", roi * 255)
    inside = roi_pixels(file, size, fit)
    image = RNG.integers(0, 256, (height, width), np.uint8)
    other = np.where(roi, image, 255 - image)
    shown, changed = (to_format(Image.fromarray(x), size, 1, fit=fit) for x in (image, other))
    np.testing.assert_array_equal(shown[inside], changed[inside])
    assert (shown[~inside] != changed[~inside]).any()
    # Nearly all other pixels show some of the outside; of the rest it is lost in rounding.
    black = to_format(Image.fromarray(np.where(roi, 0, 255).astype(np.uint8)), size, 1, fit=fit)[..., 0]
    assert not black[inside].any() and ((black == 0) & ~inside).sum() < 0.2 * inside.sum()


def test_a_region_is_read_as_masks_are(tmp_path):
    roi = disk(20, 30)
    for name, values in (("gray.png", roi * 7), ("color.png", np.stack([0 * roi, roi * 255, 0 * roi], -1))):
        np.testing.assert_array_equal(read_roi(save(tmp_path / name, values)), roi)
    assert DataSettings("phantom", roi=save(tmp_path / "white.png", np.full((9, 9), 255))).roi_pixels is None


def test_wrong_regions_are_refused_by_name(tmp_path, load):
    with pytest.raises(UserError, match=r"config\.data\.roi=.*none\.png cannot be read"):
        read_roi(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"config\.data\.roi=.*text\.png cannot be read"):
        read_roi(tmp_path / "text.png")
    with pytest.raises(UserError, match="is black: make it white where pixels count"):
        read_roi(save(tmp_path / "black.png", np.zeros((9, 9))))
    thin = np.zeros((64, 64))
    thin[:, 30:33] = 255
    with pytest.raises(UserError, match="no pixel of the 8x8 images is completely inside"):
        roi_pixels(save(tmp_path / "thin.png", thin), 8, "stretch")
    with pytest.raises(UserError, match=r"config\.data\.window"):
        DataSettings("phantom", roi="any.png", window=True)


def test_folder_is_black_outside_and_defects_outside_do_not_count(tmp_path, load):
    folder, roi = tmp_path / "data", np.zeros((32, 32), bool)
    roi[4:28, 6:20] = True
    for i in range(24):
        label = "normal" if i < 20 else "anomalous"
        (folder / label).mkdir(parents=True, exist_ok=True)
        save(folder / label / f"{i}.png", RNG.integers(1, 256, (32, 32)))
    (folder / "masks").mkdir()
    for i, columns in ((20, slice(8, 16)), (21, slice(24, 30))):  # inside, outside
        mask = np.zeros((32, 32))
        mask[8:16, columns] = 255
        save(folder / "masks" / f"{i}.png", mask)
    file = save(tmp_path / "roi.png", roi * 255)
    inside = roi_pixels(file, 16, "stretch")
    plain = load("folder", folder)
    for stream in False, True:
        dataset = load("folder", folder, roi=file, stream=stream)
        assert any(f"{inside.mean():.1%} of the pixels" in note for note in dataset.notes)
        for name in "train", "calibration", "test":
            images, expected = getattr(dataset, name).image[:], getattr(plain, name).image[:]
            np.testing.assert_array_equal(images[:, inside], expected[:, inside])
            assert not images[:, ~inside].any() and expected[:, ~inside].all()
    test = dict(zip(dataset.test.path, zip(dataset.test.mask, dataset.test.has_mask, strict=True), strict=True))
    mask, known = next(value for path, value in test.items() if path.endswith("20.png"))
    assert known and mask.any() and not mask[~inside].any()
    mask, known = next(value for path, value in test.items() if path.endswith("21.png"))
    assert not known and not mask.any()
    assert any("defects outside of config.data.roi do not count" in note for note in dataset.notes)

    with pytest.raises(UserError, match="has 32x20 pixels, and the images 32x32: draw it on one of the images"):
        load("folder", folder, roi=save(tmp_path / "wide.png", np.full((20, 32), 255)))
    white = load("folder", folder, roi=save(tmp_path / "white.png", np.full((64, 64), 255)))
    assert any("white everywhere: all pixels count" in note for note in white.notes)
    np.testing.assert_array_equal(white.test.image, plain.test.image)
