"""Synthetic defects: what they change, and the AUROC that they give."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bigan_jax.data import phantom
from bigan_jax.evaluation.anomaly_score import ScoreTerms
from bigan_jax.evaluation.scorer import AnomalyScorer, Scores
from bigan_jax.evaluation.synthetic_defects import DEFECTS, draw, synthetic_aurocs

IMAGES = {channels: np.stack([phantom.draw("bottle", i, 32, channels)[0] for i in range(6)]) for channels in (1, 3)}


class BrightestPixel(AnomalyScorer):
    """Scores by the brightest pixel."""

    def __init__(self):
        pass

    def score(self, images, condition=None, progress=""):
        assert (condition == 1).all()
        brightest = images.max((1, 2, 3)).astype(float)
        return Scores("paper", {"paper": brightest, "calibrated": -brightest}, ScoreTerms({}, {}), brightest, None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("defect", DEFECTS)
def test_each_image_gets_a_defect_in_a_part_of_it(defect, channels):
    images = IMAGES[channels]
    drawn = draw(defect, images)
    assert drawn.shape == images.shape and drawn.dtype == np.uint8
    changed = (drawn != images).any(-1).mean((1, 2))
    assert (changed > 0).all() and (changed < 0.5).all()
    assert (drawn == draw(defect, images)).all() and (drawn != draw(defect, images, seed=1)).any()
    positions = (drawn != images).any(-1)
    assert (positions[0] != positions[1]).any()


def test_a_film_stays_on_the_object():
    """A gray square on a white ground: the ground is that of the border."""
    images = np.full((8, 32, 32, 1), 255, np.uint8)
    images[:, 10:22, 10:22] = 90
    changed = (draw("film", images) != images).any((0, 3))
    assert changed[10:22, 10:22].any()
    changed[10:22, 10:22] = False
    assert not changed.any()


def test_an_image_without_an_object_gets_defects_too():
    images = np.full((3, 16, 16, 1), 128, np.uint8)
    for defect in set(DEFECTS) - {"cut_paste"}:  # a patch of nothing is nothing
        assert (draw(defect, images) != images).any((1, 2, 3)).all(), defect


def test_aurocs_are_of_defects_against_the_same_images():
    """By a score that is the brightness of the brightest pixel, computed again by scikit-learn."""

    images = IMAGES[1]
    aurocs = synthetic_aurocs(BrightestPixel(), images, np.ones(len(images), np.int32))
    label = np.repeat([0, 1], len(images))
    expected = {}
    for defect in DEFECTS:
        expected[defect] = roc_auc_score(label, np.concatenate([images, draw(defect, images)]).max((1, 2, 3)))
        assert aurocs["paper"][defect] == pytest.approx(expected[defect])
        assert aurocs["calibrated"][defect] == pytest.approx(1 - expected[defect])
    assert aurocs["paper"]["mean"] == pytest.approx(np.mean([*expected.values()]))
