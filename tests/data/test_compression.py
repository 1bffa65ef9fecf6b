"""The warning about new images that are not compressed as the training images are."""

import pytest

from bigan_jax.data.files.compression import compression_warning


@pytest.mark.parametrize(
    ("trained", "new", "words"),
    [
        (["a.JPG", "b/c.jpeg"], ["x.png", "y.jpg"], "1 of 2 images are lossless PNG files, and all training images"),
        (["a.png", "b.tif"], ["x.jpg", "y.webp"], "2 of 2 images are lossy JPEG or WebP files"),
        (["a.jpg", "b.png"], ["x.png"], ""),  # trained on both
        (["a.jpg"], ["x.webp"], ""),
        (["a.dcm#3"], ["x.png"], ""),
        ([], ["x.png"], ""),
        (["a.png"], [], ""),
    ],
)
def test_compression_warning(trained, new, words):
    warning = compression_warning(trained, new)
    assert words in warning and bool(warning) == bool(words)
