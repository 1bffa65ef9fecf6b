"""Fixtures of the tests of data folders."""

import pytest

from bigan_jax.data import loading
from bigan_jax.data.settings import DataSettings


@pytest.fixture
def load(tmp_path):
    """Load a data folder or archive at 16x16, with prepared data in `tmp_path` / tfds."""

    def load(source, folder, **changes):
        options = dict(category="", image_size=16, channels=1, split_seed=0)
        options["tfds_dir"] = tmp_path / "tfds"
        return loading.load_dataset(DataSettings(source, dir=folder, **options | changes))

    return load
