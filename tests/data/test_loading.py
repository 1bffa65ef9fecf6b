"""From folders to arrays: layouts, the split's promises, what a user is told."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bigan_jax.data import loading
from bigan_jax.data.layouts.base import select_categories
from bigan_jax.data.layouts.grouping import group_by_camera
from bigan_jax.data.records import ImageRecord
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.split import CALIBRATION, TEST, TRAIN, assign_groups, split, uniform
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything

REAL = Path(__file__).parents[3] / "shared" / "data"


def load(source, folder, **changes):
    options = dict(dir=folder, category="", image_size=16, channels=1, split_seed=0)
    return loading.load_dataset(DataSettings(source, **options | changes))


def write(path, value=100, size=(20, 20), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def write_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 20), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(path)


# --- the split ---

names = st.sets(st.text(min_size=1, max_size=6), min_size=3, max_size=60)
seeds = st.integers(0, 2**32)


@settings(max_examples=50, deadline=None)
@given(names, seeds)
def test_every_side_gets_a_group(groups, seed):
    side = assign_groups(groups, seed, 0.2, 0.1)
    assert set(side) == groups
    assert set(side.values()) == {TRAIN, CALIBRATION, TEST}


@settings(max_examples=50, deadline=None)
@given(names, names, seeds)
def test_a_side_does_not_depend_on_order_or_on_other_groups(groups, more, seed):
    rule = {
        g: TEST if (u := uniform(seed, g)) < 0.2 else CALIBRATION if u < 0.28 else TRAIN
        for g in groups | more
    }
    if len({rule[g] for g in groups}) == 3:  # no side would be empty
        few = assign_groups(groups, seed, 0.2, 0.1)
        many = assign_groups(reversed(sorted(groups | more)), seed, 0.2, 0.1)
        assert few == {g: rule[g] for g in groups} == {g: many[g] for g in groups}


def test_an_empty_side_gets_the_nearest_group_only():
    groups = [f"g{i}" for i in range(400)]
    high = sorted((g for g in groups if uniform(0, g) > 0.5), key=lambda g: uniform(0, g))
    side = assign_groups(high, 0, 0.2, 0.1)
    assert [side[g] for g in high[:2]] == [TEST, CALIBRATION]
    assert {side[g] for g in high[2:]} == {TRAIN}
    low = sorted((g for g in groups if uniform(0, g) < 0.15), key=lambda g: -uniform(0, g))
    side = assign_groups(low, 0, 0.2, 0.1)
    assert [side[g] for g in low[:2]] == [TRAIN, CALIBRATION]


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_fractions_are_about_right(seed):
    part = list(assign_groups(map(str, range(2000)), seed, 0.2, 0.1).values())
    assert abs(part.count(TEST) / 2000 - 0.2) < 0.05
    assert abs(part.count(CALIBRATION) / 2000 - 0.08) < 0.04


def test_the_hash_is_fixed_for_all_machines():
    assert uniform(0, "patient 7") == pytest.approx(0.5178269070579041, abs=1e-12)


def test_a_fraction_of_zero_leaves_that_part_empty():
    assert set(assign_groups(map(str, range(50)), 0, 0, 0).values()) == {TRAIN}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=40, max_size=80), seeds)
def test_no_group_is_on_two_sides_and_anomalies_are_test_only(pictures, seed):
    records = [
        ImageRecord(str(i), label, f"patient {patient}")
        for i, (patient, label) in enumerate(pictures)
    ]
    if len({r.group for r in records if not r.label}) < 3:
        return
    parts, notes = split(records, seed, 0.2, 0.1)
    groups = [{r.group for r in part} for part in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert not any(r.label for part in (TRAIN, CALIBRATION) for r in parts[part])
    left_out = len(records) - sum(map(len, parts.values()))
    assert left_out == sum(int(note.split()[0]) for note in notes if note.endswith("left out"))
    train, calibration, test = (sum(not r.label for r in part) for part in parts.values())
    shares = (test / (train + calibration + test), 0.2), (calibration / (train + calibration), 0.1)
    uneven = sum(not asked / 2 <= share <= 2 * asked for share, asked in shares)
    assert uneven == sum("chance deals" in note for note in notes)


def test_a_part_far_from_what_was_asked_is_told_with_the_remedy():
    """Of ten patients one has 310 of the 400 pictures, and a test wants 80."""
    records = [ImageRecord(str(i), False, f"patient {min(i // 10, 9)}") for i in range(400)]
    for seed in range(10):
        parts, notes = split(records, seed, 0.2, 0.1)
        if len(parts[TEST]) in range(40, 161):
            continue
        assert notes[0].startswith(f"{len(parts[TEST])} of 400 normal pictures test, where 20 %")
        assert "config.data.split_seed" in notes[0]


def test_too_few_groups_and_wrong_fractions_are_explained():
    records = [ImageRecord(str(i), False, f"patient {i % 2}") for i in range(20)]
    with pytest.raises(UserError, match=r"2 group\(s\) only"):
        split(records, 0, 0.2, 0.1)
    with pytest.raises(UserError, match="test_fraction is 2"):
        split(records, 0, 2, 0.1)


def test_pictures_at_a_border_between_camera_blocks_are_left_out():
    numbers = range(1000, 2000)
    records = [group_by_camera(ImageRecord(f"healthy/JR_HL_{n}.jpg", False, "")) for n in numbers]
    parts, notes = split(records, 0, 0.2, 0.1)
    part = {r.camera[1]: name for name, rs in parts.items() for r in rs}
    for a, b in pairwise(numbers):
        assert a not in part or b not in part or part[a] == part[b]
    side = [part[n] for n in range(1050, 2000, 100)]
    borders = sum(a != b for a, b in pairwise(side))
    assert borders > 0 and notes[0].startswith(f"{10 * borders} normal pictures at borders")


# --- layouts ---


def test_a_plain_folder_is_all_normal(tmp_path):
    for i in range(30):
        write(tmp_path / "deep" / f"{i}.png")
    loaded = load("folder", tmp_path, channels=3)
    assert loaded.train.image.shape[1:] == (16, 16, 3) and (loaded.train.image == 100).all()
    assert sum(len(p.label) for p in loaded[:3]) == 30
    assert not everything(loaded).label.any() and everything(loaded).has_mask.all()
    assert any("taken as normal" in note for note in loaded.notes)
    assert any("no anomalous pictures" in note for note in loaded.notes)


def test_a_folder_in_another_layout_is_not_taken_as_normal(tmp_path):
    for name in "train/good", "test/crack":
        for i in range(10):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="the source 'mvtec' reads it"):
        load("folder", tmp_path)


@pytest.mark.parametrize(
    ("normal", "anomalous"),
    [("Normal", "Anomalous"), ("ok", "nok"), ("GOOD", "bad"), ("good", "Defective/scratch")],
)
def test_folders_mean_what_they_are_called(normal, anomalous, tmp_path):
    for i in range(20):
        write(tmp_path / normal / f"{i}.png")
    write(tmp_path / anomalous / "0.png")
    write(tmp_path / "spare" / "0.png")
    loaded = load("folder", tmp_path)
    assert loaded.test.path[loaded.test.label].tolist() == [f"{anomalous}/0.png"]
    assert sum(len(part.label) for part in loaded[:3]) == 21
    assert [note for note in loaded.notes if note.endswith("are not used: spare")]


@pytest.mark.parametrize(
    "names",
    [
        ("train/normal", "test/normal", "test/anomalous"),
        ("a/Defect", "b"),
        ("a/good", "a/scrap", "b/good"),
    ],
)
def test_mixtures_further_down_are_not_taken_as_normal(names, tmp_path):
    for name in names:
        for i in range(10):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="not all its pictures are normal"):
        load("folder", tmp_path)


def test_parts_of_somebody_else_s_split_are_not_taken_for_the_whole(tmp_path):
    for name in "train/ok", "val/ok", "test/ok", "test/nok":
        for i in range(12):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="not all its pictures are normal"):
        load("folder", tmp_path)


def test_what_lies_elsewhere_or_is_not_read_is_told(tmp_path):
    for i in range(20):
        write(tmp_path / "set" / "ok" / f"{i}.png")
    write(tmp_path / "other" / "1.png")
    (tmp_path / "set" / "ok" / "a.HEIC").write_bytes(b"")
    notes = load("folder", tmp_path).notes
    assert any(note.endswith(f"1 pictures elsewhere in {tmp_path} are not used") for note in notes)
    assert "files of kinds that are not read: 1 .heic. Make them PNG or JPEG" in notes


def test_a_folder_with_kinds_and_masks(tmp_path):
    for i in range(20):
        write(tmp_path / "good" / f"{i}.png")
    for name in ("scratch/1.bmp", "scratch/2.bmp", "dent/1.bmp", "3.bmp"):
        write(tmp_path / "defect" / name)
    write_mask(tmp_path / "masks" / "scratch" / "1.png")
    write_mask(tmp_path / "masks" / "dent" / "1_mask.png")
    loaded = load("folder", tmp_path)
    test = loaded.test.select(loaded.test.label)
    assert test.path.tolist() == [
        f"defect/{name}" for name in ("3.bmp", "dent/1.bmp", "scratch/1.bmp", "scratch/2.bmp")
    ]
    assert test.defect_type.tolist() == ["defect", "dent", "scratch", "scratch"]
    assert test.has_mask.tolist() == [False, True, True, False]
    assert test.mask[1][:8].all() and not test.mask[1][8:].any()
    assert any(note.startswith("2 anomalous pictures have no mask") for note in loaded.notes)


def test_no_picture_gets_the_mask_of_another(tmp_path):
    """Two folders of tumours count their files alike."""
    for i in range(20):
        write(tmp_path / "healthy" / f"{i}.png")
    for name in "glioma", "meningioma":
        write(tmp_path / name / "0.png")
    write_mask(tmp_path / "tumor_mask" / "0.png")
    loaded = load("brain", tmp_path)
    assert not loaded.test.has_mask[loaded.test.label].any()
    assert any("1 masks fit more than one picture" in note for note in loaded.notes)
    write_mask(tmp_path / "tumor_mask" / "glioma" / "0.png")
    loaded = load("brain", tmp_path)
    test = loaded.test.select(loaded.test.label)
    assert test.path[test.has_mask].tolist() == ["glioma/0.png"]  # the other's is still anyone's
    write_mask(tmp_path / "tumor_mask" / "meningioma" / "0.png")
    assert load("brain", tmp_path).test.has_mask.all()


def test_a_category_that_the_source_does_not_know_is_refused(tmp_path):
    for i in range(20):
        write(tmp_path / "healthy" / f"{i}.png")
    for source in "brain", "folder", "plant":
        with pytest.raises(UserError, match=f"category=glioma: .*{source!r} reads it"):
            load(source, tmp_path, category="glioma")


@pytest.fixture
def mvtec(tmp_path):
    for category, n in ("bottle", 20), ("pill", 12):
        for i in range(n):
            write(tmp_path / category / "train" / "good" / f"{i:03d}.png")
        for kind in "good", "crack":
            for i in range(4):
                write(tmp_path / category / "test" / kind / f"{i:03d}.png")
        for i in range(4):
            write_mask(tmp_path / category / "ground_truth" / "crack" / f"{i:03d}_mask.png")
    return tmp_path


def test_mvtec_keeps_its_official_split(mvtec):
    loaded = load("mvtec", mvtec, category="bottle,pill")
    assert loaded.conditions == ("bottle", "pill")
    assert len(loaded.train.label) + len(loaded.calibration.label) == 32
    assert all("/train/good/" in path for path in loaded.train.path)
    assert loaded.test.label.sum() == 8 and (~loaded.test.label).sum() == 8
    assert (loaded.test.mask.any((1, 2)) == loaded.test.label).all()
    assert set(loaded.test.defect_type) == {"good", "crack"}
    assert load("mvtec", mvtec, category="all").conditions == ("bottle", "pill")


def test_mvtec_takes_the_folder_of_one_category_and_pools_normals_on_request(mvtec):
    whole = load("mvtec", mvtec, category="bottle")
    alone = load("mvtec", mvtec / "bottle")
    assert alone.conditions == ("bottle",)
    assert set(alone.train.group) == set(whole.train.group)
    assert {f"bottle/{path}" for path in alone.test.path} == set(whole.test.path)
    assert alone.test.mask.any((1, 2)).sum() == 4
    pooled = load("mvtec", mvtec, category="bottle", official_split=False)
    assert (~everything(pooled).label).sum() == 24
    assert any("/train/good/" in path for path in pooled.test.path)


def test_plant_class_folders_give_species_and_camera_blocks(tmp_path):
    for species, first in ("Pepper__bell", 1000), ("Potato", 5000):
        for i in range(0, 1200, 12):
            write(tmp_path / f"{species}___healthy" / f"u___HL {first + i}.png")
        for i in range(5):
            write(tmp_path / f"{species}___Blight" / f"u___BL {first + i}.png")
    write(tmp_path / "Squash___Mildew" / "1.png")
    loaded = load("plant", tmp_path)
    assert loaded.conditions == ("Pepper__bell", "Potato")
    assert set(loaded.test.defect_type) == {"good", "Blight"} and loaded.test.label.sum() == 10
    assert "Squash left out: it has no normal pictures" in loaded.notes
    assert not set(loaded.train.group) & set(loaded.test.group)
    one = load("plant", tmp_path, category="Potato")
    assert one.conditions == ("Potato",) and not one.test.condition.any()


# --- what a user is told ---


def test_categories_are_a_comma_list():
    assert select_categories(" b,a, b ", ["a", "b", "c"]) == ["b", "a"]
    assert select_categories("", ["a", "b"]) == select_categories("all", ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("source", ["folder", "brain", "mvtec", "plant"])
def test_a_missing_or_empty_folder_is_met_with_the_layout(tmp_path, source):
    for folder in None, tmp_path / "nowhere", tmp_path:
        with pytest.raises(UserError) as error:
            load(source, folder)
        assert "dir/" in str(error.value) and ":phantom" in str(error.value)
        assert folder is None or str(folder) in str(error.value)
        if source != "folder":
            assert "To be had" in str(error.value)


def test_mistakes_name_the_thing_and_the_remedy(mvtec):
    with pytest.raises(UserError, match="Did you mean 'phantom'"):
        load("phantm", None)
    with pytest.raises(UserError, match="Did you mean 'bottle'"):
        load("mvtec", mvtec, category="botle")
    with pytest.raises(UserError, match="Did you mean 'head'"):
        load("phantom", None, category="hed")
    with pytest.raises(UserError, match="channels must be"):
        load("phantom", None, channels=2)
    with pytest.raises(UserError, match="image_size must be at least 8"):
        load("phantom", None, image_size=0)
    with pytest.raises(UserError, match="phantom_anomalous are counts"):
        load("phantom", None, phantom_anomalous=-5)
    with pytest.raises(UserError, match="Only 4 normal pictures"):
        load("folder", mvtec / "bottle" / "test")


# --- the real sets ---


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real set {name} is not in {REAL}")
    return REAL / name


def test_real_bottle():
    loaded = load("mvtec", real("mvtec_ad"), category="bottle")
    assert len(loaded.train.label) + len(loaded.calibration.label) == 209
    assert loaded.test.label.sum() == 63 and len(loaded.test.label) == 83
    assert loaded.test.has_mask.all() and (loaded.test.mask.any((1, 2)) == loaded.test.label).all()


def test_real_brain_has_no_patient_on_two_sides_and_loses_no_mask():
    loaded = load("brain", real("brain"))
    train, calibration, test = (set(part.group) for part in loaded[:3])
    assert not (train & calibration or train & test or calibration & test)
    pictures = everything(loaded)
    assert (~pictures.label).sum() == 663 and pictures.has_mask.all()
    assert (pictures.mask.any((1, 2)) == pictures.label).all()
    left_out = int(loaded.notes[0].split()[0])
    assert pictures.label.sum() + left_out == 897


def test_real_brain_mixed():
    pictures = everything(load("brain", real("brain_mixed")))
    assert (~pictures.label).sum() == 800 and pictures.label.sum() == 400


def test_real_plant():
    loaded = load("plant", real("plant"))
    pictures = everything(loaded)
    left_out = int(loaded.notes[0].split()[0])
    assert (~pictures.label).sum() + left_out == 1000 and pictures.label.sum() == 400
    number = [
        {int(path[-8:-4]) for path, label in zip(p.path, p.label, strict=True) if not label}
        for p in loaded[:3]
    ]
    for i, some in enumerate(number):
        for other in number[i + 1 :]:
            assert min(abs(a - b) for a in some for b in other) > 10
