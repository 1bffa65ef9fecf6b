"""The layout of MVTec AD: categories with an official training and test split."""

from posixpath import join

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.layout import (
    Layout,
    child_folders,
    count_by_folder,
    has_normal_folder,
    select_categories,
    unused_note,
)
from bigan_jax.data.layouts.masks import find_masks, split_masks
from bigan_jax.data.layouts.names import TESTING, TRAINING, VALIDATION, Selection, canonical
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.split import TEST, TRAIN
from bigan_jax.errors import UserError

# Validation images (MVTec LOCO) are normal; calibration images are chosen from them and the training images.
_SPLITS = {TRAIN: TRAINING | VALIDATION, TEST: TESTING}

EXPECTED = """\
  dir/<category>/train/good/
  dir/<category>/test/good/, dir/<category>/test/<defect type>/
  dir/<category>/ground_truth/<defect type>/000_mask.png
  dir/<category>/validation/good/          optional
Download https://www.mvtec.com/company/research/datasets/mvtec-ad (15 categories, 5,354 images;
CC BY-NC-SA 4.0); mvtec_anomaly_detection.tar.xz or the archive of one category can be used as it
is."""


def _list_datasets(layout: Layout, folder: DataFolder, selection: Selection) -> dict[str, Listing]:
    """Each category is a dataset; `folder` has categories or is the folder of one."""

    def has_normal_training_images(path: str) -> bool:
        sub = folder.subfolder(path)
        splits = _named(sub.subfolders(), TRAINING)
        types = [(name, f"{split}/{name}") for split in splits for name in sub.subfolders(split)]
        return any(selection.label(names[1], names) is False for names in types)

    paths = [path for path in ("", *sorted(folder.subfolders())) if has_normal_training_images(path)]
    if not paths:
        listed = count_by_folder(folder.images(), 3)
        raise layout.error(
            f"{folder.root} has no folder train/good, and no category with one. It has {listed}. If a folder in train/ "
            "has normal images under another name: --config.data.normal=NAME."
        )
    categories = {path or folder.root.name: path for path in paths}
    names = select_categories(selection.category, list(categories))
    return {name: _list_category(folder, name, categories[name], selection) for name in names}


def _named(names, known):
    return [name for name in sorted(names) if canonical(name) in known]


def _list_category(folder, category, path, selection) -> Listing:
    sub = folder.subfolder(path)
    images, masks = split_masks(sub)
    records, unused, notes = [], [], []
    n_validation = 0
    for file in images:
        split, _, rest = file.partition("/")
        defect_type, has_type, _ = rest.partition("/")
        # The folder of the category may have any name: it is no label.
        label = selection.label(file, [defect_type, rest, f"{split}/{defect_type}", file]) if has_type else None
        official = next((name for name, known in _SPLITS.items() if canonical(split) in known), None)
        if official == TEST and has_type and label is None:
            label = True  # every other folder of test/ is a defect type
        is_validation = canonical(split) in VALIDATION
        if label is None or official is None or (is_validation and label):
            unused.append(file)
            continue
        n_validation += is_validation
        name = defect_type if label else "good"
        records.append(ImageRecord(file, label, f"{category}/{file}", 0, name, official_split=official))
    normal_test = [r for r in records if r.official_split == TEST and not r.label]
    if not normal_test and not selection.normal and (tests := [r.path for r in records if r.official_split == TEST]):
        raise UserError(
            f"{sub.root} has no normal test images: {count_by_folder(tests)}. Say which of these folders is normal: "
            "--config.data.normal=good,NAME. If none is: --config.data.normal=good; test images are then chosen from "
            "train/good."
        )
    if not normal_test:
        notes.append("there are no normal test images in a folder test/good: they are chosen from the training images")
        records = [r._replace(official_split=None) for r in records]
    if n_validation:
        notes.append(f"the {n_validation} validation images are used for training and calibration")
    if n := sum(bool(r.label and r.official_split == TRAIN) for r in records):
        notes.append(f"{n} anomalous images among the training images are used as test images")
    mask_of, mask_notes = find_masks(masks, [r.path for r in records if r.label])
    masks_of = {image: tuple(join(path, mask) for mask in found) for image, found in mask_of.items()}
    records = [r._replace(path=join(path, r.path), masks=masks_of.get(r.path, ())) for r in records]
    notes += [*unused_note(unused), *mask_notes]
    return Listing(records, (category,), tuple(f"{category}: {note}" for note in notes))


def _is_root(path, folders):
    return any(
        has_normal_folder(join(path, child, split), folders)
        for child in ("", *child_folders(path, folders))
        for split in _named(child_folders(join(path, child).rstrip("/"), folders), TRAINING)
    )


LAYOUT = Layout(
    name="mvtec",
    expected=EXPECTED,
    builder="mvtec_ad",
    description="A category of MVTec AD, or of a dataset with its layout.",
    is_root=_is_root,
    list_datasets=_list_datasets,
)
