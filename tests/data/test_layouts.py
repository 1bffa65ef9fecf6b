"""Layouts of common public datasets and of users' folders: labels, masks, and messages where they are not certain."""

import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files import folders
from bigan_jax.data.layouts.names import Selection, is_mask_folder, known_label, mask_base, split_state
from bigan_jax.data.layouts.plant import LAYOUT as PLANT
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything


def draw(path, defect=False, seed=None):
    """Draws a gradient with noise; a defect is a dark square, whose mask is returned."""
    rng = np.random.default_rng(seed if seed is not None else sum(map(ord, str(path))))
    image = np.tile(np.linspace(80, 200, 32), (32, 1)) + rng.normal(0, 5, (32, 32))
    mask = np.zeros((32, 32), np.uint8)
    if defect:
        mask[8:16, 4:12] = 255
        image[mask > 0] = 5
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return mask


def normals(folder, n=20, name="{:03d}.png"):
    for i in range(n):
        draw(folder / name.format(i))


def anomalies(folder, n=5, name="{:03d}.png", masks=None, mask_name="{:03d}.png", change=lambda mask: mask):
    for i in range(n):
        mask = draw(folder / name.format(i), defect=True)
        if masks:
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(change(mask)).save(masks / mask_name.format(i))


def counts(loaded):
    """Returns the numbers of normal and anomalous images, and of masks with the drawn defect."""
    images = everything(loaded)
    expected = np.zeros((16, 16), bool)
    expected[4:8, 2:6] = True
    is_drawn = (images.mask == expected).all(axis=(1, 2))
    assert not images.mask[~is_drawn].any()
    return (~images.label).sum(), images.label.sum(), is_drawn.sum()


# --- masks next to images ---


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("{:03d}.png", "{:03d}_mask.png"),
        ("{:03d}.jpg", "{:03d}.png"),  # Magnetic tile
        ("{:03d}.bmp", "{:03d}_GT.png"),  # KolektorSDD2
        ("Part{}.jpg", "Part{}_label.bmp"),  # KolektorSDD
        ("malignant ({}).png", "malignant ({})_mask.png"),  # BUSI
        ("slice_{}_flair.png", "slice_{}_seg.png"),  # BraTS as slices
        ("a{}.png", "mask_a{}.png"),
        ("IMG_{}.JPG", "img_{}-Ground-Truth.png"),
        ("{}_image.png", "{}_annotation.png"),
        ("{:03d}.png", "gt/{:03d}.png"),
        ("{:03d}.png", "Label/{:03d}_label.PNG"),  # DAGM
        ("JPEGImages/{:03d}.jpg", "SegmentationClass/{:03d}.png"),  # VOC
        ("rgb/{:03d}.png", "gt/{:03d}.png"),  # MVTec 3D
    ],
)
def test_masks_next_to_images_are_masks(name, mask, tmp_path, load):
    normals(tmp_path / "data/normal")
    parent = (tmp_path / "data/anomalous" / mask).parent
    anomalies(tmp_path / "data/anomalous", name=name, masks=parent, mask_name=mask.rpartition("/")[2])
    assert counts(load("folder", tmp_path / "data")) == (20, 5, 5)


