"""Streamed training images: equal to images in memory, few at a time, each read by one process."""

import shutil
import threading
import time
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from bigan_jax.commands import train
from bigan_jax.configs import fcae as fcae_config
from bigan_jax.data import loading
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.streaming import LazyImages
from bigan_jax.detector import init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation import baselines
from bigan_jax.models import fcae
from bigan_jax.training import device_layout, epoch_runner
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.loop import epoch_order
from bigan_jax.training.train_step import TrainingSet
from tests.helpers.runs import configured
from tests.helpers.training import record_trained_states

SHAPE = (16, 16, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (90, *SHAPE), np.uint8)
CONDITION = np.zeros(len(IMAGES), np.int32)
NAMES = [f"{i}.png" for i in range(len(IMAGES))]


def devices(monkeypatch, local, processes=1, index=0):
    monkeypatch.setattr(jax, "local_device_count", lambda: local)
    monkeypatch.setattr(jax, "device_count", lambda: local * processes)
    monkeypatch.setattr(jax, "process_index", lambda: index)


DETECTOR = fcae.create(shape=SHAPE, hidden=(8, 4))
OBJECTIVES = tuple(DETECTOR.objectives)
OPTIMIZERS = dict.fromkeys(OBJECTIVES, optax.sgd(0.1))


def make_runner(image, scanned=False):
    """An epoch runner and its initial state."""
    streamed = isinstance(image, LazyImages)
    runner = compiled_runner(jax.local_device_count(), scanned, streamed)
    images = TrainingSet(image, CONDITION)
    runner.training_set = images if streamed else device_layout.replicate(images)
    return runner, device_layout.replicate(initial_state())


@cache  # several tests use its compiled programs
def compiled_runner(local, scanned, streamed):
    images = TrainingSet(IMAGES if streamed else jnp.asarray(IMAGES), CONDITION)
    return epoch_runner.EpochRunner(DETECTOR, OPTIMIZERS, AugmentationSettings(), {}, images, scanned)


@cache
def initial_state():
    return jax.device_get(jax.jit(lambda: init_state(DETECTOR, OPTIMIZERS, 3, SHAPE))())


def orders(epochs=2, steps=10, batch=8):
    return [epoch_order(5, epoch, len(IMAGES), steps, batch) for epoch in range(epochs)]


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("local", [1, 4])
def test_streaming_equals_images_in_memory(monkeypatch, local, scanned):
    """Bitwise after 20 steps, with BatchNorm statistics and logs; and progress is reported."""
    devices(monkeypatch, local)
    monkeypatch.setattr(epoch_runner, "_CHUNK", 4 * 8 * IMAGES[0].size)  # 4, 4 and 2 steps an epoch
    results, reported_steps = [], []
    for image in IMAGES, lazy_images([]):
        runner, state = make_runner(image, scanned)
        logs, steps = [], []
        for order in orders():
            state, row = runner.epoch(state, OBJECTIVES, order, lambda n, _, steps=steps: steps.append(n))
            logs.append(row)
        state = runner.with_statistics(state, np.arange(88).reshape(11, 8))
        results.append((logs, jax.device_get(state)))
        reported_steps.append(steps)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0][1].step.tolist() == [20] * local
    assert reported_steps[1] == 2 * ([4, 8, 10] if scanned else list(range(1, 11)))


@pytest.mark.parametrize("scanned", [False, True])
def test_few_images_are_decoded_in_advance(monkeypatch, scanned):
    """At most two batches, or two chunks of two batches."""
    devices(monkeypatch, 1)
    monkeypatch.setattr(epoch_runner, "_CHUNK", 2 * 8 * IMAGES[0].size)
    read, ahead = [], []
    runner, state = make_runner(lazy_images(read), scanned)

    def on_steps(n_done, logs):
        time.sleep(0.05)  # long enough to read all images, if nothing limited it
        ahead.append(len(read) - 8 * n_done)

    runner.epoch(state, OBJECTIVES, orders()[0], on_steps)
    assert len(read) == 80
    assert 0 < max(ahead) <= 2 * 8 * (1 + scanned)


def test_each_process_reads_its_shard(monkeypatch):
    """Two processes with two devices each read every image of every batch once."""
    order, read = orders()[0], ([], [])
    for process in range(2):
        devices(monkeypatch, 2, processes=2, index=process)
        runner, state = make_runner(lazy_images(read[process]))
        state, _ = runner.epoch(state, OBJECTIVES, order)
        runner.with_statistics(state, order)
    assert not set(read[0]) & set(read[1])
    assert Counter(read[0] + read[1]) == Counter(2 * order.ravel().tolist())


