"""Several seeds in one command: each equals the run of the seed alone."""

import csv
import json
import shutil
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bigan_jax
from bigan_jax.commands import seeds, setup, sweep_plan
from bigan_jax.commands.load import restore
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import prepare_jobs
from bigan_jax.configs import cae
from bigan_jax.errors import UserError
from bigan_jax.models import fcae
from bigan_jax.runtime import stop_signals
from bigan_jax.runtime.run_config import default_name, read_config
from bigan_jax.training import epoch_runner
from bigan_jax.training.loop import epoch_order
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.datasets import write_run
from tests.helpers.runs import configured
from tests.helpers.training import (
    OBJECTIVES,
    TINY_BIGAN,
    assert_near,
    gradient_recorder,
    initial_states,
    limit_devices,
    make_runner,
    set_whole_epochs,
)


def train_epochs(runner, state, epochs, objectives=OBJECTIVES):
    """Returns the state after some epochs and an estimate of statistics, and the last logs.

    epochs: image indices [steps, *seeds, batch] of each epoch.
    """
    state = runner.layout.to_devices(state)
    for indices in epochs:
        state, logs = runner.dispatch(state, objectives, indices)
        logs = runner.fetch_logs(logs)
    in_order = np.broadcast_to(np.arange(8), epochs[0].shape)
    state = runner.with_statistics(state, in_order)
    return jax.device_get(runner.layout.from_devices(state)), logs


