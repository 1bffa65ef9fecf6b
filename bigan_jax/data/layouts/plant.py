"""TODO docstring."""

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.base import layout_error
from bigan_jax.data.layouts.grouping import group_by_camera
from bigan_jax.data.records import ImageRecord, Listing


def list_species(folder: DataFolder) -> Listing:
    """PlantVillage's class folders <species>___<state>; each species is a condition."""
    states = {}
    for name in sorted(n for n in folder.subfolders() if "___" in n):
        species, _, state = name.partition("___")
        # A category is chosen from a comma list: "Pepper,_bell" is called "Pepper_bell".
        states.setdefault(species.replace(",", ""), {})[state] = name
    names = [n for n in states if any(s.lower() == "healthy" for s in states[n])]
    if not names:
        raise layout_error("plant", f"{folder.root} has no folder <species>___healthy.")
    records = []
    for condition, name in enumerate(names):
        for state, inside in states[name].items():
            label = state.lower() != "healthy"
            kind = state if label else "good"
            for file in folder.images(inside):
                path = f"{inside}/{file}"
                records.append(group_by_camera(ImageRecord(path, label, path, condition, kind)))
    return Listing(records, tuple(names), left_out=tuple(n for n in states if n not in names))