def test_masks_of_normal_images_do_not_train(tmp_path, load):
    for i in range(20):
        draw(tmp_path / "data/normal" / f"{i}.jpg")
        Image.new("L", (32, 32)).save(tmp_path / "data/normal" / f"{i}_mask.png")
    anomalies(tmp_path / "data/defect", masks=tmp_path / "data/defect", mask_name="{:03d}_mask.png")
    loaded = load("folder", tmp_path / "data")
    assert counts(loaded) == (20, 5, 5)
    assert any(note.startswith("20 masks belong to no anomalous image") for note in loaded.notes)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (("bad/{:03d}_mask1.png", "bad/{:03d}_mask2.png"), "folder"),
        (("masks/bad/{:03d}_mask.png", "masks/bad/{:03d}_mask_1.png"), "folder"),
        (("ground_truth/bad/{:03d}/000.png", "ground_truth/bad/{:03d}/001.png"), "mvtec"),  # MVTec LOCO
    ],
)
def test_several_masks_of_an_image_are_merged(names, layout, tmp_path, load):
    root = tmp_path / "data"
    if layout == "mvtec":
        normals(root / "train/good")
        normals(root / "test/good", 4)
    else:
        normals(root / "normal")
    for i in range(5):
        mask = draw(root / ("test/bad" if layout == "mvtec" else "bad") / f"{i:03d}.png", defect=True)
        part = np.zeros_like(mask)
        part[:12] = mask[:12]
        for name, values in zip(names, (part, mask - part), strict=True):
            (root / name.format(i)).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / name.format(i))
    loaded = load(layout, root)
    assert counts(loaded)[1:] == (5, 5)  # each has both halves
    assert any("5 anomalous images have several masks" in note and "merged" in note for note in loaded.notes)
    (root / names[1].format(2)).write_bytes(b"broken")
    with pytest.raises(UserError, match=names[1].format(2)):
        load(layout, root)
    Image.new("L", (16, 32)).save(root / names[1].format(2))
    with pytest.raises(UserError, match="masks of one image have the sizes 32x32 and 16x32"):
        load(layout, root)


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
@pytest.mark.parametrize("images", ["imagesTr", "images"])
def test_masks_of_nnunet_have_no_channel(suffix, images, tmp_path, load):
    rng = np.random.default_rng(0)

    def save(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            Image.fromarray(values.astype(np.uint8)).save(path)
        else:
            nib = pytest.importorskip("nibabel")
            nib.save(nib.Nifti1Image(values.T[:, ::-1, None].astype(np.int16), np.eye(4)), path)

    root = tmp_path / "data"
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 4:12] = 1
    for i in range(20):
        save(root / f"normal/{images}/n_{i:03d}_0000{suffix}", rng.integers(0, 200, (32, 32)))
    for i in range(5):
        save(root / f"anomalous/{images}/case_{i:03d}_0000{suffix}", rng.integers(0, 200, (32, 32)))
        save(root / f"anomalous/labelsTr/case_{i:03d}{suffix}", mask)
    loaded = load("folder", root)
    assert counts(loaded) == (20, 5, 5)
    assert not any("masks" in note for note in loaded.notes)
    for i in range(4):
        save(root / f"anomalous/{images}/case_{i:03d}_0001{suffix}", rng.integers(0, 200, (32, 32)))
    match = r"several channels of one case: _0000 \(25 files\), _0001 \(4 files\)"
    with pytest.raises(UserError, match=match) as error:
        load("folder", root)
    flags = dict(part.split("=") for part in str(error.value).rstrip(".").split("--config.data.")[1:])
    chosen = load("folder", root, **{name: value.strip(" '") for name, value in flags.items()})
    assert counts(chosen) == (20, 5, 5) and not any("_0001" in path for path in everything(chosen).path)


def test_links_to_folders_inside_are_named_and_do_not_loop(tmp_path, load):
    normals(tmp_path / "data/normal")
    anomalies(tmp_path / "data/defects_v2")
    (tmp_path / "data/anomalous").symlink_to("defects_v2")
    (tmp_path / "data/normal/up").symlink_to("..")
    loaded = load("folder", tmp_path / "data")
    assert counts(loaded)[0] == 20 and len(everything(loaded).path) == 20
    for name in "anomalous/", "normal/up/":
        assert any(note.startswith(f"{name}: a link to a folder of the data folder") for note in loaded.notes)


def test_numbered_images_are_not_channels(tmp_path, load):
    normals(tmp_path / "data/normal", name="part_{:04d}.png")
    anomalies(tmp_path / "data/bad", name="hole_{:04d}.png", masks=tmp_path / "data/masks", mask_name="hole_{:04d}.png")
    assert counts(load("folder", tmp_path / "data")) == (20, 5, 5)


