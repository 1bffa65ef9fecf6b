"""Scores within a region of interest, against means over its pixels in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.calibrated_score import MapMoments, calibrated_score, smooth
from bigan_jax.nn.resizing import GridCells

RNG = np.random.default_rng(0)
ROI = np.hypot(*np.mgrid[-12:12, -8:16]) < 9
MAPS = RNG.gamma(1.0, 0.1, (9, 24, 24)).astype(np.float32)
AS_ARRAYS = pytest.mark.parametrize("array", [np.asarray, jnp.asarray])


def smoothed(maps, sigma, roi=ROI):
    maps = np.asarray(maps, np.float64)
    weight = gaussian_filter(roi.astype(float), sigma)
    return np.stack([np.where(roi, gaussian_filter(x * roi, sigma) / np.maximum(weight, 1e-9), 0) for x in maps])


@AS_ARRAYS
def test_smoothing_gives_pixels_outside_no_weight(array):
    np.testing.assert_allclose(smooth(array(MAPS), 2.0, ROI), smoothed(MAPS, 2.0), rtol=1e-4)
    flat = np.where(ROI, np.float32(3), RNG.random(ROI.shape, np.float32))[None]
    np.testing.assert_allclose(smooth(array(flat), 2.0, ROI)[0], 3 * ROI, rtol=1e-4)
    np.testing.assert_allclose(smooth(array(MAPS), 2.0, np.ones_like(ROI)), smooth(MAPS, 2.0), rtol=1e-4)


@AS_ARRAYS
def test_calibrated_score_is_a_mean_over_pixels_inside(array):
    moments = MapMoments(["mse"], ROI)
    moments.add({"mse": MAPS})
    statistics = moments.statistics({"mse": 1.0})
    maps = smoothed(MAPS, 1.0)
    deviation = maps.std(0)
    deviation = smoothed(deviation[None], 1.5)[0] + 0.2 * deviation[ROI].mean()
    z = (maps - smoothed(maps.mean(0)[None], 1.5)[0]) / deviation
    expected = np.square(np.maximum(z, 0))[:, ROI].mean(1)
    np.testing.assert_allclose(calibrated_score(array(MAPS), statistics, ROI), expected, rtol=1e-3)


def test_terms_and_reductions_count_pixels_inside():
    image, reconstruction = jnp.asarray(RNG.random((2, 3, 24, 24, 1), np.float32)) * ROI[..., None]
    whole, terms = (anomaly_score.terms(image, reconstruction, roi=roi) for roi in (None, ROI))
    for name in "mse", "ssim":
        np.testing.assert_allclose(terms.value[name], np.asarray(whole.map[name])[:, ROI].mean(1), rtol=1e-5)
        np.testing.assert_array_equal(terms.map[name], np.where(ROI, whole.map[name], 0))
    maps = {name: np.asarray(x) for name, x in terms.map.items()}
    combined = 0.7 * maps["mse"] + 0.3 * maps["ssim"]
    highest = -np.sort(-combined[:, ROI], axis=1)
    weights = {"mse": 0.7, "ssim": 0.3}
    for reduction, count in (("max", 1), ("top1", -(-ROI.sum() // 100))):
        formula = ScoreFormula(weights, reduction, ROI)
        for arrays in terms, terms._replace(map=maps):
            score = anomaly_score.paper_score(formula, arrays)
            np.testing.assert_allclose(score, highest[:, :count].mean(1), rtol=1e-5)


def test_cells_that_count_have_a_pixel_inside_and_fill_the_others():
    roi = np.zeros((24, 24), bool)
    roi[7:12, 13:24] = True
    cells = GridCells(4, roi)
    values = jnp.arange(16.0)[None]
    np.testing.assert_array_equal(cells.select(values)[0], [6, 7])
    np.testing.assert_array_equal(cells.fill(cells.select(values)).reshape(4, 4), [[6, 6, 6, 7]] * 4)
    np.testing.assert_array_equal(GridCells(4).fill(GridCells(4).select(values)), values)
