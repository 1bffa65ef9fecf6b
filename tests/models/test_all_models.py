"""Properties that all trained detectors have: one suite over all files in configs/."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.detector import Batch, Net, example_keys, inference_net, init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.training import device_layout, epoch_runner, health
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.train_step import TrainingSet
from tests.helpers.training import assert_near, gradient_recorder

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common"))
SHAPE = (32, 32, 1)
CONDITIONS = 2
ADAM = optax.adam(3e-3)


def config_of(name, dataset="phantom"):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    return module.get_config(dataset)


FITTED = [name for name in CONFIGS if not config_of(name).phases]  # tests/models/test_fitted_models.py
TRAINED = [name for name in CONFIGS if name not in FITTED]
ALL = pytest.mark.parametrize("name", TRAINED)


def tiny(name, **changes):
    """The config's detector at toy size, without the frozen VGG16."""
    config = config_of(name)
    with config.unlocked(), config.ignore_type():
        config.data.image_size = SHAPE[0]
        for field, value in config.model.items():
            if field.endswith("widths"):
                config.model[field] = (8, 16, 32)[: max(2, min(3, len(value)))]
            elif field in ("latent", "discriminator_hidden", "width"):
                config.model[field] = 16
            elif field == "hidden":
                config.model[field] = (32, 16)
            elif field == "se_ratio":
                config.model[field] = 1  # one or two squeezed units may all be dead
            elif field == "search_steps":
                config.model[field] = 3
            elif field == "reconstruction_terms":
                config.model[field].perceptual = 0.0
        config.update(changes)
    return build(parse_settings(config), CONDITIONS, steps_per_epoch=4).detector


@pytest.fixture(scope="module")
def dataset():
    """Disks on noise, in two conditions."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    center, radius = rng.uniform(10, 22, (16, 2, 1, 1)), rng.uniform(4, 10, (16, 1, 1))
    disks = np.hypot(y - center[:, 0], x - center[:, 1]) < radius
    noise = rng.integers(0, 60, (16, *SHAPE[:2]))
    image = (disks * 150 + noise).astype(np.uint8)[..., None]
    return TrainingSet(image, (np.arange(16) % CONDITIONS).astype(np.int32))


class Model:
    """A detector at toy size, its initial state, and its programs of training on one device, which tests share."""

    def __init__(self, name, dataset):
        self.name, self.detector = name, tiny(name)
        self.runner = make_runner(self.detector, dataset, ADAM)
        self._initial_state = jax.device_get(initial_state(self.detector, ADAM))

    def initial_state(self):
        """The initial state on the device; training uses its memory again."""
        return device_layout.replicate(self._initial_state)


def make_runner(detector, dataset, optimizer):
    optimizers = dict.fromkeys(detector.objectives, optimizer)
    frozen = device_layout.replicate(dict(detector.frozen))
    return epoch_runner.EpochRunner(
        detector, optimizers, AugmentationSettings(), frozen, device_layout.replicate(dataset), False
    )


def initial_state(detector, optimizer):
    optimizers = dict.fromkeys(detector.objectives, optimizer)
    return jax.jit(lambda: init_state(detector, optimizers, 3, SHAPE))()


def host(state):
    return jax.device_get(device_layout.first(state))


def scorer_of(detector, state):
    return AnomalyScorer(detector, state, ScoreFormula({"mse": 0.7, "ssim": 0.3}), SHAPE, batch_size=8, name="paper")


@pytest.fixture(scope="module", params=TRAINED)
def model(request, dataset):
    """Each model, on one device, which compiles faster, where the number of devices does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        set_devices(patch, 1)
        yield Model(request.param, dataset)


def set_devices(patch, count):
    patch.setattr(jax, "local_device_count", lambda: count)
    patch.setattr(jax, "device_count", lambda: count)


