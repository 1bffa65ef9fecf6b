"""What a detector is, and the one place that takes a gradient step.

A detector is a game: networks, objectives that each move some of them by one loss, and a way to
reconstruct. The generic update below trains them all; which objectives act when is the schedule's
affair (schedule.py), and how steps are spread over devices is parallel.py's.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training.augmentation import augment

Logs = dict[str, Float[Array, ""]]
Variables = dict[str, PyTree]  # flax's {"params": ..., "batch_stats": ...} of one network


class Batch(NamedTuple):
    """Pictures as the losses see them."""

    image: Float[Array, "b h w c"]  # in [0, 1]
    condition: Int[Array, "b"]  # what is known of a picture whether normal or not: its species, ...
    found: PyTree = None  # in scoring, by a detector that has one: what its search found


class Objective(NamedTuple):
    """One player's aim.

    networks: the networks this loss moves; it owns their collections (statistics) too.
    loss: (net, batch, keys [b]) -> (scalar, {name: scalar}); the names are logged.
    """

    networks: tuple[str, ...]
    loss: Callable[["Net", Batch, Key[Array, "b"]], tuple[Float[Array, ""], Logs]]


class Search(NamedTuple):
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
    search: Search | None = None
    averaging: float = 0.0
    notes: tuple[str, ...] = ()


class State(NamedTuple):
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


class _InitialisingNet(Net):
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


def init(
    detector: Detector,
    optimizers: Mapping[str, optax.GradientTransformation],
    seed: int | Int[Array, ""],
    shape: tuple[int, int, int],
) -> State:
    """The state before the first step: every loss is run once to see what its networks are given.

    shape: (height, width, channels) of the pictures.
    """
    key = jax.random.key(seed)
    net = _InitialisingNet(key, detector.networks, detector.frozen)
    batch = Batch(jnp.zeros((2, *shape)), jnp.zeros(2, jnp.int32))
    for objective in detector.objectives.values():
        objective.loss(net, batch, picture_keys(key, jnp.arange(2)))
    variables = {name: net.variables[name] for name in owned_networks(detector)}
    params = {name: v["params"] for name, v in variables.items()}
    return State(
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


def inference_net(detector: Detector, state: State, frozen: Mapping[str, Variables]) -> Net:
    """The trained networks as they score: BatchNorm by collected statistics, nothing collected."""
    variables = _variables(state, scoring_params(state)) | dict(frozen)
    return Net(detector.networks, variables, train=False)


def scoring_params(state: State) -> dict[str, PyTree]:
    """The parameters that score: the moving average where one is taken."""
    return state.average or state.params


def _variables(state, params):
    return {name: {"params": params[name], **state.collections[name]} for name in params}


# --- a step: prepare a batch, then one update for each objective that is due ----------------------


class TrainingSet(NamedTuple):
    """The pictures that train, as they lie on the device: all, or those that are due next."""

    image: UInt8[Array, "n h w c"]
    condition: Int[Array, "n"]


def picture_keys(key: Key[Array, ""], position: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key a picture, by its place in the batch on all devices together.

    Noise drawn from them is the same on one device and on eight.
    """
    return jax.vmap(lambda p: jax.random.fold_in(key, p))(position)


def _step_keys(state, purpose: int, batch_size: int):
    """purpose: 0 for the augmentation, 1 and up for the updates of one step."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), state.step), purpose)
    first = lax.axis_index(BATCH_AXIS) * batch_size
    return picture_keys(key, first + jnp.arange(batch_size))


def prepare(
    state: State, pictures: TrainingSet, indices: Int[Array, "b"], augmentation: Mapping[str, Any]
) -> Batch:
    """This device's batch: gathered, scaled to [0, 1] and augmented."""
    image = pictures.image[indices].astype(jnp.float32) / 255
    keys = _step_keys(state, 0, len(indices))
    return Batch(augment(keys, image, **augmentation), pictures.condition[indices])


def update(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    name: str,
    state: State,
    frozen: Mapping[str, Variables],
    batch: Batch,
    turn: Int[Array, ""],
) -> tuple[State, Logs]:
    """One objective's move: gradient, optimiser and statistics of the networks that it owns.

    Runs on every device of the mapped axis; gradients, statistics and logs are averaged over it.

    turn: this is the step's so-manieth update, from 1: each draws its own noise.
    """
    objective = detector.objectives[name]
    keys = _step_keys(state, turn, len(batch.image))

    def loss(owned):
        net = Net(
            detector.networks, _variables(state, state.params | owned) | dict(frozen), train=True
        )
        value, logs = objective.loss(net, batch, keys)
        return value, ({"loss": value, **logs}, net.collections(objective.networks))

    owned = {network: state.params[network] for network in objective.networks}
    gradients, (logs, collections) = jax.grad(loss, has_aux=True)(owned)
    gradients, logs, collections = _averaged((gradients, logs, collections))
    changes, opt_state = optimizer.update(gradients, state.opt_state[name], owned)
    state = state._replace(
        params=state.params | optax.apply_updates(owned, changes),
        collections=state.collections | collections,
        opt_state=state.opt_state | {name: opt_state},
    )
    return state, {f"{name}/{key}": value for key, value in logs.items()}


def _averaged(tree):
    """The mean over all devices.

    Among processes on CPUs as one vector, since there a reduction takes milliseconds however small;
    accelerators' compilers gather them themselves, without the copies. One device alone is spared
    the copies that XLA:CPU makes of its own.
    """
    if lax.axis_size(BATCH_AXIS) == 1:
        return tree
    if jax.default_backend() != "cpu" or jax.process_count() == 1:
        return lax.pmean(tree, BATCH_AXIS)
    vector, restore = ravel_pytree(tree)
    return restore(lax.pmean(vector, BATCH_AXIS))


def advance(detector: Detector, state: State) -> State:
    """The end of a step: it is counted, and the weights' moving average takes it in.

    The decay rises to its value, so that the initial weights do not linger in a short run.
    """
    decay = jnp.minimum(detector.averaging, (1 + state.step) / (10 + state.step))
    average = {
        name: jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, a, state.params[name])
        for name, a in state.average.items()
    }
    return state._replace(step=state.step + 1, average=average)


# --- statistics for inference ---------------------------------------------------------------------


def batch_statistics(
    detector: Detector, state: State, frozen: Mapping[str, Variables], batch: Batch
) -> dict[str, PyTree]:
    """What BatchNorm sees of one batch with the weights held still, by network.

    Each network's are those of the last objective that owns it, as in a step: an encoder and a
    generator that end each step on reconstruction are scored as they reconstruct.
    """
    statistics = {}
    for objective in detector.objectives.values():
        net = Net(
            detector.networks, _variables(state, scoring_params(state)) | dict(frozen), train=True
        )
        objective.loss(net, batch, _step_keys(state, 0, len(batch.image)))
        statistics |= net.collections(objective.networks)
    statistics = {
        n: {"batch_stats": c["batch_stats"]} for n, c in statistics.items() if "batch_stats" in c
    }
    return _averaged(statistics)


def with_statistics(state: State, mean: dict[str, PyTree]) -> State:
    """The state with its BatchNorm statistics replaced by their mean over batches ("precise BN", Wu
    and Johnson 2021, Sec. 3). Parameters, codebooks and the course of training are untouched."""
    return state._replace(
        collections={n: c | mean.get(n, {}) for n, c in state.collections.items()}
    )
