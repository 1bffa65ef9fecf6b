"""The layout of a user's own folder: normal images, and optionally anomalous ones and masks."""

from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.grouping import apply_metadata
from bigan_jax.data.layouts.layout import ANOMALOUS, MASKS, NORMAL, Layout, has_normal_folder
from bigan_jax.data.layouts.masks import find_masks
from bigan_jax.data.records import ImageRecord, Listing

EXPECTED = """\
  dir/*.png                    normal images only, or
  dir/normal/                  normal images (or good/, ok/, healthy/)
  dir/anomalous/[<type>/]      anomalous images, optional (or defect/, bad/, nok/, diseased/)
  dir/masks/[<type>/]          their masks, optional: the same name, or <name>_mask
  dir/metadata.csv             optional; columns file and group (such as views of one part or
                               images of one patient), condition (what an image shows)"""


def list_label_folders(layout: Layout, folder: DataFolder, category: str) -> dict[str, Listing]:
    """Lists images in folders that are named by label: NORMAL, ANOMALOUS and MASKS.

    If the layout accepts it, a folder without them is listed as normal images. `category` is ignored. Raises UserError
    if there are no normal images, or if subfolders suggest that others are among them.
    """
    normal_folders, anomalous_folders, mask_folders = (
        sorted(name for name in folder.subfolders() if name.lower() in names) for names in (NORMAL, ANOMALOUS, MASKS)
    )
    normal = [f"{name}/{file}" for name in normal_folders for file in folder.images(name)]
    anomalous = [f"{name}/{file}" for name in anomalous_folders for file in folder.images(name)]
    if normal_folders:
        notes = _unused_images_note(folder, normal_folders + anomalous_folders + mask_folders)
    elif anomalous_folders or not layout.accepts_unlabeled:
        raise layout.error(f"{folder.root} has no folder of normal images.")
    elif folder.images("train/good"):
        raise layout.error(f"{folder.root} has the layout of MVTec AD: use the source 'mvtec'.")
    else:
        normal = folder.images()
        _require_all_normal(layout, folder, normal)
        notes = (f"{folder.root} has no folder normal/: all its images are used as normal images",)
    records = [ImageRecord(path, False, folder.group(path)) for path in sorted(normal)]
    mask_paths = {path: (path, path.partition("/")[2]) for path in sorted(anomalous)}
    masks, mask_notes = find_masks(folder, mask_folders, mask_paths)
    for path, (_, name) in mask_paths.items():
        parent = PurePosixPath(name).parent.as_posix()
        defect_type = path.partition("/")[0] if parent == "." else parent
        records.append(ImageRecord(path, True, folder.group(path), 0, defect_type, masks[path]))
    listing = Listing(records, (), notes + mask_notes)
    if layout.reads_metadata:
        listing = apply_metadata(listing, folder, strict=layout.strict_metadata)
    return {"": listing}


def _unused_images_note(folder, used):
    parents = {path.partition("/")[0] if "/" in path else "." for path in folder.images()}
    unused = sorted(parents.difference(used))
    names = ", ".join(unused[:5]) + ", ..." * (len(unused) > 5)
    return (f"images outside {', '.join(used)} are not used: {names}",) if unused else ()


def _require_all_normal(layout, folder, paths):
    parents = [{name.lower() for name in PurePosixPath(path).parts[:-1]} for path in paths]
    n_normal = sum(not names.isdisjoint(NORMAL) for names in parents)
    if set().union(*parents).intersection(ANOMALOUS) or 0 < n_normal < len(paths):
        problem = "has no folder normal/, but the names of its subfolders suggest that not all its images are normal."
        raise layout.error(f"{folder.root} {problem}")


def _is_root(path, folders):
    # A folder train or test with good/ in it is a part of MVTec's layout.
    return PurePosixPath(path).name not in ("train", "test") and has_normal_folder(path, folders)


LAYOUT = Layout(
    name="folder",
    expected=EXPECTED,
    builder="image_folder",
    description="A user's folder: normal images, and anomalous ones if there are any.",
    is_root=_is_root,
    list_datasets=list_label_folders,
    reads_metadata=True,
    accepts_unlabeled=True,
)
