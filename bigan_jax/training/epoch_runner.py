"""Runs epochs of training steps on the devices of one or several processes."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import jax
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from bigan_jax.data.streaming import prefetch
from bigan_jax.detector import Detector, TrainState, tree_mean
from bigan_jax.errors import UserError
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.training import batchnorm_statistics, train_step
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.device_layout import DeviceLayout, scatter
from bigan_jax.training.train_step import TrainingSet

STATISTICS = ("statistics",)  # names the program of BatchNorm statistics among those of epochs
_CHUNK = 16 * 2**20  # bytes of streamed images that one scanned program takes
Objectives = tuple[str, ...]  # the objective of each update of a step, in order
Indices = Int[np.ndarray, "steps *seeds batch"]  # of the training images of each batch, over all devices
Logs = dict[str, Float[Array, "..."]]  # of one or several steps, on the devices
LogsByStep = dict[str, Float[np.ndarray, "*seeds done"]]
# Receives the number of steps dispatched so far and the logs of the last one; no further step is dispatched if it
# returns True.
StepCallback = Callable[[int, Logs], bool | None]


def steps_and_batch_size(batch_size: int, images: int) -> tuple[int, int]:
    """Returns the number of steps per epoch and the batch size over all devices.

    If there are fewer training images than the requested batch size, one batch holds all that the devices can share
    evenly. Raises UserError if they cannot share a batch evenly.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(f"config.batch_size must be a multiple of {devices}, the number of devices (got {batch_size}).")
    if images < devices:
        raise UserError(
            f"{images} training images are too few for {devices} devices. Use fewer devices, for example with "
            "CUDA_VISIBLE_DEVICES=0 or --num_processes=1."
        )
    batch_size = min(batch_size, images // devices * devices)
    return images // batch_size, batch_size


class EpochRunner:
    """Trains a detector by the epoch, one state or several vectorized over seeds.

    The methods take states of `layout.to_devices`. A step is composed of the same functions everywhere. On accelerators
    an epoch is one scanned program. On CPUs each function is mapped over the devices and called in a loop on the host,
    because XLA:CPU runs convolutions inside a loop up to 27 times slower than outside.
    """

    def __init__(
        self,
        detector: Detector,
        optimizers: Mapping[str, optax.GradientTransformation],
        augmentation: AugmentationSettings,
        frozen: PyTree,
        training_set: TrainingSet,
        scanned: bool | None = None,
        seeds: int = 0,
        roi: Roi = None,
    ):
        """Builds the programs; each is compiled when it is first used, or by `compile_ahead`.

        Args:
          frozen: replicated variables of the frozen networks.
          training_set: replicated; or on the host to be streamed: the images of the next steps are read ahead and
            placed on the devices that use them.
          scanned: whether an epoch, or a chunk of a streamed one, is one program; by default except on CPUs.
          seeds: number of states trained in parallel; 0 for a single one without an axis of seeds.
          roi: the pixels that count, outside of which the training images are black; None for all.
        """
        self.frozen, self.training_set, self.layout = frozen, training_set, DeviceLayout(seeds)
        self._streamed = not isinstance(training_set.image, jax.Array)
        self._scanned = jax.default_backend() != "cpu" if scanned is None else scanned
        vmap, pmap = self.layout.vmap_over_seeds, self.layout.pmap

        def prepare(settings):
            return vmap(partial(train_step.prepare_batch, augmentation=settings, roi=roi), 0, None, 0)

        def program(step, **options):  # of one step, which is a part of the epoch's program if that is scanned
            return step if self._scanned else pmap(step, **options)

        self._prepare = program(prepare(augmentation))
        self._updates = {
            name: program(
                vmap(partial(train_step.update, detector, optimizers[name], name), 0, None, 0, None),
                in_axes=(0, 0, 0, None),
                donate_argnums=0,
            )
            for name in detector.objectives
        }
        self._finish_step = program(vmap(partial(train_step.finish_step, detector), 0), donate_argnums=0)
        self._prepare_plain = prepare(AugmentationSettings())
        self._add_batch = vmap(partial(batchnorm_statistics.add_batch, detector), None, 0, 0, None, 0)
        self._add_statistics = pmap(self._add_batches if self._scanned else self._add_step)
        self._programs, self._compiling, self._compilers = {}, {}, None
        self._dispatched: set[Objectives] = set()

    def epoch(
        self, state: TrainState, objectives: Objectives, indices: Indices, on_step: StepCallback = lambda *_: None
    ) -> tuple[TrainState, LogsByStep]:
        """Dispatches an epoch as `dispatch` does, waits for it, and returns the state and each log by step."""
        state, logs = self.dispatch(state, objectives, indices, on_step)
        return state, self.fetch_logs(logs)

    def dispatch(
        self, state: TrainState, objectives: Objectives, indices: Indices, on_step: StepCallback = lambda *_: None
    ) -> tuple[TrainState, list[Logs]]:
        """Dispatches an epoch to the devices; returns, without waiting, the new state and logs for `fetch_logs`.

        The memory of the old state is used again (it is donated).
        """
        if not len(indices):
            return state, []
        self._wait_for_compilation(*self._program_names(objectives))
        self._dispatched.add(objectives)
        run = self._epoch_program(objectives) if self._scanned else partial(self._step, objectives)
        all_logs, done = [], 0
        with closing(self._chunks(indices, self._scanned)) as chunks:
            for images, places in chunks:
                state, logs, *last = run(state, self.frozen, images, places)
                all_logs.append(logs)
                if self._streamed:  # otherwise chunks of images would accumulate on the devices
                    jax.block_until_ready(all_logs[-2:-1])
                done += places.shape[1] if self._scanned else 1
                if on_step(done, last[0] if self._scanned else logs):
                    break
        return state, all_logs

    def fetch_logs(self, logs: list[Logs]) -> LogsByStep:
        """Waits for a dispatched epoch and returns each of its logs by step."""
        if not logs:
            return {}
        # Each log is [local, *seeds] by step or, scanned, [local, steps, *seeds] by chunk of steps.
        join = np.concatenate if self._scanned else np.stack
        by_step = jax.tree.map(lambda *parts: np.moveaxis(join(parts, 1), 1, -1), *jax.device_get(logs))
        return {name: self.layout.log_from_devices(log) for name, log in by_step.items()}

    def step_by_step(
        self, state: TrainState, objectives: Objectives, indices: Int[np.ndarray, "steps batch"]
    ) -> Iterator[tuple[int, str, TrainState, Logs]]:
        """Runs an epoch update by update; only of a runner that is not scanned.

        Yields the step from 0, the objective, the state after its update, and the update's logs.
        """
        with closing(self._chunks(indices, scanned=False)) as chunks:
            for step, (images, places) in enumerate(chunks):
                for name, new_state, logs in self._objective_steps(objectives, state, self.frozen, images, places):
                    state = new_state
                    yield step, name, state, logs
                state = self._finish_step(state)

    def _chunks(self, indices, scanned):
        """Yields the inputs of the epoch's programs: images, and indices into them of one step [local, b] or,
        scanned, of several [local, steps, b]."""
        shards = self.layout.shard_indices(indices)
        if not scanned:
            parts = [shards[:, step] for step in range(len(indices))]
        elif not self._streamed:
            parts = [shards]
        else:
            image_bytes = math.prod(self.training_set.image.shape[1:])
            steps = max(1, _CHUNK // (shards[:, 0].size * image_bytes))
            parts = [shards[:, i : i + steps] for i in range(0, len(indices), steps)]
        if self._streamed:
            yield from prefetch(self._fetch, parts)
        else:
            for part in parts:
                yield self.training_set, scatter(part)  # explicit, for the tests' guard against transfers

    def _fetch(self, indices):
        """Reads images onto the devices that use them; returns them, and indices into them."""
        image = self.training_set.image[indices.ravel()]
        condition = self.training_set.condition[indices]
        images = TrainingSet(image.reshape(len(indices), -1, *image.shape[1:]), condition.reshape(len(indices), -1))
        places = np.arange(indices[0].size, dtype=np.int32).reshape(indices.shape[1:])
        return scatter((images, np.broadcast_to(places, indices.shape)))

    def _step(self, objectives, state, frozen, images, indices):
        values = defaultdict(list)  # several of a log of an objective with several updates
        for _, new_state, logs in self._objective_steps(objectives, state, frozen, images, indices):
            state = new_state
            for name, value in logs.items():
                values[name].append(value)
        return self._finish_step(state), {name: tree_mean(v) for name, v in values.items()}

    def _objective_steps(self, objectives, state, frozen, images, indices):
        batch = self._prepare(state, images, indices)
        for update_index, name in enumerate(objectives, 1):
            state, logs = self._updates[name](state, frozen, batch, update_index)
            yield name, state, logs

    def _epoch_program(self, objectives):
        """A program of many steps; returns the state, the logs of all steps, and the last one's."""
        if objectives not in self._programs:

            def epoch(state, frozen, images, indices):
                state, logs = lax.scan(lambda s, i: self._step(objectives, s, frozen, images, i), state, indices)
                return state, logs, {name: values[-1] for name, values in logs.items()}

            self._programs[objectives] = self.layout.pmap(epoch, donate_argnums=0)
        return self._programs[objectives]

    @property
    def epoch_is_one_program(self) -> bool:
        """Whether an epoch is one compiled program."""
        return self._scanned and not self._streamed

    def compile_ahead(self, state: TrainState, programs: Iterable[Objectives], indices: Indices) -> None:
        """Starts to compile epochs in parallel, as each may take a minute; `dispatch` waits for its own.

        The epochs are compiled in the order of `programs`, and the program of BatchNorm statistics, if there are any,
        after the first. Only the shapes of the state and of the indices of an epoch matter. Nothing is compiled ahead
        for images that are streamed.
        """
        if self._streamed:
            return
        shards = self.layout.shard_indices(indices)
        inputs = state, self.frozen, self.training_set, scatter(shards if self._scanned else shards[:, 0])
        batch = None if self._scanned else self._prepare(state, *inputs[2:])
        functions: dict[Objectives, tuple] = {}
        for objectives in programs:
            for name in self._program_names(objectives):
                if self._scanned:
                    functions[name] = self._epoch_program(objectives), inputs
                else:
                    functions[name] = self._updates[name[0]], (*inputs[:2], batch, 1)
        if statistics := batchnorm_statistics.current_statistics(state):
            first, *others = functions.items()
            of_statistics = STATISTICS, (self._add_statistics, (_no_batches(), statistics, *inputs))
            functions = dict([first, of_statistics, *others])
        # On a CPU, more programs than cores would delay the first, for which the training waits.
        workers = None if self._scanned else max(2, os.cpu_count() or 2)
        self._compilers = ThreadPoolExecutor(workers, thread_name_prefix="compile")
        for name, (function, arguments) in functions.items():
            self._compiling[name] = self._compilers.submit(_compile, function, jax.tree.map(_shape, arguments))

    def _program_names(self, objectives: Objectives) -> list[Objectives]:
        """Returns the names of the programs, among those that are compiled ahead, that take an epoch's steps."""
        return [objectives] if self._scanned else [(name,) for name in dict.fromkeys(objectives)]

    def _wait_for_compilation(self, *names):
        for name in names:
            if name in self._compiling:
                self._compiling.pop(name).result()

    def has_run(self, objectives: Objectives) -> bool:
        """Returns whether all programs of an epoch have been called, and therefore are compiled."""
        if self._scanned:
            return objectives in self._dispatched
        return set().union(*self._dispatched) >= set(objectives)  # a program each

    def is_compiled(self, name: Objectives) -> bool:
        """Returns whether the compilation of an epoch's objectives, or of STATISTICS, is finished and did not fail."""
        compiling = self._compiling.get(name)
        return compiling is None or (compiling.done() and compiling.exception() is None)

    def stop_compiling(self) -> None:
        """Waits for running compilations and cancels the others."""
        if self._compilers:
            self._compilers.shutdown(cancel_futures=True)
        self._compiling.clear()

    def with_statistics(self, state: TrainState, indices: Indices) -> TrainState:
        """Returns the state with BatchNorm statistics over these batches without augmentation."""
        statistics = batchnorm_statistics.current_statistics(state)
        if not statistics:
            return state
        self._wait_for_compilation(STATISTICS)
        number = _no_batches()
        with closing(self._chunks(indices, self._scanned)) as chunks:
            for images, places in chunks:
                number, statistics = self._add_statistics(number, statistics, state, self.frozen, images, places)
                # One at a time: streamed images would accumulate, and several programs that reduce over simulated
                # devices could deadlock, each holding some threads of the CPU.
                if not self.epoch_is_one_program:
                    jax.block_until_ready(statistics)
        return batchnorm_statistics.with_statistics(state, statistics)

    def _add_step(self, number, statistics, state, frozen, images, indices):
        batch = self._prepare_plain(state, images, indices)
        return number + 1, self._add_batch(number, statistics, state, frozen, batch)

    def _add_batches(self, number, statistics, state, frozen, images, indices):
        def add(total, of_step):
            number, statistics = total
            return self._add_step(number, statistics, state, frozen, images, of_step), None

        return lax.scan(add, (number, statistics), indices)[0]


def _compile(function, shapes):
    """Traces and compiles; JAX keeps the result with the function and uses it at the call."""
    return function.lower(*shapes).compile()


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x


def _no_batches():
    """Returns the number 0 of batches on each device."""
    return scatter(np.zeros(jax.local_device_count(), np.int32))
