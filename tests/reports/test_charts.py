"""Charts and image grids show the right values for any data, names and sizes."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.dataset import Images
from bigan_jax.evaluation.anomaly_score import ScoreTerms
from bigan_jax.evaluation.scorer import Scores
from bigan_jax.metrics import bootstrap
from bigan_jax.metrics.thresholds import decide
from bigan_jax.reports import charts, figures, image_grid, training_curves

LIMITS = {"mse": 0.005, "ssim": 1.0, "combined": 0.25}
UNTRUSTED = "<b>$x_{1\x1b[31m\x00\u202e\udcff\n中.png"


def train_log(epochs=6):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "phase": "one" if epoch < 4 else "two", "step": epoch}
        row |= {"seconds": 1.0, "images_per_second": 100.0, "reconstruction/mse": 1 / epoch}
        if epoch in (4, 6):
            row["discriminator/bce"] = 0.7
        rows.append(row | {"health": ["collapsed"] if epoch == 5 else []})
    return rows


def png_size(figure):
    return Image.open(io.BytesIO(charts.to_png(figure))).size


def random_scores(n_normal, n_anomalous, n_calibration):
    rng = np.random.default_rng(0)
    return [
        rng.lognormal(mean, 0.3, count).astype(np.float32)
        for mean, count in ((0, n_normal), (0.5, n_anomalous), (0, n_calibration))
    ]


def test_error_colors_have_a_fixed_scale():
    errors = np.array([[0.0, 0.5, 1.0, 2.0]])
    rgb = charts.error_map_rgb(errors, 1.0)
    assert rgb.dtype == np.uint8 and rgb.shape == (1, 4, 3)
    assert (rgb[0, 2] == rgb[0, 3]).all()
    assert (charts.error_map_rgb(errors / 2, 0.5) == rgb).all()
    # The color of a pixel does not depend on other pixels.
    assert (charts.error_map_rgb(errors[:, :2], 1.0) == rgb[:, :2]).all()
    brightness = charts.error_map_rgb(np.linspace(0, 1, 32)[None], 1.0)[0].astype(int).sum(1)
    assert (np.diff(brightness) >= 0).all()
    assert (charts.error_map_rgb(np.zeros((2, 2)), 0.0) == rgb[0, 0]).all()


@pytest.mark.parametrize(
    "counts, threshold", [((9, 8, 7), 0.5), ((9, 0, 0), None), ((0, 1, 0), 99.0), ((0, 0, 0), 0.5)]
)
def test_charts_are_drawn_without_a_class_or_threshold(counts, threshold):
    scores = random_scores(*counts)
    score, label = np.concatenate(scores[:2]), np.arange(sum(counts[:2])) >= counts[0]
    assert png_size(charts.score_histogram(*scores, threshold)) > (400, 300)
    assert png_size(charts.roc_curve(score, label, threshold)) > (400, 400)
    assert png_size(charts.precision_recall_curve(score, label, threshold)) > (400, 400)


@pytest.mark.parametrize("n_values", [1, 4, 7, 40])
def test_no_text_of_a_chart_is_cut_off(n_values):
    """The axes show their widest numbers: 17.5 %, and losses from 0.00001 to 100,000."""
    scores = [np.arange(40) % n_values / 100, np.arange(63) / 63, np.arange(20) / 40]
    score, label = np.concatenate(scores[:2]), np.arange(103) >= 40
    losses = [{"fit/a": 10.0 ** (3 * e - 5), "fit/b": 3.0, "game/c": -1234.5 * e} for e in range(4)]
    names = ("real_spread", "reconstruction_spread", "learning_rate", "codebook_usage", "kl")
    losses = [row | {f"fit/{name}": 0.5 for name in names} for row in losses]
    rows = [{"epoch": e, "phase": "one"} | row for e, row in enumerate(losses)]
    for figure in (
        charts.score_histogram(*scores, 0.5),
        charts.score_histogram(*(1e-5 * values for values in scores), 5e-6),
        charts.roc_curve(score, label, 0.5),
        charts.precision_recall_curve(score, label, 0.5),
        training_curves.training_curves(rows),
    ):
        charts.to_png(figure)
        box = figure.get_tightbbox()  # in inches
        width, height = figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, box
        assert width <= charts.WIDTH  # on a phone, a wider figure has unreadably small text


def test_histogram_counts_every_score():
    normal, anomalous, calibration = random_scores(10_000, 300, 5_000)
    (axes,) = charts.score_histogram(normal, anomalous, calibration, 2.0).axes
    outlines = [patch.get_xy() for patch in axes.patches]
    for outline, values in zip(outlines, (normal, anomalous), strict=True):
        edges, steps = outline[1::2, 0], outline[1::2, 1]
        edges, first = np.unique(edges, return_index=True)
        expected = np.histogram(values, edges)[0] / len(values)
        np.testing.assert_allclose(steps[first][: len(expected)], expected, atol=1e-9)
        assert expected.sum() == pytest.approx(1)
    assert axes.get_xscale() == "linear"
    outlier = np.append(anomalous, 1000 * anomalous.max())
    assert charts.score_histogram(normal, outlier, calibration, 2.0).axes[0].get_xscale() == "log"


def test_bands_equal_quantiles_of_resampled_curves():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 12, 40) / 4.0  # with ties
    label, group = rng.random(40) < 0.5, rng.integers(0, 15, 40)
    bands = bootstrap.curve_bands(score, label, group, n_samples=30, seed=3)
    member, counts = bootstrap.group_resampling(label, group, 30, 3)
    recalls, precisions = [], []
    for count in counts:
        repeated = np.repeat(np.arange(40), count[member])
        roc_points = [(0.0, 0.0)]  # false positive rate, recall
        pr_points = []
        for threshold in sorted(set(score[repeated]), reverse=True):
            decision, truth = score[repeated] >= threshold, label[repeated]
            roc_points.append((decision[~truth].mean(), decision[truth].mean()))
            pr_points.append((decision[truth].mean(), truth[decision].mean()))
        recalls.append(
            [np.interp(x, *zip(*roc_points, strict=True)) for x in np.linspace(0, 1, 101)]
        )  # fmt: skip
        precisions.append(
            [next(p for recall, p in pr_points if recall > 0 and recall >= x - 1e-9) for x in np.linspace(0, 1, 101)]
        )
    for name, values in (("roc", recalls), ("precision_recall", precisions)):
        x, low, high = bands[name]
        np.testing.assert_allclose(x, np.linspace(0, 1, 101))
        np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975], axis=0))
    assert bootstrap.curve_bands(score, np.zeros(40, bool), group) is None


def test_band_and_threshold_are_drawn():
    normal, anomalous, _ = random_scores(40, 30, 0)
    score, label = np.concatenate([normal, anomalous]), np.arange(70) >= 40
    decision = decide(score, 1.3)
    band = bootstrap.curve_bands(score, label, np.arange(70), n_samples=50)
    recall, precision = decision[label].mean(), label[decision].mean()
    for draw, name, point in (
        (charts.roc_curve, "roc", (decision[~label].mean(), recall)),
        (charts.precision_recall_curve, "precision_recall", (recall, precision)),
    ):
        (axes,) = draw(score, label, 1.3, band[name]).axes
        (marker,) = (line for line in axes.lines if line.get_label() == "at the threshold")
        np.testing.assert_allclose(np.ravel(marker.get_xydata()), point)
        (area,) = axes.collections
        corners = {tuple(row) for row in area.get_paths()[0].vertices.round(6)}
        x, low, high = np.round(band[name], 6)
        assert corners >= {*zip(x, low, strict=True), *zip(x, high, strict=True)}


def test_precision_is_not_drawn_at_recall_0():
    """The highest score is that of a normal image: no line falls from a precision of 1."""
    score, label = np.arange(6.0), np.array([0, 1, 0, 1, 1, 0], bool)
    (axes,) = charts.precision_recall_curve(score, label, None).axes
    (curve,) = (line for line in axes.lines if line.get_label() == "this model")
    assert curve.get_xdata().tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3])
    assert curve.get_ydata().tolist() == pytest.approx([1 / 2, 3 / 5, 1 / 2, 2 / 3, 1 / 2])


def test_training_curves_have_a_panel_per_objective():
    rows = train_log()
    rows[1]["reconstruction/mse"] = None
    rows[3]["reconstruction/mse"] = float("nan")
    figure = training_curves.training_curves(rows)
    first, second = figure.axes
    assert (first.get_title("left"), second.get_title("left")) == ("reconstruction", "discriminator")
    np.testing.assert_allclose(first.lines[0].get_ydata(), [1, np.nan, 1 / 3, np.nan, 0.2, 1 / 6])
    # A value that is logged every other epoch is also a line.
    assert second.lines[0].get_xdata().tolist() == [4, 6]
    assert second.lines[0].get_marker() == "."
    for axes in figure.axes:
        assert axes.lines[1].get_xdata().tolist() == [5]  # the health warning
        (shaded,) = axes.patches
        assert (shaded.get_x(), shaded.get_width()) == (3.5, 3)
    assert "one (epochs 1 to 3), two (epochs 4 to 6)" in figure.get_suptitle()
    for log in (rows, [], train_log(1), [{"epoch": 1}]):
        assert png_size(training_curves.training_curves(log)) > (300, 200)


def gallery_images():
    rng = np.random.default_rng(0)
    for i, path in enumerate(("first.png", UNTRUSTED, "long" * 100 + ".png")):
        images = rng.integers(0, 256, (2, 8, 8, 3 if i == 2 else 1), np.uint8)
        error_maps = dict(zip(LIMITS, rng.random((3, 8, 8)) * [[[0.01]], [[1]], [[0.5]]], strict=True))
        mask = None if i == 1 else rng.random((8, 8)) > 0.5
        yield image_grid.GalleryImage(path, i > 0, "", 0.1 * i, i == 0, *images, error_maps, mask)


def cells(sheet, columns):
    """The images on a sheet, row by row, each reduced to its original eight by eight pixels."""
    canvas, side = np.asarray(sheet.image), image_grid.SIDE
    for index in range(3):
        y = image_grid.HEADING + index * (side + image_grid.CAPTION)
        for column in range(columns):
            x = image_grid.GAP + column * (side + image_grid.GAP)
            yield canvas[y : y + side : 16, x : x + side : 16]


def test_error_map_grid_shows_every_map_on_its_own_scale():
    images = list(gallery_images())
    sheet = image_grid.error_map_grid(images, LIMITS)
    all_cells = list(cells(sheet, 6))
    for index, item in enumerate(images):
        image, reconstruction, *maps, mask = all_cells[6 * index : 6 * index + 6]
        assert (image == item.image).all() and (reconstruction == item.reconstruction).all()
        for name, cell in zip(LIMITS, maps, strict=True):
            assert (cell == charts.error_map_rgb(item.error_maps[name], LIMITS[name])).all()
        assert (mask == (235 if item.mask is None else 255 * item.mask[..., None])).all()
    for bar in ("≥ 0.005 (intensity²)", "≥ 1 (at most 2)", "≥ 0.25 (score)"):
        assert bar in sheet.texts


@pytest.mark.parametrize("count", [0, 1, 3])
def test_image_grids_accept_any_name(count):
    images = list(gallery_images())[:count]
    sheets = [image_grid.error_map_grid(images, LIMITS)]
    sheets.append(image_grid.normal_and_anomalous_grid([], images, 0.5))
    for sheet in sheets:
        assert sheet.image.size > (800, 50)
        assert all(line.isprintable() and len(line) < 140 for line in sheet.texts)
        top = image_grid.TITLE + image_grid.HEADING
        assert (np.asarray(sheet.image)[top:, -image_grid.GAP :] == 255).all()  # no text overflows
    if count == 3:
        assert r"<b>$x_{1\x1b[31m\x00\u202e\udcff\n□.png" in sheets[0].texts


def test_detectors_without_reconstructions_have_no_column_for_them():
    images = [item._replace(reconstruction=None) for item in gallery_images()]
    images = [item._replace(error_maps={"combined": item.error_maps["combined"]}) for item in images]
    grids = (
        (image_grid.error_map_grid(images, {"combined": 0.25}), ["input", "combined", "true mask"]),
        (image_grid.normal_and_anomalous_grid(images[:1], images[1:], 0.25), ["input", "error map", "true mask"]),
    )
    for sheet, titles in grids:
        assert [title for title in titles if title in sheet.texts] == titles
        assert not {"reconstruction", "squared error", "1 - SSIM"} & set(sheet.texts)


def test_examples_are_spread_over_the_ranks_of_anomalous_images():
    score = np.random.default_rng(0).permutation(30).astype(np.float32)
    label = score >= 12
    images = np.zeros((30, 4, 4, 1), np.uint8)
    path = np.array([str(int(value)) for value in score])
    test = Images(images, label, path, np.zeros(30, np.int32), path, path, np.zeros((30, 4, 4), bool), label)
    maps = np.zeros((30, 4, 4), np.float32)
    scores = Scores("paper", {"paper": score}, ScoreTerms({}, {}), maps, images)
    assert [item.path for item in figures.report_examples(test, scores, 20.0)] == ["15", "21", "27"]
    normal = test._replace(label=np.zeros(30, bool))
    assert len(figures.report_examples(normal, scores, 20.0)) == 3


def test_evenly_ranked_indices_are_spread_over_the_ranks():
    score = np.random.default_rng(0).permutation(40).astype(float)
    indices = figures.evenly_ranked(score, score % 2 == 1)
    assert score[indices].tolist() == [5, 15, 25, 35]
    assert figures.evenly_ranked(score, score < 2) == np.argsort(score)[:2].tolist()
    assert figures.evenly_ranked(score, score < 0) == []


def test_figures_do_not_change_matplotlib_settings():
    before = dict(matplotlib.rcParams)
    for encode in charts.to_png, charts.to_svg:
        first, second = (encode(training_curves.training_curves(train_log())) for _ in range(2))
        assert first == second
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("warned", [[], ["D is saturated."]])
def test_training_panels_fill_the_figure(warned):
    """With or without a cross for a health warning."""
    losses = {"fit/loss": 0.1, "game/loss": 10.0}
    rows = [{"epoch": e, "phase": "one", "health": warned} | losses for e in range(1, 6)]
    figure = training_curves.training_curves(rows)
    charts.to_png(figure)
    assert sum(axes.get_position().width for axes in figure.axes) > 0.6
