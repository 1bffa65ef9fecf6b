"""How that which trains lies on the devices: the one file that says pmap.

Everything on the devices has a leading axis of this process's devices. Several seeds go side by
side through one program: then every state, batch and log has an axis of seeds after it. Where the
devices can share the seeds evenly, each has some of them whole, and none waits for another;
otherwise all have all seeds, and a part of each one's batch.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, Num, PyTree

from bigan_jax.nn.blocks import BATCH_AXIS

_mapped = partial(jax.pmap, axis_name=BATCH_AXIS)


# Mapped once, as a program of a function that is new at each call would be compiled anew; and over
# the steps' own axis, as arrays of another one would compile each step a second time.
_replicated = _mapped(lambda _, x: x, in_axes=(0, None))
_copied = _mapped(lambda tree: jax.tree.map(jnp.copy, tree))
# One program for hundreds of arrays, which one by one take as long as a short epoch.
_unstacked = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))
_merged = jax.jit(lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree))


def replicate(tree: PyTree) -> PyTree:
    """A copy of the tree on each of this process's devices."""
    if not jax.tree.leaves(tree):  # JAX 0.10 cannot map what returns nothing over processes
        return tree
    devices = np.arange(jax.local_device_count())
    return _replicated(devices, tree)


def scatter(tree: PyTree) -> PyTree:
    """Each row of the leading axis on the device that will work on it, as a pmap would put it.

    Unlike a program, this may be called by any thread: processes need not agree on its turn.
    """
    mesh = Mesh(jax.local_devices()[: jax.local_device_count()], BATCH_AXIS)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(BATCH_AXIS)))


def first(tree: PyTree) -> PyTree:
    """The copy on this process's first device."""
    return _unstacked(jax.tree.map(lambda x: x.addressable_data(0), tree))


def copy(tree: PyTree) -> PyTree:
    """The same on the same devices, in memory of its own: an epoch uses up its state's."""
    return _copied(tree)


@partial(jax.jit, static_argnums=1)
def _split(tree, number):
    return [jax.tree.map(itemgetter(i), tree) for i in range(number)]


class DeviceLayout:
    """Where states and batches lie, and steps mapped over them."""

    def __init__(self, seeds: int = 0):
        """seeds: so many side by side; 0: a single one, without that axis."""
        self.seeds = seeds
        shared_out = jax.process_count() == 1 and seeds % jax.local_device_count() == 0
        self.whole_seeds = bool(seeds) and shared_out
        axis = "seeds" if self.whole_seeds else BATCH_AXIS
        self._mapped = partial(jax.pmap, axis_name=axis)
        self._placed = self._mapped(lambda x: x)

    def vmap_over_seeds(self, step: Callable, *axes: int | None) -> Callable:
        """A device's step for one seed as one for all that it has.

        axes: 0 for each argument that has an axis of seeds, None for the others.
        """
        if self.whole_seeds:
            step = _with_the_whole_batch(step)
        return jax.vmap(step, axes) if self.seeds else step

    def pmap(self, step: Callable, **options: object) -> Callable:
        """A device's step as one for all devices; options: as pmap takes them."""
        return self._mapped(step, **options)

    def to_devices(self, state: PyTree) -> PyTree:
        """A state on the devices that train it; its leaves have a leading axis of seeds, if any."""
        if not self.whole_seeds:
            return replicate(state)
        devices = jax.local_device_count()
        shares = jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), state)
        return self._placed(shares)

    def from_devices(self, tree: PyTree) -> PyTree:
        """What `place` put on the devices, or what was made of it there, as it was before."""
        return _merged(tree) if self.whole_seeds else first(tree)

    def unstack_seeds(self, tree: PyTree) -> list[PyTree]:
        """The same of each seed on its own; of a single one, it alone."""
        return (
            _split(self.from_devices(tree), self.seeds) if self.seeds else [self.from_devices(tree)]
        )

    def take_log(self, log: Num[np.ndarray, "local *seeds n"]) -> Num[np.ndarray, "*seeds n"]:
        """The same of what devices logged, once it is on the host."""
        return log.reshape(-1, log.shape[-1]) if self.whole_seeds else log[0]

    def shard_indices(
        self, order: Int[np.ndarray, "steps *seeds batch"]
    ) -> Int[np.ndarray, "local steps *seeds b"]:
        """The part of each batch, or of the seeds, that goes to each device of this process."""
        local, axis = jax.local_device_count(), 1 if self.whole_seeds else -1
        shares = np.stack(np.split(order, jax.device_count(), axis))
        return shares[jax.process_index() * local :][:local]


def _with_the_whole_batch(step):
    """The step on a device that shares no batch: the axis over which steps average has length 1 and
    lies within the device's own program."""
    mapped = jax.vmap(step, in_axes=None, axis_name=BATCH_AXIS, axis_size=1)
    return lambda *arguments: jax.tree.map(lambda x: x[0], mapped(*arguments))
