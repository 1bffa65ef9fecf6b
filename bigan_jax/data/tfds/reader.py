"""Opens prepared TFDS datasets without executing untrusted code.

TFDS imports the module of every class that features.json names: an untrusted file could run any module.
"""

import json
import os
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from etils import epath

# Features of our prepared data and of plant_village; none of them stores text in which another class could be named.
_FEATURES = [getattr(tfds.features, name) for name in ("ClassLabel", "FeaturesDict", "Image", "Scalar", "Text")]
_ALLOWED = frozenset(f"{feature.__module__}.{feature.__name__}" for feature in _FEATURES)
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type", "proto_cls")  # keys in features.json


def open_builder_safely(folder: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Returns the builder of the dataset in a folder. Raises ValueError for features that are not allowed."""
    features = json.loads((epath.Path(folder) / "features.json").read_text())
    if unknown := sorted(set(_class_names(features)) - _ALLOWED):
        raise ValueError(f"features.json names {unknown[0]!r:.200}, which is not an allowed feature")
    return tfds.builder_from_directory(folder)


def serialized_examples(folder: str | os.PathLike, split: str) -> Sequence[bytes]:
    """Opens a split of an ArrayRecord dataset without parsing its examples, which takes a tenth of the decoding."""
    method = tfds.decode.DeserializeMethod.RAW_BYTES
    return open_builder_safely(folder).as_data_source(split, deserialize_method=method)  # pyright: ignore[reportCallIssue]


def _class_names(node: object) -> Iterator[str]:
    """Yields the names of classes in features.json, at any depth."""
    if isinstance(node, dict):
        yield from (node[key] for key in _CLASS_KEYS if isinstance(node.get(key), str))
        node = [*node.values()]
    if isinstance(node, list):
        for value in node:
            yield from _class_names(value)
