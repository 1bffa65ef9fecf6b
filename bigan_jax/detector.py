"""The definition of a detector: networks, objectives or fit, reconstruction or score; and its trained state.

Training is multi-objective: each objective updates some of the networks with one loss, as the two objectives of a GAN
do. training/train_step.py takes the update steps, and training/schedules.py determines which objectives are active in
a step. A detector without gradients, such as a PCA, is fitted instead (training/fitting.py).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

Logs = dict[str, Float[Array, ""]]
Variables = dict[str, PyTree]  # Flax variables of a network: {"params": ..., "batch_stats": ...}
FITTED = "fitted"  # the name of a fit's parameters among those of networks


class Batch(NamedTuple):
    """Images as losses and scores receive them."""

    image: Float[Array, "b h w c"]  # in [0, 1]
    condition: Int[Array, "b"]  # class labels known of normal and anomalous images alike, such as the species
    latent: PyTree = None  # in scoring, the result of the detector's latent search, if it has one


class Objective(NamedTuple):
    """A loss and the networks that it updates: their parameters and collections, such as BatchNorm statistics."""

    networks: tuple[str, ...]
    # Returns the loss and scalars to log by name.
    loss: Callable[["Net", Batch, Key[Array, "b"]], tuple[Float[Array, ""], Logs]]


class LatentSearch(NamedTuple):
    """An iterative search for each image's latent code, for detectors without an encoder.

    It runs at scoring time, separately for each image of a batch. Its state is a tree of arrays [b, ...].
    """

    steps: int
    start: Callable[["Net", Batch, Key[Array, "b"]], PyTree]
    step: Callable[["Net", Batch, PyTree], PyTree]


class FitBatch(NamedTuple):
    """Training images as a fit receives them, on one device."""

    image: Float[Array, "b h w c"]  # in [0, 1]
    weight: Float[Array, "b"]  # 1; 0 for padding
    index: Int[Array, "b"]  # the image's position among the `count` images of the pass; 0 for padding
    count: Int[Array, ""]

    def fold(self, folds: int) -> Float[Array, "b folds"]:
        """Returns each image's weight in each of several contiguous folds of the pass's images."""
        fold = self.index * folds // self.count
        return self.weight[:, None] * (fold[:, None] == jnp.arange(folds))


class FitPass(NamedTuple):
    """One pass over the training images, which computes parameters from sums over images."""

    name: str
    # Returns sums over the images of a batch, with their weights. All batches and devices are added up.
    sums: Callable[["Net", FitBatch], PyTree]
    # Returns the parameters from those before the pass and the sums of all images; float64, on the host.
    finish: Callable[[PyTree, PyTree], PyTree]
    limit: int | None = None  # largest number of images, always the same draw; None for all


class Fit(NamedTuple):
    """How a detector without objectives gets its parameters, which its functions find in `net.fitted`."""

    init: Callable[[Key[Array, ""]], PyTree]  # parameters of the final shapes, before the first pass
    passes: tuple[FitPass, ...]


class Detector(NamedTuple):
    """A model, as networks and pure functions.

    It has objectives or a fit, and it either reconstructs images or has a score and a map of its own.
    """

    networks: Mapping[str, nn.Module]  # called as `net(name, ...)`; those that no objective updates are frozen
    objectives: Mapping[str, Objective]  # the active ones take their update steps in this order
    # Returns reconstructions in [0, 1]. BatchNorm's statistics for scoring are those of its calls on training images.
    reconstruct: Callable[["Net", Batch, Key[Array, "b"]], Float[Array, "b h w c"]] | None = None
    # Returns the anomaly scores that the model's paper defines, if it does.
    native_score: Callable[["Net", Batch, Key[Array, "b"]], Float[Array, "b"]] | None = None
    # Returns an anomaly score and an anomaly map of each image, for detectors that do not reconstruct.
    score_and_map: Callable[["Net", Batch, Key[Array, "b"]], tuple[Float[Array, "b"], Float[Array, "b h w"]]] | None = (
        None
    )
    fit: Fit | None = None
    frozen: Mapping[str, Variables] = {}  # variables of the frozen networks
    search: LatentSearch | None = None  # runs before `reconstruct` and `native_score`; result in `batch.latent`
    averaging: float = 0.0  # decay of the moving average of weights that is used for scoring; 0 for none
    enough_images: int = 0  # number of training images below which other detectors of its kind are better
    notes: tuple[str, ...] = ()  # messages about this detector on these data, for the log and the report


class TrainState(NamedTuple):
    """The state of training, as a checkpoint stores it."""

    step: Int[Array, ""]  # number of training steps taken
    seed: Int[Array, ""]
    params: dict[str, PyTree]  # by network
    collections: dict[str, dict[str, PyTree]]  # other Flax collections by network: BatchNorm statistics, codebooks
    opt_state: dict[str, PyTree]  # by objective
    average: dict[str, PyTree]  # moving average of `params`; empty if the detector has none


class Net:
    """Applies a detector's networks by name: `net("encoder", image)`.

    In training it records the updated collections of each call. If a loss calls a network several times (D on real
    and on generated images), its new collections are the mean over the calls.
    """

    def __init__(self, networks: Mapping[str, nn.Module], variables: Mapping[str, Variables], train: bool):
        self.networks, self.variables, self.train = networks, variables, train
        self.updates: dict[str, list[PyTree]] = {}  # the updated collections of each call, by network

    def __call__(self, name: str, *args, **kwargs):
        variables = self.variables[name]
        mutable = [c for c in variables if c != "params"] if self.train else False
        result = self.networks[name].apply(variables, *args, train=self.train, mutable=mutable, **kwargs)
        if not self.train:
            return result
        output, updated = result
        self.updates.setdefault(name, []).append(updated)
        return output

    @property
    def fitted(self) -> PyTree:
        """The parameters of a fitted detector."""
        return self.variables[FITTED]["params"]

    def collections(self, names: tuple[str, ...]) -> dict[str, PyTree]:
        """Returns the updated collections of those of the named networks that were called."""
        return {name: tree_mean(self.updates[name]) for name in names if name in self.updates}


class _InitNet(Net):
    """Initializes the variables of a network when it is first called."""

    def __init__(self, key, networks, variables):
        super().__init__(networks, variables, train=False)
        self.key = key

    def __call__(self, name, *args, **kwargs):
        if name not in self.variables:
            key = jax.random.fold_in(self.key, sorted(self.networks).index(name))
            variables = self.networks[name].init(key, *args, train=False, **kwargs)
            self.variables = {**self.variables, name: variables}
        return super().__call__(name, *args, **kwargs)


def tree_mean(trees: list[PyTree]) -> PyTree:
    """Returns the mean of trees of the same structure, leaf by leaf."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: sum(x) / len(x), *trees)


