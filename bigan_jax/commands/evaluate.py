"""The evaluate command: scores, threshold, metrics and files of trained runs.

No label of a test image affects a decision, and no image affects the score (rounding aside), decision or colors of
another.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.commands.folds import evaluate_folds, fold_configs
from bigan_jax.commands.load import make_scorer, restore
from bigan_jax.commands.roi import require_same_roi
from bigan_jax.commands.seeds import config_for_seed, finish_each_seed, seed_folders
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited, require_weights
from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.detector import Detector, TrainState
from bigan_jax.evaluation.assess import assess
from bigan_jax.reports import evaluation_files
from bigan_jax.runtime.jax_setup import require_platforms
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import config_errors, read_config, require_same_config, write_config
from bigan_jax.training.fitting import Fitter, cross_fit


@require_platforms
def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict:
    """Scores the test images again with the latest checkpoint, and writes all results.

    Args:
      workdir: folder of a run, or of the folders of several seeds.
      config: by default that of the run, from which it may differ in fields that do not affect training.

    Returns:
      The content of evaluation.json; for several seeds, of summary.json.

    Raises:
      UserError: the run or its data cannot be read. Of several seeds, the others are evaluated first.
    """
    workdir = Path(workdir)
    folders = seed_folders(workdir)
    if not folders or (workdir / "config.json").exists():
        return _evaluate_folder(workdir, config)
    configs = {seed: config and config_for_seed(config, seed) for seed in folders}
    calls = {folder: partial(_evaluate_folder, folder, configs[seed]) for seed, folder in folders.items()}
    return finish_each_seed(workdir, calls)


def _evaluate_folder(workdir: Path, config: ConfigDict | None) -> dict:
    saved_config = read_config(workdir)
    with config_errors(workdir) if config is None else nullcontext():
        config = saved_config if config is None else config
        settings = parse_settings(config, workdir)
    require_weights(settings)
    require_same_config(workdir, config)
    if settings.threshold.folds:
        for folder, own in fold_configs(config, workdir).items():
            _evaluate_folder(folder, own)
        return evaluate_folds(workdir, config)
    if (roi := config.data.get("roi", "")) != saved_config.data.get("roi", ""):
        require_same_roi(workdir, roi)
    with exclusive_lock(workdir):
        dataset, audit = load_audited(settings, [workdir])
        audit.require_same_training_images(workdir)
        state, detector, epochs = restore(settings, workdir, len(dataset.conditions))
        return evaluate_run(config, dataset, audit, detector, state, epochs, workdir)


def evaluate_run(
    config: ConfigDict,
    dataset: Dataset,
    audit: Audit,
    detector: Detector,
    state: TrainState,
    epochs: int,
    workdir: Path,
    fitter: Fitter | None = None,
) -> dict:
    """Evaluates a state after `epochs` epochs, writes all files, and returns the content of evaluation.json.

    A detector that is fitted is fitted again on parts of the images: by `fitter`, whose programs are compiled, if it is
    given. config.json is replaced only once the scores are computed, so that an error leaves an earlier evaluation as
    it is.

    Raises:
      UserError: a score is not finite, or a file cannot be written.
    """
    settings = parse_settings(config, workdir)
    scorer = make_scorer(settings, detector, state, batch_size=settings.batch_size, name=settings.score.name)
    refits = None
    if detector.fit:
        fitter = fitter or Fitter(detector, settings.data.image_shape, settings.batch_size)
        refits = partial(cross_fit, fitter, settings.seed)
    assessment = assess(scorer, dataset, settings.score, settings.threshold, settings.identity, refits)
    write_config(workdir, config)
    audit.write(workdir)
    result = assessment.result
    warnings = list(result.warnings)
    if epochs < settings.epochs:
        warnings.append(f"Trained for {epochs} of {settings.epochs} epochs: training is not finished.")
    if late := audit.count_added_later(workdir):
        warnings.append(f"{late} training images were added after training. Train in another --workdir to use them.")
    result = result.replace(epochs=epochs, n_train=audit.count_trained(workdir), warnings=warnings)
    assessment = assessment._replace(result=result)
    written = workdir, config.to_dict(), dataset.test, audit, assessment, scorer.all_statistics
    return evaluation_files.write_evaluation(*written).as_dict()
