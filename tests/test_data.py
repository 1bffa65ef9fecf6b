"""From folders to arrays: layouts, decoding, the split's promises, what a user is told."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bigan_jax import data
from bigan_jax.data.decode import list_pictures, read_image, read_images, read_mask
from bigan_jax.data.sources import choose, with_camera
from bigan_jax.data.split import CALIBRATION, TEST, TRAIN, Record, sides, split, uniform
from bigan_jax.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data"


def load(source, folder, **changes):
    options = dict(dir=folder, category="", image_size=16, channels=1, split_seed=0)
    return data.load(source, **options | changes)


def write(path, value=100, size=(20, 20), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def write_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 20), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(path)


def everything(dataset):
    return data.concatenate(list(dataset[:3]))


# --- the split ---

names = st.sets(st.text(min_size=1, max_size=6), min_size=3, max_size=60)
seeds = st.integers(0, 2**32)


@settings(max_examples=50, deadline=None)
@given(names, seeds)
def test_every_side_gets_a_group(groups, seed):
    side = sides(groups, seed, 0.2, 0.1)
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
        few = sides(groups, seed, 0.2, 0.1)
        many = sides(reversed(sorted(groups | more)), seed, 0.2, 0.1)
        assert few == {g: rule[g] for g in groups} == {g: many[g] for g in groups}


def test_an_empty_side_gets_the_nearest_group_only():
    groups = [f"g{i}" for i in range(400)]
    high = sorted((g for g in groups if uniform(0, g) > 0.5), key=lambda g: uniform(0, g))
    side = sides(high, 0, 0.2, 0.1)
    assert [side[g] for g in high[:2]] == [TEST, CALIBRATION]
    assert {side[g] for g in high[2:]} == {TRAIN}
    low = sorted((g for g in groups if uniform(0, g) < 0.15), key=lambda g: -uniform(0, g))
    side = sides(low, 0, 0.2, 0.1)
    assert [side[g] for g in low[:2]] == [TRAIN, CALIBRATION]


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_fractions_are_about_right(seed):
    part = list(sides(map(str, range(2000)), seed, 0.2, 0.1).values())
    assert abs(part.count(TEST) / 2000 - 0.2) < 0.05
    assert abs(part.count(CALIBRATION) / 2000 - 0.08) < 0.04


def test_the_hash_is_fixed_for_all_machines():
    assert uniform(0, "patient 7") == pytest.approx(0.5178269070579041, abs=1e-12)


def test_a_fraction_of_zero_leaves_that_part_empty():
    assert set(sides(map(str, range(50)), 0, 0, 0).values()) == {TRAIN}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=40, max_size=80), seeds)
def test_no_group_is_on_two_sides_and_anomalies_are_test_only(pictures, seed):
    records = [
        Record(str(i), label, f"patient {patient}") for i, (patient, label) in enumerate(pictures)
    ]
    if len({r.group for r in records if not r.label}) < 3:
        return
    parts, notes = split(records, seed, 0.2, 0.1)
    groups = [{r.group for r in part} for part in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert not any(r.label for part in (TRAIN, CALIBRATION) for r in parts[part])
    left_out = len(records) - sum(map(len, parts.values()))
    assert left_out == sum(int(note.split()[0]) for note in notes)


def test_too_few_groups_and_wrong_fractions_are_explained():
    records = [Record(str(i), False, f"patient {i % 2}") for i in range(20)]
    with pytest.raises(UserError, match=r"2 group\(s\) only"):
        split(records, 0, 0.2, 0.1)
    with pytest.raises(UserError, match="test_fraction is 2"):
        split(records, 0, 2, 0.1)


def test_pictures_at_a_border_between_camera_blocks_are_left_out():
    numbers = range(1000, 2000)
    records = [with_camera(Record(f"healthy/JR_HL_{n}.jpg", False, "")) for n in numbers]
    parts, notes = split(records, 0, 0.2, 0.1)
    part = {r.camera[1]: name for name, rs in parts.items() for r in rs}
    for a, b in pairwise(numbers):
        assert a not in part or b not in part or part[a] == part[b]
    side = [part[n] for n in range(1050, 2000, 100)]
    borders = sum(a != b for a, b in pairwise(side))
    assert borders > 0 and notes[0].startswith(f"{10 * borders} normal pictures at borders")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("JR_HL_5807.jpg", "healthy/JR_HL 5800"),
        ("0a1b-22___JR_HL 5807.JPG", "healthy/JR_HL 5800"),
        ("0a1b-22___JR_HL 5899_new30degFlipLR.JPG", "healthy/JR_HL 5800"),
        ("GH_HL Leaf 259.1.JPG", "healthy/GH_HL_Leaf 200"),
        ("leaf.jpg", "own"),
    ],
)
def test_camera_numbers_are_read_from_names(name, group):
    assert with_camera(Record(f"healthy/{name}", False, "own")).group == group


# --- decoding ---


def modes():
    """Pictures of one colour in every mode, with the grey and RGB they should give."""
    red_grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    rgb = (200, 100, 50)
    palette = Image.new("P", (9, 7), 1)
    palette.putpalette([0, 0, 0, *rgb])
    half = Image.new("RGBA", (9, 7), (*rgb, 51))
    over_white = tuple(0.2 * v + 0.8 * 255 for v in rgb)
    half_grey = 0.2 * red_grey + 0.8 * 255
    wide = np.full((7, 9), 257 * 80, np.uint16)
    return {
        "1.png": (Image.new("1", (9, 7), 1), 255, (255,) * 3),
        "L.png": (Image.new("L", (9, 7), 80), 80, (80,) * 3),
        "LA.png": (Image.new("LA", (9, 7), (80, 0)), 255, (255,) * 3),
        "I16.png": (Image.fromarray(wide), 80, (80,) * 3),
        "I16.tif": (Image.fromarray(wide), 80, (80,) * 3),
        "I.tif": (Image.fromarray(wide.astype(np.int32)), 80, (80,) * 3),
        "F.tif": (Image.fromarray(np.full((7, 9), 0.4, np.float32)), 102, (102,) * 3),
        "RGB.png": (Image.new("RGB", (9, 7), rgb), red_grey, rgb),
        "RGBA.png": (half, half_grey, over_white),
        "P.png": (palette, red_grey, rgb),
        "P.gif": (palette, red_grey, rgb),
        "CMYK.tif": (Image.new("CMYK", (9, 7), (55, 155, 205, 0)), red_grey, rgb),
        "RGB.jpg": (Image.new("RGB", (9, 7), rgb), red_grey, rgb),
        "RGB.webp": (Image.new("RGB", (9, 7), rgb), red_grey, rgb),
        "RGB.bmp": (Image.new("RGB", (9, 7), rgb), red_grey, rgb),
    }


@pytest.mark.parametrize("name", modes())
def test_every_mode_gives_its_grey_and_its_colour(tmp_path, name):
    picture, grey, rgb = modes()[name]
    picture.save(tmp_path / name)
    one, three = (read_image(tmp_path / name, 8, channels) for channels in (1, 3))
    assert one.shape == (8, 8, 1) and three.shape == (8, 8, 3)
    assert one.dtype == three.dtype == np.uint8
    np.testing.assert_allclose(one, np.full((8, 8, 1), grey), atol=1.6)
    np.testing.assert_allclose(three, np.broadcast_to(rgb, (8, 8, 3)), atol=2.1)


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:, 16:] = 200  # bright on the right; orientation 6 turns that downwards
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    image = read_image(tmp_path / "turned.jpg", 16, 1)[..., 0]
    assert image[:6].max() < 30 and image[10:].min() > 170


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert np.ptp(read_image(tmp_path / "stripes.png", 16, 1)[:, 2:-2]) < 12


def test_a_mask_is_the_majority_of_a_cell_and_never_vanishes(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[0:3, 0:4] = 1  # three quarters of a cell of 4 x 4, and any value counts
    mask[8:9, 8:12] = 255  # a quarter of one
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.argwhere(read_mask(tmp_path / "mask.png", 8)).tolist() == [[0, 0]]
    mask[0:3, 0:4] = 0
    Image.fromarray(mask).save(tmp_path / "small.png")
    assert np.argwhere(read_mask(tmp_path / "small.png", 8)).tolist() == [[2, 2]]
    Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", 8).any()


def test_every_broken_file_is_named_with_its_reason(tmp_path):
    write(tmp_path / "fine.png")
    (tmp_path / "text.png").write_text("not a picture")
    whole = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    whole.write_bytes(whole.read_bytes()[:400])
    with pytest.raises(UserError, match="2 of 3 pictures") as error:
        read_images(tmp_path, ["cut.jpg", "fine.png", "text.png"], 16, 1)
    assert "cut.jpg: " in str(error.value) and "text.png: " in str(error.value)
    many = [f"missing{i}.png" for i in range(25)]
    with pytest.raises(UserError, match="and 5 more"):
        read_images(tmp_path, many, 16, 1)


def test_a_huge_picture_is_refused_by_its_header(tmp_path):
    Image.new("1", (20_000, 5_001)).save(tmp_path / "huge.png")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(UserError, match=r"huge\.png: 20000x5001 is more than 100 megapixels"),
    ):
        read_images(tmp_path, ["huge.png"], 16, 1)


def test_a_float_picture_without_a_scale_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 30.0, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif: a float picture"):
        read_images(tmp_path, ["f.tif"], 16, 1)


def test_listing_is_sorted_and_passes_over_loops_and_hidden_files(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/1.tif", ".hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert list_pictures(tmp_path) == ["a.jpg", "b/1.tif", "b/2.PNG"]


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


def test_a_folder_with_kinds_and_masks(tmp_path):
    for i in range(20):
        write(tmp_path / "good" / f"{i}.png")
    for name in ("scratch/1.bmp", "scratch/2.bmp", "dent/1.bmp", "3.bmp"):
        write(tmp_path / "defect" / name)
    write_mask(tmp_path / "masks" / "scratch" / "1.png")
    write_mask(tmp_path / "masks" / "dent" / "1_mask.png")
    loaded = load("folder", tmp_path)
    test = loaded.test.take(loaded.test.label)
    assert test.path.tolist() == [
        f"defect/{name}" for name in ("3.bmp", "dent/1.bmp", "scratch/1.bmp", "scratch/2.bmp")
    ]
    assert test.kind.tolist() == ["defect", "dent", "scratch", "scratch"]
    assert test.has_mask.tolist() == [False, True, True, False]
    assert test.mask[1][:8].all() and not test.mask[1][8:].any()
    assert any(note.startswith("2 anomalous pictures have no mask") for note in loaded.notes)


def test_brain_patients_stay_together(tmp_path):
    rows = []
    for i in range(60):
        folder = "tumor" if i % 3 == 0 else "healthy"
        write(tmp_path / folder / f"{i:02d}.png")
        rows.append({"file": f"{folder}/{i:02d}.png", "patient": f"p{i % 12}"})
    write_mask(tmp_path / "tumor_mask" / "00.png")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", "patient"])
        table.writeheader()
        table.writerows(rows[:-1])
    loaded = load("brain", tmp_path)
    train, calibration, test = (set(p.group) for p in loaded[:3])
    assert not (train & calibration or train & test or calibration & test)
    assert "p1" in train | calibration | test
    assert any(note.startswith("1 pictures have no patient") for note in loaded.notes)
    (tmp_path / "metadata.csv").write_text("file,subject\n")
    with pytest.raises(UserError, match="no column patient"):
        load("brain", tmp_path)


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
    assert set(loaded.test.kind) == {"good", "crack"}
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
    assert set(loaded.test.kind) == {"good", "Blight"} and loaded.test.label.sum() == 10
    assert "Squash left out: it has no healthy leaves" in loaded.notes
    assert not set(loaded.train.group) & set(loaded.test.group)
    one = load("plant", tmp_path, category="Potato")
    assert one.conditions == ("Potato",) and not one.test.condition.any()


# --- what a user is told ---


def test_categories_are_a_comma_list():
    assert choose(" b,a, b ", ["a", "b", "c"]) == ["b", "a"]
    assert choose("", ["a", "b"]) == choose("all", ["a", "b"]) == ["a", "b"]


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
    with pytest.raises(UserError, match="channels is 2"):
        load("phantom", None, channels=2)
    with pytest.raises(UserError, match="image_size is 0"):
        load("phantom", None, image_size=0)
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
