"""The figures of a run: what they show is right, whatever the data, the names and the sizes."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from bigan_jax.metrics import bootstrap
from bigan_jax.metrics.thresholds import decide
from bigan_jax.reports import charts, figures, image_grid, training_curves

HOSTILE = "<b>$x_{1\x1b[31m\x00\u202e\udcff\n中.png"


def history(epochs=6):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "phase": "one" if epoch < 4 else "two", "step": epoch}
        row |= {"seconds": 1.0, "images_per_second": 100.0, "reconstruction/mse": 1 / epoch}
        if epoch in (4, 6):
            row["discriminator/bce"] = 0.7
        rows.append(row | {"health": ["collapsed"] if epoch == 5 else []})
    return rows


def size_of(figure):
    return Image.open(io.BytesIO(charts.to_png(figure))).size


def scores(normals, anomalous, calibration, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.lognormal(mean, 0.3, count).astype(np.float32)
        for mean, count in ((0, normals), (0.5, anomalous), (0, calibration))
    ]


def test_error_colors_are_one_fixed_scale():
    errors = np.array([[0.0, 0.5, 1.0, 2.0]])
    found = charts.error_map_rgb(errors, 1.0)
    assert found.dtype == np.uint8 and found.shape == (1, 4, 3)
    assert (found[0, 2] == found[0, 3]).all()
    assert (charts.error_map_rgb(errors / 2, 0.5) == found).all()
    # The neighbor's value moves nothing.
    assert (charts.error_map_rgb(errors[:, :2], 1.0) == found[:, :2]).all()
    brightness = charts.error_map_rgb(np.linspace(0, 1, 32)[None], 1.0)[0].astype(int).sum(1)
    assert (np.diff(brightness) >= 0).all()
    assert (charts.error_map_rgb(np.zeros((2, 2)), 0.0) == found[0, 0]).all()


@pytest.mark.parametrize(
    "counts, threshold",
    [((9, 8, 7), 0.5), ((9, 0, 0), None), ((0, 1, 0), 99.0), ((0, 0, 0), 0.5)],
)
def test_curves_are_drawn_whatever_is_missing(counts, threshold):
    parts = scores(*counts)
    score, label = np.concatenate(parts[:2]), np.arange(sum(counts[:2])) >= counts[0]
    assert size_of(charts.score_histogram(*parts, threshold)) > (400, 300)
    assert size_of(charts.roc_curve(score, label, threshold)) > (400, 400)
    assert size_of(charts.precision_recall_curve(score, label, threshold)) > (400, 400)


@pytest.mark.parametrize("shares", [1, 4, 7, 40])
def test_no_words_of_a_chart_are_cut_off(shares):
    """Axes with their widest numbers: shares of 17.5 %, losses from 0.00001 to 100,000."""
    parts = [np.arange(40) % shares / 100, np.arange(63) / 63, np.arange(20) / 40]
    score, label = np.concatenate(parts[:2]), np.arange(103) >= 40
    losses = [{"fit/a": 10.0 ** (3 * e - 5), "fit/b": 3.0, "game/c": -1234.5 * e} for e in range(4)]
    rows = [{"epoch": e, "phase": "one"} | row for e, row in enumerate(losses)]
    for figure in (
        charts.score_histogram(*parts, 0.5),
        charts.score_histogram(*(1e-5 * part for part in parts), 5e-6),
        charts.roc_curve(score, label, 0.5),
        charts.precision_recall_curve(score, label, 0.5),
        training_curves.training_curves(rows),
    ):
        charts.to_png(figure)
        room = figure.get_tightbbox()  # in inches
        width, height = figure.get_size_inches()
        assert room.x0 >= 0 and room.y0 >= 0 and room.x1 <= width and room.y1 <= height, room


def test_histogram_counts_every_score():
    normal, anomalous, calibration = scores(10_000, 300, 5_000)
    (axes,) = charts.score_histogram(normal, anomalous, calibration, 2.0).axes
    drawn = [patch.get_xy() for patch in axes.patches]
    for outline, values in zip(drawn, (normal, anomalous), strict=True):
        edges, steps = outline[1::2, 0], outline[1::2, 1]
        edges, first = np.unique(edges, return_index=True)
        expected = np.histogram(values, edges)[0] / len(values)
        np.testing.assert_allclose(steps[first][: len(expected)], expected, atol=1e-9)
        assert expected.sum() == pytest.approx(1)
    assert axes.get_xscale() == "linear"
    outlier = np.append(anomalous, 1000 * anomalous.max())
    assert charts.score_histogram(normal, outlier, calibration, 2.0).axes[0].get_xscale() == "log"


def test_bands_hold_what_resampled_curves_are():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 12, 40) / 4.0  # with ties
    label, group = rng.random(40) < 0.5, rng.integers(0, 15, 40)
    found = bootstrap.curve_bands(score, label, group, draws=30, seed=3)
    member, times = bootstrap.group_resampling(label, group, 30, 3)
    recalls, precisions = [], []
    for count in times:
        repeated = np.repeat(np.arange(40), count[member])
        points = [(0.0, 0.0)]  # false-alarm rate, recall
        reached = []
        for threshold in sorted(set(score[repeated]), reverse=True):
            called = score[repeated] >= threshold
            truth = label[repeated]
            points.append((called[~truth].mean(), called[truth].mean()))
            reached.append((called[truth].mean(), truth[called].mean()))
        recalls.append(
            [np.interp(x, *zip(*points, strict=True)) for x in np.linspace(0, 1, 101)]
        )  # fmt: skip
        precisions.append(
            [
                next(p for recall, p in reached if recall > 0 and recall >= x - 1e-9)
                for x in np.linspace(0, 1, 101)
            ]
        )
    for name, values in (("roc", recalls), ("precision_recall", precisions)):
        x, low, high = found[name]
        np.testing.assert_allclose(x, np.linspace(0, 1, 101))
        np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975], axis=0))
    assert bootstrap.curve_bands(score, np.zeros(40, bool), group) is None


def test_band_and_threshold_are_on_the_curve():
    normal, anomalous, _ = scores(40, 30, 0)
    score, label = np.concatenate([normal, anomalous]), np.arange(70) >= 40
    called = decide(score, 1.3)
    band = bootstrap.curve_bands(score, label, np.arange(70), draws=50)
    recall, alarms, precision = called[label].mean(), called[~label].mean(), label[called].mean()
    for draw, name, point in (
        (charts.roc_curve, "roc", (alarms, recall)),
        (charts.precision_recall_curve, "precision_recall", (recall, precision)),
    ):
        (axes,) = draw(score, label, 1.3, band[name]).axes
        (marked,) = (line for line in axes.lines if line.get_label() == "at the threshold")
        np.testing.assert_allclose(np.ravel(marked.get_xydata()), point)
        (shaded,) = axes.collections
        corners = {tuple(row) for row in shaded.get_paths()[0].vertices.round(6)}
        x, low, high = np.round(band[name], 6)
        assert corners >= {*zip(x, low, strict=True), *zip(x, high, strict=True)}


def test_precision_is_drawn_where_something_is_found():
    """The highest score is a normal picture's: no line down from a precision of 1 at recall 0."""
    score, label = np.arange(6.0), np.array([0, 1, 0, 1, 1, 0], bool)
    (axes,) = charts.precision_recall_curve(score, label, None).axes
    (curve,) = (line for line in axes.lines if line.get_label() == "this model")
    assert curve.get_xdata().tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3])
    assert curve.get_ydata().tolist() == pytest.approx([1 / 2, 3 / 5, 1 / 2, 2 / 3, 1 / 2])


