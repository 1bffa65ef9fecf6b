"""Pictures that belong together: by a table, by camera numbers."""

import csv

import pytest
from etils import epath

from bigan_jax.data.files.folders import open_folder
from bigan_jax.data.layouts.grouping import apply_metadata, group_by_camera
from bigan_jax.data.records import ImageRecord
from bigan_jax.errors import UserError
from tests.data.test_loading import load, write, write_mask


@pytest.mark.parametrize(
    ("source", "column"), [("brain", "patient"), ("folder", "group"), ("folder", "patient")]
)
def test_groups_of_a_table_stay_together(source, column, tmp_path):
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
    train, calibration, test = (set(p.group) for p in loaded[:3])
    assert not (train & calibration or train & test or calibration & test)
    assert "p1" in train | calibration | test
    assert any(note.startswith("1 pictures have no group") for note in loaded.notes)


@pytest.mark.parametrize("inside", ["set", "set/kaggle_3m", "a/b/c"])
@pytest.mark.parametrize("beside", ["", "healthy/"])
def test_a_table_lies_where_the_layout_begins_or_below(inside, beside, tmp_path):
    for i in range(60):
        write(tmp_path / inside / "healthy" / f"{i:02d}.png")
    path = "healthy/".removeprefix(beside)
    table = "\n".join(["file,patient", *(f"{path}{i:02d}.png,p{i % 6}" for i in range(60))])
    (tmp_path / inside / beside / "metadata.csv").write_text(table)
    train, calibration, test = (set(p.group) for p in load("brain", tmp_path)[:3])
    assert train | calibration | test == {f"p{i}" for i in range(6)}
    (tmp_path / inside / beside / "metadata.csv").write_text(table.replace("p5", "p4"))
    assert {*load("brain", tmp_path).train.group} <= {f"p{i}" for i in range(5)}


def test_a_table_above_the_layout_is_told(tmp_path):
    for i in range(24):
        write(tmp_path / "set" / "normal" / f"{i:02d}.png")
        write(tmp_path / "set" / "anomalous" / f"{i:02d}.png")
    (tmp_path / "metadata.csv").write_text("file,group\nset/normal/00.png,a\n")
    assert "metadata.csv is not used: it has to lie in set" in load("folder", tmp_path).notes


def grouped(folder, table, names=("normal/a.png", "normal/b.png", "c.png"), source="folder"):
    """Each picture's group by a table, and the notes."""
    (folder / "metadata.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    write(folder / "some.png")  # tables are looked for above pictures
    records = [ImageRecord(name, False, name.partition("#")[0]) for name in names]
    told = apply_metadata(records, open_folder(epath.Path(folder)), source)
    return [r.group for r in told.records], told.notes


@pytest.mark.parametrize("column", ["condition", "plane"])
def test_a_table_may_tell_what_pictures_show(column, tmp_path):
    """Planes of MR: those with normal pictures are conditions, the split is as without them."""
    names = {"axial": ("normal", "anomalous"), "sagittal": ("normal",), "coronal": ("anomalous",)}
    rows = [f"file,{column}"]
    for plane, kinds in names.items():
        for kind in kinds:
            for i in range(30):
                write(tmp_path / kind / f"{plane}{i:02d}.png")
                rows.append(f"{kind}/{plane}{i:02d}.png,{plane}")
    before = load("folder", tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    loaded = load("folder", tmp_path)
    assert loaded.conditions == ("axial", "sagittal")
    assert "coronal left out: it has no normal pictures" in loaded.notes
    assert not any("no group" in note for note in loaded.notes)
    for part in loaded[:3]:
        told = [loaded.conditions[c] for c in part.condition]
        assert all(plane in path for plane, path in zip(told, part.path, strict=True))
    assert loaded.train.path.tolist() == before.train.path.tolist()
    axial = load("folder", tmp_path, category="axial")
    assert axial.conditions == ("axial",) and len(axial.test.label) > 30
    with pytest.raises(UserError, match="coronal: none has normal pictures"):
        load("folder", tmp_path, category="coronal")
    (tmp_path / "metadata.csv").write_text("\n".join([*rows[:-1], "anomalous/coronal29.png,"]))
    with pytest.raises(UserError, match=r"1 of 120 pictures have no condition.*coronal29\.png"):
        load("folder", tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join(rows).replace("axial\n", '"a,b"\n'))
    with pytest.raises(UserError, match="comma list: rename a,b"):
        load("folder", tmp_path)
    (tmp_path / "metadata.csv").write_text("\n".join([*rows, rows[-1].replace(",c", ",x")]))
    with pytest.raises(UserError, match="is of coronal and of xoronal"):
        load("folder", tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", [("file", "group"), ("File ", "Patient"), ("File", '"a;,;b"', "GROUP")]
)
def test_a_table_of_any_spreadsheet(separator, header, tmp_path):
    fill = ["x"] * (len(header) - 2)
    rows = header, [".\\normal\\a.png", *fill, "Zoe"], ["normal/b.png", *fill, "Zoe"], ["c.png"]
    text = "\r\n".join(map(separator.join, rows))
    groups, notes = grouped(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert groups == ["Zoe", "Zoe", "c.png"]
    assert notes == ("1 pictures have no group in metadata.csv: each is taken as its own",)


def test_a_table_may_name_volumes_and_leaves_known_groups_whole(tmp_path):
    names = "a.nii.gz#000", "a.nii.gz#001", "b.nii.gz#000", "b.nii.gz#001", "c.nii.gz#000"
    table = "file,group\na.nii.gz,Zoe\nb.nii.gz#001,Zoe\nnot/there.png,Max\n"
    groups, notes = grouped(tmp_path, table, names)
    assert groups == ["Zoe"] * 4 + ["c.nii.gz"] and notes == ()


@pytest.mark.parametrize(
    "table",
    ["", "\n", "file,subject\n", "file_name,text\na.png,b\n", b"\xff\xfe\0", '"' + "x" * 200_000],
)
def test_a_table_that_names_no_groups(table, tmp_path):
    """Of patients it is a mistake; beside somebody's own pictures it may be of anything."""
    groups, (note,) = grouped(tmp_path, table)
    assert groups == ["normal/a.png", "normal/b.png", "c.png"]
    assert note.startswith("not used: ") and "metadata.csv" in note
    with pytest.raises(UserError, match=r"metadata\.csv (cannot be read|has no columns file and)"):
        grouped(tmp_path, table, source="brain")


def test_a_table_that_contradicts_itself_or_names_nothing(tmp_path):
    twice = "file,group\nc.png,Zoe\nc.png,\nc.png,Max\n"
    with pytest.raises(UserError, match=r"c\.png is of Zoe and of Max"):
        grouped(tmp_path, twice)
    elsewhere = "file,group\na.png,Zoe\nb.png,Zoe\n"
    with pytest.raises(UserError, match=r"names no picture: it has a\.png, .* as normal/a\.png"):
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
        (f"{10**20}.png", "own"),  # a prepared set keeps numbers of 64 bits
    ],
)
def test_camera_numbers_are_read_from_names(name, group):
    assert group_by_camera(ImageRecord(f"healthy/{name}", False, "own")).group == group
