"""The layout of PlantVillage: leaves in one folder per species and disease, or in two folders."""

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.folder import list_label_folders
from bigan_jax.data.layouts.grouping import group_by_camera
from bigan_jax.data.layouts.layout import Layout, child_folders, has_normal_folder
from bigan_jax.data.records import ImageRecord, Listing

EXPECTED = """\
  dir/<species>___healthy/, dir/<species>___<disease>/      as in PlantVillage, or
  dir/healthy/, dir/diseased/
Download Kaggle emmarex/plantdisease (its archive.zip can be used as it is) or prepare TFDS
plant_village (then found without a folder; 38 classes, 54,303 images). The license usually named
is CC BY-SA 3.0."""


def _list_datasets(layout: Layout, folder: DataFolder, category: str) -> dict[str, Listing]:
    if any("___" in name for name in folder.subfolders()):
        listing = _list_species(layout, folder)
    else:
        listing = list_label_folders(layout, folder, category)[""]
    return {"": listing._replace(records=[*map(group_by_camera, listing.records)])}


def _list_species(layout, folder) -> Listing:
    """Lists the class folders <species>___<state>; each species is a condition."""
    states = {}
    for name in sorted(name for name in folder.subfolders() if "___" in name):
        species, _, state = name.partition("___")
        # Categories are chosen by a comma list, so "Pepper,_bell" becomes "Pepper_bell".
        states.setdefault(species.replace(",", ""), {})[state] = name
    conditions = [s for s in states if any(state.lower() == "healthy" for state in states[s])]
    if not conditions:
        raise layout.error(f"{folder.root} has no folder <species>___healthy.")
    records = []
    for condition, species in enumerate(conditions):
        for state, name in states[species].items():
            label = state.lower() != "healthy"
            for file in folder.images(name):
                path, defect_type = f"{name}/{file}", state if label else "good"
                records.append(ImageRecord(path, label, path, condition, defect_type))
    return Listing(records, tuple(conditions), skipped=tuple(s for s in states if s not in conditions))


def _is_root(path, folders):
    species = any("___" in name for name in child_folders(path, folders))
    return species or has_normal_folder(path, folders)


LAYOUT = Layout(
    name="plant",
    expected=EXPECTED,
    builder="plant_disease",
    description="Leaves, healthy and diseased.",
    is_root=_is_root,
    list_datasets=_list_datasets,
    tfds_dataset="plant_village",
)
