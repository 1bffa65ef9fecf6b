"""Loading of datasets: the layouts, messages to the user, and the real datasets."""

import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data import layouts, loading
from bigan_jax.data.layouts.layout import select_categories
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.source import require_data_folder
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything
from tests.helpers.encoded_images import png16

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


# --- contrast and fit ---


def write_deep(path, bits, color=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(0, 2**bits, (20, 20)).astype(np.uint16)
    if color:
        path.write_bytes(png16(np.stack([values] * 3, -1)))
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize(("bits", "color"), [(10, False), (12, False), (12, True), (14, False)])
def test_few_bits_in_sixteen_are_named_with_the_remedy(tmp_path, bits, color):
    for i in range(12):
        write_deep(tmp_path / f"{i}.png", bits, color)
    (note,) = [note for note in load("folder", tmp_path).notes if "dark" in note]
    assert "of 255" in note and "--config.data.window=true" in note
    loaded = load("folder", tmp_path, window=True)
    assert not any("dark" in note for note in loaded.notes) and loaded.train.image.max() > 200


@pytest.mark.parametrize("bits", [8, 16])
def test_full_range_is_not_called_dark(tmp_path, bits):
    for i in range(12):
        write_deep(tmp_path / f"{i}.png", 16) if bits == 16 else write(tmp_path / f"{i}.png", 100)
    assert not any("dark" in note for note in load("folder", tmp_path).notes)


def test_fit_is_checked_and_applied_to_images_and_masks(tmp_path):
    for i in range(12):
        write(tmp_path / "normal" / f"{i}.png", 100, (40, 20))
    pixels, mask = np.full((20, 40), 100, np.uint8), np.zeros((20, 40), np.uint8)
    pixels[4:12, 24:30], mask[4:12, 24:30] = 250, 255
    for folder, array in ("anomalous", pixels), ("masks", mask):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "x.png")
    for fit, rows, columns in ("pad", (5, 9), (9, 13)), ("crop", (3, 10), (11, 16)), ("stretch", (3, 10), (9, 13)):
        loaded = load("folder", tmp_path, fit=fit)
        (i,) = np.flatnonzero(loaded.test.label)
        assert loaded.test.mask[i, slice(*rows), slice(*columns)].mean() > 0.6
        assert loaded.test.image[i][loaded.test.mask[i]].min() > 110
    with pytest.raises(UserError, match=r"config\.data\.fit"):
        DataSettings("folder", dir=tmp_path, fit="squash")


# --- layouts ---


def test_folder_without_labels_is_all_normal(tmp_path):
    for i in range(30):
        write(tmp_path / "deep" / f"{i}.png")
    loaded = load("folder", tmp_path, channels=3)
    assert loaded.train.image.shape[1:] == (16, 16, 3) and (loaded.train.image == 100).all()
    assert sum(len(split.label) for split in loaded[:3]) == 30
    assert not everything(loaded).label.any() and everything(loaded).has_mask.all()
    assert any("used as normal images" in note for note in loaded.notes)
    assert any("no anomalous test images" in note for note in loaded.notes)


def test_folder_with_another_layout_is_not_used_as_normal_images(tmp_path):
    for name in "train/good", "test/crack":
        for i in range(10):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="use the source 'mvtec'"):
        load("folder", tmp_path)


@pytest.mark.parametrize(
    ("normal", "anomalous"), [("Normal", "Anomalous"), ("ok", "nok"), ("GOOD", "bad"), ("good", "Defective/scratch")]
)
def test_folder_names_are_labels(normal, anomalous, tmp_path):
    for i in range(20):
        write(tmp_path / normal / f"{i}.png")
    write(tmp_path / anomalous / "0.png")
    write(tmp_path / "spare" / "0.png")
    loaded = load("folder", tmp_path)
    assert loaded.test.path[loaded.test.label].tolist() == [f"{anomalous}/0.png"]
    assert sum(len(split.label) for split in loaded[:3]) == 21
    assert [note for note in loaded.notes if note == "1 images are not used: spare (1 images)"]


@pytest.mark.parametrize(
    "names", [("train/normal", "test/normal", "test/anomalous"), ("a/Defect", "b"), ("a/good", "a/scrap", "b/good")]
)
def test_mixed_subfolders_are_not_used_as_normal_images(names, tmp_path):
    for name in names:
        for i in range(10):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="not all its images are normal"):
        load("folder", tmp_path)


def test_split_of_another_user_is_not_used_as_normal_images(tmp_path):
    for name in "train/ok", "val/ok", "test/ok", "test/nok":
        for i in range(12):
            write(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="not all its images are normal"):
        load("folder", tmp_path)


