"""What the compiled steps are like: compiled once, in the dtype asked for, without transfers,
copies or gradients that nobody wants."""

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
from bigan_jax.detector import Batch
from bigan_jax.models import cae, improved_bigan, vqvae
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training import epoch_logger, loop
from bigan_jax.training.train_step import update
from tests.helpers.runs import configured
from tests.helpers.training import OBJECTIVES as DUE
from tests.helpers.training import SHAPE
from tests.helpers.training import TINY_BIGAN as BIGAN
from tests.helpers.training import initial_states as states
from tests.helpers.training import limit_devices as devices
from tests.helpers.training import make_runner as runner

CAE = cae.create(shape=SHAPE, latent=4, widths=(8,))
ORDER = np.arange(24).reshape(3, 8)
PERCEPTUAL = partial(
    improved_bigan.create,
    shape=SHAPE,
    latent=8,
    widths=(8,),
    discriminator_widths=(8,),
    discriminator_hidden=8,
    perceptual_layers=("relu1_2",),
)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(
    ("detector", "phases"),
    [
        (CAE, [[("reconstruction",)]]),
        # The second phase's epochs are of two kinds: the discriminator acts in one of five.
        (BIGAN, [[("reconstruction",)], [DUE, DUE[1:]]]),
    ],
    ids=["cae", "improved_bigan"],
)
def test_nothing_is_compiled_after_the_first_epochs_of_a_phase(
    monkeypatch, compilations, detector, phases, scanned
):
    devices(monkeypatch, 2)
    run = runner(detector, optax.adam(1e-3), scanned)
    (state,) = states(detector, optax.adam(1e-3), [0])
    state = run.layout.to_devices(state)

    def epoch(state, due):
        state, _ = run.epoch(state, due, ORDER)
        state = run.with_statistics(state, ORDER)
        jax.block_until_ready(run.layout.from_devices(state))  # what a checkpoint gets
        return state

    for kinds in phases:
        before = compilations()
        for due in kinds:
            state = epoch(state, due)
        assert compilations() > before
        before = compilations()
        for due in kinds * 2:
            state = epoch(state, due)
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
def test_bfloat16_is_for_the_computation_alone(detector):
    """Convolutions and products take it; what is kept, averaged or logged is float32."""
    optimizer = optax.adam(1e-3)
    (state,) = states(detector, optimizer, [0])
    for name in detector.objectives:
        step = partial(update, detector, optimizer, name)
        after, logs = traced(lambda f: partial(jax.eval_shape, f), step, detector, state)
        assert {leaf.dtype for leaf in jax.tree.leaves((after, logs))} <= set(
            map(jnp.dtype, (jnp.float32, jnp.int32))
        )
        products = []
        equations = list(walk(traced(jax.make_jaxpr, step, detector, state).jaxpr))
        for equation in equations:
            kinds = {v.aval.dtype for v in equation.invars if hasattr(v, "aval")}
            if equation.primitive.name == "conv_general_dilated":
                assert kinds == {jnp.dtype(jnp.bfloat16)}
            if equation.primitive.name in ("conv_general_dilated", "dot_general"):
                products.append(kinds)
            if equation.primitive.name.startswith("psum"):  # statistics, gradients, logs
                assert jnp.dtype(jnp.bfloat16) not in kinds
        assert any(e.primitive.name == "conv_general_dilated" for e in equations)
        # A codebook's distances are float32.
        assert sum(kinds == {jnp.dtype(jnp.bfloat16)} for kinds in products) > len(products) / 2


def test_batch_norm_s_reductions_are_float32():
    """Of bfloat16 maps: 256 + 1 is 256 there, so that means of large maps would be wrong."""
    from bigan_jax.nn.blocks import BatchNorm

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


def test_nothing_but_indices_goes_to_the_device_within_an_epoch(monkeypatch):
    """Under a guard that lets explicit transfers pass, which the indices' is."""
    devices(monkeypatch, 2)
    run = runner(CAE, optax.adam(1e-3), scanned=True)
    state = run.layout.to_devices(*states(CAE, optax.adam(1e-3), [0]))
    state, _ = run.epoch(state, ("reconstruction",), ORDER)
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            jnp.sin(np.ones(3, np.float32))
        run.epoch(state, ("reconstruction",), ORDER)


