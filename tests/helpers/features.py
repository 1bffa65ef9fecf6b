"""A small network of features, and the fit and scores of detectors on them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bigan_jax.detector import Batch, inference_net
from bigan_jax.nn.feature_maps import FeatureNetwork
from bigan_jax.training.fitting import Fitter

SHAPE = (16, 16, 3)
GRID = 4


class TinyConvolutions(nn.Module):
    """Feature maps of 16x16 and 8x8 positions, for images of 16x16."""

    @nn.compact
    def __call__(self, images, train=False):
        first = nn.relu(nn.Conv(4, (3, 3))(images))
        return first, nn.tanh(nn.Conv(5, (3, 3), strides=(2, 2))(first))


MODULE = TinyConvolutions()
VARIABLES = jax.device_get(MODULE.init(jax.random.key(1), jnp.zeros((1, *SHAPE))))
NETWORK = FeatureNetwork(MODULE, VARIABLES)


def write_exported(path, variables=VARIABLES, shape="b, 16, 16, 3"):
    """Writes the network as an exported function, and returns the file's name."""
    function = jax.jit(lambda images: MODULE.apply(variables, images))
    exported = export.export(function)(jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32))
    path.write_bytes(exported.serialize())
    return str(path)


def random_images(number, seed=0):
    """Returns uint8 images of smooth noise."""
    return np.random.default_rng(seed).integers(40, 200, (number, *SHAPE), np.uint8)


def fit(detector, images, batch_size=8):
    """Returns the state of a detector fitted on uint8 images."""
    return Fitter(detector, SHAPE, batch_size).fit(images, seed=3)


def score(detector, state, images):
    """Returns the scores and the maps of uint8 images."""
    batch = Batch(jnp.asarray(images / np.float32(255)), jnp.zeros(len(images), jnp.int32))

    @jax.jit
    def run(state, batch):
        net = inference_net(detector, state, detector.frozen)
        return detector.score_and_map(net, batch, None)

    return jax.device_get(run(state, batch))


def reference_features(images, network=NETWORK, grid=GRID):
    """Returns the features of uint8 images on the grid, [n cells channels] for each layer, by loops in float64."""
    maps = network.module.apply(network.variables, images / np.float32(255))
    return [np.stack([_reference_grid(x, grid) for x in np.asarray(layer, np.float64)]) for layer in maps]


def _reference_grid(x, grid):
    """Averages a map [h w c], whose sides are multiples of the grid, over 3x3 neighbors and over each cell."""
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), "edge")
    smooth = sum(padded[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
    rows, columns = h // grid, w // grid
    cells = [
        smooth[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean((0, 1))
        for i in range(grid)
        for j in range(grid)
    ]
    return np.stack(cells)


def reference_projection(images, params):
    """Returns the scaled and projected features of uint8 images, [n cells d] in float64, with a fit's parameters."""
    layers = reference_features(images)
    ends = np.cumsum([x.shape[-1] for x in layers])[:-1]
    centers = np.split(np.asarray(params["center"], np.float64), ends)
    scaled = [(x - c) / s for x, c, s in zip(layers, centers, params["scale"], strict=True)]
    return np.concatenate(scaled, -1) @ np.asarray(params["projection"], np.float64)