def test_mask_of_several_modalities(tmp_path, load):
    """As in BraTS: one segmentation of the volumes t1n and t2w."""
    nib = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)

    def save(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), path)

    for i in range(6):
        save(tmp_path / f"data/normal/n{i}.nii.gz", rng.integers(0, 99, (32, 32, 3)))
    for patient in "P1", "P2":
        for modality in "t1n", "t2w":
            save(tmp_path / f"data/tumor/{patient}/{patient}-{modality}.nii.gz", rng.integers(0, 99, (32, 32, 3)))
        mask = np.zeros((32, 32, 3))
        mask[8:16, 8:16, 1:] = 1
        save(tmp_path / f"data/tumor/{patient}/{patient}-seg.nii.gz", mask)
    loaded = load("folder", tmp_path / "data", skip_unreadable=False)
    test = loaded.test.select(loaded.test.label)
    assert len(test.path) == 8 and test.has_mask.all()  # two slices of two volumes of two patients
    assert not any("-seg" in path for path in everything(loaded).path)


@pytest.mark.parametrize(
    ("name", "siblings", "expected"),
    [
        *[
            (name, (), True)
            for name in ("masks", "Ground-Truth", "GroundTruth", "tumor_mask", "labelsTr", "val_labels")
        ],
        *[(name, (), False) for name in ("with_mask", "missing_label", "unlabeled", "marks", "segments")],
        ("crack_mask", (), False),
        ("crack_mask", ("crack",), True),
    ],
)
def test_names_of_mask_folders(name, siblings, expected):
    assert is_mask_folder(name, siblings) == expected


def test_names_of_masks():
    assert mask_base("000_mask") == mask_base("000-GT") == mask_base("mask_000") == mask_base("000Mask") == "000"
    assert mask_base("benign (1)_mask_2") == "benign (1)"
    assert mask_base("000") is mask_base("maskless_1") is mask_base("label") is None


def test_drawings_over_images_are_neither_images_nor_masks(tmp_path, load):
    normals(tmp_path / "data/normal")
    anomalies(tmp_path / "data/anomalous", masks=tmp_path / "data/anomalous", mask_name="{:03d}_mask.png")
    anomalies(tmp_path / "data/anomalous", name="{:03d}_overlay.png")
    loaded = load("folder", tmp_path / "data")
    assert counts(loaded) == (20, 5, 5)
    note = "5 masks belong to no anomalous image, such as anomalous/000_overlay.png"
    assert note in loaded.notes


def test_objects_named_mask_are_images(tmp_path, load):
    normals(tmp_path / "data/normal", name="mask_{:03d}.png")
    anomalies(tmp_path / "data/anomalous", name="mask_{:03d}.png")
    loaded = load("folder", tmp_path / "data")
    assert counts(loaded) == (20, 5, 0)
    assert any(note.startswith("25 images are named like masks") for note in loaded.notes)


def test_masks_without_labels_stop(tmp_path, load):
    """The masks show which images are anomalous; the folders do not."""
    normals(tmp_path / "data")
    anomalies(tmp_path / "data", name="b{}.png", masks=tmp_path / "data/Label", mask_name="b{}_label.png")
    with pytest.raises(UserError, match=r"25 images and 5 masks, such as Label/b0_label\.png"):
        load("folder", tmp_path / "data")
    rows = [f"{p.name},{'anomalous' if p.name[0] == 'b' else 'normal'}" for p in (tmp_path / "data").glob("*.png")]
    (tmp_path / "data/metadata.csv").write_text("\n".join(["file,label", *rows]))
    assert counts(load("folder", tmp_path / "data")) == (20, 5, 5)


def test_visa_has_masks_above_the_folders_of_images(tmp_path, load):
    data = tmp_path / "candle/Data"
    normals(data / "Images/Normal", name="{:04d}.JPG")
    anomalies(data / "Images/Anomaly", name="{:03d}.JPG", masks=data / "Masks/Anomaly")
    assert counts(load("folder", tmp_path / "candle")) == (20, 5, 5)