def test_unused_and_unsupported_files_are_noted(tmp_path):
    for i in range(20):
        write(tmp_path / "set" / "ok" / f"{i}.png")
    write(tmp_path / "other" / "1.png")
    (tmp_path / "set" / "ok" / "a.HEIC").write_bytes(b"")
    notes = load("folder", tmp_path).notes
    assert any(note.endswith(f"1 images elsewhere in {tmp_path} are not used: other (1 images)") for note in notes)
    assert "files in unsupported formats: 1 .heic. Convert them to PNG or JPEG" in notes


def test_folder_with_defect_types_and_masks(tmp_path):
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
    assert any(note.startswith("2 anomalous images have no mask") for note in loaded.notes)


def test_no_image_gets_the_mask_of_another(tmp_path):
    """The files of both tumor folders have the same numbers."""
    for i in range(20):
        write(tmp_path / "healthy" / f"{i}.png")
    for name in "glioma", "meningioma":
        write(tmp_path / name / "0.png")
    write_mask(tmp_path / "tumor_mask" / "0.png")
    loaded = load("brain", tmp_path)
    assert not loaded.test.has_mask[loaded.test.label].any()
    assert any("1 masks fit more than one image" in note for note in loaded.notes)
    write_mask(tmp_path / "tumor_mask" / "glioma" / "0.png")
    loaded = load("brain", tmp_path)
    test = loaded.test.select(loaded.test.label)
    assert test.path[test.has_mask].tolist() == ["glioma/0.png"]  # the other mask is still ambiguous
    write_mask(tmp_path / "tumor_mask" / "meningioma" / "0.png")
    assert load("brain", tmp_path).test.has_mask.all()


def test_category_of_a_source_without_categories_is_an_error(tmp_path):
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
        for defect_type in "good", "crack":
            for i in range(4):
                write(tmp_path / category / "test" / defect_type / f"{i:03d}.png")
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


def test_mvtec_category_folder_and_own_split(mvtec):
    selected = load("mvtec", mvtec, category="bottle")
    single = load("mvtec", mvtec / "bottle")
    assert single.conditions == ("bottle",)
    assert set(single.train.group) == set(selected.train.group)
    assert {f"bottle/{path}" for path in single.test.path} == set(selected.test.path)
    assert single.test.mask.any((1, 2)).sum() == 4
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
    assert "Squash skipped: it has no normal images" in loaded.notes
    assert not set(loaded.train.group) & set(loaded.test.group)
    potato = load("plant", tmp_path, category="Potato")
    assert potato.conditions == ("Potato",) and not potato.test.condition.any()


# --- a layout of another package ---

TOY = '''
"""A toy layout: one folder per material, whose files are named ok or ng."""

from bigan_jax.data.layouts.layout import Layout, child_folders
from bigan_jax.data.records import ImageRecord, Listing


def _list_datasets(layout, folder, category):
    materials = sorted(folder.subfolders())
    records = [
        ImageRecord(f"{material}/{name}", name.startswith("ng"), f"{material}/{name}", condition)
        for condition, material in enumerate(materials)
        for name in folder.images(material)
    ]
    return {"": Listing(records, tuple(materials))}


LAYOUT = Layout(
    name="toy",
    expected="  dir/<material>/ok0.png, dir/<material>/ng0.png",
    builder="toy_images",
    description="Toys.",
    is_root=lambda path, folders: "wood" in child_folders(path, folders),
    list_datasets=_list_datasets,
)
'''


def test_layout_is_added_by_one_module(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy.py").write_text(TOY)
    (tmp_path / "modules" / "toy_helper.py").write_text("")  # not a layout
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "modules")])
    monkeypatch.setattr(layouts, "LAYOUTS", layouts.find_layouts())
    assert sorted(layouts.LAYOUTS) == ["brain", "folder", "mvtec", "plant", "toy"]
    for material in "wood", "felt":
        for i in range(20):
            write(tmp_path / "toys" / "all" / material / f"ok{i}.png")
        write(tmp_path / "toys" / "all" / material / "ng0.png")
    loaded = load("toy", tmp_path / "toys", tfds_dir=tmp_path / "tfds")
    assert loaded.conditions == ("felt", "wood") and loaded.test.label.sum() == 2
    assert len(everything(loaded).label) == 42
    assert "the layout begins in the folder all" in loaded.notes
    assert load("toy", tmp_path / "toys", category="wood").conditions == ("wood",)
    (dataset,) = (tmp_path / "tfds" / "toy_images").glob("toys-*/1.0.0")
    assert "Toys." in (dataset / "dataset_info.json").read_text()
    with pytest.raises(UserError, match=r"expects.*\n  dir/<material>/ok0\.png"):
        load("toy", tmp_path / "nowhere")


