"""Set-up of training: audited data, a detector, the run's folder and compiled functions."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bigan_jax.commands.build import build, make_optimizers
from bigan_jax.commands.roi import require_same_roi, write_roi
from bigan_jax.commands.settings import Settings, parse_settings
from bigan_jax.data import loading
from bigan_jax.data.audit import Audit, audit_dataset, drop_duplicates
from bigan_jax.data.audit.result import trained_paths
from bigan_jax.data.dataset import Dataset
from bigan_jax.data.files.unreadable import is_within_folder
from bigan_jax.data.source import ImageSource
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError, printable
from bigan_jax.nn.vgg16 import weights as vgg16_weights
from bigan_jax.runtime import distributed
from bigan_jax.runtime.jax_setup import fast_compilation
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import require_same_config, write_config
from bigan_jax.training import device_layout, epoch_runner
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.fitting import Fitter
from bigan_jax.training.run import TrainingJob, require_same_frozen
from bigan_jax.training.saving import loggers
from bigan_jax.training.saving.checkpoints import tree_digest
from bigan_jax.training.train_step import TrainingSet


@contextmanager
def prepare_jobs(configs: Mapping[Path, ConfigDict], source: ImageSource | None = None) -> Iterator[list[TrainingJob]]:
    """Sets up runs for training, and locks their folders for as long as the context is open.

    The runs share everything except the seed and the folder, including compiled programs.

    Args:
      configs: the config of each run by its folder. They differ in their seed alone.
      source: replaces the images that the configs name; it may be without test images.

    Raises:
      UserError: see `commands.train.train`.
    """
    configs = {distributed.shared_folder(workdir): config for workdir, config in configs.items()}
    for workdir, config in configs.items():
        settings = parse_settings(config)
        _require_outside_data(workdir, settings.data.dir)
    # All runs have these settings but for the seed. Errors are raised before images are read.
    require_weights(settings)
    loggers.require_installed(settings.loggers)
    build(settings, conditions=1, steps_per_epoch=1, frozen=False)
    with ExitStack() as stack:
        for workdir in configs:
            stack.enter_context(exclusive_lock(workdir))
        for workdir, config in configs.items():
            require_same_config(workdir, config)
            require_same_roi(workdir, settings.data.roi)
        dataset, audit = load_audited(settings, configs, source)
        _require_same_across_processes(config, dataset, settings.data.roi_pixels)
        print(audit.message())
        steps, batch_size = epoch_runner.steps_and_batch_size(settings.batch_size, len(dataset.train.image))
        built = build(settings, len(dataset.conditions), steps)
        weights = tree_digest(built.detector.frozen) if built.detector.frozen else ""
        distributed.require_equal("weights of frozen networks", weights)
        for workdir in configs:
            audit.require_same_training_images(workdir)
            require_same_frozen(workdir, weights)
        for workdir, config in configs.items():
            write_roi(workdir, settings.data.roi)
            write_config(workdir, config)
            audit.write(workdir)

        shape, fitter = settings.data.image_shape, None
        # Compiled alone, so that the initial values do not depend on the fusion of operations.
        init = jax.jit(
            partial(init_state, built.detector, built.optimizers, shape=shape), compiler_options=fast_compilation()
        )
        if built.detector.fit:
            fitter = Fitter(built.detector, shape, settings.batch_size)
            init = fitter.init
        make_runner = cache(partial(_make_runner, settings, built, dataset.train, steps))
        policies = settings.on_nan, settings.checkpointing
        shared = built, dataset, audit, weights, steps, batch_size, init, make_runner, fitter
        yield [
            TrainingJob(config.seed, *policies, *shared, workdir, settings.loggers)
            for workdir, config in configs.items()
        ]


def _require_outside_data(workdir, data_dir):
    if data_dir and is_within_folder(workdir, os.path.expanduser(data_dir)):
        raise UserError(
            f"--workdir={workdir} is inside config.data.dir={data_dir}: the run's figures would be read as data. "
            "Use a --workdir elsewhere."
        )


def _require_same_across_processes(config, dataset, roi):
    """Requires that all processes have the same config and training images."""
    fields = config.to_dict()
    roi = "" if roi is None else np.packbits(roi).tobytes().hex()
    fields["data"] |= {"dir": "", "tfds_dir": "", "roi": roi}  # paths may differ between machines
    fields["vgg16"]["weights"] = ""
    fields["model"] |= {"network": ""}
    distributed.require_equal("config", json.dumps(fields, sort_keys=True))
    distributed.require_equal("training images", json.dumps(dataset.train.path.tolist()))


def _make_runner(settings, built, images, steps, scale, scanned=None, seeds=0):
    training_set = TrainingSet(images.image, images.condition)
    return EpochRunner(
        built.detector,
        make_optimizers(settings, built.detector, built.phases, steps, scale),
        settings.augmentation,
        device_layout.replicate(dict(built.detector.frozen)),
        training_set if settings.data.stream else device_layout.replicate(training_set),
        scanned=scanned,
        seeds=seeds,
        roi=settings.data.roi_pixels,
    )


def require_weights(settings: Settings) -> None:
    """Raises UserError if the score needs VGG16's weights and they are missing or unreadable."""
    if "perceptual" in settings.score.formula.weights:
        vgg16_weights.load_weights(settings.vgg16_weights)


def load_audited(
    settings: Settings, workdirs: Iterable[Path] = (), source: ImageSource | None = None
) -> tuple[Dataset, Audit]:
    """Loads and audits the images, drops duplicates as config.data.duplicates says, prints notes.

    Images that the runs in `workdirs` were trained on stay training images if others were added. A `source` replaces
    the one that the settings name, and may be without test images.

    Raises:
      UserError: the data cannot be read, duplicates are not allowed, or a split is too small.
    """
    dataset = loading.load_dataset(settings.data, set().union(*map(trained_paths, workdirs)), source)
    audit = audit_dataset(dataset, settings.data.duplicates)
    dataset = drop_duplicates(dataset, audit)
    _check_splits(dataset, tested=source is None)
    for note in dataset.notes:
        print(f"Note: {printable(note)}")
    return dataset, audit


def _check_splits(dataset, tested):
    if len(dataset.train.label) < 2:
        raise UserError(
            f"There are too few training images ({len(dataset.train.label)}); at least 2 are required. "
            "Lower --config.data.test_fraction or --config.data.calibration_fraction, or add images."
        )
    if tested and not len(dataset.test.label):
        raise UserError("There are no test images. Raise --config.data.test_fraction, or add anomalous images.")
