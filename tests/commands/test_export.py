"""Exported detectors: the graph of every model against the scorer, the files, the check, and the examples."""

import importlib.util
import inspect
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.export import deserialize
from PIL import Image

import bigan_jax
from bigan_jax.commands import console
from bigan_jax.commands.exporting import artifact, check, graphs, preprocess
from bigan_jax.commands.exporting.artifact import export
from bigan_jax.commands.exporting.check import Reference
from bigan_jax.commands.exporting.examples import example
from bigan_jax.configs import fcae
from bigan_jax.data import phantom
from bigan_jax.data.files.images import ImageFormat, read_image
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.calibrated_score import PixelStatistics
from bigan_jax.evaluation.fold_scorer import FoldScorer
from bigan_jax.evaluation.scorer import AnomalyScorer, score_names
from bigan_jax.evaluation.symmetry import asymmetry_statistics
from bigan_jax.metrics.thresholds import decide
from bigan_jax.nn import feature_maps
from tests.helpers.runs import TINY_FCAE, configured, environment
from tests.helpers.training import limit_devices
from tests.models import test_all_models, test_fitted_models
from tests.models.test_all_models import CONDITIONS, CONFIGS, FITTED, SHAPE

ALL = pytest.mark.parametrize("name", [name for name in CONFIGS if name != "anogan"])
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed")
RNG = np.random.default_rng(0)
TRAINING, IMAGES = RNG.integers(0, 256, (2, 12, *SHAPE), np.uint8)
CONDITION = np.arange(12, dtype=np.int32) % CONDITIONS
NAMES = ("bottle", "leaf")


def scorer_of(name, seed=3, score=None):
    """A scorer of a toy detector; statistics of any kind."""
    if name in FITTED:
        detector = test_fitted_models.tiny(name)
        state = test_fitted_models.fitted(detector, TRAINING)
    else:
        detector = test_all_models.tiny(name)
        optimizers = dict.fromkeys(detector.objectives, optax.adam(1e-3))
        state = jax.jit(lambda: init_state(detector, optimizers, seed, SHAPE))()
    mean, deviation = np.random.default_rng(1).uniform(0.05, 0.2, (2, *SHAPE[:2])).astype(np.float32)
    return AnomalyScorer(
        detector,
        state,
        ScoreFormula({"mse": 0.7, "ssim": 0.3}),
        SHAPE,
        name=score or score_names(detector)[-1],
        statistics=PixelStatistics(mean, deviation),
        conditions=NAMES if name == "cvae" else (),
    )


@pytest.fixture(autouse=True)
def toy_features(monkeypatch):
    limit_devices(monkeypatch, 1)
    monkeypatch.setattr(feature_maps, "vgg16_network", test_fitted_models.toy_network)


def inputs_of(scorer, count=None):
    inputs = {"images": IMAGES[:count], "condition": CONDITION[:count]}
    return {name: inputs[name] for name in graphs.input_names(scorer)}


def run_stablehlo(content, inputs):
    return map(np.asarray, jax.jit(deserialize(bytearray(content)).call)(*inputs.values()))


def run_onnx(content, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(list(graphs.OUTPUTS), inputs)


def assert_scores_as(scorer, run, content):
    """For two numbers of images."""
    expected = scorer.score(IMAGES, CONDITION)
    for count in (len(IMAGES), 3):
        score, anomaly_map = run(content, inputs_of(scorer, count))
        for values, wanted in (score, expected.score), (anomaly_map, expected.error_map):
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, wanted[:count], rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert np.ptp(expected.score) > 100 * 1e-5 * np.abs(expected.score).max() > 0


# --- graphs ---


@ALL
def test_stablehlo_scores_as_the_detector(name):
    scorer = scorer_of(name)
    content = graphs.to_stablehlo(scorer)
    assert deserialize(bytearray(content)).platforms == graphs.PLATFORMS
    assert_scores_as(scorer, run_stablehlo, content)


@needs_onnx
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("anogan", "symmetry")])
def test_onnx_scores_as_the_detector(name):
    scorer = scorer_of(name)
    assert_scores_as(scorer, run_onnx, graphs.to_onnx(scorer))


