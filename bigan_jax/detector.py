"""What a detector is, and the one place that takes a gradient step.

A detector is a game: networks, objectives that each move some of them by one loss, and a way to
reconstruct. The generic update below trains them all; which objectives act when is the schedule's
affair (schedule.py), and how steps are spread over devices is parallel.py's.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

Logs = dict[str, Float[Array, ""]]
Variables = dict[str, PyTree]  # flax's {"params": ..., "batch_stats": ...} of one network


class Batch(NamedTuple):
    """Pictures as the losses see them."""

    image: Float[Array, "b h w c"]  # in [0, 1]
    condition: Int[Array, "b"]  # what is known of a picture whether normal or not: its species, ...
    latent: PyTree = None  # in scoring, by a detector that has one: what its search found


class Objective(NamedTuple):
    """One player's aim.

    networks: the networks this loss moves; it owns their collections (statistics) too.
    loss: (net, batch, keys [b]) -> (scalar, {name: scalar}); the names are logged.
    """

    networks: tuple[str, ...]
    loss: Callable[["Net", Batch, Key[Array, "b"]], tuple[Float[Array, ""], Logs]]


class LatentSearch(NamedTuple):
    """An iteration at scoring time for each picture on its own, where no encoder gives its code.

    start: (net, batch, keys) -> what is searched for, a tree of arrays [b, ...].
    step: (net, batch, found) -> the same, one step on.
    """

    steps: int
    start: Callable[["Net", Batch, Key[Array, "b"]], PyTree]
    step: Callable[["Net", Batch, PyTree], PyTree]


class Detector(NamedTuple):
    """A model as pure data and functions.

    networks: modules called as `net(name, ...)`; a network that no objective owns is frozen.
    objectives: in the order in which those that are due act within a step.
    reconstruct: (net, batch, keys) -> pictures in [0, 1] of the batch's shape.
    native_score: (net, batch, keys) -> [b], where the model's own paper scores otherwise.
    frozen: variables of the frozen networks.
    search: run before `reconstruct` and `native_score`, which find its result in the batch.
    averaging: decay of the moving average of weights that scores instead of the last; 0: none.
    notes: what a user should know of this detector on these data, for the log and the report.
    """

    networks: Mapping[str, nn.Module]
    objectives: Mapping[str, Objective]
    reconstruct: Callable[["Net", Batch, Key[Array, "b"]], Float[Array, "b h w c"]]
    native_score: Callable[["Net", Batch, Key[Array, "b"]], Float[Array, "b"]] | None = None
    frozen: Mapping[str, Variables] = {}
    search: LatentSearch | None = None
    averaging: float = 0.0
    notes: tuple[str, ...] = ()


class TrainState(NamedTuple):
    """All that training changes, and the seed: what a checkpoint holds."""

    step: Int[Array, ""]
    seed: Int[Array, ""]
    params: dict[str, PyTree]  # by network
    collections: dict[str, dict[str, PyTree]]  # by network: batch statistics, codebooks
    opt_state: dict[str, PyTree]  # by objective
    average: dict[str, PyTree]  # moving average of params, by network; empty where none is taken


class Net:
    """Applies a detector's networks by name: `net("encoder", image)`.

    In training it keeps what each call makes of the network's collections. A network called more
    than once by a loss (D on real and on fake) gets the mean of what its calls made.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], variables: Mapping[str, Variables], train: bool
    ):
        self.networks, self.variables, self.train = networks, variables, train
        self._made: dict[str, list[PyTree]] = {}

    def __call__(self, name: str, *args, **kwargs):
        variables = self.variables[name]
        mutable = [c for c in variables if c != "params"] if self.train else False
        result = self.networks[name].apply(
            variables, *args, train=self.train, mutable=mutable, **kwargs
        )
        if not self.train:
            return result
        output, made = result
        self._made.setdefault(name, []).append(made)
        return output

    def collections(self, names: tuple[str, ...]) -> dict[str, PyTree]:
        """The new collections of the named networks, as far as they were called."""
        return {name: tree_mean(self._made[name]) for name in names if name in self._made}


class _InitNet(Net):
    """Gives a network its first variables when it is first called."""

    def __init__(self, key, networks, variables):
        super().__init__(networks, dict(variables), train=False)
        self.key = key

    def __call__(self, name, *args, **kwargs):
        if name not in self.variables:
            key = jax.random.fold_in(self.key, sorted(self.networks).index(name))
            self.variables[name] = self.networks[name].init(key, *args, train=False, **kwargs)
        return super().__call__(name, *args, **kwargs)


def tree_mean(trees: list[PyTree]) -> PyTree:
    """The mean of equal-shaped trees, leaf by leaf."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: sum(x) / len(x), *trees)


def owned_networks(detector: Detector) -> tuple[str, ...]:
    """The networks that some objective moves, in the detector's order."""
    owned = {name for objective in detector.objectives.values() for name in objective.networks}
    return tuple(name for name in detector.networks if name in owned)


def init_state(
    detector: Detector,
    optimizers: Mapping[str, optax.GradientTransformation],
    seed: int | Int[Array, ""],
    shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step: every loss is run once to see what its networks are given.

    shape: (height, width, channels) of the pictures.
    """
    key = jax.random.key(seed)
    net = _InitNet(key, detector.networks, detector.frozen)
    batch = Batch(jnp.zeros((2, *shape)), jnp.zeros(2, jnp.int32))
    for objective in detector.objectives.values():
        objective.loss(net, batch, example_keys(key, jnp.arange(2)))
    variables = {name: net.variables[name] for name in owned_networks(detector)}
    params = {name: v["params"] for name, v in variables.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        collections={
            n: {c: x for c, x in v.items() if c != "params"} for n, v in variables.items()
        },
        opt_state={
            name: optimizers[name].init({n: params[n] for n in objective.networks})
            for name, objective in detector.objectives.items()
        },
        average=params if detector.averaging else {},
    )


def inference_net(detector: Detector, state: TrainState, frozen: Mapping[str, Variables]) -> Net:
    """The trained networks as they score: BatchNorm by collected statistics, nothing collected."""
    variables = network_variables(state, scoring_params(state)) | dict(frozen)
    return Net(detector.networks, variables, train=False)


def scoring_params(state: TrainState) -> dict[str, PyTree]:
    """The parameters that score: the moving average where one is taken."""
    return state.average or state.params


def network_variables(state, params):
    return {name: {"params": params[name], **state.collections[name]} for name in params}


# --- a step: prepare a batch, then one update for each objective that is due ----------------------


def example_keys(key: Key[Array, ""], position: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key a picture, by its place in the batch on all devices together.

    Noise drawn from them is the same on one device and on eight.
    """
    return jax.vmap(lambda p: jax.random.fold_in(key, p))(position)


# --- statistics for inference ---------------------------------------------------------------------
