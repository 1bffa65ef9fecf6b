"""The example.py of an artifact: a few lines that import neither Flax nor this package."""

_STABLEHLO = '''"""Scores images with JAX: python example.py IMAGE ..."""
import json, sys
import numpy as np
from jax import export, jit
from pathlib import Path
from preprocess import read_image

folder = Path(__file__).parent
metadata = json.loads((folder / "metadata.json").read_text())
model = jit(export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call)
images = np.stack([read_image(name, metadata["image"]) for name in sys.argv[1:]])
score, anomaly_map = model(images)
for name, value in zip(sys.argv[1:], np.asarray(score).tolist()):
    print(name, value, "anomalous" if value >= metadata["threshold"] else "normal")
'''

_ONNX = '''"""Scores images with onnxruntime: python example.py IMAGE ..."""
import json, sys
import numpy as np
import onnxruntime
from pathlib import Path
from preprocess import read_image

folder = Path(__file__).parent
metadata = json.loads((folder / "metadata.json").read_text())
model = onnxruntime.InferenceSession(folder / "model.onnx")
images = np.stack([read_image(name, metadata["image"]) for name in sys.argv[1:]])
score, anomaly_map = model.run(["score", "anomaly_map"], {"images": images})
for name, value in zip(sys.argv[1:], score.tolist()):
    print(name, value, "anomalous" if value >= metadata["threshold"] else "normal")
'''

_BY_KIND = {"stablehlo": _STABLEHLO, "onnx": _ONNX}
# With a condition, it comes first among the arguments.
_CONDITIONAL = (
    ("example.py IMAGE", "example.py CONDITION IMAGE"),
    ("sys.argv[1:]", "sys.argv[2:]"),
    (
        "score, anomaly_map",
        'condition = np.full(len(images), metadata["conditions"].index(sys.argv[1]), np.int32)\nscore, anomaly_map',
    ),
    ("model(images)", "model(images, condition)"),
    ('{"images": images}', '{"images": images, "condition": condition}'),
)


def example(kind: str, conditional: bool) -> str:
    """Returns the example for "stablehlo" or "onnx"; that of a model with conditions takes one for all images."""
    text = _BY_KIND[kind]
    for plain, changed in _CONDITIONAL if conditional else ():
        text = text.replace(plain, changed, 1 if plain.startswith("score") else -1)
    return text
