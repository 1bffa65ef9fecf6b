"""Several seeds side by side: each as it is alone."""

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
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.models import fcae, improved_bigan
from bigan_jax.runtime import preemption
from bigan_jax.runtime.run_config import default_name, read_config
from bigan_jax.training import epoch_runner
from bigan_jax.training.loop import epoch_order
from bigan_jax.training.saving.train_log import read_train_log
from bigan_jax.training.train_step import TrainingSet
from tests.commands.test_train import configured
from tests.helpers.datasets import write_run
from tests.training.test_divergence import by_programs

SHAPE = (16, 16, 1)
BIGAN = improved_bigan.create(
    shape=SHAPE,
    latent=8,
    widths=(8,),
    discriminator_widths=(8,),
    discriminator_hidden=8,
    se_ratio=4,
    reconstruction_terms={"mse": 1.0},
)
DUE = ("discriminator", "adversarial", "reconstruction")
AUGMENTATION = {"flip": True, "translate": 0.05, "scale": 0.05}
PICTURES = TrainingSet(
    np.random.default_rng(0).integers(0, 256, (32, *SHAPE), np.uint8), np.zeros(32, np.int32)
)


def devices(monkeypatch, number):
    monkeypatch.setattr(jax, "local_device_count", lambda: number)
    monkeypatch.setattr(jax, "device_count", lambda: number)


def runner(detector, optimizer, scanned, seeds=0, streamed=False):
    return epoch_runner.EpochRunner(
        detector,
        dict.fromkeys(detector.objectives, optimizer),
        AUGMENTATION,
        epoch_runner.replicate(dict(detector.frozen)),
        PICTURES if streamed else epoch_runner.replicate(PICTURES),
        scanned,
        seeds,
    )


def trained(run, state, orders, due=DUE):
    """The state after two epochs and an estimate of statistics, and the logs of the second."""
    state = run.layout.to_devices(state)
    for order in orders:
        state, logs = run.epoch(state, due, order)
    in_order = np.broadcast_to(np.arange(8), orders[0].shape)
    state = run.with_statistics(state, in_order)
    return jax.device_get(run.layout.from_devices(state)), logs


def states(detector, optimizer, seeds):
    optimizers = dict.fromkeys(detector.objectives, optimizer)
    begin = jax.jit(lambda seed: init_state(detector, optimizers, seed, SHAPE))
    return [begin(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("number", "seeds", "scanned"),
    [(1, 3, False), (2, 4, True), (4, 2, False), (4, 2, True)],
    ids=["on one device", "two a device", "all on all", "all on all, scanned"],
)
def test_each_seed_is_as_it_is_alone(monkeypatch, number, seeds, scanned):
    """State, statistics and logs. Plain gradient descent: see test_detector."""
    devices(monkeypatch, number)
    optimizer, names = optax.sgd(0.02), range(5, 5 + seeds)
    begin = states(BIGAN, optimizer, names)
    orders = [[epoch_order(seed, epoch, 32, 2, 8) for seed in names] for epoch in range(2)]
    together, logs = trained(
        runner(BIGAN, optimizer, scanned, seeds),
        jax.tree.map(lambda *x: jnp.stack(x), *begin),
        [np.stack(order, 1) for order in orders],
    )
    alone = runner(BIGAN, optimizer, scanned)
    for i in {0, seeds - 1}:
        state, its_logs = trained(alone, begin[i], [order[i] for order in orders])
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
            jax.tree.map(lambda x, i=i: x[i], together),
            state,
        )
        assert logs.keys() == its_logs.keys()
        for name in logs.keys() - {"adversarial/spread", "adversarial/real_spread"}:
            assert logs[name].shape == (seeds, 2)
            np.testing.assert_allclose(logs[name][i], its_logs[name], rtol=1e-3, atol=1e-4)


def test_seeds_differ():
    """They do not all train on the same noise, pictures or initial values."""
    optimizer = optax.sgd(0.02)
    begin = states(BIGAN, optimizer, (0, 1))
    kernel = [state.params["encoder"]["Dense_0"]["kernel"] for state in begin]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    same = begin[0]._replace(seed=begin[1].seed)  # but for the noise
    order = epoch_order(0, 0, 32, 2, 8)
    run = runner(BIGAN, optimizer, False, 2)
    both = jax.tree.map(lambda *x: jnp.stack(x), begin[0], same)
    _, logs = trained(run, both, [np.stack([order, order], 1)])
    assert np.abs(np.subtract(*logs["discriminator/loss"])).min() > 1e-4