# --- content of masks ---


def alpha_only(mask):
    return np.dstack([np.zeros((*mask.shape, 3), np.uint8), mask])


@pytest.mark.parametrize(
    ("change", "n_masks"),
    [
        (alpha_only, 5),
        (lambda mask: np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask]), 5),
        (lambda mask: np.dstack([mask, mask, mask, np.full_like(mask, 255)]), 5),
        (lambda mask: np.dstack([np.zeros_like(mask), mask]), 5),  # gray with alpha
        (lambda mask: mask // 255, 5),  # class 1, nearly black
        (lambda mask: mask.astype(np.uint16) * 257, 5),
        (lambda mask: mask > 0, 5),
    ],
)
def test_forms_of_masks(change, n_masks, tmp_path, load):
    normals(tmp_path / "data/normal")
    anomalies(tmp_path / "data/anomalous", masks=tmp_path / "data/masks", change=change)
    loaded = load("folder", tmp_path / "data")
    assert counts(loaded) == (20, 5, n_masks)
    assert not any("masks" in note for note in loaded.notes)


def test_palette_masks(tmp_path, load):
    normals(tmp_path / "data/normal")
    anomalies(tmp_path / "data/anomalous", masks=tmp_path / "data/masks")
    for file in (tmp_path / "data/masks").iterdir():
        mask = Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8), "P")
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(file)
    assert counts(load("folder", tmp_path / "data")) == (20, 5, 5)


def test_empty_and_inverted_masks_are_noted(tmp_path, load):
    normals(tmp_path / "data/normal")
    anomalies(tmp_path / "data/anomalous/hole", masks=tmp_path / "data/masks/hole", change=lambda mask: 255 - mask)
    anomalies(tmp_path / "data/anomalous/dent", 3, masks=tmp_path / "data/masks/dent", change=lambda mask: 0 * mask)
    notes = "\n".join(load("folder", tmp_path / "data").notes)
    assert "3 of 8 masks are empty, such as that of anomalous/dent/000.png" in notes
    assert "5 of 8 masks cover more than 90 % of the image" in notes and "inverted?" in notes


# --- MVTec's layout under other names ---


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


# --- labels under unknown names ---


@pytest.mark.parametrize(
    ("normal", "anomalous"),
    [
        ("no", "yes"),
        ("ok_front", "def_front"),
        ("Negative", "Positive"),
        ("0", "1"),
        ("train/ok_front", "train/def_front"),
        ("MT_Free/Imgs", "MT_Fray/Imgs"),
        ("uninfected", "Parasitized"),
    ],
)
def test_unknown_class_folders_stop_until_they_are_named(normal, anomalous, tmp_path, load):
    normals(tmp_path / "data" / normal)
    anomalies(tmp_path / "data" / anomalous, 8)
    with pytest.raises(UserError) as error:
        load("folder", tmp_path / "data")
    listed = sorted([f"{normal} (20", f"{anomalous} (8"])
    assert all(text in str(error.value) for text in listed)
    names = [path.removesuffix("/Imgs").rpartition("/")[2] for path in (normal, anomalous)]
    remedy = dict(re.findall(r"--config\.data\.(\w+)=([^ *.']+)", str(error.value).partition(". If all")[0]))
    assert remedy == dict(zip(("normal", "anomalous"), names, strict=True))
    loaded = load("folder", tmp_path / "data", **remedy)
    assert counts(loaded) == (20, 8, 0)
    assert all(path.startswith(normal) for path in loaded.train.path)
    assert counts(load("folder", tmp_path / "data", normal="*")) == (28, 0, 0)
    assert counts(load("folder", tmp_path / "data", normal=names[0], anomalous="*")) == (20, 8, 0)