def test_the_perceptual_target_has_no_gradient():
    """VGG16 runs once on the picture, once forward and once backward on its reconstruction; its
    weights get no gradient. All of it in the computation's dtype."""
    detector = PERCEPTUAL(dtype=jnp.bfloat16)
    (state,) = states(detector, optax.adam(1e-3), [0])
    step = partial(update, detector, optax.adam(1e-3), "reconstruction")
    uses, made = Counter(), Counter()
    jaxpr = traced(jax.make_jaxpr, step, detector, state).jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for equation in walk(needed):
        if equation.primitive.name == "conv_general_dilated":
            uses.update(tuple(sorted(v.aval.shape)) for v in equation.invars)  # or it is turned
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            made.update(v.aval.size for v in equation.outvars)
    kernels = [p["kernel"] for p in detector.frozen["vgg16"]["params"].values()]
    assert [k.shape for k in kernels] == [(3, 3, 3, 64), (3, 3, 64, 64)]
    assert [uses[k.shape] for k in kernels] == [3, 3]
    assert [made[k.size] for k in kernels] == [0, 0]


def test_seeds_side_by_side_make_no_grouped_convolution(monkeypatch):
    """For which cuDNN is slow: each seed's is its own, but VGG16's, whose kernel all share."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    devices(monkeypatch, 1)
    detector = PERCEPTUAL(widths=(8, 16), discriminator_widths=(8, 16))
    run = runner(detector, optax.adam(1e-3), scanned=True, seeds=3)
    state = jax.tree.map(lambda *x: jnp.stack(x), *states(detector, optax.adam(1e-3), range(3)))
    shares = run.layout.shard_indices(np.arange(24).reshape(2, 3, 4))
    made = jax.make_jaxpr(run._program(DUE))(
        run.layout.to_devices(state), run.frozen, run.pictures, shares
    )
    groups, batches = Counter(), Counter()
    for equation in walk(made.jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            groups[equation.params["feature_group_count"]] += 1
            groups[equation.params["batch_group_count"]] += 1
            batches[equation.invars[0].aval.shape[0]] += 1
    assert set(groups) == {1}
    assert batches[12] > 0, batches  # VGG16 sees the pictures of all three at once


@pytest.mark.parametrize("scanned", [False, True])
def test_a_state_s_memory_is_used_again(scanned):
    """Donation: the state that went in is gone, and JAX found a use for all of it."""
    run = runner(BIGAN, optax.adam(1e-3), scanned)
    state = run.layout.to_devices(*states(BIGAN, optax.adam(1e-3), [0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.epoch(state, DUE, ORDER)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def traced(how, step, detector, state):
    """`how` of the step on the one device of an axis, for a batch of four."""
    batch = Batch(jnp.zeros((1, 4, *SHAPE)), jnp.zeros((1, 4), jnp.int32))
    mapped = jax.vmap(lambda b: step(state, dict(detector.frozen), b, 1), axis_name=BATCH_AXIS)
    return how(mapped)(batch)


def walk(jaxpr):
    """All equations of a jaxpr, those within others included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


@pytest.mark.long
def test_the_accelerator_s_benchmark_runs(tmp_path):
    """At a toy's size: the figures are of the right kind, and say nothing else."""
    found = accelerator.main(["--toy", "--dtype=float32", f"--output={tmp_path / 'f.json'}"])
    assert json.loads((tmp_path / "f.json").read_text()) == found
    assert found["peak_flops"] > 0 and found["schedule"]["epochs"] == 11
    step = found["step"]["with_discriminator"]
    assert step["flops"] > found["step"]["without"]["flops"] > 0
    assert 0 < step["share_of_peak"] < 1 and found["search"]["ratio"] > 0
    assert found["seeds"]["phase2"]["cost"] > 1 and 0 <= found["schedule"]["host_idle_share"] < 1


def test_nothing_is_compiled_after_the_first_epoch_of_a_run(tmp_path, monkeypatch, compilations):
    """What goes on around the steps included: each epoch would cost time, and memory for ever."""
    seen = []

    class Counted(epoch_logger.EpochLogger):
        def add(self, *arguments):
            seen.append(compilations())
            return super().add(*arguments)

    monkeypatch.setattr(loop, "EpochLogger", Counted)
    monkeypatch.setattr(train, "evaluate_run", lambda *_: {})
    fields = {
        "data.image_size": 16,
        "data.phantom_normal": 40,
        "data.phantom_anomalous": 4,
        "model.hidden": (8, 4),
        "batch_size": 8,
        "checkpoint.every": 1,
        "phases.phase1.epochs": 4,
    }
    train.train(configured(fcae, "phantom", fields), tmp_path / "run")
    assert seen[1:] == [seen[1]] * 3  # the first epoch is saved after it was counted
