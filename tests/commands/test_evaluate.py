"""Evaluation: metrics, re-evaluation, and decisions that do not depend on the test set."""

import csv
import json

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, roc_auc_score

import bigan_jax
from bigan_jax.commands.build import build
from bigan_jax.commands.load import make_scorer
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited
from bigan_jax.configs import cae, common, improved_bigan
from bigan_jax.data import loading
from bigan_jax.data.audit.result import SplitRow
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation import assess as assessment
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.calibrated_score import PixelStatistics, write_statistics
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.metrics.thresholds import conformal_threshold
from bigan_jax.nn import losses
from bigan_jax.nn.vgg16 import weights as vgg16_weights
from bigan_jax.nn.vgg16.network import VGG16
from bigan_jax.nn.vgg16.weights import load_weights
from bigan_jax.runtime.files import write_csv, write_json
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.progress import Progress
from tests.helpers.datasets import evaluation_content, main_score

PAPER = ScoreFormula({"mse": 0.7, "ssim": 0.3})
SMALL = {
    "data.image_size": 32,
    "data.category": "bottle,leaf",
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 6,
    "model.latent": 8,
    "model.widths": (4, 8),
    "batch_size": 8,
}


def configured(module, argument="phantom", **fields):
    config = module.get_config(argument)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


def assess(config, dataset, detector, state):
    settings = parse_settings(config)
    scorer = make_scorer(settings, detector, state, batch_size=settings.batch_size, name=settings.score.name)
    return assessment.assess(scorer, dataset, settings.score, settings.threshold, settings.identity)


def untrained(config, conditions=1):
    """Returns a detector and a state of random values, without compilation."""
    built = build(parse_settings(config), conditions, steps_per_epoch=1)
    shapes = jax.eval_shape(
        lambda: init_state(built.detector, built.optimizers, config.seed, parse_settings(config).data.image_shape)
    )
    rng = np.random.default_rng(0)
    # Variances must be positive; the other values have both signs, so that scores differ.
    state = jax.tree.map(lambda x: (0.2 * rng.random(x.shape)).astype(x.dtype), shapes)
    weights = jax.tree.map(lambda x: (x - 0.1).astype(x.dtype), state.params)
    return built.detector, state._replace(params=weights)


@pytest.fixture(scope="module")
def small():
    """A config, its dataset, and an untrained detector and state."""
    config = configured(cae, **SMALL)
    return config, loading.load_dataset(parse_settings(config).data), *untrained(config, 2)


@pytest.fixture(scope="module")
def assessed(small):
    return assess(*small)


# --- thresholds and decisions ---


def test_threshold_and_scores_do_not_depend_on_test_set(small, assessed):
    """With a shuffled subset of the test images and wrong labels."""
    config, dataset, detector, state = small
    chosen = np.random.default_rng(0).permutation(len(dataset.test.label))[:13]
    subset = dataset.test.select(chosen)
    label = np.arange(13) % 2 == 0
    types = np.where(label, "wrong", "good")
    subset = subset._replace(label=label, defect_type=types, group=subset.path)
    again = assess(config, dataset._replace(test=subset), detector, state)

    before, after = assessed.result.as_dict(), again.result.as_dict()
    for name in ("pixel_threshold", "pixel_promise", "color_limits", "score"):
        assert after[name] == before[name], name
    for score, values in assessed.test.by_name.items():
        for name in ("threshold", "promise", "calibration_scores"):
            assert after["scores"][score][name] == before["scores"][score][name], (score, name)
        np.testing.assert_allclose(again.test.by_name[score], values[chosen], rtol=1e-4)
        np.testing.assert_array_equal(again.calibration.by_name[score], assessed.calibration.by_name[score])
    np.testing.assert_allclose(again.test.error_map, assessed.test.error_map[chosen], atol=1e-6)
    decisions = assessed.test.score[chosen] >= assessed.result.main.threshold
    np.testing.assert_array_equal(again.test.score >= again.result.main.threshold, decisions)
    assert again.result.main.auroc != assessed.result.main.auroc  # metrics depend on the labels