@pytest.mark.parametrize(
    ("normal", "anomalous"),
    [
        ("ok_{}.png", "def_{}.png"),
        ("{} no.png", "Y{}.png"),
        ("part_{}.png", "part_{}_defect.png"),
        ("a{}.png", "bad{}.png"),
    ],
)
def test_labels_in_file_names_stop_until_they_are_named(normal, anomalous, tmp_path, load):
    normals(tmp_path / "data", name=normal)
    anomalies(tmp_path / "data", name=anomalous)
    with pytest.raises(UserError, match="names of its files may be labels") as error:
        load("folder", tmp_path / "data")
    remedy = dict(re.findall(r"--config\.data\.(\w+)='([^']+)'", str(error.value).partition(". If all")[0]))
    assert counts(load("folder", tmp_path / "data", **remedy)) == (20, 5, 0)


def test_official_split_of_another_layout(tmp_path, load):
    """As of chest X-rays: the message's remedies are a pooled folder, or the source mvtec."""
    for split, n in ("train", 20), ("val", 4), ("test", 6):
        normals(tmp_path / "data" / split / "NORMAL", n, name=f"{split}-{{}}.png")
        anomalies(tmp_path / "data" / split / "PNEUMONIA", 3)
    with pytest.raises(UserError, match=r"test/PNEUMONIA \(3\), train/NORMAL \(20\)[^|]*use the source 'mvtec'"):
        load("folder", tmp_path / "data")
    pooled = load("folder", tmp_path / "data", normal="NORMAL", anomalous="PNEUMONIA")
    assert counts(pooled) == (30, 9, 0)
    official = load("mvtec", tmp_path / "data")
    assert counts(official) == (30, 3, 0) and (~official.test.label).sum() == 6
    assert any("6 images are not used: train/PNEUMONIA (3 images), val/PNEUMONIA (3)" in n for n in official.notes)


def test_unknown_folders_next_to_normal_ones_are_named(tmp_path, load):
    normals(tmp_path / "data/Normal")
    anomalies(tmp_path / "data/PNEUMONIA")
    notes = load("folder", tmp_path / "data").notes
    assert any("PNEUMONIA (5 images). If they are anomalous: --config.data.anomalous='PNEUMONIA'" in n for n in notes)


@pytest.mark.parametrize("header", ["file,label", "file_name,target", "path;Label"])
def test_labels_of_metadata(header, tmp_path, load):
    normals(tmp_path / "data/images", name="a{}.png")
    anomalies(tmp_path / "data/images", name="b{}.png")
    table, separator = tmp_path / "data/metadata.csv", ";" if ";" in header else ","

    def write_table(normal, anomalous):
        rows = [f"images/a{i}.png{separator}{normal}" for i in range(20)]
        rows += [f"images/b{i}.png{separator}{anomalous}" for i in range(5)]
        table.write_text("\n".join([header, *rows]))

    write_table("Good", "Defect")
    assert counts(load("folder", tmp_path / "data")) == (20, 5, 0)
    write_table("0", "1")
    with pytest.raises(
        UserError, match=r"not known: 0 \(20 images\), 1 \(5 images\).*normal=0 --config\.data\.anomalous=1"
    ):
        load("folder", tmp_path / "data")
    assert counts(load("folder", tmp_path / "data", normal="0", anomalous="1")) == (20, 5, 0)
    write_table("normal", "")
    with pytest.raises(UserError, match=r"5 of 25 images have no label in metadata\.csv, such as images/b0\.png"):
        load("folder", tmp_path / "data")


