"""The paper's schedule, counted; rates against their closed forms."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.configs import improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.training import schedules

OBJECTIVES = ("discriminator", "adversarial", "reconstruction")


def phases(arg="brain"):
    return schedules.parse(improved_bigan.get_config(arg).phases.to_dict(), OBJECTIVES)


def due(arg, epoch):
    return schedules.active_objectives(schedules.schedule_at(phases(arg), epoch))


def test_updates_are_the_paper_s():
    assert schedules.total_epochs(phases()) == 650
    for epoch in (0, 5, 149):
        assert due("brain", epoch) == ("reconstruction",)
    thrice = ("reconstruction",) * 3
    for epoch in range(150, 650):
        discriminator = ("discriminator",) if epoch % 5 == 0 else ()
        assert due("brain", epoch) == (*discriminator, "adversarial", *thrice)
    with pytest.raises(IndexError):
        due("brain", 650)


def test_updates_by_phase_are_what_is_due():
    for name in OBJECTIVES:
        counted = [0, 0]
        for epoch in range(650):
            counted[epoch >= 150] += due("brain", epoch).count(name) * 7
        assert schedules.updates_by_phase(phases(), name, 7) == counted


def test_ablations_change_the_schedule():
    assert schedules.total_epochs(phases("brain,no_pretrain")) == 500
    assert due("brain,no_adversarial", 150) == ("reconstruction",) * 3
    assert due("brain,plain", 0) == due("brain,plain", 1) == ("discriminator", "adversarial")


def test_one_cycle_rises_and_falls_in_each_phase():
    optimizer = schedules.make_optimizer(
        [100, 0, 50], schedules.OptimizerSettings(learning_rate=1.0, rate="one_cycle")
    )
    state, sizes = optimizer.init(jnp.zeros(())), []
    for _ in range(150):
        change, state = optimizer.update(jnp.ones(()), state)
        sizes.append(-float(change))  # Adam's steps on a constant gradient are the rate
    sizes = np.array(sizes)
    assert sizes[[0, 100]] == pytest.approx(1 / 25, rel=1e-3)
    assert sizes.argmax() == 30 and sizes[100:].argmax() == 15
    assert sizes[[30, 115]] == pytest.approx(1, rel=1e-3)
    assert max(sizes[99], sizes[149]) < 0.01


def test_constant_rate_is_optax_adam():
    ours = schedules.make_optimizer(
        [3], schedules.OptimizerSettings(learning_rate=0.1, b1=0.5, b2=0.9)
    )
    theirs = optax.adam(0.1, 0.5, 0.9)
    x = jnp.array([1.0, -2.0])
    states = ours.init(x), theirs.init(x)
    for gradient in (x, 2 * x, -x):
        our_change, our_state = ours.update(gradient, states[0])
        their_change, their_state = theirs.update(gradient, states[1])
        states = our_state, their_state
        np.testing.assert_array_equal(our_change, their_change)


def test_mistakes_are_named():
    turn = {"every": 1, "times": 1}
    with pytest.raises(UserError, match=r"'recons'.*'reconstruction'"):
        schedules.parse({"p": {"epochs": 1, "objectives": {"recons": turn}}}, OBJECTIVES)
    for broken in ({"every": 0}, {"times": -1}):
        with pytest.raises(UserError, match="every at least 1"):
            schedules.parse(
                {"p": {"epochs": 1, "objectives": {"adversarial": turn | broken}}}, OBJECTIVES
            )
    with pytest.raises(UserError, match=r"'cyclic'.*constant"):
        schedules.make_optimizer([1], schedules.OptimizerSettings(learning_rate=1.0, rate="cyclic"))
