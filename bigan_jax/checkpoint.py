"""Checkpoints by Orbax: written in the background, each whole or not there at all."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from bigan_jax.detector import State
from bigan_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one run, named by how many epochs were done."""

    def __init__(self, workdir: str | Path, keep: int = 2, read_only: bool = False):
        """keep: the newest so many stay; older ones are deleted."""
        self.folder = Path(workdir).absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: no run was trained there")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """How many epochs the newest checkpoint has behind it; None when there is none."""
        return self._manager.latest_step()

    def save(self, epochs: int, state: State) -> None:
        """Starts writing; training may go on at once, and may reuse the state's memory."""
        if epochs != self.latest():
            self._manager.save(epochs, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, epochs: int, like: State) -> State:
        """The state after so many epochs, on the default device.

        like: a state of the same shapes, abstract or not.
        """
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like._asdict()
        )
        return State(**self._manager.restore(epochs, args=ocp.args.StandardRestore(abstract)))

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.wait_until_finished()
        self._manager.close()