@pytest.mark.parametrize("reduction", ["mean", "max", "top1"])
def test_paper_score_is_exported_with_its_reduction(reduction):
    scorer = scorer_of("fcae", score="paper")
    scorer = AnomalyScorer(
        test_all_models.tiny("fcae"), scorer._variables[0], ScoreFormula({"mse": 1.0}, reduction), SHAPE, name="paper"
    )
    assert_scores_as(scorer, run_stablehlo, graphs.to_stablehlo(scorer))


@pytest.mark.parametrize("kind", ["stablehlo", pytest.param("onnx", marks=needs_onnx)])
def test_score_of_pretrained_features_is_exported(kind):
    state = scorer_of("fcae")._variables[0]
    scorer = AnomalyScorer(test_all_models.tiny("fcae"), state, ScoreFormula({"perceptual": 1.0}), SHAPE, name="paper")
    if kind == "onnx":
        assert_scores_as(scorer, run_onnx, graphs.to_onnx(scorer))
    else:
        assert_scores_as(scorer, run_stablehlo, graphs.to_stablehlo(scorer))


def test_asymmetry_is_part_of_the_exported_score():
    scorer = scorer_of("fcae")
    without = scorer.score(IMAGES).score
    scorer.asymmetry = asymmetry_statistics(TRAINING)
    assert np.abs(scorer.score(IMAGES).score - without).min() > 1e-2
    assert_scores_as(scorer, run_stablehlo, graphs.to_stablehlo(scorer))


def test_folds_are_exported_as_the_lowest_score():
    scorer = FoldScorer([scorer_of("fcae", seed=seed) for seed in (1, 2)])
    first, second = (s.score(IMAGES).score for s in scorer._scorers)
    assert (first < second).any() and (second < first).any()
    assert_scores_as(scorer, run_stablehlo, graphs.to_stablehlo(scorer))


def test_condition_changes_the_exported_score():
    scorer = scorer_of("cvae")
    graph = deserialize(bytearray(graphs.to_stablehlo(scorer)))
    first, second = (graph.call(IMAGES, np.full(12, index, np.int32))[0] for index in (0, 1))
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_latent_search_is_refused():
    with pytest.raises(UserError, match=r"3 steps.*such as bigan"):
        graphs.require_exportable(scorer_of("anogan"))


@needs_onnx
def test_what_the_converter_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"jax2onnx cannot convert .*--format=stablehlo"):
        graphs.to_onnx(scorer_of("symmetry"))


@pytest.mark.skipif(HAS_ONNX, reason="the extra onnx is installed")
def test_missing_converter_is_named():
    with pytest.raises(UserError, match=r"pip install 'bigan_jax\[onnx\]'"):
        graphs.to_onnx(scorer_of("fcae"))


# --- artifacts ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and the folder of its images."""
    home = tmp_path_factory.mktemp("export")
    (home / "data").mkdir()
    for i in range(60):
        image, _ = phantom.draw("bottle", i, 48, 1)
        Image.fromarray(image[..., 0]).save(home / "data" / f"{i:02}.png")
    fields = TINY_FCAE | {"data.dir": str(home / "data"), "threshold.false_alarm_rate": 0.2}
    fields = {name: value for name, value in fields.items() if "phantom" not in name}
    bigan_jax.train(configured(fcae, "folder", fields), home / "run")
    return home / "run", home / "data"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """An artifact, which another process has checked."""
    output = tmp_path_factory.mktemp("exported") / "new" / "artifact"
    checked = export(trained[0], output, "stablehlo")
    assert checked.images >= 12 and checked.difference < 1e-5
    return output


def assert_example_scores_as_the_run(artifact, trained):
    workdir, data = trained
    files = sorted(data.iterdir())[:6]
    # The example's last act is to report what it imported.
    script = "import runpy, sys\nrunpy.run_path(sys.argv[0], run_name='__main__')\nprint(*sys.modules)"
    script = f"import sys\nsys.argv = sys.argv[1:]\nsys.path.insert(0, {str(artifact)!r})\n{script}"
    command = [sys.executable, "-c", script, artifact / "example.py", *files]
    result = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *lines, modules = result.stdout.splitlines()
    assert not {"flax", "bigan_jax"} & set(modules.split())
    scorer = bigan_jax.load(workdir)
    prediction = scorer.predict(files)
    assert len(lines) == len(files)
    for line, file, score, anomalous in zip(lines, files, prediction.score, prediction.decision, strict=True):
        name, value, decision = line.split()
        assert (name, decision) == (str(file), "anomalous" if anomalous else "normal")
        assert float(value) == pytest.approx(float(score), abs=1e-5)


