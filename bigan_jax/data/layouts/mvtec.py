"""The layout of MVTec AD: categories with an official training and test split."""

from posixpath import join

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.layout import Layout, child_folders, select_categories
from bigan_jax.data.layouts.masks import find_masks
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.split import TEST, TRAIN

EXPECTED = """\
  dir/<category>/train/good/
  dir/<category>/test/good/, dir/<category>/test/<defect type>/
  dir/<category>/ground_truth/<defect type>/000_mask.png
Download https://www.mvtec.com/company/research/datasets/mvtec-ad (15 categories, 5,354 images;
CC BY-NC-SA 4.0); mvtec_anomaly_detection.tar.xz or the archive of one category can be used as it
is."""


def _list_datasets(layout: Layout, folder: DataFolder, category: str) -> dict[str, Listing]:
    """Each category is a dataset; `folder` has categories or is the folder of one."""
    paths = [path for path in ("", *sorted(folder.subfolders())) if "good" in folder.subfolders(join(path, "train"))]
    if not paths:
        raise layout.error(f"{folder.root} has no folder train/good, and no category with one.")
    categories = {path or folder.root.name: path for path in paths}
    names = select_categories(category, list(categories))
    return {name: _list_category(folder, name, categories[name]) for name in names}


def _list_category(folder, category, path) -> Listing:
    records = []
    for file in folder.images(path):
        split, _, rest = file.partition("/")
        defect_type, separator, _ = rest.partition("/")
        if split in (TRAIN, TEST) and separator:
            label, group = defect_type != "good", f"{category}/{file}"
            records.append(ImageRecord(join(path, file), label, group, 0, defect_type, official_split=split))
    # test/<defect type>/000.png has the mask ground_truth/<defect type>/000_mask.png.
    prefix = join(path, "")
    mask_paths = {r.path: (r.path.removeprefix(prefix).partition("/")[2],) for r in records if r.label}
    masks, notes = find_masks(folder, [join(path, "ground_truth")], mask_paths)
    records = [r._replace(mask=masks.get(r.path)) for r in records]
    return Listing(records, (category,), tuple(f"{category}: {note}" for note in notes))


def _is_root(path, folders):
    children = ("", *child_folders(path, folders))
    return any(join(path, child, "train/good") in folders for child in children)


LAYOUT = Layout(
    name="mvtec",
    expected=EXPECTED,
    builder="mvtec_ad",
    description="A category of MVTec AD, or of a dataset with its layout.",
    is_root=_is_root,
    list_datasets=_list_datasets,
)
