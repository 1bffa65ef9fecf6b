"""TODO docstring."""

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.base import layout_error
from bigan_jax.data.layouts.masks import find_masks
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.split import TEST, TRAIN


def categories(folder: DataFolder) -> dict[str, str]:
    """MVTec's categories: the folder of each by its name, "" where `folder` is one itself.

    Raises UserError where there is none.
    """
    found = [
        f
        for f in ("", *sorted(folder.subfolders()))
        if "good" in folder.subfolders(f"{f}/train".lstrip("/"))
    ]
    if not found:
        raise layout_error(
            "mvtec", f"{folder.root} has no folder train/good, nor a category that has one."
        )
    return {child or folder.root.name: child for child in found}


def list_mvtec(folder: DataFolder, category: str, inside: str) -> Listing:
    """A category of MVTec AD, which lies in the folder `inside` of `folder`."""
    start = f"{inside}/" if inside else ""
    records = []
    for file in folder.images(inside):
        part, _, rest = file.partition("/")
        kind = rest.partition("/")[0]
        if part not in ("train", "test") or kind == rest:
            continue
        label = kind != "good"
        records.append(
            ImageRecord(
                path=start + file,
                label=label,
                group=f"{category}/{file}",
                defect_type=kind,
                official=TRAIN if part == "train" else TEST,
            )
        )
    # <category>/test/<kind>/000.png has the mask <kind>/000_mask.png.
    places = {r.path: (r.path.removeprefix(start).partition("/")[2],) for r in records if r.label}
    masks, notes = find_masks(folder, [f"{start}ground_truth"], places)
    records = [r._replace(mask=masks.get(r.path)) for r in records]
    return Listing(records, (category,), tuple(f"{category}: {note}" for note in notes))
