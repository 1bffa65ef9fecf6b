"""The calibrated score against SciPy and loops in float64, its file, and its promise by simulation."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binom

from bigan_jax.errors import UserError
from bigan_jax.evaluation.calibrated_score import (
    FILE,
    MapMoments,
    PixelStatistics,
    calibrated_score,
    read_statistics,
    smooth,
    write_statistics,
)
from bigan_jax.metrics.thresholds import conformal_threshold


def random_maps(n=13, shape=(24, 18), seed=0):
    """Error maps of two terms on the scales of squared error and 1 - SSIM."""
    rng = np.random.default_rng(seed)
    level = rng.random(shape)
    return {
        "mse": (level * rng.gamma(1.0, 0.01, (n, *shape))).astype(np.float32),
        "ssim": rng.gamma(2.0, 0.2, (n, *shape)).astype(np.float32),
    }


def fit(maps, weights):
    moments = MapMoments(list(maps))
    moments.add(maps)
    return moments.statistics(weights)


# --- definitions ---


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 40, 17), (2, 5, 64), (9, 4)])
@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_smoothing_equals_scipy(shape, sigma):
    """Also where the kernel is wider than the image."""
    maps = np.random.default_rng(0).random(shape).astype(np.float32)
    expected = gaussian_filter(maps.astype(np.float64), (0,) * (len(shape) - 2) + (sigma, sigma), mode="reflect")
    np.testing.assert_allclose(smooth(maps, sigma), expected, rtol=1e-5)
    np.testing.assert_allclose(smooth(jnp.asarray(maps), sigma), expected, rtol=1e-5)


@pytest.mark.parametrize("weights", [{"mse": 0.7, "ssim": 0.3}, {"mse": 80.0, "ssim": 2.5}, {"ssim": 1.0}])
@pytest.mark.parametrize("ends", [(13,), (1, 13), (5, 6, 13), range(1, 14)])
def test_moments_equal_those_of_all_images(weights, ends):
    """For every weighted sum of the terms, and every division of the images into batches."""
    maps = random_maps()
    moments, start = MapMoments(list(maps)), 0
    for end in ends:
        moments.add({name: m[start:end] for name, m in maps.items()})
        start = end
    assert moments.count == 13
    combined = sum(weight * maps[name].astype(np.float64) for name, weight in weights.items())
    smoothed = gaussian_filter(combined, (0, 1, 1), mode="reflect")
    mean, deviation = smoothed.mean(0), smoothed.std(0)
    statistics = moments.statistics(weights)
    np.testing.assert_allclose(statistics.mean, gaussian_filter(mean, 1.5), rtol=1e-5)
    regularized = gaussian_filter(deviation, 1.5) + 0.2 * deviation.mean()
    np.testing.assert_allclose(statistics.deviation, regularized, rtol=1e-4)
    assert statistics.mean.dtype == statistics.deviation.dtype == np.float32


def test_moments_keep_small_deviations_of_large_errors():
    """Sums of squares would lose them."""
    deviation = 1e-3 * (1 + np.arange(64).reshape(8, 8) / 64)
    signs = np.array([1, -1, 1, -1, 1, -1])[:, None, None]
    moments = MapMoments(["mse"])
    for part in np.split(100 + signs * deviation, 3):
        moments.add({"mse": part})
    smoothed = gaussian_filter(deviation, 1.0)
    expected = gaussian_filter(smoothed, 1.5) + 0.2 * smoothed.mean()
    np.testing.assert_allclose(moments.statistics({"mse": 1.0}).deviation, expected, rtol=1e-3)


@pytest.mark.parametrize("shape", [(20, 20), (9, 30)])
def test_score_equals_a_loop_over_pixels(shape):
    """The recipe pixel by pixel in float64, with the kernels written out and borders reflected by an index."""

    def blurred(image, sigma):
        radius = int(4 * sigma + 0.5)
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        for axis in range(2):
            size = image.shape[axis]
            index = np.arange(-radius, size + radius) % (2 * size)
            index = np.where(index < size, index, 2 * size - 1 - index)
            padded = np.take(image, index, axis)
            image = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), axis, padded)
        return image

    train, new = random_maps(15, shape)["ssim"], random_maps(4, shape, seed=1)["ssim"]
    m = np.array([blurred(image, 1.0) for image in train.astype(np.float64)])
    mean, sd = blurred(m.mean(0), 1.5), blurred(m.std(0), 1.5) + 0.2 * m.std(0).mean()
    statistics = fit({"ssim": train}, {"ssim": 1.0})
    scores = calibrated_score(new, statistics)
    assert scores.shape == (4,) and scores.dtype == np.float32
    for image, score in zip(new.astype(np.float64), scores, strict=True):
        z = (blurred(image, 1.0) - mean) / sd
        total = 0.0
        for value in z.ravel():
            total += max(0.0, value) ** 2
        assert score == pytest.approx(total / z.size, rel=1e-4)
    on_device = calibrated_score(jnp.asarray(new), statistics)
    np.testing.assert_allclose(on_device, scores, rtol=1e-5)


def test_units_of_the_errors_do_not_matter():
    train, new = random_maps(), random_maps(4, seed=1)
    scores = calibrated_score(new["ssim"], fit(train, {"ssim": 1.0}))
    tenfold = calibrated_score(10 * new["ssim"], fit(train, {"ssim": 10.0}))
    np.testing.assert_allclose(tenfold, scores, rtol=1e-4)


def test_constant_training_images_give_finite_scores():
    statistics = fit({"mse": np.zeros((6, 8, 8), np.float32)}, {"mse": 1.0})
    new = np.stack([np.zeros((8, 8)), np.full((8, 8), 1.0)]).astype(np.float32)
    for maps in new, jnp.asarray(new):
        scores = np.asarray(calibrated_score(maps, statistics))
        assert scores[0] == 0 and scores[1] == pytest.approx(1e12, rel=1e-3)
    single = fit({"mse": new[1:]}, {"mse": 1.0})  # a single image has no deviation
    assert np.isfinite(calibrated_score(new, single)).all()


# --- the file ---

SHAPE = 6, 9


def statistics_file(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


VALID = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32) + 0.1


def test_statistics_are_read_as_written(tmp_path):
    statistics = PixelStatistics(*VALID)
    write_statistics(tmp_path / "run", statistics)
    for read, written in zip(read_statistics(tmp_path / "run", *SHAPE)[0], statistics, strict=True):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, written)
    constant = fit({"mse": np.zeros((3, *SHAPE), np.float32)}, {"mse": 1.0})  # the smallest deviation
    write_statistics(tmp_path / "run", constant)
    np.testing.assert_array_equal(read_statistics(tmp_path / "run", *SHAPE)[0].deviation, constant.deviation)


def test_several_statistics_are_read_as_written(tmp_path):
    statistics = PixelStatistics(*VALID), PixelStatistics(*VALID[::-1])
    write_statistics(tmp_path, *statistics)
    np.testing.assert_array_equal(read_statistics(tmp_path, *SHAPE, 2), statistics)
    with pytest.raises(UserError, match="is missing or not what an evaluation writes"):
        read_statistics(tmp_path, *SHAPE)
    write_statistics(tmp_path, statistics[0])
    with pytest.raises(UserError, match="is missing or not what an evaluation writes"):
        read_statistics(tmp_path, *SHAPE, 2)
    write_statistics(tmp_path, statistics[0], PixelStatistics(VALID[0], 0 * VALID[1]))
    with pytest.raises(UserError, match="is missing or not what an evaluation writes"):
        read_statistics(tmp_path, *SHAPE, 2)


def with_value(row, value):
    array = VALID.copy()
    array[row, 2, 3] = value
    return statistics_file(array)


def with_header(header):
    """A file of the right size with another header."""
    text = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + VALID.tobytes()


def header_of(shape):
    return b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b"}"


def archive():
    content = io.BytesIO()
    np.savez(content, mean=VALID[0], deviation=VALID[1])
    return content.getvalue()


DAMAGED = {
    "empty": b"",
    "truncated": statistics_file(VALID)[:-1],
    "truncated header": statistics_file(VALID)[:60],
    "text": b"mean, deviation\n",
    "huge": statistics_file(VALID) + bytes(2**20),
    "huge shape": with_header(header_of(b"(2, 1000000000000, 9)")),
    "huge number": with_header(header_of(b"(2, 99999999999999999999999999, 9)")),
    "negative shape": with_header(header_of(b"(-2, -6, 9)")),
    "unclosed header": with_header(b"{'descr': '<f4', 'shape': (2, 6, 9"),
    "indented header": with_header(b"1\n  2\n 3"),
    "nested header": with_header(b"(" * 110),
    "list as a name": with_header(b"{[]: 1}"),
    "archive": archive(),
    "damaged archive": b"PK\x03\x04" + bytes(50),
    "pickle": statistics_file(np.array([None])),
    "NaN": with_value(0, np.nan),
    "infinite": with_value(1, np.inf),
    "no deviation": with_value(1, 0.0),
    "negative deviation": with_value(1, -1.0),
    "too small a deviation": with_value(1, 1e-30),
    "other shape": statistics_file(VALID.transpose(0, 2, 1)),
    "one array": statistics_file(VALID[:1]),
    "a number": statistics_file(np.float32(1)),
    "float64": statistics_file(VALID[:, :2].astype(np.float64)),
    "names": statistics_file(np.array(["a", "b"])),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_statistics_are_refused_in_one_sentence(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=f"{FILE} is missing or not what an evaluation writes. Run --mode=evaluate"):
        read_statistics(tmp_path, *SHAPE)


def test_missing_statistics_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=f"{FILE} is missing or not what an evaluation writes. Run --mode=evaluate"):
        read_statistics(tmp_path, *SHAPE)


# --- the promise ---

SIDE, N_TRAIN, N_NEW, RUNS = 8, 12, 20, 400


def false_alarms(n, rate, fitted_on):
    """Counts new normal images at or above the threshold of n calibration images, over RUNS independent runs.

    Images are correlated noise, and the mean of the training images reconstructs them. Returns the number of runs whose
    first new image is a false alarm, and the frequency over all new images: those of a run share its threshold.
    """
    rng = np.random.default_rng(n)
    contrast = 1 + np.arange(SIDE)  # some places vary more than others
    alarms = np.zeros((RUNS, N_NEW), bool)
    for run in range(RUNS):
        images = contrast * gaussian_filter(rng.normal(size=(N_TRAIN + n + N_NEW, SIDE, SIDE)), (0, 1, 1))
        maps = np.square(images - images[:N_TRAIN].mean(0)).astype(np.float32)
        train, calibration, _ = np.split(maps, [N_TRAIN, N_TRAIN + n])
        statistics = fit({"mse": train if fitted_on == "train" else calibration}, {"mse": 1.0})
        scores = calibrated_score(maps[N_TRAIN:], statistics)
        alarms[run] = scores[n:] >= conformal_threshold(scores[:n], rate).value
    return alarms[:, 0].sum(), alarms.mean()


def standard_error(n, k):
    """Of the frequency: the rate of a run is Beta(k, n + 1 - k), and its new images are drawn at this rate."""
    mean = k / (n + 1)
    of_run = mean * (1 - mean) / (n + 2)
    return np.sqrt((of_run + (mean * (1 - mean) - of_run) / N_NEW) / RUNS)


@pytest.mark.parametrize(("n", "rate", "k"), [(10, 0.05, 1), (19, 0.05, 1), (50, 0.1, 5)])
def test_threshold_of_the_calibrated_score_keeps_its_promise(n, rate, k):
    """New images exceed the threshold with probability k / (n + 1), whatever few training images were drawn."""
    first, frequency = false_alarms(n, rate, "train")
    low, high = binom.interval(1 - 1e-6, RUNS, k / (n + 1))
    assert low <= first <= high
    assert abs(frequency - k / (n + 1)) < 5 * standard_error(n, k)


@pytest.mark.parametrize("n", [10, 19])
def test_statistics_of_the_calibration_images_would_break_the_promise(n):
    """Calibration images deviate less from their own mean than new images do."""
    _, frequency = false_alarms(n, 0.05, "calibration")
    assert frequency > 1 / (n + 1) + 5 * standard_error(n, 1)
