"""Files of VGG16 weights: two kinds of pickles, arrays, safetensors, HDF5.

The table of shapes is replaced by that of a VGG16 with few channels, so that files are small.
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

from bigan_jax.nn.vgg16 import formats as files
from tests.fuzz.mutations import changes, corrupt, replace_tokens, replacements
from tests.helpers import weight_files as make

files._LARGEST = 2**24
for _index, (_name, _shape) in enumerate(files._SHAPES.items()):
    _inputs = 3 if _index < 2 else 2
    files._SHAPES[_name] = (3, 3, _inputs, 2) if len(_shape) == 4 else (2,)


def _seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    params = {conv: {} for conv in files.WIDTHS}
    for name, shape in files._SHAPES.items():
        conv, kind = name.split("/")
        params[conv][kind] = rng.normal(size=shape).astype(np.float32)
    weights = files.Weights(params, "torchvision")
    state = make.torch_state(weights)
    layers = {f"Conv_{i}": params[conv] for i, conv in enumerate(files.WIDTHS)}
    with tempfile.TemporaryDirectory() as home:
        paths = [Path(home) / f"{i}" for i in range(5)]
        files.write(weights, paths[0])
        save_file(state, paths[1])
        make.write_keras(paths[2], weights, "{0}/{0}_{1}_1:0", ("W", "b"))
        make.write_keras(paths[3], weights, "layers/{2}/vars/{1}", ("0", "1"))
        npz, safetensors, keras, keras3, _ = (p.read_bytes() if p.exists() else b"" for p in paths)
    return {
        "a.ckpt": pickle.dumps({"VGG16_0": layers}),
        "a.npz": npz,
        "a.pth": make.torch_zip(state),
        "legacy.pth": make.torch_legacy(state),
        "a.safetensors": safetensors,
        "a.h5": keras,
        "keras3.h5": keras3,
    }


SEEDS = _seeds()
# Pickle instructions that are inserted between any two others.
GADGETS = (
    b"cos\nsystem\n(S'touch ../ran'\ntR", b"cbuiltins\neval\n(S'1'\ntR", b"cbuiltins\nexec\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"R", b"b", b"u", b"s",
    b"(", b"t", b"\x85", b"\x86", b"}", b"]", b"N", b"0", b"2", b"Q", b"\x81", b"\x92", b"o", b"a",
    b"r\xff\xff\xff\x0f", b"q\xff", b"\x94", b"h\x00", b"j\xff\xff\x00\x00", b"P7\n", b".",
    b"\x8d" + (2**40).to_bytes(8, "little"), b"\x8e" + (2**33).to_bytes(8, "little") + b"x",
    b"\x96" + (2**30).to_bytes(8, "little"), b"\x95" + (2**50).to_bytes(8, "little"),
    b"\x8b\xff\xff\xff\x7f", b"\x82\x01", b"\x84\xff\xff\xff\x7f", b"I99999999999999999\n",
    b"\x93", b"S'os'\nS'system'\n\x93", b"L" + b"9" * 5000 + b"L\n", b"U\x04keys", b"}U\x04keys",
    b"N}U\x08__code__N\x73\x86b", b"h\x00\x86\x86q\x01",
)  # fmt: skip
_gadgets = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, len(GADGETS) - 1)), min_size=1, max_size=5
)
_tarred = st.lists(st.tuples(st.integers(0, 60), changes), min_size=1, max_size=2)
cases = st.one_of(
    st.tuples(st.sampled_from(sorted(SEEDS)), st.just("bytes"), changes),
    st.tuples(st.sampled_from(["a.ckpt", "a.pth", "legacy.pth"]), st.just("pickle"), _gadgets),
    st.tuples(st.sampled_from(["a.npz", "a.pth"]), st.just("members"), _tarred),
    st.tuples(st.just("a.safetensors"), st.just("header"), replacements),
)
warm = [(name, "bytes", []) for name in SEEDS]


def attempt(case, folder: Path) -> Iterator[str]:
    name, level, changed = case
    content = _CHANGES[level](SEEDS[name], changed)
    (path := folder / name).write_bytes(content)
    files.PACKAGE_SHA256 = hashlib.sha256(content).hexdigest()  # let the pickle pass its checksum
    weights = files.read(path)
    assert weights.params.keys() == files.WIDTHS.keys()
    for conv, arrays in weights.params.items():
        for kind, array in arrays.items():
            assert array.shape == files._SHAPES[f"{conv}/{kind}"] and array.dtype == np.float32
    yield from ()


def _with_gadgets(content, gadgets):
    if content[:2] == b"PK":
        return _rezipped(
            content, lambda i, name, data: _with_gadgets(data, gadgets) if i == 0 else data
        )
    ends = [position for _, _, position in pickletools.genops(content)]
    for position, gadget in gadgets:
        at = ends[position % len(ends)]
        content = content[:at] + GADGETS[gadget] + content[at:]
    return content


def _with_members(content, corruptions):
    def change(i, name, data):
        for index, changed in corruptions:
            data = corrupt(data, changed) if index % 30 == i else data
        return data

    method = zipfile.ZIP_DEFLATED if len(corruptions) > 1 else zipfile.ZIP_STORED
    return _rezipped(content, change, method)


def _rezipped(content, change, method=zipfile.ZIP_STORED):
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(rewritten := io.BytesIO(), "w", method) as new,
    ):
        for i, info in enumerate(old.infolist()):
            new.writestr(info.filename, change(i, info.filename, old.read(info)), method)
    return rewritten.getvalue()


def _with_header(content, replacements):
    length = int.from_bytes(content[:8], "little")
    header = replace_tokens(content[8 : 8 + length].decode(), replacements)
    header = header.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


_CHANGES = {
    "bytes": corrupt,
    "pickle": _with_gadgets,
    "members": _with_members,
    "header": _with_header,
}
