"""Cross-conformal calibration: detectors trained without one fold each decide together."""

import shutil

import numpy as np
import pytest
from PIL import Image

import bigan_jax
from bigan_jax.commands import setup
from bigan_jax.commands.folds import fold_configs
from bigan_jax.commands.load import fold_folders
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import fcae
from bigan_jax.data.audit import Audit
from bigan_jax.data.loading import load_dataset
from bigan_jax.errors import UserError
from bigan_jax.metrics.drift import find_drift
from bigan_jax.metrics.thresholds import cross_conformal_threshold
from bigan_jax.runtime.run_config import read_config
from tests.helpers.runs import TINY_FCAE, configured

FOLDS = 3
FIELDS = TINY_FCAE | {"threshold.folds": FOLDS, "phases.phase1.epochs": 1, "threshold.false_alarm_rate": 0.2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with folds, its config and its evaluation."""
    workdir = tmp_path_factory.mktemp("folds") / "run"
    config = configured(fcae, "phantom", FIELDS)
    return workdir, config, bigan_jax.train(config, workdir)


@pytest.fixture(scope="module")
def datasets(run):
    workdir, config, _ = run
    return [load_dataset(parse_settings(own).data) for own in fold_configs(config, workdir).values()]


def test_each_image_calibrates_once_and_trains_otherwise(datasets):
    calibration = [set(dataset.calibration.path.tolist()) for dataset in datasets]
    known = [set(dataset.train.path.tolist()) | own for dataset, own in zip(datasets, calibration, strict=True)]
    assert known[0] == known[1] == known[2] and len(known[0]) == 32
    assert [len(own) for own in calibration] == [10, 10, 10]  # the two images left over always train
    assert len(set.union(*calibration)) == 30
    for dataset in datasets:
        assert dataset.test.path.tolist() == datasets[0].test.path.tolist()
        assert not set(dataset.test.path.tolist()) & known[0]


def test_threshold_comes_from_out_of_fold_scores_and_the_lowest_score_decides(run, datasets):
    workdir, _, evaluation = run
    scorers = [bigan_jax.load(folder) for folder in fold_folders(workdir, FOLDS)]
    for name, result in evaluation["scores"].items():
        scores = [
            scorer.score(dataset.calibration.image).by_name[name]
            for scorer, dataset in zip(scorers, datasets, strict=True)
        ]
        expected = cross_conformal_threshold(np.concatenate(scores), np.repeat(np.arange(FOLDS), 10), 0.2)
        assert result["threshold"] == pytest.approx(expected.value, rel=1e-5)
        assert result["promise"]["folds"] == FOLDS and result["promise"]["n_images"] == 30
    images = datasets[0].test.image
    lowest = np.min([scorer.score(images).score for scorer in scorers], axis=0)
    together = bigan_jax.load(workdir)
    scores = together.score(images)
    np.testing.assert_allclose(scores.score, lowest, rtol=1e-5)
    np.testing.assert_allclose(
        scores.error_map, np.min([s.score(images).error_map for s in scorers], axis=0), rtol=1e-5
    )
    np.testing.assert_array_equal(together.decide(scores), lowest >= together.threshold)


def test_prediction_does_not_take_lower_scores_for_drift(run, datasets, tmp_path):
    """The lowest score of all detectors is lower than the out-of-fold scores, also without drift."""
    workdir, _, evaluation = run
    images = datasets[0].train.image
    lowest = images[np.argmin(bigan_jax.load(workdir).score(images).score)]
    (tmp_path / "new").mkdir()
    for index in range(40):
        Image.fromarray(lowest[..., 0]).save(tmp_path / f"new/{index}.png")
    result = bigan_jax.predict(workdir, tmp_path / "new", tmp_path / "out")
    assert result.scored == 40 and not result.drift.found
    calibration = np.array(evaluation["scores"][evaluation["score_name"]]["calibration_scores"])
    scores = bigan_jax.load(workdir).score(np.repeat(lowest[None], 40, axis=0)).score
    assert find_drift(calibration, scores, np.inf).verdict == "lower"


def test_evaluation_is_repeated_without_training(run):
    workdir, config, evaluation = run
    states = [(folder / "train.jsonl").read_bytes() for folder in fold_folders(workdir, FOLDS)]
    by_paper = config.copy_and_resolve_references()
    with by_paper.unlocked():
        by_paper.score.name = "paper"
    again = bigan_jax.evaluate(workdir, by_paper)
    assert again["score_name"] == "paper" and again["scores"] == evaluation["scores"]
    assert bigan_jax.load(workdir).threshold == evaluation["scores"]["paper"]["threshold"]
    assert states == [(folder / "train.jsonl").read_bytes() for folder in fold_folders(workdir, FOLDS)]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"threshold.folds": 1}, "threshold.folds must be 0"),
        ({"threshold.folds": 10**12}, "threshold.folds must be .* at most 1000"),
        ({"threshold.folds": 40}, "requires at least 40 groups"),
        ({"data.calibration_folds": 1}, "data.calibration_folds must be 0"),
        ({"data.calibration_folds": 3, "data.calibration_fold": 3}, "calibration_fold must be below"),
    ],
)
def test_invalid_folds_are_refused(fields, message, tmp_path):
    config = configured(fcae, "phantom", TINY_FCAE | fields)
    with pytest.raises(UserError, match=message):
        bigan_jax.train(config, tmp_path / "run")


def test_warning_that_all_folds_have_is_listed_once(run, monkeypatch):
    monkeypatch.setattr(Audit, "warnings", property(lambda self: ["a leak"]))
    assert bigan_jax.evaluate(run[0])["warnings"] == ["a leak"]


def test_fold_that_was_evaluated_alone_by_another_score_is_refused(run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    fold = workdir / "fold0"
    own = read_config(fold)
    with own.unlocked():
        own.score.name = "calibrated" if own.score.name == "paper" else "paper"
    bigan_jax.evaluate(fold, own)
    with pytest.raises(UserError, match=r"fold0 was evaluated .* --mode=evaluate --workdir=.*run again"):
        bigan_jax.load(workdir)


def test_folder_of_another_run_is_refused_before_training(run, tmp_path):
    workdir, config, _ = run
    for field, value in ("name", "other"), ("seeds", 2):
        folder = tmp_path / field
        folder.mkdir()
        shutil.copy(workdir / "config.json", folder)
        with config.unlocked():
            other = config.copy_and_resolve_references()
            other[field] = value
        with pytest.raises(UserError, match="holds a run"):
            bigan_jax.train(other, folder)
        assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("folds", [0, 5])
def test_another_number_of_folds_is_another_run(run, folds):
    workdir, config, _ = run
    with config.unlocked():
        other = config.copy_and_resolve_references()
        other.threshold.folds = folds
    for command in bigan_jax.evaluate, lambda *arguments: bigan_jax.train(*arguments[::-1]):
        with pytest.raises(UserError, match=f"threshold.folds: 3 there, {folds} now"):
            command(workdir, other)


def test_data_of_all_folds_are_checked_before_training(run, tmp_path, monkeypatch):
    """Exact duplicates may stop the last fold alone."""
    load = setup.load_audited

    def stop_last(settings, workdirs=()):
        if settings.data.calibration_fold == FOLDS - 1:
            raise UserError("duplicates")
        return load(settings, workdirs)

    for module in "setup", "train":
        monkeypatch.setattr(f"bigan_jax.commands.{module}.load_audited", stop_last, raising=False)
    with pytest.raises(UserError, match="duplicates"):
        bigan_jax.train(run[1], tmp_path / "run")
    assert not list(tmp_path.glob("run/*/config.json"))
