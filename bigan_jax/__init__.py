"""Reconstruction-based image anomaly detection in JAX.

    import bigan_jax
    bigan_jax.train(config, workdir)             # what `python launch.py` does
    bigan_jax.load(workdir).score(images)        # uint8 [n, h, w, c] -> float [n]

JAX is imported on first use, so that reading flags and configs stays quick.
"""

import importlib

_HOMES = {"train": "train", "evaluate": "evaluate", "load": "scorer", "UserError": "errors"}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