def test_statistics_of_the_scores_depend_on_training_images_only(small, assessed, tmp_path):
    """Otherwise the calibration images would be scored by their own statistics, and the promise would not hold."""
    config, dataset, detector, state = small
    inverted = [split._replace(image=255 - split.image) for split in (dataset.calibration, dataset.test)]
    train = dataset.train._replace(image=255 - dataset.train.image)
    contents = []
    for i, other in enumerate(
        [dataset, dataset._replace(calibration=inverted[0], test=inverted[1]), dataset._replace(train=train)]
    ):
        settings = parse_settings(config)
        scorer = make_scorer(settings, detector, state, batch_size=8, name="calibrated")
        again = assessment.assess(scorer, other, settings.score, settings.threshold, settings.identity)
        write_statistics(tmp_path / str(i), scorer.statistics)
        contents.append((tmp_path / str(i) / "pixel_statistics.npy").read_bytes())
        if i == 1:
            assert again.result.score == assessed.result.score
            assert again.calibration.score.mean() != assessed.calibration.score.mean()
            scores = scorer.score(dataset.test.image, dataset.test.condition)
            for name, values in assessed.test.by_name.items():
                np.testing.assert_allclose(scores.by_name[name], values, rtol=1e-5)
    assert contents[0] == contents[1] != contents[2]


def test_statistics_equal_those_of_all_training_images(small, assessed):
    config, dataset, detector, state = small
    settings = parse_settings(config)
    scorer = make_scorer(settings, detector, state, batch_size=8, name="paper")
    deviations, _ = scorer.fit(dataset.train.image, dataset.train.condition, standardize=False)
    terms = scorer.score(dataset.train.image, dataset.train.condition).terms
    for name, value in deviations.items():
        assert value == pytest.approx(np.std(terms.value[name].astype(np.float64)), rel=1e-5)
    maps = 0.7 * terms.map["mse"].astype(np.float64) + 0.3 * terms.map["ssim"]
    smoothed = gaussian_filter(maps, (0, 1, 1), mode="reflect")
    mean = gaussian_filter(smoothed.mean(0), 1.5, mode="reflect")
    np.testing.assert_allclose(scorer.statistics.mean, mean, rtol=1e-4)
    deviation = smoothed.std(0)
    expected = gaussian_filter(deviation, 1.5, mode="reflect") + 0.2 * deviation.mean()
    np.testing.assert_allclose(scorer.statistics.deviation, expected, rtol=1e-3)
    assert assessed.result.score.standard_deviations == pytest.approx(deviations)


def test_threshold_and_color_limits_come_from_calibration_images(small):
    config, dataset, detector, state = small
    n = 12
    few = dataset._replace(calibration=dataset.calibration.select(np.arange(n)))
    assessed = assess(config, few, detector, state)
    scores, evaluation = assessed.calibration, assessed.result.as_dict()
    assert evaluation["n_calibration"] == len(scores.score) == n
    for name, values in scores.by_name.items():
        result = evaluation["scores"][name]
        assert result["threshold"] == np.nextafter(values.max(), np.float32(np.inf))
        assert result["promise"] == msgspec.to_builtins(conformal_threshold(values, 0.05).promise)
        assert result["calibration_scores"] == values.tolist()
    limits = {name: np.quantile(errors, 0.999) for name, errors in scores.terms.map.items()}
    limits["combined"] = np.quantile(scores.error_map, 0.999)
    assert evaluation["color_limits"] == limits


