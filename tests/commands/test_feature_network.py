"""A run whose features come from a file of an exported network."""

import jax
import numpy as np
import pytest

import bigan_jax
from bigan_jax.configs import memory_bank
from bigan_jax.errors import UserError
from tests.helpers import features
from tests.helpers.datasets import main_score
from tests.helpers.runs import configured

FIELDS = {
    "data.image_size": 32,
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 10,
    "model.grid": 4,
    "model.components": 8,
    "model.candidates": 300,
    "model.bank": 50,
    "batch_size": 16,
}


def test_run_uses_the_file_and_refuses_another(tmp_path):
    file, workdir = tmp_path / "network.stablehlo", tmp_path / "run"
    features.write_exported(file, shape="b, 32, 32, 3")
    config = configured(memory_bank, "phantom", FIELDS | {"model.network": str(file)})
    evaluation = bigan_jax.train(config, workdir)
    assert np.isfinite(main_score(evaluation)["auroc"])
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert np.isfinite(bigan_jax.load(workdir).score(images).score).all()

    moved = tmp_path / "moved.stablehlo"
    file.rename(moved)
    with pytest.raises(UserError, match=r"no network\.stablehlo"):
        bigan_jax.load(workdir)
    config.model.network = str(moved)
    assert bigan_jax.train(config, workdir)["scores"] == evaluation["scores"]

    features.write_exported(moved, jax.tree.map(lambda x: x / 2, features.VARIABLES), shape="b, 32, 32, 3")
    for use in bigan_jax.load, bigan_jax.evaluate, lambda folder: bigan_jax.train(config, folder):
        with pytest.raises(UserError, match=r"another frozen network.*config\.model\.network=FILE"):
            use(workdir)
