"""Tests that the PyTorch models of the benchmarks equal the JAX detectors.

From the same weights, images and noise they give the same scores and losses.
"""

import importlib
import json
import re

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("torch", reason="the benchmarks compare with PyTorch")

from benchmarks import check, steps
from benchmarks.jax_side import JaxSide
from benchmarks.sides import Task
from benchmarks.torch_models.trainer import one_cycle
from benchmarks.torch_side import TorchSide

TINY = {
    "widths": (8, 16, 32),
    "discriminator_widths": (8, 16, 32),
    "latent": 16,
    "discriminator_hidden": 16,
    "width": 8,
    "hidden": (32, 16),
    "codes": 32,
    "se_ratio": 4,
}


def tiny(model):
    """A task of tiny size with all parts of the model, including VGG16."""
    config = importlib.import_module(f"configs.{model}").get_config("folder")
    changes = {f"model.{name}": value for name, value in TINY.items() if name in config.model}
    return Task(model, size=32, batch=4, search_steps=3, changes=changes)


@pytest.mark.parametrize("model", steps.MODELS)
def test_scores_and_losses_are_equal(model, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax_side, torch_side = JaxSide(tiny(model)), TorchSide(tiny(model))
    initial = jax_side.layers()

    # Move statistics and codebook away from their initial values, which are equal everywhere.
    rng = np.random.default_rng(0)
    jax_side.state = jax_side.state._replace(
        collections=jax.tree.map(
            lambda x: (x * rng.uniform(0.7, 1.3, x.shape) + 0.01).astype(np.float32), jax_side.state.collections
        )
    )
    torch_side.build(jax_side.describe())
    reference = jax_side.first_scores()
    codes = [reference["codes"]] if "codes" in reference else []
    other = torch_side.first_scores(*codes)
    np.testing.assert_allclose(other["scores"], reference["scores"], rtol=1e-3, atol=1e-5)
    assert np.ptp(reference["scores"]) > 1e-4

    for phase, active in jax_side.active.items():
        reference = jax_side.first_step(phase)
        other = torch_side.first_step(phase, initial, reference["noise"])
        assert set(active) == set(reference["losses"]) == set(other["losses"])
        for name, loss in reference["losses"].items():
            assert other["losses"][name] == pytest.approx(loss, rel=1e-3), (phase, name)
        assert jax_side.steps(phase, 2) > 0 and torch_side.steps(phase, 2) > 0


def test_learning_rates_are_equal():
    updates = [0, 20, 7]
    expected = optax.join_schedules(
        [optax.warmup_cosine_decay_schedule(1 / 25, 1, rise, n) for rise, n in ((6, 20), (2, 7))], [20]
    )
    factor = one_cycle(updates)
    np.testing.assert_allclose([factor(i) for i in range(30)], [expected(i) for i in range(30)], atol=1e-6)


def test_main_writes_rows(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # as for a user: optimized, one device
    output = tmp_path / "steps.json"
    steps.main(["--quick", "--models=fcae", "--platform=cpu", f"--output={output}"])
    rows = json.loads(output.read_text(encoding="utf-8"))
    assert [row["step"] for row in rows] == ["score", "phase1"]
    for row in rows:
        rate, flops = row["images_per_second"], row["flops"]
        assert row["ratio"] == pytest.approx(rate["jax"] / rate["eager"])
        # The compiler also counts operations other than matrix products.
        assert flops["eager"] <= flops["jax"] < 2 * flops["eager"]
        assert 0 < row["fraction_of_peak"] < 1
        assert min(*row["peak_bytes"].values(), *row["compile_seconds"].values()) >= 0
    printed = capfd.readouterr().out
    assert all(steps.line(row) in printed for row in rows)


def test_sides_with_different_losses_are_rejected():
    with pytest.raises(AssertionError, match="phase1: elbo"):
        steps.assert_agreement("phase1", {"elbo": 2.0}, {"elbo": 2.01}, 1e-3)
    steps.assert_agreement("phase1", {"elbo": 2.0}, {"elbo": 2.001}, 1e-3)


ROW = {
    "model": "cae",
    "step": "phase1",
    "batch": 32,
    "size": 128,
    "dtype": "float32",
    "machine": "a machine",
    "ratio": 0.9,
}


@pytest.mark.parametrize(
    ("floor", "message"), [(1.0, None), (1.1, r"cae phase1, batch 32.*0\.90 of PyTorch's speed, the floor is 1\.1")]
)
def test_ratio_below_its_floor_fails(tmp_path, monkeypatch, capsys, floor, message):
    """With a margin of 15 %."""
    monkeypatch.setattr(steps, "measure", lambda task, options, report: [ROW])
    floors = tmp_path / "floors.json"
    command = ["--models=cae", f"--floors={floors}"]
    assert check.main(command) == 1 and "no floor" in capsys.readouterr().out
    floors.write_text(json.dumps({"ratios": {check.floor_key(ROW): floor}}))
    assert check.main(command) == int(message is not None)
    assert re.search(message or "none of 1 is slower", capsys.readouterr().out)
    assert check.main([*command, "--set"]) == check.main(command) == 0


@pytest.mark.long
def test_no_detector_is_slower_than_its_floor():
    """Needs an idle machine like that of the floors."""
    assert check.main([]) == 0
