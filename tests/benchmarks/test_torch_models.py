"""The PyTorch versions that the benchmarks compare with are the same detectors: from the same
weights, pictures and noise they give the same scores and losses."""

import importlib
import json
import re

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("torch", reason="the other side of the benchmarks is PyTorch's")

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
    """A task at toy size, with all its parts in place, VGG16 too."""
    config = importlib.import_module(f"configs.{model}").get_config("folder")
    changes = {f"model.{name}": value for name, value in TINY.items() if name in config.model}
    return Task(model, size=32, batch=4, search_steps=3, changes=changes)


@pytest.mark.parametrize("model", steps.MODELS)
def test_scores_and_losses_are_the_same(model, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    ours, theirs = JaxSide(tiny(model)), TorchSide(tiny(model))
    initial = ours.layers()

    # Statistics and codebook away from their first values, which are the same everywhere.
    rng = np.random.default_rng(0)
    ours.state = ours.state._replace(
        collections=jax.tree.map(
            lambda x: (x * rng.uniform(0.7, 1.3, x.shape) + 0.01).astype(np.float32),
            ours.state.collections,
        )
    )
    theirs.build(ours.describe())
    mine = ours.first_scores()
    other = theirs.first_scores(*([mine["codes"]] if "codes" in mine else []))
    np.testing.assert_allclose(other["scores"], mine["scores"], rtol=1e-3, atol=1e-5)
    assert np.ptp(mine["scores"]) > 1e-4

    for phase, due in ours.due.items():
        mine = ours.first_step(phase)
        other = theirs.first_step(phase, initial, mine["noise"])
        assert set(due) == set(mine["losses"]) == set(other["losses"])
        for name, loss in mine["losses"].items():
            assert other["losses"][name] == pytest.approx(loss, rel=1e-3), (phase, name)
        assert ours.steps(phase, 2) > 0 and theirs.steps(phase, 2) > 0


def test_learning_rates_are_the_same():
    updates = [0, 20, 7]
    ours = optax.join_schedules(
        [optax.warmup_cosine_decay_schedule(1 / 25, 1, rise, n) for rise, n in ((6, 20), (2, 7))],
        [20],
    )
    share = one_cycle(updates)
    np.testing.assert_allclose(
        [share(i) for i in range(30)], [ours(i) for i in range(30)], atol=1e-6
    )


def test_a_run_leaves_its_rows(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # as a user runs it: optimized, one device
    output = tmp_path / "steps.json"
    steps.main(["--quick", "--models=fcae", "--platform=cpu", f"--output={output}"])
    rows = json.loads(output.read_text(encoding="utf-8"))
    assert [row["step"] for row in rows] == ["score", "phase1"]
    for row in rows:
        rate, flops = row["pictures_per_second"], row["flops"]
        assert row["ratio"] == pytest.approx(rate["jax"] / rate["eager"])
        # The compiler counts what is not a matrix product as well.
        assert flops["eager"] <= flops["jax"] < 2 * flops["eager"]
        assert 0 < row["share_of_peak"] < 1
        assert min(*row["peak_bytes"].values(), *row["compile_seconds"].values()) >= 0
    printed = capfd.readouterr().out
    assert all(steps.line(row) in printed for row in rows)


def test_sides_that_differ_are_not_compared():
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
    ("floor", "told"),
    [(1.0, None), (1.1, r"cae phase1, batch 32.*0\.90 of PyTorch's speed, the floor 1\.1")],
)
def test_what_is_slower_than_its_floor_fails(tmp_path, monkeypatch, capsys, floor, told):
    """By more than the margin, of 15 %."""
    monkeypatch.setattr(steps, "measure", lambda task, how, say: [ROW])
    floors = tmp_path / "floors.json"
    command = ["--models=cae", f"--floors={floors}"]
    assert check.main(command) == 1 and "no floor" in capsys.readouterr().out
    floors.write_text(json.dumps({"ratios": {check.place(ROW): floor}}))
    assert check.main(command) == int(told is not None)
    assert re.search(told or "none of 1 is slower", capsys.readouterr().out)
    assert check.main([*command, "--set"]) == check.main(command) == 0


@pytest.mark.long
def test_no_detector_is_slower_than_its_floor():
    """Wants the machine for itself, and one like that of the floors."""
    assert check.main([]) == 0
