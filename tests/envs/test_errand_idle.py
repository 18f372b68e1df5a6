"""Idle steps of errand: where they are, that nothing said in them matters, and what stays the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.config import EnvConfig, ErrandConfig
from steprl.envs.errand import Errand, optimal
from steprl.envs.errand import language as words
from steprl.envs.opening import open_game
from steprl.rollout import demonstrations

BASE = ErrandConfig()
IDLE = dataclasses.replace(BASE, idle_steps=8)
TASKS = jnp.arange(64)


@functools.partial(jax.jit, static_argnums=0)
def begun(config, heldout=False):
    env = Errand(config, heldout)
    return jax.vmap(lambda task: env.reset(task, jax.random.key(0)))(TASKS)


@pytest.fixture(scope="module")
def walked():
    """States [tasks, steps + 1] of optimal players in a room with idle steps, and what they said."""
    env = Errand(IDLE)

    def play(task):
        def step(state, _):
            action = optimal(IDLE, state)
            after, seen = env.step(state, action)
            return after, (state, action, seen, env.distance(state))

        return jax.lax.scan(step, env.reset(task, jax.random.key(0))[0], length=IDLE.horizon)[1]

    return jax.device_get(jax.jit(jax.vmap(play))(TASKS))


@pytest.mark.parametrize("heldout", [False, True], ids=["training", "held out"])
def test_a_task_is_the_same_but_for_its_idle_steps(heldout):
    (plain, prompt), (state, same) = begun(BASE, heldout), begun(IDLE, heldout)
    np.testing.assert_array_equal(prompt, same)
    assert plain.idle.shape == (64, 0)
    for name in set(state._fields) - {"idle"}:
        np.testing.assert_array_equal(getattr(plain, name), getattr(state, name))


def test_each_task_draws_so_many_of_all_steps_but_the_last():
    idle = np.asarray(begun(IDLE)[0].idle)
    assert idle.shape == (64, IDLE.horizon) and IDLE.horizon == 16
    assert np.all(idle.sum(axis=1) == 8) and not idle[:, -1].any()
    assert np.all(idle[:, :-1].any(axis=0)) and len(np.unique(idle, axis=0)) > 60


@pytest.mark.parametrize(
    ("changes", "density"),
    [
        (dict(errands=1, hidden=False, transform=False, idle_steps=12), 1 / 4),
        (dict(errands=2, idle_steps=16), 1 / 2),
    ],
)
def test_the_best_play_takes_the_horizon_and_reaches_the_optimum(changes, density):
    config = ErrandConfig(**changes)
    assert 1 - config.idle_steps / config.horizon == density
    game = open_game(EnvConfig(name="errand", errand=config))
    batch = jax.jit(
        lambda: demonstrations(game.make(False), game.optimal, jax.random.key(1), jnp.arange(16))
    )()
    assert np.all(batch.success_N) and np.all(batch.mask_NS.sum(axis=1) == config.horizon)


def test_the_distance_counts_idle_steps(walked):
    distance = walked[3]
    np.testing.assert_array_equal(distance, np.broadcast_to(np.arange(16, 0, -1), distance.shape))


def test_what_is_said_in_an_idle_step_has_no_effect(walked):
    env = Errand(IDLE)
    states, _, seen, _ = walked
    idle = states.idle[:, 0]
    before = jax.tree.map(lambda x: x[:, :-1], states)
    after = jax.tree.map(lambda x: x[:, 1:], states)
    changed = np.zeros(idle[:, :-1].shape, bool)
    for name in set(states._fields) - {"turn", "idle"}:
        differs = getattr(before, name) != getattr(after, name)
        changed |= differs.reshape(*changed.shape, -1).any(axis=-1)
    np.testing.assert_array_equal(changed, ~idle[:, :-1])  # an optimal player wastes no other step
    assert np.all(seen.tokens[idle] == words.NOTHING)
    # The same for any other command, also one that is none.
    flat, step = jax.tree.map(lambda x: x[idle], states), jax.jit(jax.vmap(env.step, (0, None)))
    for action in ([words.FIRST_VERB, words.FIRST_LOCATION], [words.FIRST_KIND, 1]):
        other, shown = step(flat, np.array(action, np.int32))
        np.testing.assert_array_equal(shown.tokens, words.NOTHING)
        for name in set(flat._fields) - {"turn"}:
            np.testing.assert_array_equal(getattr(other, name), getattr(flat, name))
        assert not np.asarray(shown.reward).any() and not np.asarray(shown.terminated).any()


def test_behind_the_horizon_every_step_counts():
    env = Errand(IDLE)

    @jax.jit
    def late():
        state = env.reset(0, jax.random.key(0))[0]._replace(turn=jnp.asarray(IDLE.horizon))
        return state, env.distance(state), *env.step(state, optimal(IDLE, state))

    state, distance, after, seen = late()
    assert int(after.here) != int(state.here) and not bool(seen.truncated) and int(distance) == 8