def test_streamed_seeds_each_get_their_pictures(monkeypatch):
    devices(monkeypatch, 2)
    detector = fcae.create(shape=SHAPE, hidden=(8, 4))
    optimizer, due = optax.sgd(0.02), tuple(detector.objectives)
    begin = jax.tree.map(lambda *x: jnp.stack(x), *states(detector, optimizer, range(3)))
    orders = [np.stack([epoch_order(seed, 0, 32, 2, 8) for seed in range(3)], 1)]
    found = [
        trained(runner(detector, optimizer, scanned, 3, streamed), begin, orders, due)
        for scanned, streamed in ((False, False), (False, True))
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)


# --- whole runs -----------------------------------------------------------------------------------

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


def config(**fields):
    return configured(cae, "phantom", TINY | fields)


def runs(workdir, seeds=(0, 1), **fields):
    """The tasks of `job.prepared`."""
    return prepare_jobs({workdir / f"seed{k}": config(seed=k, **fields) for k in seeds})


def state_of(workdir):
    return restore(parse_settings(read_config(workdir)), workdir, 1)[0]


def without_times(workdir):
    rows = read_train_log(workdir)
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two seeds, each by a command of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        bigan_jax.train(config(seed=seed), folder / f"seed{seed}")
    return folder


def test_seeds_that_take_turns_leave_what_their_own_commands_would(alone, tmp_path, capsys):
    summary = bigan_jax.train(config(seeds=2), tmp_path / "both")
    for seed in ("seed0", "seed1"):
        theirs, own = tmp_path / "both" / seed, alone / seed
        names = [sorted(p.name for p in folder.iterdir()) for folder in (theirs, own)]
        assert names[0] == names[1]
        for name in ("config.json", "scores.csv", "evaluation.json", "split.csv"):
            assert (theirs / name).read_text() == (own / name).read_text()
        assert without_times(theirs) == without_times(own)

    aurocs = [
        json.loads((alone / f"seed{k}" / "evaluation.json").read_text())["auroc"] for k in (0, 1)
    ]
    found = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert found == json.loads(json.dumps(summary)) and found["seeds"] == [0, 1]
    assert found["figures"]["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
    assert found["figures"]["auroc"]["std"] == pytest.approx(np.std(aurocs, ddof=1))
    said = f"AUROC {np.mean(aurocs):.3f} ± {np.std(aurocs, ddof=1):.3f}"
    assert said in capsys.readouterr().out and (tmp_path / "both" / "comparison.html").exists()

    before = (tmp_path / "both" / "seed1" / "scores.csv").read_text()
    again = config(seeds=2, **{"score.reduction": "max"})
    assert bigan_jax.evaluate(tmp_path / "both", again)["seeds"] == [0, 1]
    assert (tmp_path / "both" / "seed1" / "scores.csv").read_text() != before
    assert read_config(tmp_path / "both" / "seed1").seed == 1


def test_seeds_side_by_side_score_as_alone(alone, tmp_path):
    seeds.train(config(seeds=2), tmp_path, side_by_side=True)
    for seed in ("seed0", "seed1"):
        found, own = (
            json.loads((folder / seed / "evaluation.json").read_text())
            for folder in (tmp_path, alone)
        )
        assert found["auroc"] == pytest.approx(own["auroc"], abs=1e-3)
        np.testing.assert_allclose(
            found["calibration_scores"], own["calibration_scores"], rtol=1e-3
        )


@pytest.mark.parametrize(
    ("scanned", "at", "place"),
    [(False, 2, "1 epochs and 1 of 3 steps"), (True, 2, "2 epochs"), (True, 3, "3 epochs")],
)
def test_stopped_side_by_side_ends_as_if_never_stopped(tmp_path, monkeypatch, scanned, at, place):
    """Within an epoch; where it is a program, once it is done; and in the last of all."""
    with runs(tmp_path / "whole") as tasks:
        seeds.train_side_by_side(tasks, scanned)
    begin, calls = epoch_runner.EpochRunner.dispatch, []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == at:
            signal.raise_signal(signal.SIGTERM)
        return begin(self, *arguments)

    with runs(tmp_path / "broken") as tasks:
        monkeypatch.setattr(epoch_runner.EpochRunner, "dispatch", stop)
        with pytest.raises(preemption.Stopped, match=f"saved after {place} of 3 epochs"):
            seeds.train_side_by_side(tasks, scanned)
    with runs(tmp_path / "broken") as tasks:
        seeds.train_side_by_side(tasks, scanned)
    for seed in ("seed0", "seed1"):
        whole, broken = tmp_path / "whole" / seed, tmp_path / "broken" / seed
        jax.tree.map(np.testing.assert_array_equal, state_of(whole), state_of(broken))
        assert without_times(whole) == without_times(broken)


@pytest.mark.parametrize("scanned", [False, True])
def test_a_seed_that_diverges_leaves_the_others_alone(alone, tmp_path, monkeypatch, scanned):
    """Side by side, also when the next epoch has begun by the time that it is seen; afterwards it
    is told as it would be alone."""
    by_programs(monkeypatch, scanned)
    begin = init_state

    def with_one_bad(detector, optimizers, seed, shape):
        state = begin(detector, optimizers, seed, shape)
        bad = jax.tree.map(lambda x: jnp.where(seed == 2, jnp.nan, x), state.params)
        return state._replace(params=bad)

    monkeypatch.setattr(setup, "init_state", with_one_bad)
    with pytest.raises(UserError, match=r"1 of 3 seeds failed\n.*seed2: Training diverged"):
        seeds.train(config(seeds=3), tmp_path, side_by_side=True)
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == [0, 1]
    assert (tmp_path / "seed2" / "nan.json").exists()
    assert not (tmp_path / "seed2" / "evaluation.json").exists()
    found, own = state_of(tmp_path / "seed1"), state_of(alone / "seed1")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3), found, own)


