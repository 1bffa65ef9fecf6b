"""Scores to threshold to metrics to files. Nothing here that decides looks at a test picture's
label, and no picture affects another's score, rounding aside, nor its decision or colors."""

from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.commands.load import make_scorer, restore
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited, require_weights
from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.detector import Detector, TrainState
from bigan_jax.evaluation.assess import assess
from bigan_jax.reports import evaluation_files
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import (
    read_config,
    require_same_config,
    write_config,
)


def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict:
    """Scores the test pictures anew from the workdir's newest checkpoint, and writes the results.

    config: that of the workdir by default; another may differ in what has no part in training
      only, such as score, threshold, and where the pictures lie.
    Returns what evaluation.json holds. Raises UserError where there is no run.
    """
    workdir = Path(workdir)
    theirs = read_config(workdir)
    config = config or theirs
    settings = parse_settings(config)
    require_weights(settings)
    require_same_config(workdir, config)
    with exclusive_lock(workdir):
        dataset, found = load_audited(settings)
        found.require_same_training_images(workdir)
        state, detector, epochs = restore(settings, workdir, len(dataset.conditions))
        return evaluate_run(config, dataset, found, detector, state, epochs, workdir)


def evaluate_run(
    config: ConfigDict,
    dataset: Dataset,
    found: Audit,
    detector: Detector,
    state: TrainState,
    epochs: int,
    workdir: Path,
) -> dict:
    """Evaluates a state that was trained for so many epochs, and writes all files of its evaluation
    (`outcome.write`)."""
    settings = parse_settings(config)
    scorer = make_scorer(settings, detector, state, batch_size=settings.batch_size)
    assessment = assess(scorer, dataset, settings.score, settings.threshold, settings.identity)
    write_config(
        workdir, config
    )  # only now: what cannot be had leaves an earlier evaluation as it is
    found.write(workdir)
    result = assessment.result
    warnings = list(result.warnings)
    if epochs < settings.epochs:
        warnings.append(f"Trained for {epochs} of {settings.epochs} epochs: it is not finished.")
    if late := found.count_added_later(workdir):
        warnings.append(
            f"{late} pictures that would train came after the training, and have no part in it: "
            "another --workdir trains on them as well."
        )
    n_train = found.count_trained(workdir)
    result = result.replace(epochs=epochs, n_train=n_train, warnings=warnings)
    assessment = assessment._replace(result=result)
    result = evaluation_files.write_evaluation(workdir, config, dataset.test, found, assessment)
    return result.as_dict()
