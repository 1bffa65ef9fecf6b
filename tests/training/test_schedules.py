"""The paper's schedule, counted; learning rates against their closed forms."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.configs import improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.training import schedules
from bigan_jax.training.schedules import OptimizerSettings

OBJECTIVES = ("discriminator", "adversarial", "reconstruction")


@cache
def phases(argument="brain"):
    return schedules.parse_phases(improved_bigan.get_config(argument).phases.to_dict(), OBJECTIVES)


def objectives_at(argument, epoch):
    return schedules.active_objectives(schedules.schedule_at(phases(argument), epoch))


def test_schedule_is_that_of_paper():
    assert schedules.total_epochs(phases()) == 650
    for epoch in (0, 5, 149):
        assert objectives_at("brain", epoch) == ("reconstruction",)
    for epoch in range(150, 650):
        discriminator = ("discriminator",) if epoch % 5 == 0 else ()
        expected = (*discriminator, "adversarial", *["reconstruction"] * 3)
        assert objectives_at("brain", epoch) == expected
    with pytest.raises(IndexError):
        objectives_at("brain", 650)


def test_updates_by_phase_count_active_objectives():
    for name in OBJECTIVES:
        counts = [0, 0]
        for epoch in range(650):
            counts[epoch >= 150] += objectives_at("brain", epoch).count(name) * 7
        assert schedules.updates_by_phase(phases(), name, 7) == counts


def test_ablations_change_schedule():
    assert schedules.total_epochs(phases("brain,no_pretrain")) == 500
    assert objectives_at("brain,no_adversarial", 150) == ("reconstruction",) * 3
    adversarial = ("discriminator", "adversarial")
    assert objectives_at("brain,plain", 0) == objectives_at("brain,plain", 1) == adversarial


def test_one_cycle_rises_and_falls_in_each_phase():
    settings = OptimizerSettings(learning_rate=1.0, rate="one_cycle")
    optimizer = schedules.make_optimizer([100, 0, 50], settings)
    state, rates = optimizer.init(jnp.zeros(())), []
    for _ in range(150):
        change, state = optimizer.update(jnp.ones(()), state)
        rates.append(-float(change))  # of a constant gradient, Adam's step is the learning rate
    rates = np.array(rates)
    assert rates[[0, 100]] == pytest.approx(1 / 25, rel=1e-3)
    assert rates.argmax() == 30 and rates[100:].argmax() == 15
    assert rates[[30, 115]] == pytest.approx(1, rel=1e-3)
    assert max(rates[99], rates[149]) < 0.01


def test_constant_rate_is_adam_of_optax():
    settings = OptimizerSettings(learning_rate=0.1, b1=0.5, b2=0.9)
    optimizers = schedules.make_optimizer([3], settings), optax.adam(0.1, 0.5, 0.9)
    x = jnp.array([1.0, -2.0])
    states = [optimizer.init(x) for optimizer in optimizers]
    for gradient in (x, 2 * x, -x):
        results = [o.update(gradient, s) for o, s in zip(optimizers, states, strict=True)]
        changes, states = zip(*results, strict=True)
        np.testing.assert_array_equal(*changes)


def test_invalid_phases_and_rates_are_named():
    frequency = {"every": 1, "times": 1}
    with pytest.raises(UserError, match=r"'recons'.*'reconstruction'"):
        schedules.parse_phases({"p": {"epochs": 1, "objectives": {"recons": frequency}}}, OBJECTIVES)
    for invalid in ({"every": 0}, {"times": -1}):
        phase = {"epochs": 1, "objectives": {"adversarial": frequency | invalid}}
        with pytest.raises(UserError, match="every at least 1"):
            schedules.parse_phases({"p": phase}, OBJECTIVES)
    with pytest.raises(UserError, match=r"'cyclic'.*constant"):
        OptimizerSettings(learning_rate=1.0, rate="cyclic")