def test_mistakes_about_seeds_are_told(alone, tmp_path):
    with pytest.raises(UserError, match=r"config\.seeds=0"):
        bigan_jax.train(config(seeds=0), tmp_path)
    with pytest.raises(UserError, match="holds a run of one seed"):
        bigan_jax.train(config(seeds=2), alone / "seed0")
    with pytest.raises(UserError, match=r"config\.sweep\.seeds"):
        sweep_plan.plan(config(seeds=2), "configs/cae.py:phantom", {}, tmp_path)
    assert default_name(config(seed=3, seeds=2)).name == "cae-phantom-bottle-seeds3-4"


def test_a_seed_that_cannot_be_evaluated_leaves_the_others_alike(alone, tmp_path):
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    shutil.copytree(alone / "seed0", tmp_path / "seed7")
    shutil.rmtree(tmp_path / "seed0" / "checkpoints")
    fields = json.loads((tmp_path / "seed7" / "config.json").read_text()) | {"seed": 7}
    (tmp_path / "seed7" / "config.json").write_text(json.dumps(fields))
    again = config(seeds=2, **{"score.reduction": "max"})
    with pytest.raises(UserError, match=r"1 of 3 seeds failed\n.*seed0: .*no checkpoint"):
        bigan_jax.evaluate(tmp_path, again)
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == [1, 7]
    assert read_config(tmp_path / "seed1").score.reduction == "max"


def test_seeds_of_two_sets_have_no_summary(tmp_path):
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write_run(folder, seed=seed, category=("bottle", "pill")[seed])
    with pytest.raises(UserError, match=r"different pictures \(.*bottle.*pill"):
        seeds.summarize(tmp_path, folders)


def test_seeds_that_differ_in_more_have_no_summary(tmp_path):
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        reduction = ("mean", "top1")[seed]
        write_run(folder, seed=seed, config={"score.reduction": reduction})
    with pytest.raises(UserError, match=r"score\.reduction"):
        seeds.summarize(tmp_path, folders)
    assert (tmp_path / "comparison.md").exists() and not (tmp_path / "summary.json").exists()
