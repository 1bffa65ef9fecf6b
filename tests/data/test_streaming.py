"""Streamed training pictures: the batches of those in memory, few at once, each read by one
process; what goes wrong ends the training with a sentence."""

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
from bigan_jax.training import epoch_runner
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.loop import epoch_order
from bigan_jax.training.train_step import TrainingSet
from tests.helpers.runs import configured

SHAPE = (16, 16, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (90, *SHAPE), np.uint8)
CONDITION = np.zeros(len(IMAGES), np.int32)
NAMES = [f"{i}.png" for i in range(len(IMAGES))]


def devices(monkeypatch, local, processes=1, index=0):
    monkeypatch.setattr(jax, "local_device_count", lambda: local)
    monkeypatch.setattr(jax, "device_count", lambda: local * processes)
    monkeypatch.setattr(jax, "process_index", lambda: index)


DETECTOR = fcae.create(shape=SHAPE, hidden=(8, 4))
DUE = tuple(DETECTOR.objectives)
OPTIMIZERS = dict.fromkeys(DUE, optax.sgd(0.1))


def runner(image, scanned=False):
    """A runner and its first state."""
    streamed = isinstance(image, LazyImages)
    run = compiled(jax.local_device_count(), scanned, streamed)
    pictures = TrainingSet(image, CONDITION)
    run.training_set = pictures if streamed else epoch_runner.replicate(pictures)
    return run, epoch_runner.replicate(first_state())


@cache  # its programs serve several tests
def compiled(local, scanned, streamed):
    pictures = TrainingSet(IMAGES if streamed else jnp.asarray(IMAGES), CONDITION)
    return epoch_runner.EpochRunner(
        DETECTOR, OPTIMIZERS, AugmentationSettings(), {}, pictures, scanned
    )


@cache
def first_state():
    return jax.device_get(jax.jit(lambda: init_state(DETECTOR, OPTIMIZERS, 3, SHAPE))())


def orders(epochs=2, steps=10, batch=8):
    return [epoch_order(5, epoch, len(IMAGES), steps, batch) for epoch in range(epochs)]


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("local", [1, 4])
def test_states_are_those_of_pictures_in_memory(monkeypatch, local, scanned):
    """Bit for bit after 20 steps, with statistics, logs and what a progress bar is told."""
    devices(monkeypatch, local)
    monkeypatch.setattr(epoch_runner, "_CHUNK", 4 * 8 * IMAGES[0].size)  # 4, 4 and 2 steps an epoch
    results, told = [], []
    for image in IMAGES, counting([]):
        run, state = runner(image, scanned)
        logs, steps = [], []
        for order in orders():
            state, row = run.epoch(state, DUE, order, lambda n, _, steps=steps: steps.append(n))
            logs.append(row)
        if not scanned:  # statistics are collected by the host's loop in any case
            state = run.with_statistics(state, np.arange(88).reshape(11, 8))
        results.append((logs, jax.device_get(state)))
        told.append(steps)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0][1].step.tolist() == [20] * local
    assert told[1] == 2 * ([4, 8, 10] if scanned else list(range(1, 11)))


@pytest.mark.parametrize("scanned", [False, True])
def test_few_pictures_are_decoded_before_their_turn(monkeypatch, scanned):
    """Two batches, or chunks of two, beside the one in training and the one in waiting."""
    devices(monkeypatch, 1)
    monkeypatch.setattr(epoch_runner, "_CHUNK", 2 * 8 * IMAGES[0].size)
    read, ahead = [], []
    run, state = runner(counting(read), scanned)

    def look(done, logs):
        time.sleep(0.05)  # long enough to read all there is, if nothing held it back
        ahead.append(len(read) - 8 * done)

    run.epoch(state, DUE, orders()[0], look)
    assert len(read) == 80
    assert 0 < max(ahead) <= 2 * 8 * (1 + scanned)


def test_each_process_reads_its_own_part(monkeypatch):
    """Two, of two devices each: together they read every picture of every batch once."""
    order, read = orders()[0], ([], [])
    for process in range(2):
        devices(monkeypatch, 2, processes=2, index=process)
        run, state = runner(counting(read[process]))
        state, _ = run.epoch(state, DUE, order)
        run.with_statistics(state, order)
    assert not set(read[0]) & set(read[1])
    assert Counter(read[0] + read[1]) == Counter(2 * order.ravel().tolist())


