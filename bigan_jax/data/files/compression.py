"""Whether new images are compressed as the training images are: detectors see the traces of lossy compression."""

from collections.abc import Iterable
from pathlib import PurePosixPath

_LOSSY = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG") | {".webp": "WebP", ".avif": "AVIF"}
_LOSSLESS = dict.fromkeys((".tif", ".tiff"), "TIFF") | {".png": "PNG", ".bmp": "BMP"}


def compression_warning(trained: Iterable[str], new: Iterable[str]) -> str:
    """Returns a warning if the training images are all lossy and new ones lossless, or the reverse; else "".

    Args:
      trained: the paths of the training images.
      new: the paths of the new images. Suffixes tell the format; other formats than those above count as neither.
    """
    suffixes = {PurePosixPath(path).suffix.lower() for path in trained}
    new = [PurePosixPath(path).suffix.lower() for path in new]
    for known, other, kind in (_LOSSY, _LOSSLESS, "lossless"), (_LOSSLESS, _LOSSY, "lossy"):
        differing = [suffix for suffix in new if suffix in other]
        if suffixes and suffixes <= known.keys() and differing:
            names = " or ".join(sorted({other[suffix] for suffix in differing}))
            return (
                f"{len(differing)} of {len(new)} images are {kind} {names} files, and all training images were "
                f"{' or '.join(sorted({known[suffix] for suffix in suffixes}))}. Detectors see the traces of "
                "compression: new normal images may be called anomalous. Train on images that are saved like those "
                "to be scored."
            )
    return ""