def test_groups_of_calibration_images_are_counted(small):
    config, dataset, detector, state = small
    repeated = dataset.calibration.select(np.arange(24) % len(dataset.calibration.label))
    repeated = repeated._replace(group=np.repeat(["patient a", "patient b"], 12))
    result, scores, *_ = assess(config, dataset._replace(calibration=repeated), detector, state)
    assert (result.n_calibration, result.n_calibration_groups) == (24, 2)
    assert result.main.promise == conformal_threshold(scores.score, 0.05, repeated.group).promise
    assert "same 2 groups" in result.main.promise.sentence


# --- metrics ---


def test_slices_are_also_scored_by_volume(small, assessed):
    config, dataset, detector, state = small
    assert assessed.result.main.volumes is None  # whole images
    n = len(dataset.test.label)
    volume = np.arange(n) // 4  # four slices each; some volumes have both labels, and are anomalous
    path = np.array([f"v{v}.nii#{i:03}" for i, v in enumerate(volume)])
    test = dataset.test._replace(path=path, group=np.array([f"v{v}.nii" for v in volume]))
    result, _, scores, _ = assess(config, dataset._replace(test=test), detector, state)
    for name, values in scores.by_name.items():
        means = [values[volume == v].mean() for v in range(volume[-1] + 1)]  # the five highest of four are all
        labels = [test.label[volume == v].any() for v in range(volume[-1] + 1)]
        volumes = result.scores[name].volumes
        assert (volumes.n_anomalous, volumes.n_normal) == (sum(labels), len(labels) - sum(labels))
        assert volumes.auroc == pytest.approx(roc_auc_score(labels, means))


def test_metrics_that_do_not_apply_are_null(small):
    """With normal images of one condition and few calibration images."""
    config, dataset, detector, state = small
    normal = dataset.test.select(~dataset.test.label & (dataset.test.condition == 0))
    only_normal = dataset._replace(test=normal, conditions=("bottle",))
    evaluation = json.loads(json.dumps(assess(config, only_normal, detector, state).result.as_dict()))
    score = evaluation["scores"]["calibrated"]
    null = "auroc auroc_ci intervals average_precision precision recall f1 balanced_accuracy"
    null += " by_defect_type by_condition"
    assert {score[name] for name in null.split()} == {None}
    assert evaluation["native"] is None
    assert score["oracle"] == {"threshold": None, "f1": None, "accuracy": None}
    assert set(evaluation["pixel"].values()) == {None}
    assert set(score["baselines"].values()) == {None}
    assert set(evaluation["term_aurocs"].values()) == {None}
    assert {row["auroc"] for row in evaluation["score_table"]} == {None}
    assert score["specificity"] is not None and evaluation["n_anomalous"] == 0


def test_evaluation_has_defect_types_conditions_and_intervals(assessed, small):
    evaluation, test = assessed.result.as_dict(), small[1].test
    assert list(evaluation["scores"]) == ["paper", "calibrated"]
    for name, score in evaluation["scores"].items():
        assert {row["defect_type"] for row in score["by_defect_type"]} == set(test.defect_type[test.label])
        assert sum(row["n"] for row in score["by_defect_type"]) == evaluation["n_anomalous"]
        rows = score["by_condition"]
        assert [row["condition"] for row in rows] == ["bottle", "leaf"]
        assert sum(row["n"] for row in rows) == len(test.label)
        assert score["auroc"] == pytest.approx(roc_auc_score(test.label, assessed.test.by_name[name]))
        assert score["auroc_ci"] == score["intervals"]["auroc"]
        for metric, (low, high) in score["intervals"].items():
            assert low <= score[metric] <= high, metric
    metrics = {"auroc", "average_precision", "aupro"}
    assert evaluation["pixel"].keys() == metrics | {"dice", "intervals"}
    assert evaluation["pixel"]["intervals"].keys() == metrics
    (used,) = (row for row in evaluation["score_table"] if row["used"])
    (paper,) = (row for row in evaluation["score_table"] if row["paper"])
    assert (used["reduction"], paper["reduction"]) == ("calibrated", "mean")
    assert used["auroc"] == pytest.approx(evaluation["scores"]["calibrated"]["auroc"])
    assert paper["auroc"] == pytest.approx(evaluation["scores"]["paper"]["auroc"])
    by_score = [score["baselines"] for score in evaluation["scores"].values()]
    assert by_score[0].keys() == by_score[1].keys() and by_score[0]["pca_64"] != by_score[1]["pca_64"]
    assert by_score[0]["mahalanobis_16"] == by_score[1]["mahalanobis_16"]
    assert "oracle" in evaluation["score_table_note"]