# --- messages to the user ---


def test_categories_are_a_comma_list():
    assert select_categories(" b,a, b ", ["a", "b", "c"]) == ["b", "a"]
    assert select_categories("", ["a", "b"]) == select_categories("all", ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("source", ["folder", "brain", "mvtec", "plant"])
def test_error_for_a_missing_or_empty_folder_shows_the_layout(tmp_path, source):
    for folder in "", tmp_path / "nowhere", tmp_path:
        with pytest.raises(UserError) as error:
            load(source, folder)
        assert "dir/" in str(error.value) and ":phantom" in str(error.value)
        assert str(folder) in str(error.value)
        assert source == "folder" or "Download" in str(error.value)
    for folder in "", tmp_path / "nowhere":
        settings_ = DataSettings(source, dir=folder)
        with pytest.raises(UserError) as reported:
            require_data_folder(settings_)
        with pytest.raises(UserError) as read:
            loading.load_dataset(settings_)
        assert str(reported.value) == str(read.value)


def test_existing_data_and_the_phantom_need_no_other_folder(tmp_path):
    for i in range(12):
        write(tmp_path / "images" / f"{i}.png")
    mine = DataSettings("folder", dir=tmp_path / "images", tfds_dir=tmp_path / "tfds", image_size=8)
    for data_settings in DataSettings("phantom"), mine:
        require_data_folder(data_settings)
    loading.load_dataset(mine)
    shutil.rmtree(tmp_path / "images")
    require_data_folder(mine)  # prepared data replace it
    shutil.rmtree(tmp_path / "tfds")
    with pytest.raises(UserError, match="There is no folder"):
        require_data_folder(mine)


def test_missing_folder_is_reported_without_jax_and_tfds():
    code = """
import sys
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.source import require_data_folder
from bigan_jax.errors import UserError
try:
    require_data_folder(DataSettings("plant", dir="/nowhere"))
except UserError as error:
    assert "There is no folder /nowhere" in str(error)
    print([name for name in ("jax", "tensorflow_datasets") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_invalid_settings_are_named(mvtec):
    with pytest.raises(UserError, match="Did you mean 'phantom'"):
        load("phantm", "")
    with pytest.raises(UserError, match="Did you mean 'bottle'"):
        load("mvtec", mvtec, category="botle")
    with pytest.raises(UserError, match="Did you mean 'head'"):
        load("phantom", "", category="hed")
    with pytest.raises(UserError, match="channels must be"):
        load("phantom", "", channels=2)
    with pytest.raises(UserError, match="image_size must be an integer of at least 8"):
        load("phantom", "", image_size=0)
    with pytest.raises(UserError, match="phantom_anomalous must be an integer of at least 0"):
        load("phantom", "", phantom_anomalous=-5)
    with pytest.raises(UserError, match="Only 4 normal images"):
        load("folder", mvtec / "bottle" / "test")


# --- the real datasets ---


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the dataset {name} is not in {REAL}")
    return REAL / name


def test_real_bottle():
    loaded = load("mvtec", real("mvtec_ad"), category="bottle")
    assert len(loaded.train.label) + len(loaded.calibration.label) == 209
    assert loaded.test.label.sum() == 63 and len(loaded.test.label) == 83
    assert loaded.test.has_mask.all() and (loaded.test.mask.any((1, 2)) == loaded.test.label).all()


def test_real_brain_divides_no_patient_and_finds_every_mask():
    loaded = load("brain", real("brain"))
    train, calibration, test = (set(split.group) for split in loaded[:3])
    assert not (train & calibration or train & test or calibration & test)
    images = everything(loaded)
    assert (~images.label).sum() == 663 and images.has_mask.all()
    assert (images.mask.any((1, 2)) == images.label).all()
    n_excluded = int(loaded.notes[0].split()[0])
    assert images.label.sum() + n_excluded == 897


def test_real_brain_mixed():
    images = everything(load("brain", real("brain_mixed")))
    assert (~images.label).sum() == 800 and images.label.sum() == 400


def test_real_plant():
    loaded = load("plant", real("plant"))
    images = everything(loaded)
    n_excluded = int(loaded.notes[0].split()[0])
    assert (~images.label).sum() + n_excluded == 1000 and images.label.sum() == 400
    numbers = [
        {int(path[-8:-4]) for path, label in zip(split.path, split.label, strict=True) if not label}
        for split in loaded[:3]
    ]
    for first, second in combinations(numbers, 2):
        assert min(abs(a - b) for a in first for b in second) > 10