def test_a_broken_picture_ends_training_with_its_name(monkeypatch):
    def read(i):
        if i == 11:
            raise OSError("image file is truncated")
        return IMAGES[i]

    devices(monkeypatch, 1)
    run, state = runner(LazyImages(read, NAMES, SHAPE))
    with pytest.raises(UserError, match=r"11\.png.*truncated"):
        run.epoch(state, DUE, np.arange(40).reshape(5, 8))
    assert not reading()


def test_an_interrupted_epoch_leaves_no_thread(monkeypatch):
    def interrupt(done, logs):
        raise KeyboardInterrupt

    devices(monkeypatch, 1)
    run, state = runner(counting([]))
    with pytest.raises(KeyboardInterrupt) as held:  # and with it all that was going on
        run.epoch(state, DUE, orders()[0], interrupt)
    assert held and not reading()


def test_lazy_images_are_indexed_as_an_array():
    lazy = counting([])
    assert (len(lazy), lazy.shape, lazy.dtype) == (90, IMAGES.shape, IMAGES.dtype)
    for index in 3, -1, slice(80, None), slice(0), np.array([5, 5, 0]), np.arange(90) % 7 == 0:
        np.testing.assert_array_equal(lazy[index], IMAGES[index])
    np.testing.assert_array_equal(np.asarray(lazy), IMAGES)
    with pytest.raises(IndexError):
        lazy[90]


def test_controls_fit_on_a_bounded_draw(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_STREAMED", 20)
    read = []
    drawn = baselines.fitting_images(counting(read))
    np.testing.assert_array_equal(drawn, IMAGES[sorted(read)])
    assert len(set(read)) == 20 and np.ptp(read) > 60
    np.testing.assert_array_equal(drawn, baselines.fitting_images(counting([])))
    assert "20 of the 90" in baselines.fitting_note(counting([]))[0]
    assert baselines.fitting_images(IMAGES) is not None and not baselines.fitting_note(IMAGES)


def test_a_folder_gives_the_same_set(tmp_path):
    """Broken files are told before training, or left out, though none but the batch is held."""
    for i, image in enumerate(IMAGES[:40]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i:02d}.png")

    def load(**options):
        return loading.load_dataset(DataSettings("folder", tmp_path, image_size=16, **options))

    broken = [load().train.path[i] for i in (2, 7)]
    for path in broken:
        (tmp_path / path).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2 of 40 pictures(.|\n)*" + r"(.|\n)*".join(broken)):
        load(stream=True)
    lazy, here = (load(skip_unreadable=True, stream=stream) for stream in (True, False))
    assert isinstance(lazy.train.image, LazyImages) and isinstance(lazy.test.image, np.ndarray)
    for field, ours, theirs in zip(here.train._fields, lazy.train, here.train, strict=True):
        np.testing.assert_array_equal(ours[:], theirs, field)
    jax.tree.map(np.testing.assert_array_equal, lazy[1:3], here[1:3])
    assert lazy.notes == here.notes


def test_a_run_goes_on_streamed_as_it_would_have_in_memory(monkeypatch, tmp_path):
    devices(monkeypatch, 1)
    states = []
    monkeypatch.setattr(train, "evaluate_run", lambda *args: states.append(args[-2]))
    fields = {"data.image_size": 16, "data.phantom_normal": 60, "data.phantom_anomalous": 10}
    fields |= {"model.hidden": (8, 4), "batch_size": 16, "phases.phase1.epochs": 2}
    fields |= {"checkpoint.every": 1}

    for stream in (False, True):
        config = configured(fcae_config, "phantom", fields | {"data.stream": stream})
        train.train(config, tmp_path)
        shutil.rmtree(tmp_path / "checkpoints" / "2")
    jax.tree.map(np.testing.assert_array_equal, *states)


def counting(read):
    """IMAGES, lazily; `read` tells which were decoded."""

    def decode(i):
        read.append(i)
        return IMAGES[i]

    return LazyImages(decode, NAMES, SHAPE)


def reading():
    return [t.name for t in threading.enumerate() if t.name.startswith("read-ahead")]