def test_baselines_use_the_score_of_the_model(small):
    """Reconstructions of a baseline are scored as those of the model, with any formula."""
    config, dataset, detector, state = small
    shape = parse_settings(config).data.image_shape
    formula = ScoreFormula({"mse": 2.0, "ssim": 0.5}, "top1")
    scorer = AnomalyScorer(detector, state, formula, shape, batch_size=8)
    scorer.fit(dataset.train.image, dataset.train.condition, standardize=False)
    scores = scorer.score(dataset.test.image[:11])
    images, reconstructions = (x.astype(np.float32) / 255 for x in (dataset.test.image[:11], scores.reconstruction))
    rated = anomaly_score.scores(formula, scorer.compute_terms(images, reconstructions), scorer.statistics)
    for name, values in scores.by_name.items():  # reconstructions are rounded
        np.testing.assert_allclose(rated[name], values, rtol=0.05, atol=0.05 * values.max())


def test_raw_intensity_is_the_baseline_of_error_maps(assessed, small):
    test, baseline = small[1].test, assessed.result.as_dict()["pixel_baselines"]["raw_intensity"]
    dark = roc_auc_score(test.mask.ravel(), test.image.ravel()) < 0.5  # the better sign
    flat = test.mask.ravel(), (255 - test.image if dark else test.image).ravel()
    assert baseline["auroc"] == pytest.approx(roc_auc_score(*flat))
    assert baseline["average_precision"] == pytest.approx(average_precision_score(*flat))


def test_manual_threshold_is_used_unchanged(small):
    config, dataset, detector, state = small
    manual = config.copy_and_resolve_references()
    with manual.unlocked():
        manual.threshold.rule, manual.threshold.value = "manual", 0.31
    for name, other in ("paper", "calibrated"), ("calibrated", "paper"):
        with manual.unlocked():
            manual.score.name = name
        result, calibration, scores, _ = assess(manual, dataset, detector, state)
        assert (result.main.threshold, result.main.threshold_rule, result.main.promise) == (0.31, "manual", None)
        assert result.main.recall == (scores.by_name[name][dataset.test.label] >= 0.31).mean()
        # It is a value of the score that decides.
        assert result.scores[other].threshold == conformal_threshold(calibration.by_name[other], 0.05).value


def test_default_scores_have_the_weights_of_the_paper():
    score = common.defaults().score
    assert (score.mse, score.ssim, score.perceptual) == (0.7, 0.3, 0)
    assert score.reduction == "mean" and score.standardize is False and score.name == "calibrated"


# --- evaluation of finished runs ---


@pytest.fixture
def finished(small, tmp_path):
    """The workdir of a trained run that was not evaluated."""
    config, _, _, state = small
    write_json(tmp_path / "config.json", config.to_dict())
    save(tmp_path, state)
    return tmp_path


def save(workdir, state, epochs=1):
    checkpoints = CheckpointManager(workdir)
    checkpoints.save(Progress(epochs), state)
    checkpoints.close()


def test_latest_checkpoint_is_evaluated(small, finished, assessed):
    """No checkpoint is selected by its metrics: a later, worse state replaces the first."""
    _, dataset, _, state = small
    constant = state._replace(params=jax.tree.map(lambda x: 0 * x, state.params))
    save(finished, constant, 2)
    evaluation = bigan_jax.evaluate(finished)
    gray = dataset.test.image.astype(np.float32) / 255 - 0.5  # the sigmoid of 0
    rows = list(csv.DictReader((finished / "scores.csv").open()))
    np.testing.assert_allclose([float(r["mse"]) for r in rows], (gray**2).mean((1, 2, 3)), rtol=1e-4)
    assert evaluation["scores"]["paper"]["auroc"] != assessed.result.scores["paper"].auroc


