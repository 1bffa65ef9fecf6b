"""A detector is added by a model file and a config file; no other file knows its name."""

import runpy

import numpy as np
import pytest

import bigan_jax
from bigan_jax import models
from bigan_jax.commands.sweep_plan import plan
from tests.helpers.datasets import main_score
from tests.helpers.runs import SMALL

MODEL = '''
"""A linear projection to a code and back."""

import flax.linen as nn

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses

FIELD_RANGES = {}


class Linear(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.width)(x)


def create(*, shape, conditions, dtype, units):
    size = shape[0] * shape[1] * shape[2]

    def reconstruct(net, batch, keys):
        code = net("encoder", batch.image.reshape(-1, size))
        return nn.sigmoid(net("decoder", code)).reshape(batch.image.shape)

    def loss(net, batch, keys):
        return losses.mse(batch.image, reconstruct(net, batch, keys)).mean(), {}

    networks = {"encoder": Linear(units), "decoder": Linear(size)}
    return Detector(networks, {"error": Objective(("encoder", "decoder"), loss)}, reconstruct)
'''
CONFIG = """
from bigan_jax.configs import common


def get_config(arg=None):
    config = common.defaults()
    config.name = "Linear projection"
    config.model_name = "toy_projection"
    config.model = {"units": 4}
    config.optimizers = {"error": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(2, error=(1, 1))}
    return common.finish(config, arg)
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    """The config file of a detector that is not a file of the package."""
    for folder in ("models", "configs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models" / "toy_projection.py").write_text(MODEL)
    file = tmp_path / "configs" / "toy_projection.py"
    file.write_text(CONFIG)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "models")])
    return file


def test_new_detector_trains_evaluates_and_is_compared(config_file, tmp_path):
    config = runpy.run_path(str(config_file))["get_config"]("phantom")
    with config.ignore_type():
        config.update_from_flattened_dict({k: v for k, v in SMALL.items() if "model." not in k})
    workdir = tmp_path / "run"
    evaluation = bigan_jax.train(config, workdir)
    assert evaluation["epochs"] == 2 and np.isfinite(main_score(evaluation)["auroc"])
    assert bigan_jax.evaluate(workdir)["scores"] == evaluation["scores"]
    scores = bigan_jax.load(workdir).score(np.zeros((1, 32, 32, 1), np.uint8))
    assert np.isfinite(scores.score).all()

    bigan_jax.compare(workdir, tmp_path / "comparison")
    for suffix in ("md", "csv", "tex", "html"):
        assert "Linear projection" in (tmp_path / "comparison" / f"comparison.{suffix}").read_text()


def test_new_detector_is_part_of_a_sweep_over_all_models(config_file, tmp_path):
    config = runpy.run_path(str(config_file))["get_config"]("phantom")
    config.sweep.models = "all"
    (run,) = plan(config, f"{config_file}:phantom", {}, tmp_path)
    assert run.workdir.name == "Linear projection-phantom-bottle-seed0"
    assert run.config.model_name == "toy_projection"
