"""The phantom is reproducible, has exact masks and is not solved by a mean image."""

import dm_pix
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bigan_jax.data import loading, phantom
from bigan_jax.data.settings import DataSettings

DEFECTS = [(domain, name) for domain, module in phantom.DOMAINS.items() for name in module.DEFECTS]


def draw_many(domain, indices, anomalous=False, size=64):
    defects = list(phantom.DOMAINS[domain].DEFECTS)
    return np.stack(
        [phantom.draw(domain, i, size, 1, defects[i % len(defects)] if anomalous else None)[0] for i in indices]
    )


@pytest.mark.parametrize(("domain", "defect"), DEFECTS)
@pytest.mark.parametrize("size", [32, 96])
def test_mask_is_where_image_differs_from_clean_image(domain, defect, size):
    for index in range(3):
        image, mask = phantom.draw(domain, index, size, 3, defect)
        clean, empty_mask = phantom.draw(domain, index, size, 3)
        np.testing.assert_array_equal((image != clean).any(-1), mask)
        assert 0 < mask.mean() < 0.2
        assert not empty_mask.any()


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_image_depends_only_on_seed_category_and_index(domain):
    first, _ = phantom.draw(domain, 3, 48, 3)
    phantom.draw(domain, 4, 48, 3)
    again, _ = phantom.draw(domain, 3, 48, 3)
    assert first.dtype == np.uint8 and first.shape == (48, 48, 3)
    np.testing.assert_array_equal(first, again)
    for other in phantom.draw(domain, 4, 48, 3), phantom.draw(domain, 3, 48, 3, seed=1):
        assert (first != other[0]).mean() > 0.3


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_gray_is_luma_of_rgb(domain):
    rgb, mask = phantom.draw(domain, 0, 48, 3, next(iter(phantom.DOMAINS[domain].DEFECTS)))
    gray, gray_mask = phantom.draw(domain, 0, 48, 1, next(iter(phantom.DOMAINS[domain].DEFECTS)))
    np.testing.assert_allclose(gray[..., 0], rgb @ [0.299, 0.587, 0.114], atol=0.51)
    np.testing.assert_array_equal(mask, gray_mask)


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_scene_is_the_same_at_every_size(domain):
    small = draw_many(domain, [0], size=48).astype(float)
    large = draw_many(domain, [0], size=96).astype(float)
    large = large.reshape(1, 48, 2, 48, 2, 1).mean(axis=(2, 4))
    assert np.abs(small - large).mean() < 4


@pytest.mark.parametrize("domain", phantom.DOMAINS)
def test_mean_image_does_not_solve_it(domain):
    train = draw_many(domain, range(80)) / np.float32(255)
    test = [draw_many(domain, range(80, 130)), draw_many(domain, range(1000, 1050), True)]
    test = np.concatenate(test) / np.float32(255)
    mean = np.broadcast_to(train.mean(0), test.shape)
    error = ((test - mean) ** 2).mean((1, 2, 3))
    score = 0.7 * error + 0.3 * (1 - np.asarray(dm_pix.ssim(test, mean)))
    assert roc_auc_score(np.arange(100) >= 50, score) < 0.9


def test_loading_splits_by_seed_and_keeps_conditions():
    options = dict(image_size=16, channels=1, phantom_normal=60, phantom_anomalous=7)
    first = loading.load_dataset(DataSettings("phantom", category="leaf, head", split_seed=0, **options))
    again = loading.load_dataset(DataSettings("phantom", category="leaf, head", split_seed=0, **options))
    other = loading.load_dataset(DataSettings("phantom", category="leaf, head", split_seed=1, **options))
    assert first.conditions == ("leaf", "head")
    assert first.test.label.sum() == 14 and not first.train.label.any()
    assert sum(len(split.label) for split in first[:3]) == 134
    for name, condition in zip(first.test.path, first.test.condition, strict=True):
        assert name.split("/")[0] == first.conditions[condition]
    np.testing.assert_array_equal(first.train.image, again.train.image)
    assert set(first.train.path) != set(other.train.path)
    assert (first.test.mask.any((1, 2)) == first.test.label).all() and first.test.has_mask.all()
