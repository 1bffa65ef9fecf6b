"""How states and batches lie on the devices; the only module that uses `pmap` and shardings.

All arrays on the devices have a leading axis over this process's devices.
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

_pmap = partial(jax.pmap, axis_name=BATCH_AXIS)

# Mapped once, as a function created at each call would be compiled again; and over the axis of the steps, as arrays
# of another axis would make each step compile a second time.
_replicate = _pmap(lambda _, x: x, in_axes=(0, None))
_copy = _pmap(lambda tree: jax.tree.map(jnp.copy, tree))
# One program for hundreds of arrays; one call for each would take as long as a short epoch.
_unstack = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))
_merge = jax.jit(lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree))


@partial(jax.jit, static_argnums=1)
def _split(tree, number):
    return [jax.tree.map(itemgetter(i), tree) for i in range(number)]


def replicate(tree: PyTree) -> PyTree:
    """Returns the tree with a copy on each of this process's devices."""
    # JAX 0.10 cannot map a function without results over processes.
    return _replicate(np.arange(jax.local_device_count()), tree) if jax.tree.leaves(tree) else tree


def scatter(tree: PyTree) -> PyTree:
    """Puts each row of the leading axis on its device, with the sharding of a pmap.

    Unlike a program, this may be called by any thread: processes need not call it in one order.
    """
    mesh = Mesh(jax.local_devices()[: jax.local_device_count()], BATCH_AXIS)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(BATCH_AXIS)))


def first(tree: PyTree) -> PyTree:
    """Returns the copy on this process's first device."""
    return _unstack(jax.tree.map(lambda x: x.addressable_data(0), tree))


def copy(tree: PyTree) -> PyTree:
    """Returns a copy on the same devices, which outlives an epoch's donation of the original."""
    return _copy(tree)


class DeviceLayout:
    """Places states and batches on the devices, and maps steps over them.

    If several seeds are trained, every state, batch and log has an axis of seeds after that of the devices. If their
    number is a multiple of the number of devices, each device trains some of the seeds alone, without waiting for
    others; otherwise every device has all seeds and a part of each seed's batch.
    """

    def __init__(self, seeds: int = 0):
        self.seeds = seeds  # number of states trained in parallel; 0 for a single one without an axis of seeds
        divisible = jax.process_count() == 1 and seeds % jax.local_device_count() == 0
        self.shards_seeds = bool(seeds) and divisible  # whether devices have some of the seeds, with entire batches
        self.pmap = partial(jax.pmap, axis_name="seeds" if self.shards_seeds else BATCH_AXIS)
        self._identity = self.pmap(lambda x: x)

    def vmap_over_seeds(self, step: Callable, *axes: int | None) -> Callable:
        """Vectorizes a step over the device's seeds; `axes`: 0 for each argument with an axis of seeds, else None."""
        if not self.shards_seeds:
            return jax.vmap(step, axes) if self.seeds else step
        # The axis over which a step averages has length 1 and is part of the device's own program.
        mapped = jax.vmap(step, in_axes=None, axis_name=BATCH_AXIS, axis_size=1)
        return jax.vmap(lambda *arguments: jax.tree.map(lambda x: x[0], mapped(*arguments)), axes)

    def to_devices(self, state: PyTree) -> PyTree:
        """Places a state, with a leading axis of seeds if there are several, on the devices."""
        if not self.shards_seeds:
            return replicate(state)
        devices = jax.local_device_count()
        return self._identity(jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), state))

    def from_devices(self, tree: PyTree) -> PyTree:
        """Undoes `to_devices`: returns the tree on one device, with the axis of seeds if any."""
        return _merge(tree) if self.shards_seeds else first(tree)

    def unstack_seeds(self, tree: PyTree) -> list[PyTree]:
        """Returns the tree of each seed, or of the only one, on one device."""
        tree = self.from_devices(tree)
        return _split(tree, self.seeds) if self.seeds else [tree]

    def log_from_devices(self, log: Num[np.ndarray, "local *local_seeds n"]) -> Num[np.ndarray, "*seeds n"]:
        """Undoes the layout of a log that was fetched to the host."""
        return log.reshape(-1, log.shape[-1]) if self.shards_seeds else log[0]

    def shard_indices(
        self, indices: Int[np.ndarray, "steps *seeds batch"]
    ) -> Int[np.ndarray, "local steps *local_seeds b"]:
        """Returns each local device's part of every batch, or of the seeds."""
        local, axis = jax.local_device_count(), 1 if self.shards_seeds else -1
        shards = np.stack(np.split(indices, jax.device_count(), axis))
        return shards[jax.process_index() * local :][:local]
