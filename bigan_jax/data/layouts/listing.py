"""TODO docstring."""

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.images import SUFFIXES
from bigan_jax.data.layouts.base import layout_error, select_categories
from bigan_jax.data.layouts.folder import list_two_folders
from bigan_jax.data.layouts.mvtec import categories, list_mvtec
from bigan_jax.data.layouts.plant import list_species
from bigan_jax.data.records import Listing


def list_source(source: str, folder: DataFolder, category: str) -> dict[str, Listing]:
    """The pictures of `folder`, read as the layout of `source`: a key of EXPECTED.

    Each of MVTec's categories is a set of its own, and those that `category` names are listed; of
    other sources there is one set without a name, with all there is. Returns the sets by name.
    Raises UserError that shows the layout when the folder is empty or has another layout, and for
    an unknown category.
    """
    if not folder.images():
        suffixes = ", ".join(sorted(SUFFIXES))
        raise layout_error(
            source, f"No picture was found in {folder.root} (looked for {suffixes})."
        )
    if source == "mvtec":
        found = categories(folder)
        names = select_categories(category, list(found))
        return {name: list_mvtec(folder, name, found[name]) for name in names}
    return {"": _list_whole(source, folder)}


def _list_whole(source, folder):
    if source == "plant" and any("___" in name for name in folder.subfolders()):
        return list_species(folder)
    return list_two_folders(source, folder)
