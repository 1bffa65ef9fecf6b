"""AnomalyDetector, the interface of scikit-learn: conventions, inputs, storage, compiled programs."""

import copy
import doctest
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import bigan_jax
from bigan_jax import AnomalyDetector, UserError, api
from bigan_jax.data.source import ArraySource
from bigan_jax.data.split import split_records
from bigan_jax.metrics.thresholds import conformal_threshold

SIZE = 16


def make_images(n, seed=0, shape=(SIZE, SIZE)):
    return np.random.default_rng(seed).integers(90, 130, (n, *shape), np.uint8)


def with_spot(images):
    images = images.copy()
    images[:, 4:10, 4:10] = 255
    return images


NORMAL, NEW = make_images(60), make_images(12, seed=1)


def make_detector(**parameters):
    return AnomalyDetector(**{"model": "mahalanobis", "image_size": SIZE} | parameters)


@pytest.fixture(scope="module")
def detector():
    return make_detector(model="pca").fit(NORMAL)


def test_example_of_the_docstring_holds():
    (example,) = doctest.DocTestFinder(recurse=False).find(AnomalyDetector, globs={})
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))


def test_scores_are_those_of_the_functions_with_the_sign_of_scikit_learn(detector):
    """The same run through `bigan_jax.load`."""
    scorer = bigan_jax.load(detector.workdir_)
    images = np.concatenate([NEW, with_spot(NEW)])
    expected = scorer.predict(list(images))
    np.testing.assert_array_equal(detector.score_samples(images), -expected.score.astype(np.float64))
    np.testing.assert_array_equal(detector.predict(images) == -1, expected.decision)
    np.testing.assert_array_equal(detector.explain(images), expected.error_map)
    decision = detector.decision_function(images)
    np.testing.assert_array_equal(decision, detector.score_samples(images) - detector.offset_)
    np.testing.assert_array_equal(decision < 0, expected.decision)
    assert expected.decision.sum() >= 12


def test_threshold_is_conformal_with_exact_ties(detector, monkeypatch):
    """The offset is a calibration score: that score is normal, and the next float is anomalous."""
    calibration = detector.scorer_.calibration
    expected = conformal_threshold(calibration, 0.05)
    assert detector.promise_ == expected.promise.sentence and "5 %" in detector.promise_
    assert -detector.offset_ in calibration.astype(np.float32)
    tie = np.float32(-detector.offset_)
    scores = np.array([tie, np.nextafter(tie, np.float32(np.inf))])
    monkeypatch.setattr(AnomalyDetector, "score_samples", lambda *_: -scores.astype(np.float64))
    assert detector.predict(NEW[:2]).tolist() == [1, -1]
    assert (scores >= np.float32(detector.scorer_.threshold)).tolist() == [False, True]


def test_fit_uses_normal_images_alone():
    """With labels, the fit is that of the images with +1, in which no test image is needed."""
    images, y = np.concatenate([NORMAL, with_spot(NORMAL[:6])]), np.repeat([1, -1], [60, 6])
    fits = [make_detector().fit(images, y), make_detector().fit(NORMAL), make_detector().fit(images)]
    scores = [d.score_samples(NEW) for d in fits]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_all_kinds_of_input_are_scored_alike(detector, tmp_path):
    for i, image in enumerate(NEW):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    paths = sorted(tmp_path.glob("*.png"))
    expected = detector.score_samples(NEW)
    inputs = [
        NEW[..., None],
        np.repeat(NEW[..., None], 3, -1),
        list(NEW),
        [Image.fromarray(image) for image in NEW],
        paths,
        (str(path) for path in paths),
        np.array([str(path) for path in paths]),
        tmp_path,
        f"{tmp_path}/*.png",
    ]
    for images in inputs:
        np.testing.assert_allclose(detector.score_samples(images), expected, rtol=1e-5)
    np.testing.assert_allclose(detector.score_samples(paths[3]), expected[3:4], rtol=1e-5)


def test_folder_is_fitted_without_its_anomalous_images(tmp_path):
    for folder, images in ("good", NORMAL), ("bad", with_spot(NEW)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / folder / f"{i:02}.png")
    detector = make_detector().fit(tmp_path)
    assert detector.scorer_.calibration.size == 20
    assert (detector.predict(tmp_path / "bad") == -1).all()
    with pytest.raises(UserError, match="y is for images in memory"):
        make_detector().fit(tmp_path, np.ones(72))


