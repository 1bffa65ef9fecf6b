"""Opens prepared TFDS datasets without executing untrusted code.

TFDS imports the module of every class that features.json names, so that an untrusted file could run any module of the
machine.
"""

import json
import os
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

# The features of our prepared data and of plant_village. None of them stores text in which another class could be
# named.
_ALLOWED = frozenset(
    f"{feature.__module__}.{feature.__name__}"
    for feature in (
        tfds.features.ClassLabel,
        tfds.features.FeaturesDict,
        tfds.features.Image,
        tfds.features.Scalar,
        tfds.features.Text,
    )
)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type", "proto_cls")  # keys in features.json


def open_builder_safely(folder: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Returns the builder that reads the dataset in a folder.

    Raises:
      ValueError: the dataset has features that are not allowed.
      Exception: whatever TFDS raises.
    """
    features = json.loads((epath.Path(folder) / "features.json").read_text())
    if unknown := sorted(set(_class_names(features)) - _ALLOWED):
        raise ValueError(f"features.json names {unknown[0]!r:.200}, which is not an allowed feature")
    return tfds.builder_from_directory(folder)


def _class_names(node: object) -> Iterator[str]:
    """Yields the names of classes in features.json, at any depth."""
    if isinstance(node, dict):
        yield from (node[key] for key in _CLASS_KEYS if isinstance(node.get(key), str))
        for value in node.values():
            yield from _class_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _class_names(value)
