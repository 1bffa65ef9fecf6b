"""Scores of volumes from scores of slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigan_jax.metrics.volumes import volume_scores

slices = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-10, 10, width=32), st.booleans()), min_size=1)


@given(slices, st.integers(1, 5))
def test_volume_score_is_the_mean_of_the_highest_slices(rows, top):
    groups, scores, labels = map(np.array, zip(*rows, strict=True))
    result = volume_scores(scores, labels, groups, top)
    assert result.group.tolist() == sorted({*groups.tolist()})
    for name, label, score in zip(*result, strict=True):
        highest = sorted((s for g, s, _ in rows if g == name), reverse=True)[:top]
        assert score == pytest.approx(sum(highest) / len(highest), abs=1e-6)
        assert label == any(is_anomalous for g, _, is_anomalous in rows if g == name)


def test_a_lesion_in_few_slices_separates_volumes():
    """Four of twenty slices show the lesion: the mean of all slices hides it, the five highest do not."""
    scores = np.zeros(60)
    scores[:20] = np.linspace(0, 1, 20)  # a normal volume of varied slices
    scores[20:40] = 0.3
    scores[24:28] = 3
    scores[40:] = 0.9  # a normal volume, uniformly higher
    result = volume_scores(scores, np.arange(60) // 20 == 1, np.repeat(["a", "b", "c"], 20))
    assert result.score[1] > result.score[[0, 2]].max()
    assert result.label.tolist() == [False, True, False]
    assert scores[20:40].mean() < scores[40:].mean()


def test_wrong_number_of_slices_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        volume_scores(np.zeros(2), np.zeros(2, bool), np.array(["a", "b"]), 0)
