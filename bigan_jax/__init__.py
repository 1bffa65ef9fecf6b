"""Image anomaly detection in JAX, trained on normal images only.

    import bigan_jax
    bigan_jax.train(config, workdir)               # as `python launch.py` does
    bigan_jax.load(workdir).score(images).score    # uint8 [n, h, w, c] -> float [n]
    bigan_jax.predict(workdir, "new/", "results")  # report.html, scores, maps, regions
    bigan_jax.compare("runs/*", "comparison")      # tables over models, datasets and seeds
    bigan_jax.AnomalyDetector("cae").fit(images)   # as scikit-learn's outlier detectors

Functions are imported on first use, so that configs and flags are read without JAX. No submodule may have the name of
one of these functions, as importing it would replace the function.
"""

import importlib

__version__ = "0.1.0"  # pyproject.toml reads it

_EXPORTS = {
    "train": "commands.train",
    "evaluate": "commands.evaluate",
    "load": "commands.load",
    "predict": "commands.predict",
    "compare": "commands.compare",
    "sweep": "commands.sweep",
    "AnomalyDetector": "api",
    "UserError": "errors",
}


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted([*globals(), *_EXPORTS])
