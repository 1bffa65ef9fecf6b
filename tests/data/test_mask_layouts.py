"""Where masks lie beside images, how they are named, and their content."""

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.layouts.names import is_mask_folder, mask_base
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything
from tests.helpers.layouts import anomalies, counts, draw, normals


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
