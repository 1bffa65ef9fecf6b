"""Where prepared data and datasets of TFDS are stored. TFDS itself is not imported.

Prepared data are in <tfds_dir>/<builder>/<name>-<hash of the data folder's path>/1.0.0/.
"""

import re
from hashlib import blake2b

from etils import epath

from bigan_jax.data.files.folders import is_remote, path_hash

VERSION = "1.0.0"
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)*")


def prepared_path(tfds_dir: epath.Path, builder: str, name: str, root: epath.Path) -> epath.Path:
    """Returns the folder of the dataset `name` that is prepared from the data folder or archive `root`.

    Different names have different folders, which have ASCII letters only and show a readable part of the name.
    """
    readable = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:60] or "data"
    if readable != (name or "data"):
        readable += f"-{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}"
    return tfds_dir / builder / f"{readable}-{path_hash(root)}" / VERSION


def prepared_paths(tfds_dir: epath.Path, builder: str, root: epath.Path) -> list[epath.Path]:
    """Returns the folders of all datasets that were prepared from `root`, sorted."""
    folders = (tfds_dir / builder).glob(f"*-{path_hash(root)}")
    return sorted(folder / VERSION for folder in folders)


def is_tfds_dataset(folder: epath.Path, name: str) -> bool:
    """Whether a folder is a version of the TFDS dataset `name`."""
    return folder.parent.name == name and (folder / "dataset_info.json").exists()


def find_tfds_dataset(tfds_dir: epath.Path, name: str) -> epath.Path | None:
    """Returns the folder of the latest version of a TFDS dataset; None if it is not prepared."""
    folders = [] if is_remote(tfds_dir) else (tfds_dir / name).glob("*")
    versions = [f for f in folders if is_tfds_dataset(f, name) and _RELEASE.fullmatch(f.name)]
    return max(versions, key=lambda f: [int(n) for n in f.name.split(".")], default=None)