def stack(states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@pytest.mark.parametrize(
    ("devices", "n_seeds", "scanned"),
    [(1, 3, False), (2, 4, True), (4, 2, False), (4, 2, True)],
    ids=["one device", "two seeds a device", "a seed on all devices", "the same, scanned"],
)
def test_each_seed_equals_its_run_alone(monkeypatch, devices, n_seeds, scanned):
    """Gradients, state, statistics and logs."""
    limit_devices(monkeypatch, devices)
    optimizer, numbers = gradient_recorder(), range(5, 5 + n_seeds)
    states = initial_states(TINY_BIGAN, optimizer, numbers)
    epochs = [[epoch_order(seed, epoch, 32, 2, 8) for seed in numbers] for epoch in range(2)]
    state, logs = train_epochs(
        make_runner(TINY_BIGAN, optimizer, scanned, n_seeds),
        stack(states),
        [np.stack(indices, 1) for indices in epochs],
    )
    runner = make_runner(TINY_BIGAN, optimizer, scanned)
    for i in {0, n_seeds - 1}:
        state_alone, logs_alone = train_epochs(runner, states[i], [epoch[i] for epoch in epochs])
        assert_near(jax.tree.map(lambda x, i=i: x[i], state), state_alone)
        assert logs.keys() == logs_alone.keys()
        for name in logs:
            assert logs[name].shape == (n_seeds, 2)
            assert_near(logs[name][i], logs_alone[name])


def test_seeds_differ_in_initial_values_and_noise():
    optimizer = optax.sgd(0.02)
    states = initial_states(TINY_BIGAN, optimizer, (0, 1))
    kernels = [state.params["encoder"]["Dense_0"]["kernel"] for state in states]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    other_noise = states[0]._replace(seed=states[1].seed)
    indices = epoch_order(0, 0, 32, 2, 8)
    runner = make_runner(TINY_BIGAN, optimizer, False, 2)
    _, logs = train_epochs(runner, stack([states[0], other_noise]), [np.stack([indices, indices], 1)])
    assert np.abs(np.subtract(*logs["discriminator/loss"])).min() > 1e-4


def test_streamed_seeds_each_get_their_images(monkeypatch):
    limit_devices(monkeypatch, 2)
    detector = fcae.create(shape=(16, 16, 1), hidden=(8, 4))
    optimizer, objectives = optax.sgd(0.02), tuple(detector.objectives)
    state = stack(initial_states(detector, optimizer, range(3)))
    epochs = [np.stack([epoch_order(seed, 0, 32, 2, 8) for seed in range(3)], 1)]
    results = [
        train_epochs(make_runner(detector, optimizer, False, 3, streamed), state, epochs, objectives)
        for streamed in (False, True)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)


# --- complete runs --------------------------------------------------------------------------------

TINY = {
    "data.image_size": 32,
    "data.phantom_normal": 40,
    "data.phantom_anomalous": 6,
    "model.latent": 8,
    "model.widths": (8,),
    "batch_size": 8,
    "phases.phase1.epochs": 3,
    "checkpoint.every": 1,
}


def tiny_config(**fields):
    return configured(cae, "phantom", TINY | fields)


def prepare_seeds(workdir):
    return prepare_jobs({workdir / f"seed{k}": tiny_config(seed=k) for k in (0, 1)})


def latest_state(workdir):
    return restore(parse_settings(read_config(workdir)), workdir, 1)[0]


def train_log_without_times(workdir):
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in read_train_log(workdir)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder of two seeds, each trained by a command of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        bigan_jax.train(tiny_config(seed=seed), folder / f"seed{seed}")
    return folder


def test_sequential_seeds_write_the_files_of_runs_alone(alone, tmp_path, capsys):
    workdir = tmp_path / "both"
    summary = bigan_jax.train(tiny_config(seeds=2), workdir)
    for seed in ("seed0", "seed1"):
        names = [sorted(p.name for p in (f / seed).iterdir()) for f in (workdir, alone)]
        assert names[0] == names[1]
        for name in ("config.json", "scores.csv", "evaluation.json", "split.csv", "pixel_statistics.npy"):
            assert (workdir / seed / name).read_bytes() == (alone / seed / name).read_bytes()
        assert train_log_without_times(workdir / seed) == train_log_without_times(alone / seed)

    aurocs = [
        json.loads((alone / f"seed{k}" / "evaluation.json").read_text())["scores"]["calibrated"]["auroc"]
        for k in (0, 1)
    ]
    written = json.loads((workdir / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary)) and written["seeds"] == [0, 1]
    assert written["figures"]["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
    assert written["figures"]["auroc"]["std"] == pytest.approx(np.std(aurocs, ddof=1))
    printed = f"AUROC {np.mean(aurocs):.3f} ± {np.std(aurocs, ddof=1):.3f}"
    assert printed in capsys.readouterr().out and (workdir / "comparison.html").exists()

    scores = (workdir / "seed1" / "scores.csv").read_text()
    config = tiny_config(seeds=2, **{"score.reduction": "max"})
    assert bigan_jax.evaluate(workdir, config)["seeds"] == [0, 1]
    assert (workdir / "seed1" / "scores.csv").read_text() != scores
    assert read_config(workdir / "seed1").seed == 1


def test_seeds_side_by_side_score_as_alone(alone, tmp_path):
    bigan_jax.train(tiny_config(seeds=2), tmp_path, side_by_side=True)
    for seed in ("seed0", "seed1"):
        together, single = (json.loads((folder / seed / "evaluation.json").read_text()) for folder in (tmp_path, alone))
        for name in ("paper", "calibrated"):
            scores = [
                [float(row[name]) for row in csv.DictReader((folder / seed / "scores.csv").open())]
                for folder in (tmp_path, alone)
            ]
            # Not the AUROC: rounding may exchange the ranks of two scores.
            np.testing.assert_allclose(*scores, rtol=1e-3)
            calibration = (result["scores"][name]["calibration_scores"] for result in (together, single))
            np.testing.assert_allclose(*calibration, rtol=1e-3)


@pytest.mark.parametrize(
    ("scanned", "stop_at", "position"),
    [(False, 2, "1 epochs and 1 of 2 steps"), (True, 2, "2 epochs"), (True, 3, "3 epochs")],
)
def test_resume_side_by_side_equals_uninterrupted_run(tmp_path, monkeypatch, scanned, stop_at, position):
    """A stop within an epoch; after an epoch that is one program; and in the last epoch."""
    with prepare_seeds(tmp_path / "uninterrupted") as jobs:
        seeds.train_side_by_side(jobs, scanned)
    dispatch, calls = epoch_runner.EpochRunner.dispatch, []

    def dispatch_and_stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return dispatch(self, *arguments)

    with prepare_seeds(tmp_path / "stopped") as jobs:
        monkeypatch.setattr(epoch_runner.EpochRunner, "dispatch", dispatch_and_stop)
        with pytest.raises(stop_signals.Stopped, match=f"saved after {position} of 3 epochs"):
            seeds.train_side_by_side(jobs, scanned)
    with prepare_seeds(tmp_path / "stopped") as jobs:
        seeds.train_side_by_side(jobs, scanned)
    for seed in ("seed0", "seed1"):
        runs = tmp_path / "uninterrupted" / seed, tmp_path / "stopped" / seed
        jax.tree.map(np.testing.assert_array_equal, *map(latest_state, runs))
        logs = list(map(train_log_without_times, runs))
        assert logs[0] == logs[1]


@pytest.mark.parametrize("scanned", [False, True])
def test_divergence_of_one_seed_does_not_affect_others(alone, tmp_path, monkeypatch, scanned):
    """Also when the next epoch is dispatched before the divergence is detected. The error is the
    one of the seed alone."""
    set_whole_epochs(monkeypatch, scanned)
    init_state = setup.init_state

    def init_state_with_nan(detector, optimizers, seed, shape):
        state = init_state(detector, optimizers, seed, shape)
        params = jax.tree.map(lambda x: jnp.where(seed == 2, jnp.nan, x), state.params)
        return state._replace(params=params)

    monkeypatch.setattr(setup, "init_state", init_state_with_nan)
    with pytest.raises(UserError, match=r"1 of 3 seeds failed\n.*seed2: Training diverged"):
        bigan_jax.train(tiny_config(seeds=3), tmp_path, side_by_side=True)
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == [0, 1]
    assert (tmp_path / "seed2" / "nan.json").exists()
    assert not (tmp_path / "seed2" / "evaluation.json").exists()
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3),
        latest_state(tmp_path / "seed1"),
        latest_state(alone / "seed1"),
    )


