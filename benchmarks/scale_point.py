"""One point of benchmarks/scale.py, in a process of its own, as the numbers of devices and of
processes are fixed when JAX starts: trains a small detector for some epochs and prints, as one line
of JSON, what they took after a first one that compiled and warmed up."""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from benchmarks.sides import forget_peak, peak_resident
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs.common import override
from bigan_jax.detector import init_state
from bigan_jax.training.augmentation import AugmentationSettings


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cae")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--devices", type=int, default=1, help="simulated, of this process")
    parser.add_argument("--files", type=Path, help="stream from these, taken round and round")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--core", type=int, help="the only one that this process may use")
    return parser.parse_args()


def train(args):
    """{"epoch": seconds of each, "peak_bytes": of this process within them, ...}"""
    import jax
    import numpy as np

    pass
    from bigan_jax.commands.build import build
    from bigan_jax.data.files.images import read_image
    from bigan_jax.data.streaming import LazyImages
    from bigan_jax.training import epoch_runner
    from bigan_jax.training.loop import epoch_order
    from bigan_jax.training.train_step import TrainingSet

    config = small(args)
    shape = parse_settings(config).data.image_shape
    steps, batch = epoch_runner.steps_and_batch_size(args.batch, args.pictures)
    built = build(parse_settings(config), 1, steps)
    state = jax.jit(lambda: init_state(built.detector, built.optimizers, 0, shape))()
    parameters = sum(x.nbytes for x in jax.tree.leaves(state.params))
    condition = np.zeros(args.pictures, np.int32)
    if args.files:
        files = sorted(args.files.iterdir())
        names = [files[i % len(files)].name for i in range(args.pictures)]
        read = lambda i: read_image(args.files / names[i], args.size, 1)  # noqa: E731
        pictures = TrainingSet(LazyImages(read, names, shape), condition)
    else:
        image = np.random.default_rng(0).integers(0, 256, (args.pictures, *shape), np.uint8)
        pictures = epoch_runner.replicate(TrainingSet(image, condition))
    runner = epoch_runner.EpochRunner(
        built.detector, built.optimizers, AugmentationSettings(), {}, pictures
    )
    state, due = epoch_runner.replicate(state), tuple(built.detector.objectives)

    seconds = []
    for epoch in range(1 + args.epochs):
        order = epoch_order(0, epoch, args.pictures, steps, batch)
        if epoch == 1:
            forget_peak()  # what the compiler took
        began = time.perf_counter()
        state, _ = runner.epoch(state, due, order if epoch else order[:4])
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    peak = peak_resident()
    return {
        "steps": steps,
        "parameter_bytes": parameters,
        "epoch": seconds[1:],
        "step": statistics.median(seconds[1:]) / steps,
        "pictures_per_second": steps * batch / statistics.median(seconds[1:]),
        "peak_bytes": peak,
        "all_reduce": all_reduce(parameters),
    }


def small(args):
    """The model's config, made small where it is convolutional."""
    import importlib

    config = importlib.import_module(f"configs.{args.model}").get_config("phantom")
    fields = {"data.image_size": args.size, "batch_size": args.batch}
    if args.model == "cae":
        fields |= {"model.latent": 32, "model.widths": (8, 16)}
    override(config, fields)
    return config


def all_reduce(count):
    """The median seconds of a mean over all devices of so many bytes; 0 for one device."""
    import jax
    import numpy as np

    if jax.device_count() == 1:
        return 0.0
    values = np.ones((jax.local_device_count(), count // 4), np.float32)
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
    found = train(args)
    if args.process == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