def test_split_depends_on_pixels_and_keeps_equal_images_together():
    images = np.concatenate([NORMAL, NORMAL[:20]])[..., None]
    order = np.random.default_rng(3).permutation(len(images))

    def calibration(images):
        splits, _ = split_records(ArraySource(images).records, 0, 0.0, 0.1)
        chosen = {name: {images[int(r.path)].tobytes() for r in records} for name, records in splits.items()}
        assert chosen["train"].isdisjoint(chosen["calibration"]) and not chosen["test"]
        return chosen["calibration"]

    assert calibration(images) == calibration(images[order])


def test_saved_detector_scores_alike_and_refits_alike(detector, tmp_path):
    detector.save(tmp_path / "saved")
    expected = detector.score_samples(NEW)
    loaded = AnomalyDetector.load(tmp_path / "saved")
    copies = [loaded, pickle.loads(pickle.dumps(detector)), copy.deepcopy(loaded)]
    for other in copies:
        np.testing.assert_array_equal(other.score_samples(NEW), expected)
        assert (other.offset_, other.promise_) == (detector.offset_, detector.promise_)
    np.testing.assert_array_equal(clone(loaded).fit(NORMAL).score_samples(NEW), expected)
    assert bigan_jax.load(tmp_path / "saved").threshold == detector.scorer_.threshold
    with pytest.raises(UserError, match="not empty"):
        detector.save(tmp_path / "saved")
    with pytest.raises(NotFittedError):
        clone(loaded).save(tmp_path / "other")


def test_files_of_a_temporary_run_are_deleted_with_the_detector(detector):
    other = copy.deepcopy(detector)
    folder = other.workdir_
    assert folder.is_dir() and folder != detector.workdir_
    del other
    assert not folder.exists()


def test_parameters_become_the_config_and_back():
    detector = AnomalyDetector(
        "improved_bigan", image_size=32, channels=3, epochs=13, seed=5, false_alarm_rate=0.1, config={"batch_size": 4}
    )
    config = detector._make_config(None)
    assert (config.data.image_size, config.data.channels, config.seed, config.batch_size) == (32, 3, 5, 4)
    # 150 and 500 epochs in the config: 3 and 10 of 13.
    assert (config.phases.phase1.epochs, config.phases.phase2.epochs) == (3, 10)
    assert config.threshold.false_alarm_rate == 0.1
    again = AnomalyDetector(**api._parameters(config))
    assert again.model == "improved_bigan" and "data.image_size" not in again.config
    assert again._make_config(None).to_json() == config.to_json()


def test_fit_in_a_workdir_is_kept_and_refuses_other_images(tmp_path):
    detector = make_detector(workdir=tmp_path / "run").fit(NORMAL)
    expected = detector.score_samples(NEW)
    del detector
    again = make_detector(workdir=tmp_path / "run").fit(NORMAL)
    np.testing.assert_array_equal(again.score_samples(NEW), expected)
    with pytest.raises(UserError, match="other images"):
        make_detector(workdir=tmp_path / "run").fit(np.concatenate([NORMAL, NEW]))
    with pytest.raises(UserError, match=r"given in Python and are not stored"):
        bigan_jax.evaluate(tmp_path / "run")


def test_run_without_test_images_predicts_and_is_not_compared(detector, tmp_path):
    Image.fromarray(with_spot(NEW)[0]).save(tmp_path / "new.png")
    predicted = bigan_jax.predict(detector.workdir_, tmp_path / "new.png", tmp_path / "out")
    assert (predicted.scored, predicted.anomalous) == (1, 1)
    assert {path.name for path in detector.workdir_.iterdir()}.isdisjoint({"report.html", "scores.csv", "figures"})