def test_unreadable_image_ends_training_with_its_name(monkeypatch):
    def read(i):
        if i == 11:
            raise OSError("image file is truncated")
        return IMAGES[i]

    devices(monkeypatch, 1)
    runner, state = make_runner(LazyImages(read, NAMES, SHAPE))
    with pytest.raises(UserError, match=r"11\.png.*truncated"):
        runner.epoch(state, OBJECTIVES, np.arange(40).reshape(5, 8))
    assert not prefetch_threads()


def test_interrupted_epoch_leaves_no_thread(monkeypatch):
    def interrupt(n_done, logs):
        raise KeyboardInterrupt

    devices(monkeypatch, 1)
    runner, state = make_runner(lazy_images([]))
    with pytest.raises(KeyboardInterrupt) as error:  # its traceback keeps all objects alive
        runner.epoch(state, OBJECTIVES, orders()[0], interrupt)
    assert error and not prefetch_threads()


def test_lazy_images_are_indexed_like_an_array():
    lazy = lazy_images([])
    assert (len(lazy), lazy.shape, lazy.dtype) == (90, IMAGES.shape, IMAGES.dtype)
    for index in 3, -1, slice(80, None), slice(0), np.array([5, 5, 0]), np.arange(90) % 7 == 0:
        np.testing.assert_array_equal(lazy[index], IMAGES[index])
    np.testing.assert_array_equal(np.asarray(lazy), IMAGES)
    with pytest.raises(IndexError):
        lazy[90]


def test_baselines_fit_a_bounded_sample(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_STREAMED", 20)
    read = []
    sample = baselines.fitting_images(lazy_images(read))
    np.testing.assert_array_equal(sample, IMAGES[sorted(read)])
    assert len(set(read)) == 20 and np.ptp(read) > 60
    np.testing.assert_array_equal(sample, baselines.fitting_images(lazy_images([])))
    assert "20 of the 90" in baselines.fitting_note(lazy_images([]))[0]
    assert baselines.fitting_images(IMAGES) is not None and not baselines.fitting_note(IMAGES)


def test_streamed_folder_equals_folder_in_memory(tmp_path):
    """Unreadable files are reported before training, or skipped."""
    for i, image in enumerate(IMAGES[:40]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:02d}.png")

    def load(**options):
        return loading.load_dataset(DataSettings("folder", tmp_path, image_size=16, **options))

    unreadable = [load().train.path[i] for i in (2, 7)]
    for path in unreadable:
        (tmp_path / path).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"2 of 40 images(.|\n)*" + r"(.|\n)*".join(unreadable)):
        load(stream=True)
    lazy, in_memory = (load(skip_unreadable=True, stream=stream) for stream in (True, False))
    assert isinstance(lazy.train.image, LazyImages) and isinstance(lazy.test.image, np.ndarray)
    for name, actual, expected in zip(lazy.train._fields, lazy.train, in_memory.train, strict=True):
        np.testing.assert_array_equal(actual[:], expected, name)
    jax.tree.map(np.testing.assert_array_equal, lazy[1:3], in_memory[1:3])
    assert lazy.notes == in_memory.notes


def test_streamed_phantom_equals_phantom_in_memory():
    options = dict(image_size=16, window=True, phantom_normal=20, phantom_anomalous=2)
    lazy, in_memory = (
        loading.load_dataset(DataSettings("phantom", stream=stream, **options)) for stream in (True, False)
    )
    assert isinstance(lazy.train.image, LazyImages)
    np.testing.assert_array_equal(lazy.train.image[:], in_memory.train.image)


def test_streamed_run_resumes_as_one_in_memory(monkeypatch, tmp_path):
    devices(monkeypatch, 1)
    states = record_trained_states(monkeypatch)
    fields = {"data.image_size": 16, "data.phantom_normal": 60, "data.phantom_anomalous": 10}
    fields |= {"model.hidden": (8, 4), "batch_size": 16, "phases.phase1.epochs": 2}
    fields |= {"checkpoint.every": 1}

    for stream in (False, True):
        config = configured(fcae_config, "phantom", fields | {"data.stream": stream})
        train.train(config, tmp_path)
        shutil.rmtree(tmp_path / "checkpoints" / "2")
    jax.tree.map(np.testing.assert_array_equal, *states)


def lazy_images(read):
    """IMAGES as LazyImages; indices of decoded images are appended to `read`."""

    def decode(i):
        read.append(i)
        return IMAGES[i]

    return LazyImages(decode, NAMES, SHAPE)


def prefetch_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]
