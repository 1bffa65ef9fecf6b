"""Measures how well trained runs find synthetic defects on their calibration images, which needs no label."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bigan_jax.commands.load import load
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited
from bigan_jax.errors import UserError
from bigan_jax.evaluation.synthetic_defects import synthetic_aurocs
from bigan_jax.runtime.run_config import config_errors, read_config


def measure_runs(workdirs: Iterable[Path]) -> Iterator[tuple[Path, dict[str, dict[str, float]] | str]]:
    """Yields each run's folder and the result of `synthetic_aurocs`, or a sentence that says why there is none.

    Runs on the same data are measured together, and share one reading of the images.
    """
    by_data = defaultdict(list)
    for workdir in workdirs:
        try:
            config = read_config(workdir)
            with config_errors(workdir):
                settings = parse_settings(config)
        except UserError as error:
            yield workdir, str(error)
            continue
        by_data[settings.data].append((workdir, settings))
    for runs in by_data.values():
        images = None
        for workdir, settings in runs:
            try:
                images = images or load_audited(settings)[0].calibration
                assert isinstance(images.image, np.ndarray)  # only training images are lazy
                yield workdir, synthetic_aurocs(load(workdir), images.image, images.condition)
            except UserError as error:
                yield workdir, str(error)