def test_pipeline_and_model_selection():
    """Images pass through steps before the detector, and AUROC is high with the sign of scikit-learn."""
    double = FunctionTransformer(lambda x: (x // 2).astype(np.uint8))
    pipeline = make_pipeline(double, make_detector())
    assert is_outlier_detector(pipeline)
    images, y = np.concatenate([NORMAL, with_spot(NEW)]), np.repeat([1, -1], [60, 12])
    cv = KFold(2, shuffle=True, random_state=0)
    assert cross_val_score(pipeline, images, y, cv=cv, scoring="roc_auc").tolist() == [1.0, 1.0]
    assert cross_val_score(make_detector(), list(images), y, cv=cv, scoring="roc_auc").tolist() == [1.0, 1.0]
    search = GridSearchCV(make_detector(), {"seed": [0]}, cv=cv, scoring="roc_auc").fit(images, y)
    assert (search.best_estimator_.predict(with_spot(NEW)) == -1).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "ca"}, "cae"),
        ({"epochs": 3}, "fitted without epochs"),
        ({"model": "cae", "epochs": 0}, "epochs must be a positive integer"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate"),
        ({"config": {"model.latents": 3}}, r"no field 'model\.latents'"),
        ({"config": {"seeds": 2}}, "one model"),
        ({"channels": 2}, "data.channels"),
        ({"model": 3}, "name of a config"),
        ({"image_size": -1}, "data.image_size"),
        ({"seed": "a"}, "wrong type"),
        ({"false_alarm_rate": None, "config": {"threshold.false_alarm_rate": "a"}}, "wrong type"),
    ],
)
def test_wrong_parameter_is_reported_by_fit(parameters, message):
    with pytest.raises(UserError, match=message):
        make_detector(**parameters).fit(NORMAL)


@pytest.mark.parametrize(
    ("images", "y", "message"),
    [
        (NORMAL / 255, None, "image 0: an image must be a uint8 array"),
        (NORMAL.reshape(60, -1), None, "image 0: an image must be a uint8 array"),
        (Image.fromarray(NORMAL[0]), None, r"must be a list or an array \(got Image\)"),
        ([], None, "no normal images"),
        (NORMAL, -np.ones(60), "no normal images"),
        (NORMAL, np.zeros(60), r"\+1 \(normal\) or -1"),
        (NORMAL, np.ones(3), r"60 images.*\(3,\)"),
        (NORMAL[:1], None, "1 group"),
        ("no/such/folder", None, "no folder"),
    ],
)
def test_wrong_images_are_reported(images, y, message):
    with pytest.raises(UserError, match=message):
        make_detector().fit(images, y)


def test_wrong_images_to_score_are_reported(detector, tmp_path):
    with pytest.raises(UserError, match="no images"):
        detector.predict(NEW[:0])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(UserError, match=r"broken\.png"):
        detector.explain(tmp_path)
    with pytest.raises(NotFittedError):
        make_detector().predict(NEW)


@contextmanager
def no_compilation(compilations):
    before = compilations()
    yield
    assert compilations() == before


def test_any_number_of_images_compiles_for_two_sizes(compilations):
    """One image and a batch of 32; an image's score hardly depends on the others, in number and content."""
    detector = make_detector().fit(NORMAL)
    images = make_images(70, seed=2)
    single = np.concatenate([detector.score_samples(images[i : i + 1]) for i in range(3)])
    expected = detector.score_samples(images)
    np.testing.assert_allclose(single, expected[:3], rtol=1e-5)
    with no_compilation(compilations):
        for n in (1, 2, 5, 16, 17, 31, 32, 33, 48, 49, 65):
            np.testing.assert_allclose(detector.score_samples(images[:n]), expected[:n], rtol=1e-5)
    np.testing.assert_array_equal(detector.score_samples(images[:1]), detector.score_samples(images[:9])[:1])


def test_representation_shows_changed_parameters():
    assert repr(AnomalyDetector("pca", epochs=None, seed=3)) == "AnomalyDetector(model='pca', seed=3)"
    assert "AnomalyDetector" in AnomalyDetector()._repr_html_()


class FlatImages(AnomalyDetector):
    """Takes rows of numbers, as scikit-learn's checks have them, and makes an image of each."""

    def __init__(self, model="mahalanobis", image_size=SIZE, seed=0):
        super().__init__(model, image_size=image_size, seed=seed)

    def _images(self, X):
        values = (16 * np.asarray(X, np.float64) % 256).astype(np.uint8)
        columns = np.linspace(0, values.shape[1] - 1, SIZE).round().astype(int)
        return np.repeat(values[:, None, columns], SIZE, axis=1)

    def fit(self, X, y=None):
        return super().fit(self._images(X))

    def score_samples(self, X):
        return super().score_samples(self._images(X))


# The others are about columns and their types, sparse matrices and NaN, expect ValueErrors in place of UserErrors, or
# compare scores of batches and of single images in more digits than float32 has.
@pytest.mark.parametrize(
    "name",
    [
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_dont_overwrite_parameters",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_estimators_fit_returns_self",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_estimators_unfitted",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_get_params_invariance",
        "check_methods_sample_order_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_pipeline_consistency",
        "check_readonly_memmap_input",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_check_of_scikit_learn_passes(name):
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip("not in this version of scikit-learn")
    check("FlatImages", FlatImages())