def test_errors_of_seeds_name_the_field_or_folder(alone, tmp_path):
    with pytest.raises(UserError, match=r"config\.seeds must be a positive integer \(got 0\)"):
        bigan_jax.train(tiny_config(seeds=0), tmp_path)
    with pytest.raises(UserError, match="holds a run of one seed"):
        bigan_jax.train(tiny_config(seeds=2), alone / "seed0")
    with pytest.raises(UserError, match=r"config\.sweep\.seeds"):
        sweep_plan.plan(tiny_config(seeds=2), "configs/cae.py:phantom", {}, tmp_path)
    assert default_name(tiny_config(seed=3, seeds=2)).name == "cae-phantom-bottle-seeds3-4"


def test_failed_evaluation_of_one_seed_does_not_affect_others(alone, tmp_path):
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    shutil.copytree(alone / "seed0", tmp_path / "seed7")
    shutil.rmtree(tmp_path / "seed0" / "checkpoints")
    fields = json.loads((tmp_path / "seed7" / "config.json").read_text()) | {"seed": 7}
    (tmp_path / "seed7" / "config.json").write_text(json.dumps(fields))
    config = tiny_config(seeds=2, **{"score.reduction": "max"})
    with pytest.raises(UserError, match=r"1 of 3 seeds failed\n.*seed0: .*no checkpoint"):
        bigan_jax.evaluate(tmp_path, config)
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == [1, 7]
    assert read_config(tmp_path / "seed1").score.reduction == "max"


def test_seeds_of_two_datasets_are_not_summarized(tmp_path):
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write_run(folder, seed=seed, category=("bottle", "pill")[seed])
    with pytest.raises(UserError, match=r"different images \(.*bottle.*pill"):
        seeds.summarize(tmp_path, folders)


def test_seeds_that_differ_in_another_field_are_not_summarized(tmp_path):
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        reduction = ("mean", "top1")[seed]
        write_run(folder, seed=seed, config={"score.reduction": reduction})
    with pytest.raises(UserError, match=r"score\.reduction"):
        seeds.summarize(tmp_path, folders)
    assert (tmp_path / "comparison.md").exists() and not (tmp_path / "summary.json").exists()