def test_training_curves_have_a_panel_for_each_objective():
    rows = history()
    rows[1]["reconstruction/mse"] = None
    rows[3]["reconstruction/mse"] = float("nan")
    figure = training_curves.training_curves(rows)
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("reconstruction", "discriminator")
    np.testing.assert_allclose(first.lines[0].get_ydata(), [1, np.nan, 1 / 3, np.nan, 0.2, 1 / 6])
    # What is logged every other epoch only is a line all the same.
    assert second.lines[0].get_xdata().tolist() == [4, 6]
    assert second.lines[0].get_marker() == "."
    for axes in figure.axes:
        assert axes.lines[1].get_xdata().tolist() == [5]  # the health check's warning
        (shaded,) = axes.patches
        assert (shaded.get_x(), shaded.get_width()) == (3.5, 3)
    assert "one (epochs 1 to 3), two (epochs 4 to 6)" in figure.get_suptitle()
    for some in (rows, [], history(1), [{"epoch": 1}]):
        assert size_of(training_curves.training_curves(some)) > (300, 200)


def gallery_rows():
    rng = np.random.default_rng(0)
    for i, path in enumerate(("first.png", HOSTILE, "long" * 100 + ".png")):
        image, reconstruction = rng.random((2, 8, 8, 3)) if i == 2 else rng.random((2, 8, 8))
        squared, ssim, combined = rng.random((3, 8, 8)) * [[[0.01]], [[1]], [[0.5]]]
        mask = None if i == 1 else rng.random((8, 8)) > 0.5
        picture = image, reconstruction, squared, ssim, combined, mask
        yield image_grid.GalleryRow(path, 0.1 * i, i == 0, i > 0, *picture)


