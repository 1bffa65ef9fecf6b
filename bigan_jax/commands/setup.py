"""What is to be trained, made ready: pictures that were looked at, a detector, the run's folder."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bigan_jax.commands.build import build, make_optimizers
from bigan_jax.commands.settings import Settings, parse_settings
from bigan_jax.data import audit, loading
from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.data.files.unreadable import is_within_folder
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError, printable
from bigan_jax.nn.vgg16 import weights as vgg16_weights
from bigan_jax.runtime import distributed
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import require_same_config, write_config
from bigan_jax.training import epoch_runner
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.run import FROZEN_DIGEST_FILE, TrainingJob
from bigan_jax.training.saving.checkpoints import tree_digest
from bigan_jax.training.train_step import TrainingSet


@contextmanager
def prepare_jobs(configs: Mapping[Path, ConfigDict]) -> Iterator[list[TrainingJob]]:
    """Runs that are ready to be trained, and whose folders are held: one, or several that differ in
    their seed alone and share all else, compiled programs too.

    configs: by workdir. Raises as `training.train` does.
    """
    configs = {distributed.shared_folder(workdir): config for workdir, config in configs.items()}
    for workdir, config in configs.items():
        settings = parse_settings(config)
        _check_place(workdir, settings.data.dir)
    # All share these settings but the seed. This raises before images are read:
    require_weights(settings)
    build(settings, conditions=1, steps_per_epoch=1, frozen=False)
    with ExitStack() as held:
        for workdir in configs:
            held.enter_context(exclusive_lock(workdir))
        for workdir, own in configs.items():
            require_same_config(workdir, own)
        dataset, found = load_audited(settings)
        _require_same_across_processes(config, dataset)
        print(found.table())
        steps, batch_size = epoch_runner.steps_and_batch_size(
            settings.batch_size, len(dataset.train.image)
        )
        built = build(settings, len(dataset.conditions), steps)
        weights = tree_digest(built.detector.frozen) if built.detector.frozen else ""
        distributed.require_equal("VGG16 weights", weights)
        for workdir in configs:
            found.require_same_training_images(workdir)
            _check_frozen(workdir, weights)
        for workdir, own in configs.items():
            write_config(workdir, own)
            found.write(workdir)

        # Compiled, so that the initial values do not depend on how operations are fused elsewhere.
        begin = jax.jit(partial(_begin, built, settings.data.image_shape))
        runner = cache(partial(_runner, settings, built, dataset.train, steps))
        shared = built, dataset, found, weights, steps, batch_size, begin, runner
        kept = settings.on_nan, settings.checkpointing
        yield [
            TrainingJob(config.seed, *kept, *shared, workdir) for workdir, config in configs.items()
        ]


def _check_place(workdir, data):
    if data and is_within_folder(workdir, os.path.expanduser(data)):
        raise UserError(
            f"the run's folder {workdir} lies in config.data.dir={data}, whose pictures its "
            "figures would join: give a --workdir elsewhere"
        )


def _check_frozen(workdir, weights):
    """No field tells which weights a file holds, or another version of a package."""
    if not weights or not (workdir / FROZEN_DIGEST_FILE).is_file():
        return
    with (workdir / FROZEN_DIGEST_FILE).open("rb") as file:
        theirs = file.read(1000)
    if theirs != weights.encode():
        raise UserError(
            f"{workdir} holds a run that trained by other VGG16 weights: give those again by "
            "--config.vgg16.weights=FILE, or another --workdir"
        )


def _require_same_across_processes(config, dataset):
    """Of several processes, all have to train the same."""
    fields = config.to_dict()
    fields["data"] |= {"dir": "", "tfds_dir": ""}  # may lie elsewhere on another machine
    fields["vgg16"]["weights"] = ""
    distributed.require_equal("config", json.dumps(fields, sort_keys=True))
    distributed.require_equal("training pictures", json.dumps(dataset.train.path.tolist()))


def _begin(built, shape, seed):
    return init_state(built.detector, built.optimizers, seed, shape)


def _runner(settings, built, pictures, steps, scale, scanned=None, seeds=0):
    training_set = TrainingSet(pictures.image, pictures.condition)
    return EpochRunner(
        built.detector,
        make_optimizers(settings, built.detector, built.phases, steps, scale),
        settings.augmentation,
        epoch_runner.replicate(dict(built.detector.frozen)),
        training_set if settings.data.stream else epoch_runner.replicate(training_set),
        scanned=scanned,
        seeds=seeds,
    )


def require_weights(settings: Settings) -> None:
    """Loads VGG16's weights where the score has a perceptual term: before training, not after it.

    Raises:
      UserError: they are missing or unreadable.
    """
    if "perceptual" in settings.score.formula.weights:
        vgg16_weights.load_weights(settings.vgg16_weights)


def load_audited(settings: Settings) -> tuple[Dataset, Audit]:
    """The pictures, less the copies that `data.duplicates` leaves out, and what was found; what is
    to be known of them is printed."""
    dataset = loading.load_dataset(settings.data)
    found = audit.audit_dataset(dataset, settings.data.duplicates)
    dataset = audit.drop_duplicates(dataset, found)
    _check_splits(dataset, settings)
    for note in dataset.notes:
        print(f"Note: {printable(note)}")
    return dataset, found


def _check_splits(dataset, settings):
    """Each part has what is asked of it."""
    if len(dataset.train.label) < 2:
        raise UserError(
            f"{len(dataset.train.label)} pictures would train: at least 2 are needed. Lower "
            "--config.data.test_fraction or --config.data.calibration_fraction, or add pictures"
        )
    if not len(dataset.test.label):
        raise UserError(
            "no picture would be tested: raise --config.data.test_fraction, or add anomalous ones"
        )
    if settings.score.standardize and len(dataset.calibration.label) < 2:
        raise UserError(
            "--config.score.standardize divides by the spread over the calibration pictures, and "
            "there is one: raise --config.data.calibration_fraction"
        )