def owned_networks(detector: Detector) -> tuple[str, ...]:
    """Returns the networks that objectives update, in the detector's order."""
    owned = {name for objective in detector.objectives.values() for name in objective.networks}
    return tuple(name for name in detector.networks if name in owned)


def init_state(
    detector: Detector,
    optimizers: Mapping[str, optax.GradientTransformation],
    seed: int | Int[Array, ""],
    shape: tuple[int, int, int],
) -> TrainState:
    """Returns the state before the first step.

    Every loss is evaluated once, which shows the shapes of its networks' inputs. `optimizers` are by objective, and
    `shape` is the (height, width, channels) of the images.
    """
    key = jax.random.key(seed)
    net = _InitNet(key, detector.networks, detector.frozen)
    batch = Batch(jnp.zeros((2, *shape)), jnp.zeros(2, jnp.int32))
    for objective in detector.objectives.values():
        objective.loss(net, batch, example_keys(key, jnp.arange(2)))
    variables = {name: net.variables[name] for name in owned_networks(detector)}
    if detector.fit:
        variables[FITTED] = {"params": detector.fit.init(key)}
    params = {name: v["params"] for name, v in variables.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        collections={n: {c: x for c, x in v.items() if c != "params"} for n, v in variables.items()},
        opt_state={
            name: optimizers[name].init({n: params[n] for n in objective.networks})
            for name, objective in detector.objectives.items()
        },
        average=params if detector.averaging else {},
    )


def inference_net(detector: Detector, state: TrainState, frozen: Mapping[str, Variables]) -> Net:
    """Returns the trained networks in inference mode: BatchNorm uses the collected statistics."""
    variables = network_variables(state, scoring_params(state)) | dict(frozen)
    return Net(detector.networks, variables, train=False)


def scoring_params(state: TrainState) -> dict[str, PyTree]:
    """Returns the parameters for scoring: the moving average if there is one, else the last."""
    return state.average or state.params


def network_variables(state: TrainState, params: Mapping[str, PyTree]) -> dict[str, Variables]:
    """Returns the variables of the networks in `params`, with the state's collections."""
    return {name: {"params": params[name], **state.collections[name]} for name in params}


def example_keys(key: Key[Array, ""], position: Int[Array, "b"]) -> Key[Array, "b"]:
    """Returns one key per image, derived from its position in the batch over all devices.

    Noise that is drawn from them is the same for any number of devices.
    """
    return jax.vmap(lambda p: jax.random.fold_in(key, p))(position)
