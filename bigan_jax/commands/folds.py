"""Cross-conformal calibration: K detectors, each trained without one fold of the normal images, decide together.

No normal image is lost to calibration, which helps where there are few, at K times the cost. Each fold is a run of its
own in a folder fold<k>.
"""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bigan_jax.commands.load import fold_folders, load
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited
from bigan_jax.errors import UserError
from bigan_jax.evaluation.assess import CalibrationImages, measure
from bigan_jax.evaluation.fold_scorer import FoldScorer
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.evaluation.scorer import Scores
from bigan_jax.reports import evaluation_files
from bigan_jax.runtime.lock import exclusive_lock
from bigan_jax.runtime.run_config import require_same_config, write_config


def fold_configs(config: ConfigDict, workdir: Path) -> dict[Path, ConfigDict]:
    """Returns the config of each fold's run by its folder."""
    folds = config.threshold.folds
    configs = {}
    for index, folder in enumerate(fold_folders(workdir, folds)):
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.threshold.folds = 0
            own.seed = config.seed + index  # the promise requires a shuffle of its own for each fold
            own.data.calibration_folds, own.data.calibration_fold = folds, index
        configs[folder] = own.lock()
    return configs


def evaluate_folds(workdir: Path, config: ConfigDict) -> dict:
    """Evaluates the detectors of all folds, which are trained and evaluated, as one.

    Returns the content of evaluation.json. Raises UserError if a fold or its data cannot be read.
    """
    with exclusive_lock(workdir):
        require_same_config(workdir, config)
        settings = parse_settings(config)
        scorers, normal, groups, folds, test_paths = [], [], [], [], None
        for index, (folder, own) in enumerate(fold_configs(config, workdir).items()):
            dataset, audit = load_audited(parse_settings(own, folder), [folder])
            test_paths = dataset.test.path.tolist() if test_paths is None else test_paths
            if dataset.test.path.tolist() != test_paths:
                raise UserError(f"{folder} has other test images than the first fold. Train in another --workdir.")
            scorers.append(load(folder))
            calibration = dataset.calibration
            scores = scorers[-1].score(np.asarray(calibration.image), calibration.condition, f"fold {index}")
            normal.append(scores)
            groups.append(calibration.group)
            folds.append(np.full(len(calibration.group), index))
        scorer = FoldScorer(scorers)
        calibrated_on = CalibrationImages(_concatenate(normal), np.concatenate(groups), np.concatenate(folds))
        test = scorer.score(np.asarray(dataset.test.image), dataset.test.condition, "test")
        results = [require_evaluation(folder) for folder in fold_folders(workdir, settings.threshold.folds)]
        common = settings.score, settings.threshold, settings.identity, results[0].symmetry
        assessment = measure(scorer, dataset, calibrated_on, test, *common)
        result = assessment.result.replace(
            epochs=min(result.epochs for result in results),
            n_train=min(result.n_train for result in results),
            notes=[*assessment.result.notes, "reconstructions, terms and native scores are those of fold0"],
            warnings=list(dict.fromkeys(warning for result in results for warning in result.warnings)),
        )
        write_config(workdir, config)
        audit.write(workdir)
        assessment = assessment._replace(result=result)
        result = evaluation_files.write_evaluation(workdir, config.to_dict(), dataset.test, audit, assessment)
        return result.as_dict()


def _concatenate(scores: list[Scores]) -> Scores:
    """Joins the scores of several sets of images."""
    # A string is no array, and not all folds may include asymmetry.
    trees = [s._replace(name=None, asymmetry=None) for s in scores]
    return jax.tree.map(lambda *x: np.concatenate(x), *trees)._replace(name=scores[0].name)
