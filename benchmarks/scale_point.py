"""Measures one point of benchmarks/scale.py in a process of its own.

The numbers of devices and processes are fixed when JAX starts. Trains a small detector for some
epochs after one that compiles, and prints the results as one line of JSON.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from benchmarks.sides import forget_peak, peak_resident
from bigan_jax.configs.common import override
from bigan_jax.detector import init_state


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cae")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--devices", type=int, default=1, help="simulated devices of this process")
    parser.add_argument("--files", type=Path, help="folder of files to stream, repeatedly")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--core", type=int, help="the only core of this process")
    return parser.parse_args()


def train(args):
    """Trains and returns {"epoch": seconds of each, "peak_bytes": of the process, ...}."""
    import jax
    import numpy as np

    from bigan_jax.commands.build import build
    from bigan_jax.commands.settings import parse_settings
    from bigan_jax.data.files.images import read_image
    from bigan_jax.data.streaming import LazyImages
    from bigan_jax.training import device_layout, epoch_runner
    from bigan_jax.training.augmentation import AugmentationSettings
    from bigan_jax.training.loop import epoch_order
    from bigan_jax.training.train_step import TrainingSet

    config = small_config(args)
    settings = parse_settings(config)
    shape = settings.data.image_shape
    steps, batch = epoch_runner.steps_and_batch_size(args.batch, args.images)
    built = build(settings, 1, steps)
    state = jax.jit(lambda: init_state(built.detector, built.optimizers, 0, shape))()
    parameters = sum(x.nbytes for x in jax.tree.leaves(state.params))
    condition = np.zeros(args.images, np.int32)
    if args.files:
        files = sorted(args.files.iterdir())
        names = [files[i % len(files)].name for i in range(args.images)]
        read = lambda i: read_image(args.files / names[i], args.size, 1)  # noqa: E731
        training_set = TrainingSet(LazyImages(read, names, shape), condition)
    else:
        image = np.random.default_rng(0).integers(0, 256, (args.images, *shape), np.uint8)
        training_set = device_layout.replicate(TrainingSet(image, condition))
    runner = epoch_runner.EpochRunner(built.detector, built.optimizers, AugmentationSettings(), {}, training_set)
    state, active = device_layout.replicate(state), tuple(built.detector.objectives)

    seconds = []
    for epoch in range(1 + args.epochs):
        order = epoch_order(0, epoch, args.images, steps, batch)
        if epoch == 1:
            forget_peak()  # that of the compiler
        began = time.perf_counter()
        state, _ = runner.epoch(state, active, order if epoch else order[:4])
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    peak = peak_resident()
    return {
        "steps": steps,
        "parameter_bytes": parameters,
        "epoch": seconds[1:],
        "step": statistics.median(seconds[1:]) / steps,
        "images_per_second": steps * batch / statistics.median(seconds[1:]),
        "peak_bytes": peak,
        "all_reduce": all_reduce(parameters),
    }


def small_config(args):
    """The config of the model, made small if it is convolutional."""
    import importlib

    config = importlib.import_module(f"configs.{args.model}").get_config("phantom")
    fields = {"data.image_size": args.size, "batch_size": args.batch}
    if args.model == "cae":
        fields |= {"model.latent": 32, "model.widths": (8, 16)}
    override(config, fields)
    return config


def all_reduce(n_bytes):
    """The median seconds of a mean of `n_bytes` over all devices; 0 for one device."""
    import jax
    import numpy as np

    if jax.device_count() == 1:
        return 0.0
    values = np.ones((jax.local_device_count(), n_bytes // 4), np.float32)
    values = jax.pmap(lambda x: x, "batch")(values)
    mean = jax.pmap(lambda x: jax.lax.pmean(x, "batch"), "batch")
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        mean(values).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def main():
    args = arguments()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if args.processes > 1:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    results = train(args)
    if args.process == 0:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
