"""How a scorer divides images into batches: two sizes, every image once, and the last one repeated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigan_jax.detector import Detector, TrainState
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.scorer import AnomalyScorer


@pytest.mark.parametrize(("backend", "alone"), [("cpu", 4), ("gpu", 1)])
def test_images_are_divided_into_batches_of_two_sizes(monkeypatch, backend, alone):
    """On a CPU up to half a batch is scored one by one, elsewhere a single image."""
    detector = Detector({}, {}, lambda net, batch, keys: batch.image)
    state = TrainState(jnp.array(7), jnp.array(0), {}, {}, {}, {})
    scorer = AnomalyScorer(detector, state, ScoreFormula({"mse": 1.0}), (16, 16, 1), batch_size=8)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for n in range(1, 40):
        batches = scorer._batches(n)
        assert {len(indices) for indices in batches} <= {1, 8}
        np.testing.assert_array_equal(np.unique(np.concatenate(batches)), np.arange(n))
        rest = n % 8
        singles, filled_up = (rest, 0) if rest <= alone else (0, 8 - rest)
        assert [len(indices) for indices in batches].count(1) == singles
        assert np.concatenate(batches).tolist() == [*range(n), *[n - 1] * filled_up]


def test_reconstructions_of_baselines_need_no_further_programs(compilations):
    """They are scored by the programs of the model's own, although they come from the host."""
    detector = Detector({}, {}, lambda net, batch, keys: batch.image / 2)
    state = jax.device_put(TrainState(jnp.array(7), jnp.array(0), {}, {}, {}, {}), jax.devices()[0])
    scorer = AnomalyScorer(detector, state, ScoreFormula({"mse": 1.0}), (16, 16, 1), batch_size=8)
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 1)).astype(np.uint8)
    expected = scorer.score(images).terms
    before = compilations()
    unit = images / np.float32(255)
    terms = scorer.compute_terms(unit, unit / 2)
    assert compilations() == before
    np.testing.assert_allclose(terms.value["mse"], expected.value["mse"], rtol=1e-5)
