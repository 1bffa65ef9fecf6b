"""Groups and conditions from metadata.csv, and groups from camera numbers."""

import csv

import pytest
from etils import epath

from bigan_jax.data.files.folders import open_folder
from bigan_jax.data.layouts.grouping import apply_metadata, group_by_camera
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.errors import UserError
from tests.data.test_loading import load, write, write_mask


@pytest.mark.parametrize(("source", "column"), [("brain", "patient"), ("folder", "group"), ("folder", "patient")])
def test_metadata_groups_are_not_divided(source, column, tmp_path):
    rows = []
    for i in range(60):
        folder = "tumor" if i % 3 == 0 else "healthy"
        write(tmp_path / folder / f"{i:02d}.png")
        rows.append({"file": f"{folder}/{i:02d}.png", column: f"p{i % 12}"})
    write_mask(tmp_path / "tumor_mask" / "00.png")
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", column])
        table.writeheader()
        table.writerows(rows[:-1])
    loaded = load(source, tmp_path)
    train, calibration, test = (set(split.group) for split in loaded[:3])
    assert not (train & calibration or train & test or calibration & test)
    assert "p1" in train | calibration | test
    assert any(note.startswith("1 images have no group") for note in loaded.notes)


@pytest.mark.parametrize("root", ["set", "set/kaggle_3m", "a/b/c"])
@pytest.mark.parametrize("subfolder", ["", "healthy/"])
def test_metadata_in_the_layout_root_or_below(root, subfolder, tmp_path):
    for i in range(60):
        write(tmp_path / root / "healthy" / f"{i:02d}.png")
    path = "healthy/".removeprefix(subfolder)
    table = "\n".join(["file,patient", *(f"{path}{i:02d}.png,p{i % 6}" for i in range(60))])
    (tmp_path / root / subfolder / "metadata.csv").write_text(table)
    train, calibration, test = (set(s.group) for s in load("brain", tmp_path)[:3])
    assert train | calibration | test == {f"p{i}" for i in range(6)}
    (tmp_path / root / subfolder / "metadata.csv").write_text(table.replace("p5", "p4"))
    assert {*load("brain", tmp_path).train.group} <= {f"p{i}" for i in range(5)}


def test_metadata_above_the_layout_root_is_noted(tmp_path):
    for i in range(24):
        write(tmp_path / "set" / "normal" / f"{i:02d}.png")
        write(tmp_path / "set" / "anomalous" / f"{i:02d}.png")
    (tmp_path / "metadata.csv").write_text("file,group\nset/normal/00.png,a\n")
    assert "metadata.csv is not used: move it to set" in load("folder", tmp_path).notes