def test_example_runs_with_jax_alone(exported, trained):
    assert_example_scores_as_the_run(exported, trained)
    statements = (exported / "example.py").read_text().split("\n\n")[-1]
    assert len(statements.splitlines()) <= 10


@needs_onnx
def test_example_runs_with_onnxruntime_alone(trained, tmp_path):
    export(trained[0], tmp_path / "artifact", "onnx")
    assert_example_scores_as_the_run(tmp_path / "artifact", trained)


def test_artifact_has_what_a_decision_requires(exported, trained):
    names = ["MODEL_CARD.md", "example.py", "metadata.json", "model.stablehlo", "preprocess.py", "verification.npz"]
    assert sorted(path.name for path in exported.iterdir()) == names
    assert [path.name for path in exported.parent.iterdir()] == ["artifact"]
    metadata = json.loads((exported / "metadata.json").read_text())
    evaluation = json.loads((trained[0] / "evaluation.json").read_text())
    main = evaluation["scores"]["calibrated"]
    assert metadata["threshold"] == main["threshold"]
    assert metadata["calibration_scores"] == main["calibration_scores"]
    assert metadata["pixel_threshold"] == evaluation["pixel_threshold"]
    assert metadata["image"] == {"size": 16, "channels": 1, "window": False, "fit": "stretch"}
    assert metadata["versions"]["jax"] == jax.__version__
    with np.load(exported / "verification.npz", allow_pickle=False) as file:
        graph = deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
        score, anomaly_map = graph.call(file["images"])
        np.testing.assert_allclose(score, file["score"], atol=1e-5)
        np.testing.assert_allclose(anomaly_map, file["anomaly_map"], atol=1e-5)
        known = np.array(main["calibration_scores"])
        assert all(np.abs(known - value).min() < 1e-4 for value in file["score"])
    card = (exported / "MODEL_CARD.md").read_text()
    assert f"{main['auroc']}"[:5] in card if main["auroc"] is not None else "not known" in card
    assert repr(main["threshold"]) in card and main["promise"]["holds_for"] in card
    assert str(trained[1]) not in card + json.dumps(metadata)


def test_zip_holds_the_same_files(exported, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "check", lambda *_: check.Checked(7, 1e-7))  # which the folder has passed
    export(trained[0], tmp_path / "detector.zip", "stablehlo")
    with zipfile.ZipFile(tmp_path / "detector.zip") as archive:
        files = {path.name for path in exported.iterdir()}
        assert set(archive.namelist()) == {f"detector/{name}" for name in files}
        assert json.loads(archive.read("detector/metadata.json")) == json.loads(
            (exported / "metadata.json").read_text()
        )


def test_graph_of_another_detector_is_not_kept(trained, tmp_path, monkeypatch):
    def other(scorer):
        scorer.statistics = PixelStatistics(scorer.statistics.mean, 1.001 * scorer.statistics.deviation)
        return to_stablehlo(scorer)

    to_stablehlo = graphs.to_stablehlo
    monkeypatch.setattr(graphs, "to_stablehlo", other)
    with pytest.raises(UserError, match=r"scores of the exported graph differ.*no file is kept"):
        export(trained[0], tmp_path / "artifact", "stablehlo")
    assert not list(tmp_path.iterdir())


def test_broken_graph_is_not_kept(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "to_stablehlo", lambda _: b"no graph")
    with pytest.raises(UserError, match=r"does not run.*no file is kept"):
        export(trained[0], tmp_path / "artifact", "stablehlo")
    assert not list(tmp_path.iterdir())


