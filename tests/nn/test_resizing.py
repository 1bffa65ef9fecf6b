"""Linear resizing against that of JAX."""

import jax
import numpy as np
import pytest

from bigan_jax.nn.resizing import resize_linear


@pytest.mark.parametrize("size", [(16, 24), (5, 9), (32, 3), (7, 10)])
def test_resizing_is_that_of_jax(size):
    maps = np.random.default_rng(0).uniform(size=(3, 7, 10)).astype(np.float32)
    expected = jax.image.resize(maps, (3, *size), "linear", precision="highest")
    np.testing.assert_allclose(resize_linear(jax.numpy.asarray(maps), *size), expected, atol=1e-6)