def test_metadata_that_contradicts_a_folder_is_an_error(tmp_path, load):
    normals(tmp_path / "data/normal")
    (tmp_path / "data/metadata.csv").write_text("file,label\nnormal/003.png,defect\n")
    with pytest.raises(UserError, match=r"normal/003\.png has the label defect .*contradicts"):
        load("folder", tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("train.csv", "image_id,healthy,rust\n1,0,1\n", "'healthy' of train.csv"),
        ("003.xml", "<a/>", r"1 files .*003\.xml"),
    ],
)
def test_files_that_may_have_labels_stop(name, content, named, tmp_path, load):
    normals(tmp_path / "data")
    (tmp_path / "data" / name).write_text(content)
    with pytest.raises(UserError, match=named):
        load("folder", tmp_path / "data")
    assert counts(load("folder", tmp_path / "data", normal="*")) == (20, 0, 0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Good", "no_tumor", "Non-Defective", "NoDefect", "defect free", "undamaged", "without defects"), False),
        (("KO", "not_ok", "unhealthy", "Abnormal", "not good", "NG"), True),
        (("no", "1", "label", "nodule", "unknown", "no_label", "goodyear", "free", ""), None),
    ],
)
def test_names_with_a_certain_label(names, expected):
    assert {known_label(name) for name in names} == {expected}


def test_selection_prefers_plain_names():
    selection = Selection(normal="MT_Free,*", anomalous="MT_*,b/c")
    assert selection.label("MT_Free/Imgs/1.png") is False
    assert selection.label("mt_blowhole/1.png") is True
    assert selection.label("other/1.png") is False
    assert selection.label("b/c/1.png") is True
    assert Selection().label("a/1.png") is None and Selection().label("NoTumor/1.png") is False
    with pytest.raises(UserError, match=r"good/bad/1\.png is both"):
        Selection().label("good/bad/1.png")
    with pytest.raises(UserError, match=r"config\.data\.normal=a"):
        Selection(normal="a", anomalous="a").label("a/1.png")


def test_settings_of_labels_have_separate_prepared_data(tmp_path, load):
    normals(tmp_path / "data/no")
    anomalies(tmp_path / "data/yes")
    labels = {"normal": "no", "anomalous": "yes"}
    load("folder", tmp_path / "data", **labels)
    load("folder", tmp_path / "data", normal="*")
    (tmp_path / "data").rename(tmp_path / "away")
    assert counts(load("folder", tmp_path / "data", **labels)) == (20, 5, 0)
    assert counts(load("folder", tmp_path / "data", normal="*")) == (25, 0, 0)
    with pytest.raises(UserError, match="There is no folder"):
        load("folder", tmp_path / "data", normal="no")


# --- species ---


@pytest.mark.parametrize(
    ("healthy", "diseased", "expected"),
    [
        (["Tomato_healthy"], ["Tomato__Target_Spot", "Tomato_Early_blight"], ["Tomato"]),
        (["Tomato___healthy", "Pepper__bell___healthy"], ["Pepper__bell___Spot"], ["Pepper__bell", "Tomato"]),
        (["Apple_Good", "Lime_Good"], ["Apple_Bad", "Lime_Bad"], ["Apple", "Lime"]),
        (["Tomato healthy"], ["tomato leaf mold"], ["Tomato"]),
        (["Corn_(maize)___healthy"], ["Corn_(maize)___Common_rust_"], ["Corn_(maize)"]),
    ],
)
def test_species_by_any_separator(healthy, diseased, expected, tmp_path):
    for name in healthy:
        normals(tmp_path / name, 4)
    for name in diseased:
        anomalies(tmp_path / name, 3)
    anomalies(tmp_path / "Background", 2)
    listing = PLANT.list_folder(folders.open_folder(folders.resolve_path(tmp_path)), Selection())[""]
    assert list(listing.conditions) == expected
    assert sum(not r.label for r in listing.records) == 4 * len(healthy)
    assert sum(r.label for r in listing.records) == 3 * len(diseased)
    assert all(r.path.casefold().startswith(expected[r.condition].casefold()) for r in listing.records)
    assert "2 images are not used: Background (2 images)" in listing.notes


def test_states_of_species():
    assert split_state("Pepper__bell___healthy") == "Pepper__bell"
    assert split_state("Tomato_unhealthy") is split_state("Corn_non_healthy") is split_state("healthy") is None


# --- volumes without masks, Unicode ---


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


# --- folders and links ---


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