def test_missing_data_are_named(trained, tmp_path, monkeypatch):
    def missing(*_):
        raise UserError("There is no folder data.")

    monkeypatch.setattr(artifact, "load_dataset", missing)
    with pytest.raises(UserError, match=r"checked with the run's calibration images: There is no folder data"):
        export(trained[0], tmp_path / "artifact", "stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["stablehlo", pytest.param("onnx", marks=needs_onnx)])
def test_example_takes_a_condition(kind, tmp_path):
    scorer = scorer_of("cvae")
    graph = graphs.to_stablehlo(scorer) if kind == "stablehlo" else graphs.to_onnx(scorer)
    (tmp_path / f"model.{kind}").write_bytes(graph)
    (tmp_path / "example.py").write_text(example(kind, True))
    (tmp_path / "preprocess.py").write_text(inspect.getsource(preprocess))
    image_format = {"size": 32, "channels": 1, "window": False, "fit": "stretch"}
    metadata = {"image": image_format, "threshold": 1e9, "conditions": NAMES}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "a.png")
    command = [sys.executable, "example.py", "leaf", "a.png"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = scorer.score(IMAGES[:1], np.array([1], np.int32)).score[0]
    assert float(result.stdout.split()[1]) == pytest.approx(float(expected), rel=1e-5)


# --- the check ---


def test_check_compares_scores_decisions_and_maps(monkeypatch):
    score = np.array([0.1, 0.2, 0.4, 1.0], np.float32)
    anomaly_map = np.ones((4, 2, 2), np.float32)
    reference = Reference({"images": IMAGES[:4]}, score, anomaly_map)

    def checked(score, anomaly_map=anomaly_map):
        monkeypatch.setattr(check, "_run", lambda *_: (np.float32(score), anomaly_map))
        return check.check(Path(), reference, threshold=0.3)

    assert checked(score + 5e-6).difference == pytest.approx(5e-6, rel=0.1)
    for wrong in (score + 2e-5, score[:3], np.where(score == 0.2, np.nan, score)):
        with pytest.raises(UserError, match="scores"):
            checked(wrong)
    with pytest.raises(UserError, match="maps"):
        checked(score, anomaly_map * (1 + 2e-4))


def test_decisions_may_differ_only_at_the_threshold():
    expected = np.array([0.1, 0.2, 0.3], np.float32)
    threshold = float(expected[1])
    other = np.nextafter(expected, np.float32(0), dtype=np.float32)
    assert (decide(other, threshold) != decide(expected, threshold)).tolist() == [False, True, False]
    assert not check.different_decisions(other, expected, threshold).any()
    assert check.different_decisions(np.float32([0.1, 0.2, 0.1]), expected, threshold).tolist() == [False, False, True]


# --- preprocessing ---


def picture(mode, size=(70, 45)):
    noise = RNG.integers(0, 256, (*size[::-1], 4), np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:9, :9]).resize(size, Image.Resampling.BICUBIC))
    if mode == "I;16":
        return Image.fromarray(smooth[..., 0].astype(np.uint16) * 150 + 7)
    return Image.fromarray(smooth).convert(mode)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_preprocessing_is_that_of_training(mode, channels, window, fit):
    picture(mode).save(file := io.BytesIO(), "PNG")
    image_format = ImageFormat(16, channels, window, fit)
    expected = read_image(file, *image_format)
    file.seek(0)
    np.testing.assert_array_equal(preprocess.read_image(file, image_format._asdict()), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_preprocessing_of_large_rotated_jpeg(orientation, fit):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture("RGB", (900, 500)).save(file := io.BytesIO(), "JPEG", exif=exif)
    image_format = ImageFormat(32, 3, False, fit)
    expected = read_image(file, *image_format)
    file.seek(0)
    np.testing.assert_array_equal(preprocess.read_image(file, image_format._asdict()), expected)


# --- the command ---


def test_command_exports_a_run_and_refuses_an_existing_output(trained, tmp_path, monkeypatch):
    workdir, _ = trained
    monkeypatch.setattr(artifact, "check", lambda *_: check.Checked(7, 1e-7))
    console.run(["export", str(workdir), f"--output={tmp_path / 'a.zip'}"])
    assert zipfile.is_zipfile(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"a\.zip exists"):
        export(workdir, tmp_path / "a.zip", "stablehlo")
    with pytest.raises(UserError, match=r"a\.zip exists"):
        console.run(["export", str(workdir), f"--output={tmp_path / 'a.zip'}"])
    with pytest.raises(UserError, match="none does not exist"):
        console.run(["export", "none", f"--output={tmp_path / 'b'}"])
    with pytest.raises(UserError, match="'tflite'"):
        console.run(["export", str(workdir), f"--output={tmp_path / 'b'}", "--format=tflite"])
    assert not (tmp_path / "b").exists()
