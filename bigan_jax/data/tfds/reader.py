"""TFDS's folders of prepared pictures, opened without running what is written in them.

TFDS imports the module of every class that features.json names: such a file, of a stranger, would
have any module of the machine run.
"""

import json
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

# What plant_village and our own sets are made of. None keeps its content as text, in which another
# class could be named.
_KNOWN = frozenset(
    f"{feature.__module__}.{feature.__name__}"
    for feature in (
        tfds.features.ClassLabel,
        tfds.features.FeaturesDict,
        tfds.features.Image,
        tfds.features.Scalar,
        tfds.features.Text,
    )
)
_NAMING = ("pythonClassName", "python_class_name", "type", "proto_cls")  # a class, in JSON


def open_builder_safely(folder: epath.Path) -> tfds.core.DatasetBuilder:
    """What reads the set in a folder of TFDS's. Raises ValueError where it is made of other
    features than these sets are, and whatever TFDS raises."""
    features = json.loads((epath.Path(folder) / "features.json").read_text())
    if foreign := sorted(set(_named(features)) - _KNOWN):
        raise ValueError(f"features.json names {foreign[0]!r:.200}, no feature of such sets")
    return tfds.builder_from_directory(folder)


def _named(node: object) -> Iterator[str]:
    """The classes that are named in features.json, at any depth."""
    if isinstance(node, dict):
        yield from (node[key] for key in _NAMING if isinstance(node.get(key), str))
        for value in node.values():
            yield from _named(value)
    elif isinstance(node, list):
        for value in node:
            yield from _named(value)
