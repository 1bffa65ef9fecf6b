"""A detector's scoring as one graph: uint8 images of the model's size to the deciding score and the anomaly map."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import export as export_function
from jax.export import symbolic_shape
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array

from bigan_jax.errors import UserError, one_line
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.nn.convolutions import PLAIN, traced_for

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("images", "condition")  # the second only of a model that takes conditions
OUTPUTS = ("score", "anomaly_map")
_ONNX_MISSING = (
    "--format=onnx requires jax2onnx and onnxruntime. Install them in an environment of their own, as they need an "
    "older orbax-checkpoint: pip install 'bigan_jax[onnx]'."
)


def input_names(scorer: AnomalyScorer) -> tuple[str, ...]:
    """Returns the names of the graph's inputs."""
    return INPUTS if scorer.conditions else INPUTS[:1]


def require_exportable(scorer: AnomalyScorer) -> None:
    """Raises UserError if a graph cannot score as the scorer does."""
    if scorer.search_steps:
        raise UserError(
            f"This detector searches the latent code of each image in {scorer.search_steps} steps, which no graph does "
            "at a useful speed. Export a detector with an encoder, such as bigan or ganomaly."
        )


def to_stablehlo(scorer: AnomalyScorer) -> bytes:
    """Returns the serialized graph for PLATFORMS and any number of images. The weights are part of it."""

    def score(*inputs):
        branches = {platform: partial(_score, scorer, platform) for platform in ("cpu", "cuda")}
        return lax.platform_dependent(*inputs, cpu=branches["cpu"], default=branches["cuda"])

    (batch,) = symbolic_shape("b")
    exported = export_function(jax.jit(score), platforms=PLATFORMS)(*_specs(scorer, batch))
    return bytes(exported.serialize())


def to_onnx(scorer: AnomalyScorer) -> bytes:
    """Returns the graph as an ONNX model for any number of images.

    Raises UserError if the converter is not installed or does not know an operation of the detector.
    """
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]  # an extra
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]  # which checks the model
    except ImportError as error:
        raise UserError(_ONNX_MISSING) from error
    names = input_names(scorer)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of each constant's type
    try:
        with warnings.catch_warnings(action="ignore"):  # about types that the converter asks for
            model: Any = jax2onnx.to_onnx(
                _without_unused(partial(_score, scorer, PLAIN)),
                _specs(scorer, "b"),
                input_names=names,
                output_names=OUTPUTS,
            )
    except Exception as error:  # of any kind: a converter fails in several ways
        reason = one_line(error, 300)
        raise UserError(f"jax2onnx cannot convert this detector ({reason}). Use --format=stablehlo.") from error
    del model.graph.value_info[:]  # shapes of intermediate values, of which onnxruntime says that some are wrong
    return model.SerializeToString()


def _score(scorer: AnomalyScorer, target: str, images: Array, condition: Array | None = None):
    condition = jnp.zeros(images.shape[:1], jnp.int32) if condition is None else condition
    with traced_for(target):
        return scorer.score_and_map(images, condition)


def _without_unused(function: Callable) -> Callable:
    """Returns the function without operations that no output depends on, such as those on keys of random numbers."""

    def pruned(*inputs):
        closed = jax.make_jaxpr(function)(*inputs)
        jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(OUTPUTS), instantiate=True)
        return tuple(jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*inputs))

    return pruned


def _specs(scorer, batch):
    types = {"images": ((batch, *scorer.shape), jnp.uint8), "condition": ((batch,), jnp.int32)}
    return [jax.ShapeDtypeStruct(*types[name]) for name in input_names(scorer)]
