"""Epochs of steps on many devices, in one process or several.

The step is composed of the same functions everywhere: on an accelerator a whole epoch of it is one
scanned program, on a CPU its pieces are mapped one by one and looped over on the host, since
XLA:CPU runs convolutions inside a loop up to 27 times slower than outside. Pictures lie on every
device, or are streamed: then some steps' at a time are read ahead and put where those steps look
for them, and all else is the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, PyTree

from bigan_jax.data.streaming import prefetch
from bigan_jax.detector import Detector, TrainState, tree_mean
from bigan_jax.errors import UserError
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.device_layout import DeviceLayout, copy, first, replicate, scatter
from bigan_jax.training.train_step import (
    TrainingSet,
    batch_statistics,
    finish_step,
    prepare_batch,
    update,
    with_statistics,
)

__all__ = ["STATISTICS", "EpochRunner", "copy", "first", "replicate", "steps_and_batch_size"]

STATISTICS = ("statistics",)  # their program's name, among those of what is due in a step
_CHUNK = 16 * 2**20  # bytes of pictures that one scanned program is given where they are streamed


def steps_and_batch_size(batch_size: int, pictures: int) -> tuple[int, int]:
    """(steps an epoch, global batch size): as asked, or one batch of all when there are fewer.

    Raises UserError when the devices cannot share a batch evenly.
    """
    devices = jax.device_count()
    if batch_size < 1:
        raise UserError(f"config.batch_size={batch_size}: it counts pictures, from 1 on")
    if batch_size % devices:
        raise UserError(
            f"config.batch_size={batch_size} cannot be shared evenly by {devices} devices: "
            f"take a multiple of {devices}"
        )
    if pictures < devices:
        raise UserError(
            f"{pictures} training pictures are too few for {devices} devices: use fewer, such as "
            "by CUDA_VISIBLE_DEVICES=0 or --num_processes=1"
        )
    batch_size = min(batch_size, pictures // devices * devices)
    return pictures // batch_size, batch_size


class EpochRunner:
    """Trains epochs of a detector. Frozen variables are replicated ones, and states as
    `layout.to_devices` gives them."""

    def __init__(
        self,
        detector: Detector,
        optimizers: Mapping,
        augmentation: AugmentationSettings,
        frozen: PyTree,
        pictures: TrainingSet,
        scanned: bool | None = None,
        seeds: int = 0,
    ):
        """pictures: replicated; or on the host (LazyImages, an array), and they are streamed.
        scanned: an epoch, or a chunk of a streamed one, as one program; by default wherever that
        is not slower. seeds: so many states side by side; 0: a single one, without that axis."""
        self.frozen, self.pictures, self.layout = frozen, pictures, DeviceLayout(seeds)
        self._streamed = not isinstance(pictures.image, jax.Array)
        self._scanned = jax.default_backend() != "cpu" if scanned is None else scanned
        each, mapped = self.layout.vmap_over_seeds, self.layout.pmap
        self._prepare = each(partial(prepare_batch, augmentation=augmentation), 0, None, 0)
        self._updates = {
            name: each(partial(update, detector, optimizers[name], name), 0, None, 0, None)
            for name in detector.objectives
        }
        self._advance = each(partial(finish_step, detector), 0)
        self._plain_batch = each(
            partial(prepare_batch, augmentation=AugmentationSettings()), 0, None, 0
        )
        self._batch_statistics = each(partial(batch_statistics, detector), 0, None, 0)
        self._statistics = mapped(self._summed_statistics if self._scanned else self._statistics_of)
        self._programs, self._compiling, self._compilers = {}, {}, None
        if not self._scanned:
            self._prepare = mapped(self._prepare)
            self._updates = {
                name: mapped(f, in_axes=(0, 0, 0, None), donate_argnums=0)
                for name, f in self._updates.items()
            }
            self._advance = mapped(self._advance, donate_argnums=0)

    def epoch(
        self,
        state: TrainState,
        due: tuple[str, ...],
        order: Int[np.ndarray, "steps *seeds batch"],
        on_step: Callable[[int, dict], bool | None] = lambda done, logs: None,
    ) -> tuple[TrainState, dict[str, Float[np.ndarray, "*seeds done"]]]:
        """One pass over `order`, the global batches' indices into the pictures.

        due: the objectives' names, in the order of the updates of each step.
        on_step: told how many steps are done, and the last one's logs, still on the device; where
        it answers True, no further step is begun.
        Returns the state and each log of the steps that were done.
        """
        state, rows = self.dispatch(state, due, order, on_step)
        return state, self.fetch_logs(rows)

    def dispatch(
        self,
        state: TrainState,
        due: tuple[str, ...],
        order: Int[np.ndarray, "steps *seeds batch"],
        on_step: Callable[[int, dict], bool | None] = lambda done, logs: None,
    ) -> tuple[TrainState, list[dict]]:
        """As `epoch`, without waiting for the devices: `logs` does, of what this returns."""
        if not len(order):
            return state, []
        self._await(due)
        run = self._program(due) if self._scanned else self._one_step(due)
        rows, done = [], 0
        with closing(self._pieces(order, self._scanned)) as pieces:
            for pictures, indices in pieces:
                state, row, last = run(state, self.frozen, pictures, indices)
                rows.append(row)
                if self._streamed:  # or steps not yet begun would pile up, each with its pictures
                    jax.block_until_ready(rows[-2:-1])
                done += indices.shape[1] if self._scanned else 1
                if on_step(done, last):
                    break
        return state, rows

    def fetch_logs(self, rows: list[dict]) -> dict[str, Float[np.ndarray, "*seeds done"]]:
        """Each log of the steps of an epoch that was begun."""
        rows = jax.device_get(rows)
        names = rows[0] if rows else ()
        return {name: self._over_steps([row[name] for row in rows]) for name in names}

    def _over_steps(self, parts):
        """[*seeds, steps] of a log, from [local, *seeds] of each step or, scanned, of several."""
        log = np.concatenate(parts, 1) if self._scanned else np.stack(parts, 1)
        return self.layout.take_log(np.moveaxis(log, 1, -1))

    def updates(
        self, state: TrainState, due: tuple[str, ...], order: Int[np.ndarray, "steps batch"]
    ) -> Iterator[tuple[int, str, TrainState, dict]]:
        """The same pass, update by update: (step, objective, state, its logs). Not scanned."""
        with closing(self._pieces(order, scanned=False)) as pieces:
            for step, (pictures, indices) in enumerate(pieces):
                for name, moved, logs in self._turns(due, state, self.frozen, pictures, indices):
                    state = moved
                    yield step, name, state, logs
                state = self._advance(state)

    def _pieces(
        self, order: Int[np.ndarray, "steps *seeds batch"], scanned: bool
    ) -> Iterator[tuple[TrainingSet, Int[np.ndarray, "local ..."]]]:
        """What the epoch's programs are given, in turn: pictures, and indices into them of one step
        [local, b] or, scanned, of several [local, steps, b]."""
        share = self.layout.shard_indices(order)
        if not scanned:
            parts = [share[:, step] for step in range(len(order))]
        elif not self._streamed:
            parts = [share]
        else:
            steps = max(1, _CHUNK // (share[:, 0].size * math.prod(self.pictures.image.shape[1:])))
            parts = [share[:, i : i + steps] for i in range(0, len(order), steps)]
        if self._streamed:
            return prefetch(self._fetch, parts)
        # Put there by name: all else that goes to the devices within an epoch would be a mistake.
        return ((self.pictures, scatter(part)) for part in parts)

    def _fetch(self, indices):
        """The pictures at `indices` on their devices, and where there each now lies."""
        image = self.pictures.image[indices.ravel()]
        condition = self.pictures.condition[indices]
        here = TrainingSet(
            image.reshape(len(indices), -1, *image.shape[1:]), condition.reshape(len(indices), -1)
        )
        places = np.arange(indices[0].size, dtype=np.int32).reshape(indices.shape[1:])
        return scatter((here, np.broadcast_to(places, indices.shape)))

    def _step(self, due, state, frozen, pictures, indices):
        seen = {}
        for _, moved, logs in self._turns(due, state, frozen, pictures, indices):
            state = moved
            for key, value in logs.items():
                seen.setdefault(key, []).append(value)
        return self._advance(state), {key: tree_mean(values) for key, values in seen.items()}

    def _turns(self, due, state, frozen, pictures, indices):
        batch = self._prepare(state, pictures, indices)
        for turn, name in enumerate(due, 1):
            state, logs = self._updates[name](state, frozen, batch, turn)
            yield name, state, logs

    def _one_step(self, due):
        def run(*arguments):
            state, logs = self._step(due, *arguments)
            return state, logs, logs

        return run

    def _program(self, due):
        """Many steps as one: the state, all their logs, and the last one's."""
        if due not in self._programs:

            def epoch(state, frozen, pictures, order):
                state, rows = lax.scan(
                    lambda s, i: self._step(due, s, frozen, pictures, i), state, order
                )
                return state, rows, {name: values[-1] for name, values in rows.items()}

            self._programs[due] = self.layout.pmap(epoch, donate_argnums=0)
        return self._programs[due]

    @property
    def whole_epochs(self) -> bool:
        """Whether an epoch is one program."""
        return self._scanned and not self._streamed

    def compile_ahead(
        self,
        state: TrainState,
        programs: Iterable[tuple[str, ...]],
        order: Int[np.ndarray, "steps *seeds batch"],
    ) -> None:
        """Begins to compile whole epochs side by side, as each may take a minute; `begin` waits for
        its own.

        programs: what is due in their steps, in the order of need. state, order: of their shapes.
        The one for statistics comes last, where there are any.
        """
        given = state, self.frozen, self.pictures, scatter(self.layout.shard_indices(order))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), given
        )
        self._compilers = ThreadPoolExecutor(thread_name_prefix="compile")
        named = {due: self._program(due) for due in programs}
        if _has_statistics(state):
            named[STATISTICS] = self._statistics
        for name, program in named.items():
            # JAX keeps it with the program, and finds it at the call.
            compile_it = program.lower(*shapes).compile
            self._compiling[name] = self._compilers.submit(compile_it)

    def _await(self, name):
        if name in self._compiling:
            self._compiling.pop(name).result()

    def is_compiled(self, name: tuple[str, ...]) -> bool:
        """Whether `begin` would not wait for the program of what is due, nor fail with it; or
        `with_statistics` for STATISTICS."""
        compiling = self._compiling.get(name)
        return compiling is None or (compiling.done() and compiling.exception() is None)

    def stop_compiling(self) -> None:
        """Waits for what is being compiled, and begins no more of it."""
        if self._compilers:
            self._compilers.shutdown(cancel_futures=True)
        self._compiling.clear()

    def with_statistics(
        self, state: TrainState, order: Int[np.ndarray, "steps *seeds batch"]
    ) -> TrainState:
        """The state with BatchNorm statistics averaged over the batches of `order`, pictures as
        they are, without augmentation."""
        if not _has_statistics(state):
            return state
        self._await(STATISTICS)
        total = None
        with closing(self._pieces(order, self._scanned)) as pieces:
            for pictures, indices in pieces:
                seen = self._statistics(state, self.frozen, pictures, indices)
                total = seen if total is None else jax.tree.map(jnp.add, total, seen)
                # One at a time: streamed pictures would pile up, and of programs that average over
                # simulated devices several may hold all threads of a CPU, each waiting for more.
                if not self.whole_epochs:
                    jax.block_until_ready(total)
        return with_statistics(state, jax.tree.map(lambda x: x / len(order), total))

    def _statistics_of(self, state, frozen, pictures, indices):
        return self._batch_statistics(state, frozen, self._plain_batch(state, pictures, indices))

    def _summed_statistics(self, state, frozen, pictures, order):
        _, seen = lax.scan(
            lambda _, i: (None, self._statistics_of(state, frozen, pictures, i)), None, order
        )
        return jax.tree.map(lambda x: x.sum(0), seen)


def _has_statistics(state):
    return any("batch_stats" in c for c in state.collections.values())
