"""EvaluationResult: round trip, other versions; new metrics and terms need one table entry."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigan_jax.commands.build import build
from bigan_jax.commands.load import make_scorer
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import cae
from bigan_jax.data.loading import load_dataset
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import ScoreTerm
from bigan_jax.evaluation.assess import assess
from bigan_jax.evaluation.result import read_evaluation
from bigan_jax.reports.evaluation_files import score_rows
from bigan_jax.reports.html_report import write_report
from bigan_jax.runtime.files import write_json
from tests.helpers.datasets import evaluation_content, main_score, make_result, score_content

ROOT = Path(__file__).parents[2]


def test_written_result_is_read_unchanged(tmp_path):
    row = {"defect_type": "crack", "n": 3, "auroc": 0.7, "recall": 1.0}
    result = make_result(by_defect_type=[row, row], auroc_ci=None, warnings=["a"], paper={"threshold": 0.25})
    write_json(tmp_path / "evaluation.json", result.as_dict())
    assert read_evaluation(tmp_path) == result
    assert main_score(result.as_dict())["by_defect_type"] == [row, row]
    assert (result.scores["paper"].threshold, result.scores["calibrated"].threshold) == (0.25, 0.5)
    assert result.main is result.scores["calibrated"]
    assert result.replace(score_name="paper").main is result.scores["paper"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content | {"score_name": "mse"},
        lambda content: content | {"scores": {"paper": score_content()}},
        lambda content: content | {"scores": content["scores"] | {"third": score_content()}},
    ],
)
def test_both_scores_are_required(change, tmp_path):
    write_json(tmp_path / "evaluation.json", change(evaluation_content()))
    with pytest.raises(
        UserError, match="the names of scores must be among paper, calibrated, native, and score_name one of them"
    ):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content | {"controls": {}},
        lambda content: {k: v for k, v in content.items() if k != "scores"},
        lambda content: content | main_score(content),  # the fields of versions with a single score
        lambda content: content | {"scores": {"paper": {}}},
        lambda content: content | {"predict_all": {"f1": 1.0}},
        lambda content: content | {"x" * 1000 + "\u202e": 1},
    ],
)
def test_other_versions_are_refused_in_one_sentence(change, tmp_path):
    write_json(tmp_path / "evaluation.json", change(evaluation_content()))
    with pytest.raises(UserError, match=r"another version of .*--mode=evaluate again") as caught:
        read_evaluation(tmp_path)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_color_limit_of_the_combined_map_is_required(tmp_path):
    content = evaluation_content(color_limits={"mse": 1.0})
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="color_limits must have"):
        read_evaluation(tmp_path)


def test_new_metric_needs_one_entry(tmp_path):
    """An entry is in the intervals, the result, the report, and the comparison of runs.

    The tables define the type of the result on import, so a process of its own adds the entries.
    """
    program = """
import sys
from pathlib import Path
import numpy as np
from bigan_jax.metrics import image, pixel
image.IMAGE_METRICS["missed"] = image.ImageMetric(
    "missed images", "false negatives, of all images",
    lambda score, label, counts: counts.false_negatives / counts.total,
    lambda samples: samples.counts.false_negatives / samples.counts.total,
    uses_threshold=True,
)
pixel.PIXEL_METRICS["defects"] = pixel.PixelMetric("defect pixels", lambda curve: 0.125)
from bigan_jax.commands.compare import compare
from bigan_jax.evaluation.result import read_evaluation
from bigan_jax.metrics.bootstrap import bootstrap_intervals
from bigan_jax.metrics.pixel_bootstrap import pixel_bootstrap_intervals
from bigan_jax.reports.html_report import write_report
from tests.helpers.datasets import image_table, main_score, write_run

