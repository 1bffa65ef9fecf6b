"""The phantom: the same for everyone, with exact masks, and not solved by a mean image."""

import dm_pix
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bigan_jax.data import loading, phantom
from bigan_jax.data.settings import DataSettings

KINDS = [(domain, kind) for domain, module in phantom.DOMAINS.items() for kind in module.DEFECTS]


def draw_many(domain, indices, anomalous=False, size=64):
    kinds = list(phantom.DOMAINS[domain].DEFECTS)
    return np.stack(
        [
            phantom.draw(domain, i, size, 1, kinds[i % len(kinds)] if anomalous else None)[0]
            for i in indices
        ]
    )


@pytest.mark.parametrize(("domain", "kind"), KINDS)
@pytest.mark.parametrize("size", [32, 96])
def test_the_mask_is_where_the_picture_differs_from_its_clean_twin(domain, kind, size):
    for index in range(3):
        defect, mask = phantom.draw(domain, index, size, 3, kind)
        clean, nothing = phantom.draw(domain, index, size, 3)
        np.testing.assert_array_equal((defect != clean).any(-1), mask)
        assert 0 < mask.mean() < 0.2
        assert not nothing.any()


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_a_picture_depends_on_seed_category_and_index_alone(domain):
    first, _ = phantom.draw(domain, 3, 48, 3)
    phantom.draw(domain, 4, 48, 3)
    again, _ = phantom.draw(domain, 3, 48, 3)
    assert first.dtype == np.uint8 and first.shape == (48, 48, 3)
    np.testing.assert_array_equal(first, again)
    for other in phantom.draw(domain, 4, 48, 3), phantom.draw(domain, 3, 48, 3, seed=1):
        assert (first != other[0]).mean() > 0.3


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_gray_is_the_luma_of_color(domain):
    color, mask = phantom.draw(domain, 0, 48, 3, next(iter(phantom.DOMAINS[domain].DEFECTS)))
    gray, same = phantom.draw(domain, 0, 48, 1, next(iter(phantom.DOMAINS[domain].DEFECTS)))
    np.testing.assert_allclose(gray[..., 0], color @ [0.299, 0.587, 0.114], atol=0.51)
    np.testing.assert_array_equal(mask, same)


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_a_picture_is_the_same_scene_at_every_size(domain):
    small = draw_many(domain, [0], size=48).astype(float)
    large = draw_many(domain, [0], size=96).astype(float)
    large = large.reshape(1, 48, 2, 48, 2, 1).mean(axis=(2, 4))
    assert np.abs(small - large).mean() < 4


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_a_mean_image_does_not_solve_it(domain):
    train = draw_many(domain, range(80)) / np.float32(255)
    test = [draw_many(domain, range(80, 130)), draw_many(domain, range(1000, 1050), True)]
    test = np.concatenate(test) / np.float32(255)
    mean = np.broadcast_to(train.mean(0), test.shape)
    error = ((test - mean) ** 2).mean((1, 2, 3))
    score = 0.7 * error + 0.3 * (1 - np.asarray(dm_pix.ssim(test, mean)))
    assert roc_auc_score(np.arange(100) >= 50, score) < 0.9


def test_loading_splits_by_seed_and_keeps_each_condition():
    options = dict(dir=None, image_size=16, channels=1, phantom_normal=60, phantom_anomalous=7)
    first = loading.load_dataset(
        DataSettings("phantom", category="leaf, head", split_seed=0, **options)
    )
    again = loading.load_dataset(
        DataSettings("phantom", category="leaf, head", split_seed=0, **options)
    )
    other = loading.load_dataset(
        DataSettings("phantom", category="leaf, head", split_seed=1, **options)
    )
    assert first.conditions == ("leaf", "head")
    assert first.test.label.sum() == 14 and not first.train.label.any()
    assert sum(len(part.label) for part in first[:3]) == 134
    for name, condition in zip(first.test.path, first.test.condition, strict=True):
        assert name.split("/")[0] == first.conditions[condition]
    np.testing.assert_array_equal(first.train.image, again.train.image)
    assert set(first.train.path) != set(other.train.path)
    assert (first.test.mask.any((1, 2)) == first.test.label).all() and first.test.has_mask.all()
