"""Properties of compiled steps: compiled once, dtypes, transfers, donated memory, gradients."""

import json
import warnings
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks import accelerator
from bigan_jax.commands import train
from bigan_jax.configs import fcae
from bigan_jax.detector import Batch, init_state
from bigan_jax.models import cae, improved_bigan, vqvae
from bigan_jax.nn.blocks import BATCH_AXIS, BatchNorm
from bigan_jax.training import epoch_logger, loop
from bigan_jax.training.train_step import update
from tests.helpers.runs import TINY_FCAE, configured
from tests.helpers.training import OBJECTIVES, SHAPE, TINY_BIGAN, initial_states, limit_devices, make_runner

CAE = cae.create(shape=SHAPE, latent=4, widths=(4,))
INDICES = np.arange(16).reshape(2, 8)
ADAM = optax.adam(1e-3)
PERCEPTUAL = partial(
    improved_bigan.create,
    shape=SHAPE,
    latent=8,
    widths=(8,),
    discriminator_widths=(8,),
    discriminator_hidden=8,
    perceptual_layers=("relu1_2",),
)


def initial_state(detector):
    (state,) = initial_states(detector, ADAM, [0])
    return state


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(
    ("detector", "phases"),
    [
        (CAE, [[("reconstruction",)]]),
        # The second phase has two sets of objectives: the discriminator acts in one of five epochs.
        (TINY_BIGAN, [[("reconstruction",)], [OBJECTIVES, OBJECTIVES[1:]]]),
    ],
    ids=["cae", "improved_bigan"],
)
def test_programs_compile_once_and_donate_state(monkeypatch, compilations, detector, phases, scanned):
    """The first epochs of each phase compile. The memory of a state is used again: the state is
    gone after an epoch, and JAX finds a use for all of it."""
    limit_devices(monkeypatch, 2)
    runner = make_runner(detector, ADAM, scanned)
    state = runner.layout.to_devices(initial_state(detector))

    def epoch(state, objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # JAX warns of donated memory without use
            trained, _ = runner.epoch(state, objectives, INDICES)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        state = runner.with_statistics(trained, INDICES)
        jax.block_until_ready(runner.layout.from_devices(state))  # as for a checkpoint
        return state

    for phase in phases:
        before = compilations()
        for objectives in phase:
            state = epoch(state, objectives)
        assert compilations() > before
        before = compilations()
        for objectives in phase * 2:
            state = epoch(state, objectives)
        assert compilations() == before


@pytest.mark.parametrize(
    "detector",
    [
        cae.create(shape=SHAPE, latent=4, widths=(32, 128), dtype=jnp.bfloat16),
        vqvae.create(shape=SHAPE, widths=(8,), latent=4, codes=8, dtype=jnp.bfloat16),
        PERCEPTUAL(dtype=jnp.bfloat16),
    ],
    ids=["cae", "vqvae", "improved_bigan"],
)
def test_bfloat16_is_used_for_computation_alone(detector):
    """Convolutions and most products use it; states, averages and logs are float32."""
    for name in detector.objectives:
        after, logs = trace(lambda f: partial(jax.eval_shape, f), detector, name)
        assert {leaf.dtype for leaf in jax.tree.leaves((after, logs))} <= set(map(jnp.dtype, (jnp.float32, jnp.int32)))
        products = []
        equations = list(walk(trace(jax.make_jaxpr, detector, name).jaxpr))
        for equation in equations:
            dtypes = {v.aval.dtype for v in equation.invars if hasattr(v, "aval")}
            if equation.primitive.name == "conv_general_dilated":
                assert dtypes == {jnp.dtype(jnp.bfloat16)}
            if equation.primitive.name in ("conv_general_dilated", "dot_general"):
                products.append(dtypes)
            if equation.primitive.name.startswith("psum"):  # statistics, gradients, logs
                assert jnp.dtype(jnp.bfloat16) not in dtypes
        assert any(e.primitive.name == "conv_general_dilated" for e in equations)
        # Distances to a codebook are float32.
        assert sum(d == {jnp.dtype(jnp.bfloat16)} for d in products) > len(products) / 2


def test_batch_norm_reduces_in_float32():
    """In bfloat16, 256 + 1 is 256: means of large feature maps would be wrong."""
    norm = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    x = jnp.ones((4, 8, 8, 2), jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)

    def loss(params, x):
        y, _ = norm.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return y.astype(jnp.float32).sum()

    mapped = jax.vmap(jax.grad(loss, (0, 1)), (None, 0), axis_name=BATCH_AXIS)
    jaxpr = jax.make_jaxpr(mapped)(variables["params"], x[None]).jaxpr
    reductions = [e for e in walk(jaxpr) if e.primitive.name.startswith("reduce_sum")]
    assert len(reductions) >= 4  # mean and mean of squares, and their gradients
    for equation in reductions:
        assert equation.invars[0].aval.dtype == jnp.float32


def test_epoch_transfers_indices_alone(monkeypatch):
    """Under a guard that allows explicit transfers, such as that of the indices."""
    limit_devices(monkeypatch, 2)
    runner = make_runner(CAE, ADAM, scanned=True)
    state = runner.layout.to_devices(initial_state(CAE))
    state, _ = runner.epoch(state, ("reconstruction",), INDICES)
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            jnp.sin(np.ones(3, np.float32))
        runner.epoch(state, ("reconstruction",), INDICES)


def test_perceptual_target_has_no_gradient():
    """VGG16 is applied to the image, and forward and backward to its reconstruction; its weights
    get no gradient."""
    detector = PERCEPTUAL(dtype=jnp.bfloat16)
    uses, sizes = Counter(), Counter()
    jaxpr = trace(jax.make_jaxpr, detector, "reconstruction").jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for equation in walk(needed):
        if equation.primitive.name == "conv_general_dilated":
            # Sorted, as the kernel of a backward convolution is transposed.
            uses.update(tuple(sorted(v.aval.shape)) for v in equation.invars)
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            sizes.update(v.aval.size for v in equation.outvars)
    kernels = [p["kernel"] for p in detector.frozen["vgg16"]["params"].values()]
    assert [k.shape for k in kernels] == [(3, 3, 3, 64), (3, 3, 64, 64)]
    assert [uses[k.shape] for k in kernels] == [3, 3]
    assert [sizes[k.size] for k in kernels] == [0, 0]


def test_vectorized_seeds_have_no_grouped_convolution(monkeypatch):
    """cuDNN is slow for them. Each seed has its own, except for VGG16, whose kernel all share."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    limit_devices(monkeypatch, 1)
    detector = PERCEPTUAL(widths=(8, 16), discriminator_widths=(8, 16))
    runner = make_runner(detector, ADAM, scanned=True, seeds=3)
    state = jax.tree.map(lambda *x: jnp.stack(x), *initial_states(detector, ADAM, range(3)))
    shards = runner.layout.shard_indices(np.arange(24).reshape(2, 3, 4))
    jaxpr = jax.make_jaxpr(runner._epoch_program(OBJECTIVES))(
        runner.layout.to_devices(state), runner.frozen, runner.training_set, shards
    )
    groups, batches = Counter(), Counter()
    for equation in walk(jaxpr.jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            groups[equation.params["feature_group_count"]] += 1
            groups[equation.params["batch_group_count"]] += 1
            batches[equation.invars[0].aval.shape[0]] += 1
    assert set(groups) == {1}
    assert batches[12] > 0, batches  # VGG16 is applied to the images of all three at once


def trace(how, detector, name):
    """Applies `how` to an objective's update on the only device of an axis, for a batch of four."""
    optimizers = dict.fromkeys(detector.objectives, ADAM)
    state = jax.eval_shape(lambda: init_state(detector, optimizers, 0, SHAPE))
    batch = Batch(jnp.zeros((1, 4, *SHAPE)), jnp.zeros((1, 4), jnp.int32))

    def step(state, batch):
        return update(detector, ADAM, name, state, dict(detector.frozen), batch, 1)

    return how(jax.vmap(step, (None, 0), axis_name=BATCH_AXIS))(state, batch)


def walk(jaxpr):
    """Yields all equations of a jaxpr, those of nested jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


@pytest.mark.long
def test_accelerator_benchmark_runs(tmp_path):
    """At toy size, whose figures mean nothing."""
    figures = accelerator.main(["--toy", "--dtype=float32", f"--output={tmp_path / 'f.json'}"])
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    assert figures["peak_flops"] > 0 and figures["schedule"]["epochs"] == 11
    step = figures["step"]["with_discriminator"]
    assert step["flops"] > figures["step"]["without"]["flops"] > 0
    assert 0 < step["share_of_peak"] < 1 and figures["search"]["ratio"] > 0
    assert figures["seeds"]["phase2"]["cost"] > 1
    assert 0 <= figures["schedule"]["host_idle_share"] < 1


def test_later_epochs_of_run_do_not_compile(tmp_path, monkeypatch, compilations):
    """Around the steps neither: each epoch would cost time, and memory that is never freed."""
    counts = []

    class CountingLogger(epoch_logger.EpochLogger):
        def log_epoch(self, *arguments):
            counts.append(compilations())
            return super().log_epoch(*arguments)

    monkeypatch.setattr(loop, "EpochLogger", CountingLogger)
    monkeypatch.setattr(train, "evaluate_run", lambda *_: {})
    fields = TINY_FCAE | {"data.phantom_anomalous": 4, "batch_size": 8}
    train.train(configured(fcae, "phantom", fields), tmp_path / "run")
    assert counts[1:] == [counts[1]] * 3  # the first epoch is saved after it is logged
