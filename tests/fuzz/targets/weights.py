"""Files of VGG16's weights: the package's pickle, .npz, safetensors, HDF5.

The shapes are those of a VGG16 with few channels, so that a file has kilobytes. PyTorch reads .pth
files itself.
"""

import hashlib
import io
import pickle
import pickletools
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bigan_jax.nn.vgg16 import formats
from tests.fuzz.mutations import changes, corrupt, replace_tokens, replacements
from tests.helpers.weight_files import torch_state, write_keras

formats._MAX_BYTES = 2**24
for _index, (_name, _shape) in enumerate(formats._SHAPES.items()):
    _inputs = 3 if _index < 2 else 2
    formats._SHAPES[_name] = (3, 3, _inputs, 2) if len(_shape) == 4 else (2,)


def _seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    params = {conv: {} for conv in formats.WIDTHS}
    for name, shape in formats._SHAPES.items():
        conv, kind = name.split("/")
        params[conv][kind] = rng.normal(size=shape).astype(np.float32)
    weights = formats.Weights(params, "torchvision")
    layers = {f"Conv_{i}": params[conv] for i, conv in enumerate(formats.WIDTHS)}
    with tempfile.TemporaryDirectory() as home:
        paths = [Path(home) / f"{i}" for i in range(4)]
        formats.write(weights, paths[0])
        save_file(torch_state(weights), paths[1])
        write_keras(paths[2], weights, "{0}/{0}_{1}_1:0", ("W", "b"))
        write_keras(paths[3], weights, "layers/{2}/vars/{1}", ("0", "1"))
        npz, safetensors, keras, keras3 = (path.read_bytes() for path in paths)
    return {
        "a.ckpt": pickle.dumps({"VGG16_0": layers}),
        "a.npz": npz,
        "a.safetensors": safetensors,
        "a.h5": keras,
        "keras3.h5": keras3,
    }


SEEDS = _seeds()
# Instructions of malicious pickles, inserted between any two of a valid one.
GADGETS = (
    b"cos\nsystem\n(S'touch ../ran'\ntR", b"cbuiltins\neval\n(S'1'\ntR", b"cbuiltins\nexec\n",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"R", b"b", b"u", b"s",
    b"(", b"t", b"\x85", b"\x86", b"}", b"]", b"N", b"0", b"2", b"Q", b"\x81", b"\x92", b"o", b"a",
    b"r\xff\xff\xff\x0f", b"q\xff", b"\x94", b"h\x00", b"j\xff\xff\x00\x00", b"P7\n", b".",
    b"\x8d" + (2**40).to_bytes(8, "little"), b"\x8e" + (2**33).to_bytes(8, "little") + b"x",
    b"\x96" + (2**30).to_bytes(8, "little"), b"\x95" + (2**50).to_bytes(8, "little"),
    b"\x8b\xff\xff\xff\x7f", b"\x82\x01", b"\x84\xff\xff\xff\x7f", b"I99999999999999999\n",
    b"\x93", b"S'os'\nS'system'\n\x93", b"L" + b"9" * 5000 + b"L\n", b"U\x04keys", b"}U\x04keys",
    b"N}U\x08__code__N\x73\x86b", b"h\x00\x86\x86q\x01",
)  # fmt: skip
_gadgets = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, len(GADGETS) - 1)), min_size=1, max_size=5)
_members = st.lists(st.tuples(st.integers(0, 60), changes), min_size=1, max_size=2)
cases = st.one_of(
    st.tuples(st.sampled_from(sorted(SEEDS)), st.just("bytes"), changes),
    st.tuples(st.just("a.ckpt"), st.just("pickle"), _gadgets),
    st.tuples(st.just("a.npz"), st.just("members"), _members),
    st.tuples(st.just("a.safetensors"), st.just("header"), replacements),
)
warm = [(name, "bytes", []) for name in SEEDS]


def attempt(case, folder: Path) -> Iterator[str]:
    name, mutation, arguments = case
    content = _MUTATIONS[mutation](SEEDS[name], arguments)
    (path := folder / name).write_bytes(content)
    formats.PACKAGE_SHA256 = hashlib.sha256(content).hexdigest()  # passes the checksum
    weights = formats.read(path)
    assert weights.params.keys() == formats.WIDTHS.keys()
    for conv, arrays in weights.params.items():
        for kind, array in arrays.items():
            assert array.shape == formats._SHAPES[f"{conv}/{kind}"] and array.dtype == np.float32
    yield from ()


def _with_gadgets(content, gadgets):
    ends = [end for _, _, end in pickletools.genops(content)]
    for position, gadget in gadgets:
        start = ends[position % len(ends)]
        content = content[:start] + GADGETS[gadget] + content[start:]
    return content


def _with_members(content, spoils):
    def change(i, data):
        for member, changed in spoils:
            data = corrupt(data, changed) if member % 30 == i else data
        return data

    method = zipfile.ZIP_DEFLATED if len(spoils) > 1 else zipfile.ZIP_STORED
    return _rezipped(content, change, method)


def _rezipped(content, change, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as new:
        for i, info in enumerate(old.infolist()):
            new.writestr(info.filename, change(i, old.read(info)), method)
    return buffer.getvalue()


def _with_header(content, replacements):
    length = int.from_bytes(content[:8], "little")
    header = replace_tokens(content[8 : 8 + length].decode(), replacements)
    header = header.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


_MUTATIONS = {"bytes": corrupt, "pickle": _with_gadgets, "members": _with_members, "header": _with_header}
