"""The JAX side of benchmarks/steps.py: a detector trained by EpochRunner, as in `launch.py`.

It also describes the detector, images and weights for the PyTorch side (sharing.py).
"""

import importlib
import time
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import counting, operations, sharing, sides
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.detector import Batch, example_keys, inference_net, init_state
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.runtime.jax_setup import keep_freed_memory
from bigan_jax.training import device_layout, epoch_runner, schedules
from bigan_jax.training.train_step import update

ACCELERATOR_STEPS = 20  # in an epoch
FORMULA = anomaly_score.ScoreFormula({"mse": 0.7, "ssim": 0.3})


class JaxSide:
    """The detector of a task with its initial weights, which `first_step` restores."""

    def __init__(self, task):
        keep_freed_memory()  # as launch.py does
        self.memory_before = sides.resident()
        self.task = task
        config = importlib.import_module(f"configs.{task.config}").get_config("folder")
        with config.unlocked(), config.ignore_type():
            config.data.image_size, config.dtype = task.size, task.dtype
            config.update_from_flattened_dict(task.changes)
        settings = parse_settings(config)
        self.config, self.shape = config, settings.data.image_shape
        built = build(settings, sharing.CONDITIONS, steps_per_epoch=10)
        self.detector, self.optimizers = built.detector, built.optimizers
        self.active = {p.name: schedules.active_objectives(schedules.ScheduledEpoch(p, 0)) for p in built.phases}
        self.updates = {name: schedules.updates_by_phase(built.phases, name, 10) for name in self.detector.objectives}
        # On an accelerator, each number of steps is a program of its own.
        self.steps_per_round = 1 if jax.default_backend() == "cpu" else ACCELERATOR_STEPS
        self.training_set = sharing.draw(self.shape, 2 * task.batch)
        self.frozen = dict(self.detector.frozen)
        self.runner = self._runner(self.detector)
        self._init = jax.jit(lambda: init_state(self.detector, self.optimizers, 0, self.shape))
        self.start()
        self._score = jax.jit(partial(_score, self.detector))
        search = self.detector.search
        self._searcher = LatentSearcher(
            self.detector._replace(search=search and search._replace(steps=task.search_steps))
        )

    def _runner(self, detector):
        return epoch_runner.EpochRunner(
            detector,
            self.optimizers,
            parse_settings(self.config).augmentation,
            device_layout.replicate(self.frozen),
            device_layout.replicate(self.training_set),
        )

    def start(self) -> None:
        """Resets the state to the initial weights."""
        self.state = device_layout.replicate(self._init())

    # --- description for the other side ---

    def describe(self) -> dict:
        """Everything that the other side is built from, as plain values and arrays."""
        device = jax.devices()[0]
        return {
            "model": self.config.model_name,
            "fields": self.config.model.to_dict(),
            "optimizers": self.config.optimizers.to_dict(),
            "updates": self.updates,
            "active": self.active,
            "shape": self.shape,
            "conditions": sharing.CONDITIONS,
            "images": tuple(self.training_set),
            "layers": self.layers(),
            "search_steps": self.detector.search.steps if self.detector.search else 0,
            "platform": device.platform,
            "device": device.device_kind,
            "steps_per_round": self.steps_per_round,
            "jax": jax.__version__,
        }

    def layers(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """The layers of each network, as in sharing.layers."""
        return sharing.layers(self.detector, device_layout.first(self.state), self.shape)

    # --- steps ---

    def first_step(self, phase) -> dict:
        """Runs one step from the initial weights.

        Returns:
          `losses` by name, `noise` of each update, and `seconds` including compilation; on an
          accelerator the seconds of a round minus all steps but one. For a network with dropout the
          losses are those without it, as random generators differ between the sides.
        """
        self.start()
        result = {"noise": [self._noise(index) for index, _ in enumerate(self.active[phase], 1)]}
        runner, state = self.runner, self.state
        if "discriminator_dropout" in self.config.model:
            config = self.config.copy_and_resolve_references()
            config.model.discriminator_dropout = 0.0
            runner = self._runner(build(parse_settings(config), sharing.CONDITIONS, 10).detector)
            state = jax.tree.map(jnp.copy, state)
            _, logs = runner.epoch(state, self.active[phase], self._order(1))
        count = self.steps_per_round
        began = time.perf_counter()
        self.state, run_logs = self.runner.epoch(self.state, self.active[phase], self._order(count))
        result["seconds"] = time.perf_counter() - began
        if count > 1:
            result["seconds"] -= (count - 1) * self.steps(phase, count) / count
        logs = run_logs if runner is self.runner else logs
        result["losses"] = {
            name.removesuffix("/loss"): value[:1] for name, value in logs.items() if name.endswith("/loss")
        }
        return result

    def _noise(self, update_index):
        latent = self.config.model.get("latent", 0)
        return sharing.noise(self.config.model_name, latent, self.task.batch, update_index)

    def _order(self, steps):
        return np.tile(np.arange(self.task.batch, dtype=np.int32), (steps, 1))

    def steps(self, phase, count) -> float:
        """Seconds for an epoch of `count` steps."""
        order = self._order(count)
        began = time.perf_counter()
        self.state, _ = self.runner.epoch(self.state, self.active[phase], order)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began

    def flops(self, phase) -> float:
        """Floating-point operations of the updates of a step, or of the scores of a batch."""
        if phase == sides.SCORE:
            return self._flops_of_scores()
        if jax.default_backend() == "cpu":  # the programs of the step are in the cache
            updates = (self._update(name).compile() for name in self.active[phase])
            return sum(map(counting.of_compiled, updates))
        batch_shape, state = (self.task.batch, *self.shape), device_layout.first(self.state)
        return counting.of_step(self.detector, self.optimizers, self.active[phase], state, batch_shape)

    def _update(self, name):
        """The lowered update of one loss, mapped as in EpochRunner: the cache has its program."""
        state, frozen = self.state, device_layout.replicate(self.frozen)
        batch = jax.eval_shape(
            lambda: Batch(jnp.zeros((1, self.task.batch, *self.shape)), jnp.zeros((1, self.task.batch), jnp.int32))
        )
        one_update = partial(update, self.detector, self.optimizers[name], name)
        mapped = jax.pmap(one_update, axis_name=BATCH_AXIS, in_axes=(0, 0, 0, None), donate_argnums=0)
        return mapped.lower(state, frozen, batch, 1)

    def profile(self, phase, count) -> dict[str, float]:
        """Seconds per step by kind of operation (operations.KINDS), over `count` steps."""
        spent = Counter()
        for name, times in Counter(self.active[phase]).items():
            kinds = operations.of_program(self._update(name).compile().as_text())

            def run(name=name):
                self.state, _ = self.runner.epoch(self.state, (name,), self._order(count))
                return self.state

            profile = counting.profiled(run)
            for event in (e for plane in profile.planes for row in plane.lines for e in row.events):
                if operation := dict(event.stats).get("hlo_op"):
                    kind = kinds.get(operation, operations.REST)
                    spent[kind] += times * event.duration_ns / 1e9 / count
        return dict(spent)

    def _flops_of_scores(self):
        arguments = self._score_arguments()
        if not self._searcher.steps:
            return counting.flops(self._score, *arguments)
        latent = self._searcher(*arguments).latent

        def step(state, frozen, batch, latent):
            net = inference_net(self.detector, state, frozen)
            return self.detector.search.step(net, batch, latent)

        return self._searcher.steps * counting.flops(step, *arguments[:3], latent)

    # --- scoring ---

    def first_scores(self) -> dict:
        """The scores of the first batch and their seconds, including compilation.

        With a latent search the scores are the codes that it ends with; `codes` has the first.
        """
        began = time.perf_counter()
        if not self._searcher.steps:
            scores = np.asarray(self._score(*self._score_arguments()))
            return {"scores": scores, "seconds": time.perf_counter() - began}
        batch, keys = self._score_arguments()[2:]
        start = self._searcher_start(batch, keys)
        codes = self._searcher(*self._score_arguments()).latent.codes
        return {
            "codes": np.asarray(start[:, 0]),
            "scores": np.asarray(codes[:, 0]),
            "seconds": time.perf_counter() - began,
        }

    def _searcher_start(self, batch, keys):
        def start(state):
            net = inference_net(self.detector, state, self.frozen)
            return self.detector.search.start(net, batch, keys).codes

        return jax.jit(start)(device_layout.first(self.state))

    def _score_arguments(self):
        image = jnp.asarray(self.training_set.image[: self.task.batch]) / 255
        batch = Batch(image, jnp.asarray(self.training_set.condition[: self.task.batch]))
        keys = example_keys(jax.random.key(0), jnp.arange(self.task.batch))
        return device_layout.first(self.state), self.frozen, batch, keys

    def scores(self, count) -> float:
        """Seconds to score `count` batches, or to repeat the latent search of one `count` times."""
        arguments = self._score_arguments()
        began = time.perf_counter()
        for _ in range(count):
            result = self._searcher(*arguments).latent if self._searcher.steps else self._score(*arguments)
        jax.block_until_ready(result)
        return time.perf_counter() - began

    # --- the machine ---

    def forget_peak(self) -> None:
        sides.forget_peak()

    def peak(self) -> int:
        """Peak bytes since `forget_peak` without those of the imports; on an accelerator, those of
        its memory since the start of the process."""
        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else sides.peak_resident() - self.memory_before

    def product_rate(self, size) -> float:
        """Floating-point operations per second of a size x size matrix product, the best of 5."""
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(self.task.dtype)
        product = jax.jit(jnp.matmul)
        product(x, x).block_until_ready()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            product(x, x).block_until_ready()
            seconds.append(time.perf_counter() - began)
        return 2 * size**3 / min(seconds)


def _score(detector, state, frozen, batch, keys):
    net = inference_net(detector, state, frozen)
    terms = anomaly_score.terms(batch.image, detector.reconstruct(net, batch, keys))
    return anomaly_score.paper_score(FORMULA, terms)