def cells(sheet, columns):
    """The pictures on a sheet, from the first of each row on: what their eight pixels were."""
    canvas, side = np.asarray(sheet.image), image_grid.SIDE
    for index in range(3):
        y = image_grid.HEAD + index * (side + image_grid.CAPTION)
        for column in range(columns):
            x = image_grid.GAP + column * (side + image_grid.GAP)
            yield canvas[y : y + side : 16, x : x + side : 16]


def test_gallery_shows_every_map_on_its_own_scale():
    rows, limits = list(gallery_rows()), [0.005, 1.0, 0.25]
    sheet = image_grid.gallery(rows, limits)
    found = list(cells(sheet, 6))
    for index, row in enumerate(rows):
        shown = found[6 * index : 6 * index + 6]
        for picture, cell in ((row.image, shown[0]), (row.reconstruction, shown[1])):
            gray = picture if picture.ndim == 3 else picture[..., None]
            assert (cell == np.round(gray * 255)).all()
        maps = (row.squared_error, row.ssim_error, row.combined)
        for errors, limit, cell in zip(maps, limits, shown[2:5], strict=True):
            assert (cell == charts.error_map_rgb(errors, limit)).all()
        mask = 235 if row.mask is None else 255 * row.mask[..., None]
        assert (shown[5] == mask).all()
    for bar in ("≥ 0.005 (intensity²)", "≥ 1 (at most 2)", "≥ 0.25 (score)"):
        assert bar in sheet.words


@pytest.mark.parametrize("count", [0, 1, 3])
def test_figures_of_pictures_take_any_name(count):
    rows = list(gallery_rows())[:count]
    sheets = [image_grid.gallery(rows, 1.0), image_grid.healthy_and_anomalous([], rows, 0.5)]
    for sheet in sheets:
        assert Image.open(io.BytesIO(sheet.png())).size == sheet.image.size > (800, 50)
        assert all(line.isprintable() and len(line) < 140 for line in sheet.words)
        right = np.asarray(sheet.image)[image_grid.TITLE + image_grid.HEAD :, -image_grid.GAP :]
        assert (right == 255).all()  # the longest name ends in time
    if count == 3:
        assert r"<b>$x_{1\x1b[31m\x00\u202e\udcff\n□.png" in sheets[0].words


def test_pictures_for_the_papers_figures_are_spread_over_the_ranks():
    score = np.random.default_rng(0).permutation(40).astype(float)
    chosen = figures.evenly_ranked(score, score % 2 == 1)
    assert score[chosen].tolist() == [5, 15, 25, 35]
    assert figures.evenly_ranked(score, score < 2) == np.argsort(score)[:2].tolist()
    assert figures.evenly_ranked(score, score < 0) == []


def test_figures_leave_global_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    first, second = (charts.to_png(training_curves.training_curves(history())) for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("warned", [[], ["D is saturated."]])
def test_training_curves_keep_their_room(warned):
    """With or without a cross to draw, the panels fill the figure."""
    losses = {"fit/loss": 0.1, "game/loss": 10.0}
    rows = [{"epoch": e, "phase": "one", "health": warned} | losses for e in range(1, 6)]
    figure = training_curves.training_curves(rows)
    charts.to_png(figure)
    assert sum(axes.get_position().width for axes in figure.axes) > 0.6
