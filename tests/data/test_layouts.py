"""Layouts of common public datasets and of users' folders."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files import folders
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything
from tests.helpers.layouts import anomalies, counts, draw, normals


@pytest.mark.parametrize(
    ("train", "test", "anomalous", "masks"),
    [
        ("train/good", "test/Good", "test/hole", "ground_truth/hole"),
        ("train/ok", "test/ok", "test/ko", "ground_truth/ko"),  # BTAD
        ("Train/Non-Defective", "Test/non_defective", "Test/hole", "Ground Truth/hole"),
        ("training/NORMAL", "testing/normal", "testing/hole", "masks/hole"),
        ("train/good", "test/defect free", "test/missing_label", "ground_truth/missing_label"),
        ("train/good/rgb", "test/good/rgb", "test/hole/rgb", "test/hole/gt"),  # MVTec 3D
    ],
)
def test_mvtec_under_other_names(train, test, anomalous, masks, tmp_path, load):
    root = tmp_path / "data/part"
    normals(root / train)
    normals(root / test, 6)
    anomalies(root / anomalous, 8, masks=root / masks, mask_name="{:03d}_mask.png")
    loaded = load("mvtec", tmp_path / "data")
    assert counts(loaded) == (26, 8, 8)
    assert (~loaded.test.label).sum() == 6 and set(loaded.test.defect_type) == {"good", anomalous.split("/")[1]}


def test_mvtec_loco_has_validation_images_and_folders_of_masks(tmp_path, load):
    root = tmp_path / "data/bag"
    normals(root / "train/good")
    normals(root / "validation/good", 10)
    normals(root / "test/good", 6)
    for i in range(3):
        mask = draw(root / f"test/logical_anomalies/{i:03d}.png", defect=True)
        folder = root / f"ground_truth/logical_anomalies/{i:03d}"
        folder.mkdir(parents=True)
        Image.fromarray(mask).save(folder / "000.png")
    loaded = load("mvtec", tmp_path / "data")
    assert counts(loaded) == (36, 3, 3) and (~loaded.test.label).sum() == 6
    assert "bag: the 10 validation images are used for training and calibration" in loaded.notes
    assert not any("test" in path for path in loaded.train.path)


def test_mvtec_without_normal_test_images(tmp_path, load):
    root = tmp_path / "data/part"
    normals(root / "train/good", 40)
    loaded = load("mvtec", tmp_path / "data")
    assert len(loaded.test.label) > 0 and not loaded.test.label.any()
    assert any("they are chosen from the training images" in note for note in loaded.notes)
    normals(root / "test/fine", 6)
    anomalies(root / "test/hole")
    with pytest.raises(UserError, match=r"no normal test images: test/fine \(6 images\), test/hole \(5\)"):
        load("mvtec", tmp_path / "data")
    loaded = load("mvtec", tmp_path / "data", normal="good,fine")
    assert (~loaded.test.label).sum() == 6 and loaded.test.label.sum() == 5
    assert load("mvtec", tmp_path / "data", normal="good").test.label.sum() == 11


def test_mvtec_names_what_it_does_not_use(tmp_path, load):
    root = tmp_path / "data/part"
    normals(root / "train/good")
    normals(root / "test/good", 5)
    anomalies(root / "test/hole")
    anomalies(root / "train/spare", 4)
    anomalies(root / "extra", 3)
    loaded = load("mvtec", tmp_path / "data")
    assert counts(loaded) == (25, 5, 0)
    assert "part: 7 images are not used: extra (3 images), train/spare (4)" in loaded.notes


def test_slices_of_unmasked_volumes_are_noted(tmp_path, load):
    nib = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for name, n in ("normal", 8), ("anomalous", 2):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(n):
            volume = rng.integers(0, 99, (32, 32, 4)).astype(np.int16)
            nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "data" / name / f"v{i}.nii.gz")
    loaded = load("folder", tmp_path / "data")
    assert any("2 anomalous volumes or patients have no masks: all their 8 slices" in note for note in loaded.notes)


def test_names_match_in_any_unicode_form(tmp_path, load):
    nfd = lambda text: unicodedata.normalize("NFD", text)  # noqa: E731
    normals(tmp_path / "data/normal", 30, name=nfd("Prüfling_{:03d}.png"))
    anomalies(tmp_path / "data/anomalous", name=nfd("ä{}.png"), masks=tmp_path / "data/masks", mask_name="ä{}_mask.png")
    rows = [f"normal/Prüfling_{i:03d}.png,part{i // 3},größe" for i in range(30)]
    rows += [f"anomalous/ä{i}.png,bad{i},größe" for i in range(5)]
    text = "\n".join(["file,group,condition", *rows])
    (tmp_path / "data/metadata.csv").write_text(text, encoding="utf-8")
    loaded = load("folder", tmp_path / "data", category=nfd("größe"))
    assert counts(loaded) == (30, 5, 5)
    assert {*everything(loaded).group} == {f"part{i}" for i in range(10)} | {f"bad{i}" for i in range(5)}


def test_unlistable_folder_stops(tmp_path, load, monkeypatch):
    normals(tmp_path / "data/normal/monday")
    normals(tmp_path / "data/normal/tuesday")
    scandir = folders.os.scandir

    def refuse(path):
        if str(path).endswith("tuesday"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"1 of 21 .*\n  normal/tuesday: a folder that cannot be listed \(Permission"):
        load("folder", tmp_path / "data")
    loaded = load("folder", tmp_path / "data", skip_unreadable=True)
    assert counts(loaded) == (20, 0, 0) and any("normal/tuesday" in note for note in loaded.notes)


def test_files_are_walked_once_and_hidden_ones_are_left_out(tmp_path):
    normals(tmp_path, 2)
    for name in "._a.heic", "Thumbs.db", ".git/a.png", "__MACOSX/a.heic", "a.heic", "sub/b.xyz":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = folders.walk(tmp_path)
    assert found == (["000.png", "001.png"], [], ["a.heic", "sub/b.xyz"], [])


def test_remedy_for_links_out_of_the_folder_works(tmp_path, load):
    normals(tmp_path / "elsewhere")
    (tmp_path / "data/normal").mkdir(parents=True)
    for file in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "data/normal" / file.name).symlink_to(file)
    with pytest.raises(UserError, match="out of the data folder: put the file itself there, as cp -rL does"):
        load("folder", tmp_path / "data")
    folders.os.system(f"cp -rL '{tmp_path}/data' '{tmp_path}/copied'")
    assert counts(load("folder", tmp_path / "copied")) == (20, 0, 0)


def test_images_next_to_folders_stop(tmp_path, load):
    normals(tmp_path / "data")
    anomalies(tmp_path / "data/more")
    with pytest.raises(UserError, match=r"\. \(20 images\), more \(5\).*\n.*normal='\*' .*anomalous='more'"):
        load("folder", tmp_path / "data")
    assert counts(load("folder", tmp_path / "data", normal="*", anomalous="more")) == (20, 5, 0)


def test_brain_mri_of_both_published_splits(tmp_path, load):
    for split, n in ("Training", 20), ("Testing", 6):
        normals(tmp_path / "data" / split / "notumor", n, name=f"{split}{{}}.jpg")
        anomalies(tmp_path / "data" / split / "glioma", 3)
    loaded = load("brain", tmp_path / "data")
    assert counts(loaded) == (20, 3, 0)
    assert "the layout begins in the folder Training; Testing (9 images) skipped" in loaded.notes
    assert counts(load("brain", tmp_path / "data", normal="notumor", anomalous="glioma")) == (26, 6, 0)
