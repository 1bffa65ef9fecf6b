"""The leak audit: what was planted is found, and what only looks alike is not."""

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
from bigan_jax.data.audit.fingerprints import headers
from bigan_jax.data.audit.shortcuts import TOGETHER, better_sign, shortcut_aurocs, significant
from bigan_jax.data.dataset import Dataset, Images

REAL = Path(__file__).parents[3] / "shared" / "data"
SIZE = 64


def scenes(count, seed=0):
    """Soft random shapes, no two of them alike."""
    noise = np.random.default_rng(seed).standard_normal((count, 96, 96)).astype(np.float32)
    noise = gaussian_filter(noise, (0, 4, 4)) * 8
    return [Image.fromarray(np.uint8(127 + 40 * x.clip(-3, 3))) for x in noise]


def parts_of_a_machine(count, seed=0):
    """The same ring in nearly the same light, and the noise of a camera."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96] - 47.5
    ring = 60 + 120 * (abs(np.hypot(x, y) - 30) < 8)
    shade = gaussian_filter(rng.standard_normal((count, 96, 96)), (0, 6, 6)) * 250
    noisy = ring + shade + rng.normal(0, 3, shade.shape)
    return [Image.fromarray(np.uint8(picture.clip(0, 255))) for picture in noisy]


def part(pictures, name, label=False, group=None, condition=0):
    """Pictures as they come from a folder `name`; PIL images are decoded to SIZE."""
    if not isinstance(pictures, np.ndarray):
        small = [p.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for p in pictures]
        pictures = np.array([np.asarray(p) for p in small], np.uint8)[..., None]
    n = len(pictures)
    path = np.array([f"{name}/{i}x0.png" for i in range(n)], str)  # no numbers that follow
    label = np.broadcast_to(np.asarray(label, bool), n).copy()
    return Images(
        image=pictures,
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
    """A clean set of 150 pictures, the given test and training pictures aside."""
    rest = scenes(150, seed=9)
    return dataset(
        part([*(train or []), *rest[:100]], "train"),
        part(rest[100:120], "calibration"),
        part([*test, *rest[120:]], "test"),
    )


def found_in(audit, check):
    (line,) = [f for f in audit.findings if f.check == check]
    return line


def jpeg(quality):
    def encode(picture):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(io.BytesIO(stream.getvalue()))

    return encode


def scaled(share):
    return lambda picture: picture.resize((round(96 * share),) * 2, Image.Resampling.BICUBIC)


# --- copies ---

SAME = {
    "quality 75": jpeg(75),
    "quality 50": jpeg(50),
    "two thirds": scaled(2 / 3),
    "a third larger": scaled(4 / 3),
    "half and quality 75": lambda p: jpeg(75)(scaled(1 / 2)(p)),
    "brighter": lambda p: p.point(lambda v: min(255, v + 5)),
    "less contrast": lambda p: p.point(lambda v: 0.8 * v),
}
OTHER = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "cropped": lambda p: p.crop((10, 10, 86, 86)),
    "negative": ImageOps.invert,
}


@pytest.mark.parametrize("make", [scenes, parts_of_a_machine])
def test_copies_are_told_from_what_looks_alike(make):
    """Every changed copy is found, and nothing else: mirrored, cropped, another picture."""
    pictures = make(160)
    changed = [(i, name, change) for i, (name, change) in enumerate((SAME | OTHER).items())]
    test = [change(pictures[i]) for i, _, change in changed] + pictures[140:]
    audit = leaks.audit(
        dataset(part(pictures[:120], "train"), part(pictures[120:140], "cal"), part(test, "test"))
    )
    seen = {
        (c.first.path, c.second.path)
        for c in audit.copies
        if c.distance > 0 and (c.first.part, c.second.part) == ("test", "train")
    }
    paths = part(test, "test").path, part(pictures[:120], "train").path
    assert seen == {(paths[0][i], paths[1][i]) for i, name, _ in changed if name in SAME}
    assert len(audit.copies) == len(SAME)
    assert found_in(audit, "exact copies across parts").found == "none"
    near = found_in(audit, "near copies across parts")
    assert (
        near.meaning and near.found == "7 of 31 test pictures; 7 that train or calibrate (7 pairs)"
    )


def test_pairs_are_those_of_a_loop_over_all(monkeypatch):
    rng = np.random.default_rng(1)
    signature = rng.standard_normal((70, 12))
    signature[40:60] = signature[:20] + 0.1 * rng.standard_normal((20, 12))
    signature[60:64] = signature[0]
    signature /= np.linalg.norm(signature, axis=1, keepdims=True)
    near, of_usual, k = 0.02, 0.1, 9  # the square root of 70, rounded up

    def usual(i):
        return sorted(1 - signature[i] @ signature[j] for j in range(70) if j != i)[k - 1]

    wanted = {}
    for i in range(70):
        for j in range(i + 1, 70):
            d = 1 - signature[i] @ signature[j]
            if d <= near and d <= of_usual * min(usual(i), usual(j)):
                wanted[i, j] = d
    assert 10 < len(wanted) < 40
    for entries in (70, 2000, 10**6):
        monkeypatch.setattr(duplicates, "ENTRIES", entries)
        first, second, distance = duplicates.near_duplicates(signature, near, of_usual)
        assert dict(zip(zip(first, second, strict=True), distance, strict=True)) == pytest.approx(
            wanted, abs=1e-9
        )
        assert (np.diff(distance) >= 0).all()


def test_every_copy_counts_however_often_a_picture_is_there():
    digest = np.array(list("aaabcdaaeacb"))
    part = np.array(["test"] * 7 + ["calibration"] * 2 + ["train"] * 3)
    pairs = duplicates.exact_duplicates(digest, part)
    found = set(zip(*pairs[:2], strict=True))
    for i, j in combinations(range(len(digest)), 2):  # all but few among equals in one part
        if digest[i] == digest[j] and part[i] != part[j] and i < 7:
            assert any(i in pair and part[pair[1]] == part[j] for pair in found), (i, j)
        if digest[i] == digest[j]:
            assert any(i in pair for pair in found) and any(j in pair for pair in found)
    assert all(digest[i] == digest[j] and i < j for i, j in found)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures_have_no_pairs(count):
    assert len(duplicates.near_duplicates(np.ones((count, 4)) / 2).first) <= 1
    pairs = duplicates.exact_duplicates(
        np.array(["a"] * count, str), np.array(["test"] * count, str)
    )
    assert len(pairs.first) == max(0, count - 1)


def test_blank_pictures_are_copies_only_of_their_like():
    """A black and a gray picture have no shape in common; two black ones have all pixels."""
    blank = [Image.new("L", (96, 96), value) for value in (0, 0, 90, 200)]
    audit = leaks.audit(plain(blank[1:], blank[:1]))
    assert [(c.first.part, c.second.part, c.distance) for c in audit.copies] == [
        ("test", "train", 0.0)
    ]


def test_one_picture_with_both_labels():
    pictures = scenes(1)
    clean = plain([*pictures, jpeg(75)(pictures[0])])
    clean.test.label[1] = True
    assert found_in(leaks.audit(clean), "copies with both labels").found == "1 pair"
    clean.test.label[1] = False
    audit = leaks.audit(clean)
    assert found_in(audit, "copies with both labels").found == "none"
    assert found_in(audit, "copies within a part").found == "test 2 pictures"


# --- groups and numbers ---


def test_a_patient_in_two_parts():
    clean = plain([])
    assert "none known" in found_in(leaks.audit(clean), "groups across parts").found
    patients = clean.train.group.copy()
    patients[:3] = "patient 7"
    clean = clean._replace(train=clean.train._replace(group=patients))
    apart = found_in(leaks.audit(clean), "groups across parts")
    assert apart.found == "none of 148" and not apart.meaning
    clean.test.group[4] = "patient 7"
    shared = found_in(leaks.audit(clean), "groups across parts")
    assert shared.found == "1 of 147: patient 7" and shared.meaning


@pytest.mark.parametrize("film", [True, False])
def test_neighboring_numbers_matter_where_they_look_alike(film):
    """A film dealt out frame by frame, and files whose numbers mean nothing."""
    frames = np.random.default_rng(0).standard_normal((120, SIZE, SIZE))
    frames = gaussian_filter(frames, (3 if film else 0, 5, 5))
    frames = np.uint8((127 + 50 * frames / frames.std()).clip(0, 255))[..., None]
    path = np.array([f"good/frame_{i:04d}.png" for i in range(120)])
    every = part(frames, "good")._replace(path=path, group=path)
    rows = np.arange(120) % 5
    mixed = dataset(every.select(rows > 1), every.select(rows == 1), every.select(rows == 0))
    line = found_in(leaks.audit(mixed), "neighboring file numbers")
    assert bool(line.meaning) == film
    assert line.found.startswith("119 pairs look alike" if film else "119 pairs say little")
    assert line.found.endswith("71 across parts")
    sides = np.arange(120)
    split = dataset(
        every.select(sides > 50), every.select(sides < 10), every.select(abs(sides - 30) < 18)
    )
    line = found_in(leaks.audit(split), "neighboring file numbers")
    assert line.found.endswith("none across parts") and not line.meaning


# --- trivial facts ---


def test_a_label_told_by_brightness():
    clean = plain([])
    rng = np.random.default_rng(0)
    n = len(clean.test.path)
    clean.test.label[: n // 2] = True
    clean.test.image[: n // 2] = clean.test.image[: n // 2] // 2  # darker: the other sign
    audit = leaks.audit(clean)
    means = clean.test.image.mean((1, 2, 3))
    assert audit.facts["mean intensity"] == pytest.approx(
        1 - roc_auc_score(clean.test.label, means)
    )
    assert "mean intensity" in found_in(audit, "trivial facts that tell the label").found
    assert any("trivial facts" in warning for warning in audit.warnings)
    shuffled = rng.permutation(clean.test.label)
    audit = leaks.audit(clean._replace(test=clean.test._replace(label=shuffled)))
    assert not found_in(audit, "trivial facts that tell the label").meaning
    only = leaks.audit(clean._replace(test=clean.test._replace(label=np.zeros(n, bool))))
    assert only.facts == {} and not only.warnings


def test_facts_alone_and_together():
    """Two facts that tell little apart and all together; chance is not mistaken for a leak."""
    rng = np.random.default_rng(0)
    label = np.arange(300) % 3 == 0
    common = rng.normal(size=300)
    facts = {"a": common + 0.1 * label, "b": common, "constant": np.ones(300)}
    own, one = np.arange(300).astype(str), np.zeros(300, int)
    aurocs = shortcut_aurocs(facts, label, own, one)
    assert aurocs["constant"] == 0.5 and aurocs["a"] < 0.6 and aurocs[TOGETHER] > 0.9
    assert list(significant(aurocs, label)) == [TOGETHER]
    assert shortcut_aurocs(facts, label, own, label.astype(int))["condition"] == 1
    # A fact of the group alone, of which a model that has seen the group makes much.
    group = np.repeat(np.arange(30), 10)
    of_group = rng.integers(0, 2, 30).astype(bool)[group]
    random = {str(i): rng.normal(size=30)[group] for i in range(25)}
    assert shortcut_aurocs(random, of_group, own, one)[TOGETHER] > 0.95
    assert shortcut_aurocs(random, of_group, group.astype(str), one)[TOGETHER] < 0.8
    few = label[:8]
    assert not significant({"lucky": better_sign(np.array([9, 1, 2, 8, 3, 4, 7, 5.0]), few)}, few)


def test_conditions_that_mean_nothing_are_no_leak():
    """In many small ones chance alone puts more of one class here and there."""
    rng, told, alarms = np.random.default_rng(0), [], 0
    for _ in range(20):
        label, own = rng.random(100) < 0.5, np.arange(100).astype(str)
        aurocs = shortcut_aurocs({"a": rng.normal(size=100)}, label, own, rng.integers(0, 15, 100))
        told.append((aurocs["condition"], aurocs[TOGETHER]))
        alarms += bool(significant(aurocs, label))
    assert np.abs(np.mean(told, axis=0) - 0.5).max() < 0.05 and not alarms


def test_facts_of_files(tmp_path):
    for i in range(4):
        Image.new("RGB" if i % 2 else "L", (40 + i, 20)).save(tmp_path / f"{i}.png")
    Image.new("L", (80, 20)).save(tmp_path / "4.jpg", quality=30)
    Image.new("L", (80, 20)).save(tmp_path / "5.jpg", quality=90)
    names = np.array(["0.png", "1.png", "2.png", "3.png", "4.jpg", "5.jpg"])

    def opened(path):
        return (tmp_path / path).open("rb")

    known = headers(opened, names)
    assert known["width"].tolist() == [40, 41, 42, 43, 80, 80]
    assert known["aspect ratio"][:2].tolist() == [2, 2.05]
    assert known["encoding"].tolist() == ["PNG L", "PNG RGB"] * 2 + ["JPEG L"] * 2
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert known["file size"] == pytest.approx(np.array(sizes) / 1e6)
    assert known["bits a pixel"][0] == pytest.approx(8 * sizes[0] / 800)
    *of_png, coarse, fine = known["JPEG quantization"].tolist()
    assert of_png == [0] * 4 and coarse > fine > 0
    assert headers(opened, np.array(["0.png", "gone.png"])) == {}


def test_conditions_without_a_counterpart():
    train, test = part(scenes(30), "train"), part(scenes(30, seed=2), "test")
    test.condition[:10], test.condition[10:20] = 1, 2
    train.condition[:15] = 1
    test.label[[0, 25]] = True
    test.label[10:20] = True
    audit = leaks.audit(
        dataset(train, part(scenes(5, seed=3), "cal"), test, ("nut", "bolt", "gear"))
    )
    assert found_in(audit, "conditions without training").found == "gear"
    assert found_in(audit, "conditions with one class").found == "gear"
    counts = {(b["part"], b["condition"]): (b["normal"], b["anomalous"]) for b in audit.balance}
    assert counts["test", "bolt"] == (9, 1) and counts["train", "gear"] == (0, 0)


def test_five_thousand_pictures_in_seconds():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (5000, 16, 16, 1), np.uint8)
    images = np.repeat(np.repeat(blocks, 8, axis=1), 8, axis=2)
    images[4321] = images[7] // 2
    label = np.arange(1400) % 2 == 0
    set_ = dataset(
        part(images[1500:], "train"), part(images[1400:1500], "c"), part(images[:1400], "t", label)
    )
    began = time.process_time()
    audit = leaks.audit(set_)
    # 3.6 s on two cores; a loop over the pairs would take minutes.
    assert time.process_time() - began < 30
    assert [c.second.path for c in audit.copies] == [set_.train.path[4321 - 1500]]


# --- the real sets ---


@pytest.fixture(scope="module")
def real():
    """The audit of each real set, at 64x64, the pictures as bright as they are."""
    if not REAL.is_dir():
        pytest.skip("needs the real pictures in ../shared/data")
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
def test_real_splits_by_group_share_nothing(real, name):
    audit = real[name]
    for check in ("exact copies across parts", "near copies across parts"):
        assert found_in(audit, check).found == "none"
    assert found_in(audit, "groups across parts").found.startswith("none")
    neighbors = found_in(audit, "neighboring file numbers")
    assert not neighbors.meaning
    if name != "mvtec":
        assert "look alike" in neighbors.found and "none across parts" in neighbors.found


def test_real_labels_are_told_by_trivial_facts(real):
    mixed = real["brain_mixed"]
    assert mixed.facts["mean intensity"] > 0.85 and mixed.facts[TOGETHER] > 0.9
    assert found_in(mixed, "trivial facts that tell the label").meaning
    assert real["plant"].facts["corner mean"] > 0.7
    assert found_in(real["plant"], "trivial facts that tell the label").meaning
    assert not found_in(real["mvtec"], "trivial facts that tell the label").meaning


def test_the_real_mixture_has_copies_in_several_brightnesses(real):
    """Its makers dropped copies, but not those with another brightness or size."""
    assert found_in(real["brain_mixed"], "near copies across parts").meaning
    assert found_in(real["brain_mixed"], "exact copies across parts").found == "none"
    pairs = [c for c in real["brain_mixed"].copies if c.first.part != c.second.part]
    assert len(pairs) > 100