def test_objective_changes_only_its_networks_and_lowers_its_loss(model):
    """Overfits 8 images with one objective at a time."""
    runner = model.runner
    for objective, (networks, _) in model.detector.objectives.items():
        state = model.initial_state()
        before = host(state)
        order = np.tile(np.arange(8), (30, 1))
        state, first = runner.epoch(state, (objective,), order[:1])
        state, _ = runner.epoch(state, (objective,), order)
        state, last = runner.epoch(state, (objective,), order[:1])
        after = host(state)
        assert np.isfinite(list(last.values())).all()
        assert last[f"{objective}/loss"] < first[f"{objective}/loss"]
        for network in before.params:
            unchanged = [
                np.array_equal(a, b)
                for a, b in zip(
                    jax.tree.leaves((before.params[network], before.collections[network])),
                    jax.tree.leaves((after.params[network], after.collections[network])),
                    strict=True,
                )
            ]
            expected = [network not in networks] * len(unchanged)
            assert unchanged == expected, (objective, network)


def test_constant_images_have_a_health_warning(model):
    """The network that outputs images has weights of 0."""
    detector, state = model.detector, model.initial_state()
    output = "generator" if "generator" in detector.networks else "decoder"
    params = state.params | {output: jax.tree.map(jnp.zeros_like, state.params[output])}
    _, logs = model.runner.epoch(state._replace(params=params), tuple(detector.objectives), np.arange(8)[None])
    warnings = "\n".join(health.health_warnings(jax.tree.map(np.mean, logs)))
    expected = {f"{images} vary 0% as much" for images in ("its images", "they") if images in warnings}
    assert expected and all(text in warnings for text in expected)
    assert ("generated_spread" in str(logs)) == ("generator has collapsed" in warnings)
    assert ("reconstruction_spread" in str(logs)) == ("same for every image: they" in warnings)


def test_images_are_scored_independently(model, dataset):
    detector = model.detector
    state = model.runner.with_statistics(model.initial_state(), np.arange(16).reshape(2, 8))
    state = device_layout.first(state)
    scorer = scorer_of(detector, state)
    batch_scores = scorer.score(dataset.image, dataset.condition)
    assert batch_scores.reconstruction.shape == dataset.image.shape
    assert batch_scores.reconstruction.dtype == np.uint8
    assert (batch_scores.native is None) == (detector.native_score is None)
    single = scorer.score(dataset.image[11:12], dataset.condition[11:12])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a[0]), np.float32(b[11]), rtol=1e-4, atol=1 if a.dtype == np.uint8 else 1e-4
        ),
        single[1:],  # without the name
        batch_scores[1:],
    )


def test_reconstructions_are_in_range_before_rounding(model, dataset):
    detector = model.detector
    net = inference_net(detector, device_layout.first(model.initial_state()), detector.frozen)
    batch = Batch(jnp.asarray(dataset.image / 255, jnp.float32), jnp.asarray(dataset.condition))
    keys = jnp.broadcast_to(jax.random.key(0), 16)
    if detector.search:
        batch = batch._replace(latent=detector.search.start(net, batch, keys))
    image = jax.jit(lambda b: detector.reconstruct(net, b, keys))(batch)
    assert image.shape == batch.image.shape and image.dtype == jnp.float32
    assert float(image.min()) >= 0 and float(image.max()) <= 1


def test_one_and_four_devices_agree(model, dataset, monkeypatch):
    detector, optimizer = model.detector, gradient_recorder()
    objectives = tuple(detector.objectives)
    order = np.random.default_rng(1).permutation(16).reshape(2, 8)
    before, results = jax.device_get(initial_state(detector, optimizer)), []
    for devices in (1, 4):
        set_devices(monkeypatch, devices)
        runner = make_runner(detector, dataset, optimizer)
        for _ in range(devices // 4 + 1):
            state, logs = runner.epoch(device_layout.replicate(before), objectives, order)
            state = runner.with_statistics(state, order)
            results.append((logs, host(state)))
    assert_near(*results[:2])
    jax.tree.map(np.testing.assert_array_equal, *results[1:])


def test_saved_and_restored_states_are_equal(model, tmp_path):
    saved = device_layout.first(model.initial_state())
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(Progress(1), saved)
    checkpoints.close()
    _, restored = CheckpointManager(tmp_path, read_only=True).restore(jax.eval_shape(lambda: saved))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(saved))


