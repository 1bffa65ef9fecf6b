"""The layout of PlantVillage: leaves in one folder per species and disease, or in two folders."""

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.folder import list_label_folders
from bigan_jax.data.layouts.grouping import group_by_camera
from bigan_jax.data.layouts.layout import Layout, child_folders, count_by_folder, has_normal_folder, unused_note
from bigan_jax.data.layouts.masks import find_masks, split_masks
from bigan_jax.data.layouts.names import Selection, split_state
from bigan_jax.data.records import ImageRecord, Listing

EXPECTED = """\
  dir/<species>___healthy/, dir/<species>___<disease>/      as in PlantVillage (or with _ or __), or
  dir/healthy/, dir/diseased/
Download Kaggle emmarex/plantdisease (its archive.zip can be used as it is) or prepare TFDS
plant_village (then found without a folder; 38 classes, 54,303 images). The license usually named
is CC BY-SA 3.0."""

MIN_GROUPS = 3  # training, calibration and test images require one each


def _list_datasets(layout: Layout, folder: DataFolder, selection: Selection) -> dict[str, Listing]:
    if _has_species(folder.subfolders()) and not (selection.normal or selection.anomalous):
        listing = _list_species(layout, folder)
    else:
        listing = list_label_folders(layout, folder, selection)[""]
    grouped = [*map(group_by_camera, listing.records)]
    if len({r.group for r in grouped if not r.label}) >= MIN_GROUPS:
        return {"": listing._replace(records=grouped)}
    note = (
        "the numbers in the file names of normal images are in fewer than three blocks of 100: each image is a group "
        "of its own, and images of one leaf may be in several splits"
    )
    return {"": listing._replace(notes=(*listing.notes, note))}


def _has_species(names):
    return any("___" in name or split_state(name) for name in names)


def _list_species(layout, folder) -> Listing:
    """Lists the class folders of a species and a state, as Potato___healthy and Tomato_Early_blight.

    Each species is a condition. Separators differ among published copies: a folder belongs to the species of a folder
    of healthy leaves with which its name begins, or to the words before "___".
    """
    images, masks = split_masks(folder)
    class_of, unknown = {}, []
    names = sorted({path.partition("/")[0] for path in images if "/" in path})
    healthy = {name: species for name in names if (species := split_state(name))}
    for name in names:
        if species := healthy.get(name) or _species_of(name, healthy.values()):
            # Categories are chosen by a comma list, so "Pepper,_bell" becomes "Pepper_bell".
            state = "good" if name in healthy else name[len(species) :].strip("_- ")
            class_of[name] = (species.replace(",", ""), state)
        else:
            unknown.append(name)
    with_normal = {species.replace(",", "") for species in healthy.values()}
    conditions = sorted(with_normal)
    if not conditions:
        raise layout.error(f"{folder.root} has no folder <species>___healthy. It has {count_by_folder(images, 1)}.")
    records = []
    for condition, species in enumerate(conditions):
        for path in images:
            name = path.partition("/")[0]
            if class_of.get(name, ("",))[0] == species and "/" in path:
                records.append(ImageRecord(path, name not in healthy, path, condition, class_of[name][1]))
    mask_of, mask_notes = find_masks(masks, [r.path for r in records if r.label])
    records = [r._replace(masks=mask_of.get(r.path, ())) for r in records]
    skipped = sorted({species for species, _ in class_of.values()} - with_normal)
    unused = [path for path in images if "/" not in path or path.partition("/")[0] in unknown]
    return Listing(records, tuple(conditions), (*unused_note(unused), *mask_notes), tuple(skipped))


def _species_of(name, known):
    """Returns the longest of the known species with which a folder's name begins, or the words before "___"."""
    fitting = [species for species in known if name.casefold().startswith(species.casefold())]
    fitting = [species for species in fitting if not name[len(species) :][:1].isalnum()]
    before, separator, _ = name.partition("___")
    return max(fitting, key=len, default=before if separator else None)


def _is_root(path, folders):
    return _has_species(child_folders(path, folders)) or has_normal_folder(path, folders)


LAYOUT = Layout(
    name="plant",
    expected=EXPECTED,
    builder="plant_disease",
    description="Leaves, healthy and diseased.",
    is_root=_is_root,
    list_datasets=_list_datasets,
    labels_at_any_depth=True,
    tfds_dataset="plant_village",
)