def grouped(folder, table, names=("normal/a.png", "normal/b.png", "c.png"), strict=False):
    """The group of each image by metadata.csv with the content `table`, and the notes."""
    (folder / "metadata.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    write(folder / "some.png")  # metadata.csv is searched in folders with images
    records = [ImageRecord(name, False, name.partition("#")[0]) for name in names]
    listing = apply_metadata(Listing(records, ()), open_folder(epath.Path(folder)), strict=strict)
    return [r.group for r in listing.records], listing.notes


@pytest.mark.parametrize("column", ["condition", "plane"])
def test_metadata_conditions(column, tmp_path):
    """MR planes with normal images are conditions; each has its share of the splits, whose sizes stay the same."""
    names = {"axial": ("normal", "anomalous"), "sagittal": ("normal",), "coronal": ("anomalous",)}
    rows = [f"file,{column}"]
    for plane, labels in names.items():
        for label in labels:
            for i in range(30):
                write(tmp_path / label / f"{plane}{i:02d}.png")
                rows.append(f"{label}/{plane}{i:02d}.png,{plane}")
    before = load("folder", tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    loaded = load("folder", tmp_path)
    assert loaded.conditions == ("axial", "sagittal")
    assert "coronal skipped: it has no normal images" in loaded.notes
    assert not any("no group" in note for note in loaded.notes)
    for split in loaded[:3]:
        planes = [loaded.conditions[c] for c in split.condition]
        assert all(plane in path for plane, path in zip(planes, split.path, strict=True))
    for split, other in zip(loaded[:2], before[:2], strict=True):
        normal = [sum(split.condition == condition) for condition in range(2)]
        assert len(split.path) == len(other.path) and abs(normal[0] - normal[1]) <= 1
    axial = load("folder", tmp_path, category="axial")
    assert axial.conditions == ("axial",) and len(axial.test.label) > 30
    with pytest.raises(UserError, match="coronal: there are no normal images"):
        load("folder", tmp_path, category="coronal")
    (tmp_path / "metadata.csv").write_text("\n".join([*rows[:-1], "anomalous/coronal29.png,"]))
    with pytest.raises(UserError, match=r"1 of 120 images have no condition.*coronal29\.png"):
        load("folder", tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join(rows).replace("axial\n", '"a,b"\n'))
    with pytest.raises(UserError, match="the condition a,b has a comma"):
        load("folder", tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join([*rows, rows[-1].replace(",c", ",x")]))
    with pytest.raises(UserError, match="has the conditions coronal and xoronal"):
        load("folder", tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [("file", "group"), ("File ", "Patient"), ("File", '"a;,;b"', "GROUP")])
def test_metadata_of_any_spreadsheet(separator, header, tmp_path):
    fill = ["x"] * (len(header) - 2)
    rows = header, [".\\normal\\a.png", *fill, "Zoe"], ["normal/b.png", *fill, "Zoe"], ["c.png"]
    text = "\r\n".join(map(separator.join, rows))
    groups, notes = grouped(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert groups == ["Zoe", "Zoe", "c.png"]
    assert notes == ("1 images have no group in metadata.csv: each is a group of its own",)


def test_metadata_may_list_volumes_and_never_divides_known_groups(tmp_path):
    names = "a.nii.gz#000", "a.nii.gz#001", "b.nii.gz#000", "b.nii.gz#001", "c.nii.gz#000"
    table = "file,group\na.nii.gz,Zoe\nb.nii.gz#001,Zoe\nnot/there.png,Max\n"
    groups, notes = grouped(tmp_path, table, names)
    assert groups == ["Zoe"] * 4 + ["c.nii.gz"] and notes == ()


@pytest.mark.parametrize(
    "table", ["", "\n", "file,subject\n", "file_name,text\na.png,b\n", b"\xff\xfe\0", '"' + "x" * 200_000]
)
def test_invalid_metadata_is_noted_or_an_error(table, tmp_path):
    """Next to a user's own images such a file may be about anything; for patients it is wrong."""
    groups, (note,) = grouped(tmp_path, table)
    assert groups == ["normal/a.png", "normal/b.png", "c.png"]
    assert note.startswith("not used: ") and "metadata.csv" in note
    with pytest.raises(UserError, match=r"metadata\.csv (cannot be read|has no columns file and)"):
        grouped(tmp_path, table, strict=True)


def test_inconsistent_metadata_is_an_error(tmp_path):
    twice = "file,group\nc.png,Zoe\nc.png,\nc.png,Max\n"
    with pytest.raises(UserError, match=r"c\.png has the groups Zoe and Max"):
        grouped(tmp_path, twice)
    elsewhere = "file,group\na.png,Zoe\nb.png,Zoe\n"
    with pytest.raises(UserError, match=r"lists no image .*: it has a\.png, .* as normal/a\.png"):
        grouped(tmp_path, elsewhere)
    assert grouped(tmp_path, twice.replace("Max", "Zoe"))[0][-1] == "Zoe"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("JR_HL_5807.jpg", "healthy/JR_HL 5800"),
        ("0a1b-22___JR_HL 5807.JPG", "healthy/JR_HL 5800"),
        ("0a1b-22___JR_HL 5899_new30degFlipLR.JPG", "healthy/JR_HL 5800"),
        ("GH_HL Leaf 259.1.JPG", "healthy/GH_HL_Leaf 200"),
        ("leaf.jpg", "own"),
        (f"{10**20}.png", "own"),  # prepared data store 64 bits
    ],
)
def test_camera_numbers_in_file_names(name, group):
    assert group_by_camera(ImageRecord(f"healthy/{name}", False, "own")).group == group