@pytest.mark.long
def test_bfloat16_stays_near_float32(model, dataset):
    images = []
    for dtype in ("float32", "bfloat16"):
        detector, optimizer = tiny(model.name, dtype=dtype), optax.adam(1e-3)
        runner = make_runner(detector, dataset, optimizer)
        state = device_layout.replicate(initial_state(detector, optimizer))
        state, logs = runner.epoch(state, tuple(detector.objectives), np.arange(8)[None])
        state = device_layout.first(runner.with_statistics(state, np.arange(8)[None]))
        assert np.isfinite(list(logs.values())).all()
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        images.append(scorer_of(detector, state).score(dataset.image).reconstruction)
    assert np.abs(images[0].astype(float) - images[1]).mean() < 8  # of 255


def test_every_trained_parameter_has_a_gradient(model, dataset):
    detector, state = model.detector, device_layout.first(model.initial_state())
    batch = Batch(jnp.asarray(dataset.image / 255, jnp.float32), jnp.asarray(dataset.condition))
    keys = example_keys(jax.random.key(0), jnp.arange(16))
    for objective, (networks, loss) in detector.objectives.items():

        def value(owned, loss=loss):
            variables = {n: {"params": p, **state.collections[n]} for n, p in (state.params | owned).items()}
            net = Net(detector.networks, variables | dict(detector.frozen), train=True)
            return loss(net, batch, keys)[0]

        trained = {n: state.params[n] for n in networks}
        mapped = jax.vmap(jax.grad(value), axis_name="batch", axis_size=1, in_axes=None)
        gradients, _ = jax.tree_util.tree_flatten_with_path(jax.jit(mapped)(trained))
        for path, gradient in gradients:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            # The decoder's first BatchNorm subtracts this bias again: its gradient is rounding.
            if (model.name, where) != ("fcae", "encoder/Dense_1/bias"):
                assert float(jnp.abs(gradient).max()) > 0, (objective, where)


@pytest.mark.parametrize("name", TRAINED)
def test_parameter_count_is_as_stated(name):
    config = config_of(name, "brain")
    built = build(parse_settings(config), 1, steps_per_epoch=1)
    state = jax.eval_shape(lambda: init_state(built.detector, built.optimizers, 0, (128, 128, 1)))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    model = __import__(f"bigan_jax.models.{config.model_name}", fromlist=["create"])
    stated = re.search(r"([\d,]+) parameters at 128x128x1", model.__doc__)
    assert stated, f"{model.__name__} does not state its parameters ({count:,})"
    assert int(stated[1].replace(",", "")) == count


@pytest.mark.parametrize(
    ("name", "argument", "fields"),
    [("cae", "phantom", {"phases.phase1.epochs": 0}), ("improved_bigan", "phantom,plain,no_adversarial", {})],
)
def test_schedule_that_trains_nothing_is_refused(name, argument, fields):
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match="no epoch with an active objective"):
        build(parse_settings(config), 1, steps_per_epoch=1)


TERMS = "model.reconstruction_terms"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("bigan", {"model.discriminator_dropout": 1.0}, "below 1"),
        ("bigan", {"model.averaging": 2.0}, "below 1"),
        ("bigan", {"model.discriminator_hidden": 0}, "positive integer"),
        ("vqvae", {"model.decay": 1.0}, "below 1"),
        ("vqvae", {"model.codes": 0}, "positive integer"),
        ("vqvae", {"model.residual_width": 0}, "positive integer"),
        ("vqvae", {"model.data_variance": 0.0}, "above 0"),
        ("ganomaly", {"model.width": 0}, "positive integer"),
        ("anogan", {"model.feature_weight": 3.0}, "from 0 to 1"),
        ("cae", {"optimizers.reconstruction.learning_rate": -1e-3}, "above 0"),
        ("cae", {"optimizers.reconstruction.b1": 1.0}, "below 1"),
        ("improved_bigan", {f"{TERMS}.mse": -1.0}, "at least 0"),
        (
            "improved_bigan",
            {f"{TERMS}.{term}": 0.0 for term in ("mse", "mae", "perceptual", "ssim")},
            "one of mae, mse",
        ),
    ],
)
def test_value_out_of_range_is_refused_by_field_name(name, fields, message):
    config = importlib.import_module(f"configs.{name}").get_config("phantom")
    config.update_from_flattened_dict(fields)
    field = TERMS if len(fields) > 1 else next(iter(fields))
    with pytest.raises(UserError, match=rf"config\.{field}.*{message}"):
        build(parse_settings(config), 1, steps_per_epoch=1)
