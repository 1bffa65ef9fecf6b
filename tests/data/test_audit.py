"""The leak audit finds planted leaks, and no others in images that look alike."""

import io
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited
from bigan_jax.configs import cae, common
from bigan_jax.data import audit as leaks
from bigan_jax.data.audit import duplicates
from bigan_jax.data.audit.fingerprints import header_features
from bigan_jax.data.audit.shortcuts import COMBINED, best_sign_auroc, shortcut_aurocs, significant
from bigan_jax.data.dataset import Dataset, Images

REAL = Path(__file__).parents[3] / "shared" / "data"
SIZE = 64


def scenes(count, seed=0):
    """Blurred noise; no two images are similar."""
    noise = np.random.default_rng(seed).standard_normal((count, 96, 96)).astype(np.float32)
    noise = gaussian_filter(noise, (0, 4, 4)) * 8
    return [Image.fromarray(np.uint8(127 + 40 * x.clip(-3, 3))) for x in noise]


def rings(count, seed=0):
    """The same ring in slightly different light, with camera noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96] - 47.5
    ring = 60 + 120 * (abs(np.hypot(x, y) - 30) < 8)
    shade = gaussian_filter(rng.standard_normal((count, 96, 96)), (0, 6, 6)) * 250
    noisy = ring + shade + rng.normal(0, 3, shade.shape)
    return [Image.fromarray(np.uint8(image.clip(0, 255))) for image in noisy]


def make_split(images, name, label=False, group=None, condition=0):
    """Images as loaded from a folder `name`; PIL images are resized to SIZE."""
    if not isinstance(images, np.ndarray):
        small = [p.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for p in images]
        images = np.array([np.asarray(p) for p in small], np.uint8)[..., None]
    n = len(images)
    path = np.array([f"{name}/{i}x0.png" for i in range(n)], str)  # no consecutive numbers
    label = np.broadcast_to(np.asarray(label, bool), n).copy()
    return Images(
        image=images,
        label=label,
        group=path if group is None else np.asarray(group, str),
        condition=np.full(n, condition, np.int32),
        defect_type=np.where(label, "bad", "good"),
        path=path,
        mask=np.zeros((n, 1, 1), bool),
        has_mask=~label,
    )


def dataset(train, calibration, test, conditions=("thing",)):
    return Dataset(train, calibration, test, conditions, ())


def plain(test, train=None):
    """A dataset of 150 different images, and the given test and training images."""
    rest = scenes(150, seed=9)
    return dataset(
        make_split([*(train or []), *rest[:100]], "train"),
        make_split(rest[100:120], "calibration"),
        make_split([*test, *rest[120:]], "test"),
    )


def finding_of(audit, check):
    (finding,) = [f for f in audit.findings if f.check == check]
    return finding


def jpeg(quality):
    def encode(image):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(io.BytesIO(stream.getvalue()))

    return encode


def scaled(factor):
    return lambda image: image.resize((round(96 * factor),) * 2, Image.Resampling.BICUBIC)


# --- duplicates ---

DUPLICATES = {
    "quality 75": jpeg(75),
    "quality 50": jpeg(50),
    "two thirds": scaled(2 / 3),
    "a third larger": scaled(4 / 3),
    "half and quality 75": lambda p: jpeg(75)(scaled(1 / 2)(p)),
    "brighter": lambda p: p.point(lambda v: min(255, v + 5)),
    "less contrast": lambda p: p.point(lambda v: 0.8 * v),
}
NOT_DUPLICATES = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "cropped": lambda p: p.crop((10, 10, 86, 86)),
    "negative": ImageOps.invert,
}


@pytest.mark.parametrize("make", [scenes, rings])
def test_near_duplicates_are_distinguished_from_similar_images(make):
    """All changed copies are found, but not mirrored or cropped ones or other images."""
    images = make(160)
    changed = [(i, name, change) for i, (name, change) in enumerate((DUPLICATES | NOT_DUPLICATES).items())]
    test = [change(images[i]) for i, _, change in changed] + images[140:]
    audit = leaks.audit_dataset(
        dataset(make_split(images[:120], "train"), make_split(images[120:140], "cal"), make_split(test, "test"))
    )
    pairs = {
        (c.first.path, c.second.path)
        for c in audit.duplicates
        if c.distance > 0 and (c.first.split, c.second.split) == ("test", "train")
    }
    paths = make_split(test, "test").path, make_split(images[:120], "train").path
    assert pairs == {(paths[0][i], paths[1][i]) for i, name, _ in changed if name in DUPLICATES}
    assert len(audit.duplicates) == len(DUPLICATES)
    assert finding_of(audit, "exact duplicates across splits").result == "none"
    near = finding_of(audit, "near duplicates across splits")
    assert near.meaning and near.result == "7 of 31 test images; 7 training or calibration images (7 pairs)"


def test_pairs_equal_a_loop_over_all_pairs(monkeypatch):
    rng = np.random.default_rng(1)
    signature = rng.standard_normal((70, 12))
    signature[40:60] = signature[:20] + 0.1 * rng.standard_normal((20, 12))
    signature[60:64] = signature[0]
    signature /= np.linalg.norm(signature, axis=1, keepdims=True)
    max_distance, max_relative, k = 0.02, 0.1, 9  # the square root of 70, rounded up

    def kth_nearest(i):
        return sorted(1 - signature[i] @ signature[j] for j in range(70) if j != i)[k - 1]

    expected = {}
    for i in range(70):
        for j in range(i + 1, 70):
            d = 1 - signature[i] @ signature[j]
            if d <= max_distance and d <= max_relative * min(kth_nearest(i), kth_nearest(j)):
                expected[i, j] = d
    assert 10 < len(expected) < 40
    for block in (70, 2000, 10**6):
        monkeypatch.setattr(duplicates, "MAX_DISTANCES", block)
        first, second, distance = duplicates.near_duplicates(signature, max_distance, max_relative)
        assert dict(zip(zip(first, second, strict=True), distance, strict=True)) == pytest.approx(expected, abs=1e-9)
        assert (np.diff(distance) >= 0).all()


def test_all_exact_duplicates_of_repeated_images_are_found():
    pixel_hash = np.array(list("aaabcdaaeacb"))
    split = np.array(["test"] * 7 + ["calibration"] * 2 + ["train"] * 3)
    pairs = duplicates.exact_duplicates(pixel_hash, split)
    row_pairs = set(zip(*pairs[:2], strict=True))
    for i, j in combinations(range(len(pixel_hash)), 2):  # within a split only some pairs are listed
        if pixel_hash[i] == pixel_hash[j] and split[i] != split[j] and i < 7:
            assert any(i in pair and split[pair[1]] == split[j] for pair in row_pairs), (i, j)
        if pixel_hash[i] == pixel_hash[j]:
            assert any(i in pair for pair in row_pairs) and any(j in pair for pair in row_pairs)
    assert all(pixel_hash[i] == pixel_hash[j] and i < j for i, j in row_pairs)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_have_no_pairs(count):
    assert len(duplicates.near_duplicates(np.ones((count, 4)) / 2).first) <= 1
    pairs = duplicates.exact_duplicates(np.array(["a"] * count, str), np.array(["test"] * count, str))
    assert len(pairs.first) == max(0, count - 1)


def test_blank_images_are_only_exact_duplicates():
    """A black and a gray image have no shape in common; two black ones have all pixels."""
    blank = [Image.new("L", (96, 96), value) for value in (0, 0, 90, 200)]
    audit = leaks.audit_dataset(plain(blank[1:], blank[:1]))
    assert [(c.first.split, c.second.split, c.distance) for c in audit.duplicates] == [("test", "train", 0.0)]


def test_conflicting_labels():
    images = scenes(1)
    clean = plain([*images, jpeg(75)(images[0])])
    clean.test.label[1] = True
    assert finding_of(leaks.audit_dataset(clean), "conflicting labels").result == "1 pair"
    clean.test.label[1] = False
    audit = leaks.audit_dataset(clean)
    assert finding_of(audit, "conflicting labels").result == "none"
    assert finding_of(audit, "duplicates within a split").result == "test 2 images"


# --- groups and file numbers ---


def test_patient_in_two_splits():
    clean = plain([])
    assert "none known" in finding_of(leaks.audit_dataset(clean), "groups across splits").result
    patients = clean.train.group.copy()
    patients[:3] = "patient 7"
    clean = clean._replace(train=clean.train._replace(group=patients))
    disjoint = finding_of(leaks.audit_dataset(clean), "groups across splits")
    assert disjoint.result == "none of 148" and not disjoint.meaning
    clean.test.group[4] = "patient 7"
    shared = finding_of(leaks.audit_dataset(clean), "groups across splits")
    assert shared.result == "1 of 147: patient 7" and shared.meaning


@pytest.mark.parametrize("video", [True, False])
def test_neighboring_numbers_matter_if_images_are_similar(video):
    """A video split frame by frame, and files whose numbers mean nothing."""
    frames = np.random.default_rng(0).standard_normal((120, SIZE, SIZE))
    frames = gaussian_filter(frames, (3 if video else 0, 5, 5))
    frames = np.uint8((127 + 50 * frames / frames.std()).clip(0, 255))[..., None]
    path = np.array([f"good/frame_{i:04d}.png" for i in range(120)])
    images = make_split(frames, "good")._replace(path=path, group=path)
    remainder = np.arange(120) % 5
    mixed = dataset(images.select(remainder > 1), images.select(remainder == 1), images.select(remainder == 0))
    finding = finding_of(leaks.audit_dataset(mixed), "neighboring file numbers")
    assert bool(finding.meaning) == video
    assert finding.result.startswith("119 pairs look" if video else "119 pairs do not look")
    assert finding.result.endswith("71 across splits")
    index = np.arange(120)
    split = dataset(images.select(index > 50), images.select(index < 10), images.select(abs(index - 30) < 18))
    finding = finding_of(leaks.audit_dataset(split), "neighboring file numbers")
    assert finding.result.endswith("none across splits") and not finding.meaning


# --- shortcut features ---


def test_brightness_that_predicts_the_label():
    clean = plain([])
    rng = np.random.default_rng(0)
    n = len(clean.test.path)
    clean.test.label[: n // 2] = True
    clean.test.image[: n // 2] = clean.test.image[: n // 2] // 2  # darker: the other sign
    audit = leaks.audit_dataset(clean)
    means = clean.test.image.mean((1, 2, 3))
    assert audit.shortcut_aurocs["mean intensity"] == pytest.approx(1 - roc_auc_score(clean.test.label, means))
    assert "mean intensity" in finding_of(audit, "shortcut features").result
    assert any("shortcut features" in warning for warning in audit.warnings)
    shuffled = rng.permutation(clean.test.label)
    audit = leaks.audit_dataset(clean._replace(test=clean.test._replace(label=shuffled)))
    assert not finding_of(audit, "shortcut features").meaning
    one_class = leaks.audit_dataset(clean._replace(test=clean.test._replace(label=np.zeros(n, bool))))
    assert one_class.shortcut_aurocs == {} and not one_class.warnings


def test_features_alone_and_combined():
    """Two features predict the label only together; chance is not mistaken for a leak."""
    rng = np.random.default_rng(0)
    label = np.arange(300) % 3 == 0
    common = rng.normal(size=300)
    features = {"a": common + 0.1 * label, "b": common, "constant": np.ones(300)}
    groups, conditions = np.arange(300).astype(str), np.zeros(300, int)
    aurocs = shortcut_aurocs(features, label, groups, conditions)
    assert aurocs["constant"] == 0.5 and aurocs["a"] < 0.6 and aurocs[COMBINED] > 0.9
    assert list(significant(aurocs, label)) == [COMBINED]
    assert shortcut_aurocs(features, label, groups, label.astype(int))["condition"] == 1
    # Features of the group alone, which predict the label for a model that has seen the group.
    group = np.repeat(np.arange(30), 10)
    group_label = rng.integers(0, 2, 30).astype(bool)[group]
    random = {str(i): rng.normal(size=30)[group] for i in range(25)}
    assert shortcut_aurocs(random, group_label, groups, conditions)[COMBINED] > 0.95
    assert shortcut_aurocs(random, group_label, group.astype(str), conditions)[COMBINED] < 0.8
    few = label[:8]
    assert not significant({"lucky": best_sign_auroc(np.array([9, 1, 2, 8, 3, 4, 7, 5.0]), few)}, few)


def test_random_conditions_are_not_a_leak():
    """Many small conditions have uneven classes by chance."""
    rng, aurocs, alarms = np.random.default_rng(0), [], 0
    for _ in range(20):
        label, group = rng.random(100) < 0.5, np.arange(100).astype(str)
        features, condition = {"a": rng.normal(size=100)}, rng.integers(0, 15, 100)
        values = shortcut_aurocs(features, label, group, condition)
        aurocs.append((values["condition"], values[COMBINED]))
        alarms += bool(significant(values, label))
    assert np.abs(np.mean(aurocs, axis=0) - 0.5).max() < 0.05 and not alarms


def test_header_features(tmp_path):
    for i in range(4):
        Image.new("RGB" if i % 2 else "L", (40 + i, 20)).save(tmp_path / f"{i}.png")
    Image.new("L", (80, 20)).save(tmp_path / "4.jpg", quality=30)
    Image.new("L", (80, 20)).save(tmp_path / "5.jpg", quality=90)
    names = np.array(["0.png", "1.png", "2.png", "3.png", "4.jpg", "5.jpg"])

    def open_file(path):
        return (tmp_path / path).open("rb")

    features = header_features(open_file, names)
    assert features["width"].tolist() == [40, 41, 42, 43, 80, 80]
    assert features["aspect ratio"][:2].tolist() == [2, 2.05]
    assert features["encoding"].tolist() == ["PNG L", "PNG RGB"] * 2 + ["JPEG L"] * 2
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert features["file size"] == pytest.approx(np.array(sizes) / 1e6)
    assert features["bits per pixel"][0] == pytest.approx(8 * sizes[0] / 800)
    *png, coarse, fine = features["JPEG quantization"].tolist()
    assert png == [0] * 4 and coarse > fine > 0
    assert header_features(open_file, np.array(["0.png", "gone.png"])) == {}


def test_conditions_without_training_images_or_with_one_class():
    train, test = make_split(scenes(30), "train"), make_split(scenes(30, seed=2), "test")
    test.condition[:10], test.condition[10:20] = 1, 2
    train.condition[:15] = 1
    test.label[[0, 25]] = True
    test.label[10:20] = True
    audit = leaks.audit_dataset(dataset(train, make_split(scenes(5, seed=3), "cal"), test, ("nut", "bolt", "gear")))
    assert finding_of(audit, "conditions without training images").result == "gear"
    assert finding_of(audit, "conditions with one class").result == "gear"
    counts = {(b["split"], b["condition"]): (b["normal"], b["anomalous"]) for b in audit.balance}
    assert counts["test", "bolt"] == (9, 1) and counts["train", "gear"] == (0, 0)


def test_five_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (5000, 16, 16, 1), np.uint8)
    images = np.repeat(np.repeat(blocks, 8, axis=1), 8, axis=2)
    images[4321] = images[7] // 2
    label = np.arange(1400) % 2 == 0
    data = dataset(
        make_split(images[1500:], "train"), make_split(images[1400:1500], "c"), make_split(images[:1400], "t", label)
    )
    began = time.process_time()
    audit = leaks.audit_dataset(data)
    # 3.6 s on two cores; a loop over the pairs would take minutes.
    assert time.process_time() - began < 30
    assert [c.second.path for c in audit.duplicates] == [data.train.path[4321 - 1500]]


# --- real datasets ---


@pytest.fixture(scope="module")
def real():
    """The audit of each real dataset, at 64x64 and without percentile stretching."""
    if not REAL.is_dir():
        pytest.skip("needs the real images in ../shared/data")
    audits = {}
    for name in ("brain", "brain_mixed", "mvtec", "plant"):
        config = cae.get_config(name)
        with config.unlocked():
            config.data.image_size = 64
            config.data.window = False
            config.data.dir = str(REAL / Path(common.DATASETS[name]["data.dir"]).name)
        audits[name] = load_audited(parse_settings(config))[1]
    return audits


@pytest.mark.parametrize("name", ["brain", "mvtec", "plant"])
def test_real_splits_by_group_are_disjoint(real, name):
    audit = real[name]
    for check in ("exact duplicates across splits", "near duplicates across splits"):
        assert finding_of(audit, check).result == "none"
    assert finding_of(audit, "groups across splits").result.startswith("none")
    neighbors = finding_of(audit, "neighboring file numbers")
    assert not neighbors.meaning
    if name != "mvtec":
        assert "look similar" in neighbors.result and "none across splits" in neighbors.result


def test_real_shortcut_features(real):
    mixed = real["brain_mixed"]
    assert mixed.shortcut_aurocs["mean intensity"] > 0.85 and mixed.shortcut_aurocs[COMBINED] > 0.9
    assert finding_of(mixed, "shortcut features").meaning
    assert real["plant"].shortcut_aurocs["corner mean"] > 0.7
    assert finding_of(real["plant"], "shortcut features").meaning
    assert not finding_of(real["mvtec"], "shortcut features").meaning


def test_real_mixture_has_near_duplicates(real):
    """Its authors removed duplicates, but not those with another brightness or size."""
    assert finding_of(real["brain_mixed"], "near duplicates across splits").meaning
    assert finding_of(real["brain_mixed"], "exact duplicates across splits").result == "none"
    pairs = [c for c in real["brain_mixed"].duplicates if c.first.split != c.second.split]
    assert len(pairs) > 100