folder = Path(sys.argv[1])
_, label, group = image_table()
score = np.random.default_rng(0).normal(size=len(label)) + label
expected = np.count_nonzero(label & (score < 0.7)) / len(label)
assert image.image_metrics(score, label, 0.7)["missed"] == expected
intervals = bootstrap_intervals(score, label, group, 0.7)
assert intervals["missed"][0] < expected < intervals["missed"][1]
maps, masks = np.random.default_rng(0).random((2, 8, 5, 5))
masks = (masks > 0.6) & (np.arange(8) > 3)[:, None, None]
weights = pixel.region_weights(masks)
assert pixel.pixel_metrics(maps, masks)["defects"] == 0.125
assert pixel_bootstrap_intervals(maps, masks, np.arange(8), weights)["defects"] == (0.125, 0.125)

content = write_run(folder / "run", score=score)
pixels = content["pixel"] | {"defects": 0.125}
baselines = {"raw_intensity": content["pixel_baselines"]["raw_intensity"] | {"defects": None}}
fields = {"intervals": intervals, "pixel": pixels, "pixel_baselines": baselines}
write_run(folder / "other", model="vae", score=score, evaluation=fields)
result = read_evaluation(folder / "other")
assert result.main.missed == main_score(content)["missed"] > 0 and result.pixel.metrics["defects"] == 0.125
report = write_report(folder / "report.html", result, [], {}, []).read_text()
assert "missed images" in report and f"{result.main.missed:.3f}" in report and "defect pixels" in report
row = compare(folder / "other", folder / "out").datasets[0].rows[0]
assert row.values["missed"].mean == result.main.missed and row.values["defects"].mean == 0.125
tables = (folder / "out" / "comparison.md").read_text()
assert "missed images" in tables and "defect pixels" in tables
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_new_score_term_needs_one_entry(monkeypatch, tmp_path):
    """A term is in the scores, the table of scores, scores.csv and the report."""

    def value_and_map(image, reconstruction, _features):
        maps = abs(image - reconstruction).mean(-1)
        return maps.mean((1, 2)), maps

    monkeypatch.setitem(anomaly_score.TERMS, "l1", ScoreTerm("absolute error", "l1_error", value_and_map))
    config = cae.get_config("phantom")
    with config.unlocked(), config.ignore_type():
        config.data.image_size, config.data.phantom_normal = 32, 60
        config.data.phantom_anomalous, config.batch_size = 6, 16
        config.model.latent, config.model.widths = 4, (2, 4)
        config.score.l1, config.score.ssim, config.score.standardize = 2.0, 0.0, True
    settings = parse_settings(config)
    built = build(settings, 1, steps_per_epoch=1)
    state = init_state(built.detector, built.optimizers, 0, settings.data.image_shape)
    dataset = load_dataset(settings.data)
    scorer = make_scorer(settings, built.detector, state, batch_size=16, name=settings.score.name)
    result, _, test, _ = assess(scorer, dataset, settings.score, settings.threshold, settings.identity)
    reconstruction = test.reconstruction.astype(np.float32) / 255
    expected = abs(dataset.test.image.astype(np.float32) / 255 - reconstruction).mean((1, 2, 3))
    np.testing.assert_allclose(test.terms.value["l1"], expected, atol=0.002)
    train = scorer.score(dataset.train.image)
    deviation = np.std(train.terms.value["l1"].astype(np.float64))
    assert result.score.standard_deviations["l1"] == pytest.approx(deviation, rel=1e-5)
    assert (result.score.weights["l1"], result.score.weights["mse"]) == (2.0, 0.7)
    assert {"l1", "0.7 mse + 2 l1"} <= {row.score for row in result.score_table}
    (row,) = (row for row in result.score_table if row.used)
    assert row.auroc == pytest.approx(result.main.auroc)
    assert "l1" in result.term_aurocs and "l1" in result.color_limits
    (first, *_) = score_rows(dataset.test.path, test, test.score >= result.main.threshold, {})
    assert float(first["l1_error"]) == pytest.approx(test.terms.value["l1"][0])
    report = write_report(tmp_path / "report.html", result, [], {}, []).read_text()
    assert f"absolute error {result.term_aurocs['l1']:.3f}" in report
