"""Scores images with an exported graph, in a process that has neither Flax nor this package.

    python -P run_graph.py GRAPH IMAGES.npz SCORES.npz

IMAGES.npz holds the graph's inputs, and SCORES.npz gets its outputs, both by name.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

_BATCH = 32
_FORBIDDEN = {"flax", "bigan_jax"}


def load_graph(path: Path) -> Callable:
    """Returns a graph as a function of arrays, by name, that returns the scores and the anomaly maps."""
    if path.suffix == ".onnx":
        import onnxruntime  # pyright: ignore[reportMissingImports]  # an extra

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["score", "anomaly_map"], inputs)
    import jax
    from jax import export

    graph = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda inputs: graph(*(inputs[name] for name in ("images", "condition") if name in inputs))


def main(graph: str, source: str, target: str) -> None:
    """Scores all images in batches, of which the last may be smaller."""
    run = load_graph(Path(graph))
    with np.load(source, allow_pickle=False) as file:
        inputs = dict(file)
    starts = range(0, len(inputs["images"]), _BATCH)
    results = [run({name: x[start : start + _BATCH] for name, x in inputs.items()}) for start in starts]
    score, anomaly_map = (np.concatenate([np.asarray(x) for x in parts]) for parts in zip(*results, strict=True))
    if imported := _FORBIDDEN & set(sys.modules):
        sys.exit(f"the graph imported {', '.join(sorted(imported))}")
    np.savez(target, score=score, anomaly_map=anomaly_map)


if __name__ == "__main__":
    main(*sys.argv[1:])
