"""Tests of benchmarks/scale*: counts against manual counting, a point and figures of tiny size."""

import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from PIL import Image

from benchmarks import scale, scale_plots, scale_pod
from bigan_jax.detector import Detector, Objective, init_state
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training.run import DetectorBuild
from tests.helpers.training import SHAPE as BIGAN_SHAPE
from tests.helpers.training import TINY_BIGAN

SIDE, INPUTS, FILTERS, STRIDE = 11, 3, 16, 2


class Filters(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(FILTERS, (5, 5), STRIDE, padding=2)(x)
        return nn.BatchNorm(not train, axis_name=BATCH_AXIS)(x) if self.norm else x


def convolution(norm=False):
    loss = lambda net, batch, keys: ((net("filters", batch.image) ** 2).mean(), {})  # noqa: E731
    return Detector({"filters": Filters(norm)}, {"only": Objective(("filters",), loss)}, None)


def built(detector):
    return DetectorBuild(detector, dict.fromkeys(detector.objectives, optax.sgd(0.1)), ())


def products():
    """The number of products of an image with the filters, without those of padding."""
    inside = range(SIDE)
    positions = range(0, SIDE, STRIDE)
    count = 0
    for y in positions:
        for x in positions:
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    count += (y + dy in inside and x + dx in inside) * INPUTS * FILTERS
    return count


def test_convolution_cost():
    """Forward pass and kernel gradient; the gradient of the image is not needed."""
    cost = scale_pod.update_cost(built(convolution()), "only", (SIDE, SIDE, INPUTS))
    operations, outputs = 2 * 2 * products(), 6 * 6 * FILTERS
    assert 0 <= cost["flops_per_image"] - operations <= 8 * outputs
    parameters = 5 * 5 * INPUTS * FILTERS + FILTERS
    assert 2 * parameters <= cost["flops_per_update"] <= 4 * parameters + 100
    assert cost["bytes"] == 4 * (parameters + 1)  # and the logged loss
    assert cost["waits"] == 1


def test_batch_norm_communication():
    """Mean and mean square of each channel, their gradients, and the running statistics."""
    cost = scale_pod.update_cost(built(convolution(norm=True)), "only", (SIDE, SIDE, INPUTS))
    parameters = 5 * 5 * INPUTS * FILTERS + FILTERS + 2 * FILTERS
    assert cost["bytes"] == 4 * (parameters + 1 + 2 * FILTERS + 2 * 2 * FILTERS)
    assert cost["waits"] == 3


def test_bytes_of_improved_bigan():
    """The arrays of the state, two moments each of the batch's images and reconstructions, and little else."""
    build, name = built(TINY_BIGAN), "reconstruction"
    state = jax.eval_shape(lambda: init_state(TINY_BIGAN, build.optimizers, 0, BIGAN_SHAPE))
    cost = scale_pod.update_cost(build, name, BIGAN_SHAPE)
    networks = TINY_BIGAN.objectives[name].networks
    averaged = [(state.params[n], state.collections[n]) for n in networks]
    minimum = 4 * (sum(x.size for x in jax.tree.leaves(averaged)) + 4 * math.prod(BIGAN_SHAPE))
    assert minimum <= cost["bytes"] < 1.1 * minimum and cost["waits"] > 5


def test_estimate_by_hand():
    step = {"flops_per_image": 90e9, "flops_per_update": 10e9, "bytes": 1e8, "waits": 10}
    chip = scale_pod.estimates(step, devices=4, batch=1, share=0.5)[0]
    assert chip["hardware"] == "TPU v5e"
    np.testing.assert_allclose(chip["compute"], 1e11 / 98.5e12)
    np.testing.assert_allclose(chip["sent_bytes"], 1.5e8)  # 3 quarters, twice
    np.testing.assert_allclose(chip["send"], 1.5e8 / 140e9 + 2e-4)
    np.testing.assert_allclose(chip["efficiency"], 1 / (1 + 985 * (1.5 / 1400 + 2e-4)))


def test_line_fit():
    count = np.array([1, 2, 4, 8])
    np.testing.assert_allclose(scale_pod.line(count, 3 + 2 * count), (3, 2, 0), atol=1e-12)
    assert 0.05 < scale_pod.line(count, count**1.2)[2] < 0.2


def test_point_and_figures(tmp_path):
    """A point with streaming on two devices."""
    files = tmp_path / "files"
    files.mkdir()
    for i in range(8):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(files / f"{i}.png")
    fields = {"size": 16, "images": 50, "batch": 8, "devices": 2, "epochs": 2}
    row = scale.measure({**fields, "model": "fcae", "files": files})
    assert row["steps"] == 6 and len(row["epoch"]) == 2 and row["all_reduce"] > 0
    np.testing.assert_allclose(row["images_per_second"], 48 / np.median(row["epoch"]))
    assert 2**26 < row["peak_bytes"] < 2**31

    results = {name: [row, row] for name in ("sizes", "batches", "devices", "processes")}
    results["processes"] = [{**row, "processes": n} for n in (1, 2)]
    results["images"] = results["streaming"] = [{**row, "images": n} for n in (50, 100)]
    scale_plots.draw(results, tmp_path)
    for name in ("images", "work", "devices"):
        with Image.open(tmp_path / f"scale-{name}.png") as figure:
            assert figure.width > 600 and len(np.unique(np.asarray(figure.convert("L")))) > 50


def test_errors_are_reported(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"error: the point .* must be a multiple of 2, the number"):
        scale.measure({"devices": 2, "batch": 3})
    with pytest.raises(SystemExit):
        scale.main(["plots", f"--output={tmp_path / 'scale.json'}"])
    assert "lacks the parts batches, devices" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scale.main(["pod", f"--output={tmp_path / 'absent' / 'scale.json'}"])
    assert "does not exist" in capsys.readouterr().err
