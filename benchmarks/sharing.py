"""Images, weights and noise of the JAX side as plain arrays, for both sides."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigan_jax.detector import Batch, Detector, Net, TrainState, example_keys
from bigan_jax.nn import losses
from bigan_jax.training.train_step import TrainingSet

CONDITIONS = 3  # of the conditional VAE; the other models ignore them


def draw(shape, count) -> TrainingSet:
    """Random images with coarse shapes and fine grain."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 200, (count, 8, 8, shape[2]))
    large = small.repeat(shape[0] // 8, 1).repeat(shape[1] // 8, 2)
    image = (large + rng.integers(0, 56, (count, *shape))).astype(np.uint8)
    return TrainingSet(image, rng.integers(0, CONDITIONS, count).astype(np.int32))


def noise(model: str, latent: int, batch: int, update_index: int) -> np.ndarray:
    """The latent codes that one update of the first step with seed 0 draws, [batch, latent].

    They come from the same keys as in train_step.update.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), update_index)
    keys = example_keys(key, jnp.arange(batch))
    if model == "anogan":
        draw_one = partial(jax.random.uniform, shape=(latent,), minval=-1, maxval=1)
        return np.asarray(jax.vmap(draw_one)(keys))
    return np.asarray(losses.standard_normal(keys, latent))


def layers(
    detector: Detector, state: TrainState, shape: tuple[int, int, int]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """The layers of each network in call order, each as arrays by name."""
    variables = {name: {"params": params, **state.collections[name]} for name, params in state.params.items()} | dict(
        detector.frozen
    )
    net = _Recorder(detector.networks, variables, train=False)
    batch = Batch(jnp.zeros((2, *shape)), jnp.zeros(2, jnp.int32))
    keys = example_keys(jax.random.key(0), jnp.arange(2))
    for objective in detector.objectives.values():
        jax.eval_shape(lambda o=objective: o.loss(net, batch, keys)[0])
    return {
        name: [arrays for path in dict.fromkeys(paths) if (arrays := _at(variables[name], path))]
        for name, paths in net.paths.items()
    }


class _Recorder(Net):
    """Records the paths of the modules that each network calls."""

    def __init__(self, networks, variables, train):
        super().__init__(networks, variables, train)
        self.paths = {}

    def __call__(self, name, *args, **kwargs):
        def record(call, args, kwargs, context):
            self.paths.setdefault(name, []).append(context.module.path)
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            return super().__call__(name, *args, **kwargs)


def _at(variables, path):
    """The arrays directly at the path of a module, from all collections."""
    arrays = {}
    for node in variables.values():
        for part in path:
            node = node.get(part, {})
        arrays |= {name: np.asarray(x) for name, x in node.items() if not hasattr(x, "items")}
    return arrays
