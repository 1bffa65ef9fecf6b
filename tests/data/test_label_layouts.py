"""Labels from folders, file names and tables, and messages where they are not certain."""

import re

import pytest

from bigan_jax.data.files import folders
from bigan_jax.data.layouts.names import Selection, known_label, split_state
from bigan_jax.data.layouts.plant import LAYOUT as PLANT
from bigan_jax.errors import UserError
from tests.helpers.layouts import anomalies, counts, normals


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