def test_another_score_needs_no_training(small, finished, assessed, capsys):
    _, dataset, _, _ = small
    fields = {"score.name": "paper", "score.standardize": True, "score.reduction": "max", "score.mse": 0.2}
    config = configured(cae, **SMALL, **fields)
    evaluation = bigan_jax.evaluate(finished, config)
    printed = capsys.readouterr().out
    assert f"AUROC {main_score(evaluation)['auroc']:.3f}" in printed and "With the calibrated score: AUROC" in printed
    assert f"{main_score(evaluation)['oracle']['threshold']:.4g}" not in printed  # it uses the test labels
    np.testing.assert_equal([p.name for p in (finished / "checkpoints").iterdir()], ["1"])

    test, unit = assessed.test, assessed.result.score.standard_deviations
    combined = 0.2 * test.terms.map["mse"] / unit["mse"] + 0.3 * test.terms.map["ssim"] / unit["ssim"]
    rows = list(csv.DictReader((finished / "scores.csv").open()))
    score = [float(row["paper"]) for row in rows]
    np.testing.assert_allclose(score, combined.max((1, 2)), rtol=1e-4)
    np.testing.assert_allclose([float(row["mse"]) for row in rows], test.terms.value["mse"], rtol=1e-4)
    used = [row for row in evaluation["score_table"] if row["used"]]
    assert [(r["score"], r["standardize"], r["reduction"]) for r in used] == [("0.2 mse + 0.3 ssim", True, "max")]
    assert used[0]["auroc"] == pytest.approx(main_score(evaluation)["auroc"])
    # The loaded scorer uses the new score and threshold.
    scorer = bigan_jax.load(finished)
    scores = scorer.score(dataset.test.image[:5], dataset.test.condition[:5])
    np.testing.assert_allclose(scores.score, score[:5], rtol=1e-4)
    calibrated = [float(row["calibrated"]) for row in rows]
    np.testing.assert_allclose(scores.by_name["calibrated"], calibrated[:5], rtol=1e-4)
    decisions = ["anomalous" if d else "normal" for d in scorer.decide(scores)]
    assert decisions == [row["decision"] for row in rows[:5]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"score.reduction": "median"}, "'median'.*top1"),
        ({"score.mse": 0.0, "score.ssim": 0.0}, "weight 0"),
        ({"threshold.rule": "best"}, "'best'.*manual"),
        ({"threshold.false_alarm_rate": 5.0}, "false_alarm_rate"),
        ({"data.calibration_fraction": 0.0}, "calibration_fraction must be above 0"),
        ({"data.name": "mine/bottles"}, "data.name must be .*slash.*mine/bottles"),
        ({"name": ""}, "config.name must be .*1 to 100 characters"),
        ({"data.name": "a\nb"}, r"data.name must be printable"),
        ({"threshold.value": 0.2}, "for --config.threshold.rule=manual"),
        ({"threshold.rule": "manual"}, "requires a score above 0"),
        ({"augment.rotate": 900.0}, "augment.rotate must be .*900"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"seed": 2**31}, r"seed must be .*2147483648"),
        ({"score.perceptual": 0.1, "vgg16.weights": "/no/vgg.pth"}, "no VGG16 weights at /no/vgg"),
        ({"score.name": "papers"}, "score.name.*'papers'.*Did you mean 'paper'"),
    ],
)
def test_invalid_evaluation_settings_are_refused_before_training(fields, words, tmp_path):
    config = configured(cae, **SMALL | fields)
    with pytest.raises(UserError, match=words):
        bigan_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_failed_evaluation_keeps_previous_files(small, finished, monkeypatch):
    bigan_jax.evaluate(finished)
    before = {p: p.read_bytes() for p in finished.iterdir() if p.is_file()}

    def no_score(*_, **__):
        raise UserError("no finite score")

    monkeypatch.setattr(AnomalyScorer, "score", no_score)
    other = configured(cae, **SMALL, **{"score.reduction": "max"})
    with pytest.raises(UserError, match="no finite score"):
        bigan_jax.evaluate(finished, other)
    assert {p: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before


def test_unfinished_training_and_added_images_are_warned_of(finished):
    config = configured(cae, **SMALL)
    _, audit = load_audited(parse_settings(config))
    rows = [row for row in audit.split if row[-2] == "train"]
    write_csv(finished / "split.csv", [SplitRow._fields, *rows[3:]])
    warnings = bigan_jax.evaluate(finished)["warnings"]
    epochs = config.phases.phase1.epochs
    assert f"Trained for 1 of {epochs} epochs: training is not finished." in warnings
    assert any(warning.startswith("3 training images were added after") for warning in warnings)


def test_scores_that_are_not_finite_are_an_error(small):
    config, dataset, detector, state = small
    invalid = state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    with pytest.raises(UserError, match=r"images have no finite score"):
        assess(config, dataset, detector, invalid)


def test_scoring_does_not_load_vgg16_of_the_loss(monkeypatch, tmp_path):
    fields = {"model.discriminator_widths": (4, 8), "model.perceptual_layers": ("relu1_1",)}
    config = configured(improved_bigan, **SMALL, **fields)
    assert config.model.reconstruction_terms.perceptual > 0
    detector, state = untrained(config)
    assert "vgg16" in detector.frozen
    save(tmp_path, state)
    write_json(tmp_path / "config.json", config.to_dict())
    evaluation = evaluation_content(threshold=0.1, steps=0)
    write_statistics(tmp_path, PixelStatistics(*np.full((2, 32, 32), 0.1, np.float32)))
    write_json(tmp_path / "evaluation.json", evaluation)

    def raise_missing(*_):
        raise UserError("no weights on this machine")

    monkeypatch.setattr(vgg16_weights, "load_weights", raise_missing)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    scores = bigan_jax.load(tmp_path).score(images)
    expected = AnomalyScorer(detector, state, PAPER, (32, 32, 1))
    np.testing.assert_allclose(scores.by_name["paper"], expected.score(images).by_name["paper"], rtol=1e-5)
    with config.unlocked():
        config.score.perceptual = 0.1
    write_json(tmp_path / "config.json", config.to_dict())
    with pytest.raises(UserError, match="no weights on this machine"):
        bigan_jax.load(tmp_path)


@pytest.mark.parametrize("unit", [True, False])
def test_perceptual_score_equals_vgg16_feature_error(unit, small):
    config, dataset, detector, state = small
    formula = ScoreFormula({"perceptual": 1.0})
    scorer = AnomalyScorer(detector, state, formula, parse_settings(config).data.image_shape, unit_features=unit)
    image = dataset.test.image[:2].astype(np.float32) / 255
    loaded = load_weights()
    network = VGG16(("relu2_2", "relu3_3"), loaded.convention)
    features, others = (network.apply({"params": loaded.params}, jnp.asarray(x)) for x in (image, 1 - image))
    if unit:
        features, others = losses.unit_features(features), losses.unit_features(others)
    expected = losses.perceptual(features, others)
    np.testing.assert_allclose(scorer.compute_terms(image, 1 - image).value["perceptual"], expected, rtol=1e-4)
    scores = scorer.score(dataset.test.image[:2])
    assert scores.terms.value.keys() == {"mse", "ssim", "perceptual"}
    np.testing.assert_allclose(scores.error_map.mean((1, 2)), scores.by_name["paper"], rtol=1e-4)
