"""What games say for an enumeration: never less than what can still be had, and no reward is left out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.audit import enumerate_steps
from steprl.audit.truth import continue_all
from steprl.config import load_config
from steprl.envs.opening import open_game
from steprl.sampling import Sampling
from steprl.session import setup
from steprl.train import run_warm_start
from tests.small import small_config

GAMES = {
    "errand": ("env.name=errand", "env.errand.errands=2", "env.errand.hidden=false",
               "env.errand.transform=false", "env.errand.spare_steps=1"),
    "shop": ("env.name=shop", "env.shop.options=1", "env.shop.purchases=2", "env.shop.spare_steps=1"),
    "shop, score": ("env.name=shop", "env.shop.options=1", "env.shop.purchases=2",
                    "env.shop.spare_steps=1", "env.shop.reward=score"),
}  # fmt: skip
TASKS = 48


def play(game, env):
    """Episodes of players who are right more or less often: states before each step, returns from there on.

    Of each step: state, larger axis first [TASKS, ...], whether the episode goes on, and the return.
    """

    @jax.jit
    def turn(state, keys, chance):
        def choose(state, key):
            right, random_key, word_key = game.optimal(state, key), *jax.random.split(key)
            shown = game.demonstrate(state, key)
            other = jax.random.randint(word_key, right.shape, 3, env.vocab_size)
            draw = jax.random.uniform(random_key)
            action = jnp.where(draw < 0.9, shown, other)
            return jnp.where(draw < chance, right, action)

        return jax.vmap(env.step)(state, jax.vmap(choose)(state, keys))

    tasks = jnp.arange(TASKS)
    keys = jax.vmap(jax.random.key)(tasks)
    state, _ = jax.vmap(env.reset)(tasks, keys)
    alive, before, rewards = np.ones(TASKS, bool), [], []
    for step in range(env.max_steps):
        chance = 0.97 if step % 2 else 0.8
        after, seen = turn(state, jax.vmap(jax.random.fold_in, (0, None))(keys, step), chance)
        before.append((state, alive))
        rewards.append(np.where(alive, np.asarray(seen.reward), 0.0))
        alive = alive & ~np.asarray(seen.terminated | seen.truncated)
        state = after
    to_go = np.cumsum(np.array(rewards)[::-1], axis=0)[::-1]
    return [(*pair, returns) for pair, returns in zip(before, to_go, strict=True)]


@pytest.fixture(scope="module", params=GAMES)
def played(request):
    game = open_game(load_config(None, list(GAMES[request.param])).env)
    env = game.make(False)
    return game, env, play(game, env)


def test_no_return_is_larger_than_the_largest(played):
    game, _, steps = played
    largest_of = jax.jit(jax.vmap(game.enumerable.largest_return))
    all_largest, all_returns = [], []
    for state, alive, returns in steps:
        all_largest.append(np.asarray(largest_of(state))[alive])
        all_returns.append(returns[alive])
    largest, found = np.concatenate(all_largest), np.concatenate(all_returns)
    assert (largest >= found - 1e-6).all()
    # It says something: some states can bring less than all, and some bring what they can.
    assert (largest < 1).any() and (found[largest == 1] == 1).any()


def test_in_a_last_step_one_action_alone_is_rewarded(played):
    game, env, steps = played
    actions = jnp.array(list(itertools.product(range(env.vocab_size), repeat=2)), jnp.int32)
    rewards_of = jax.jit(jax.vmap(lambda s, a: env.step(s, a)[1].reward, (None, 0)))
    last_of = jax.jit(jax.vmap(game.enumerable.last_action))
    for state, _, _ in steps[:-1]:
        assert not np.asarray(last_of(state)).any()
    state, alive, _ = steps[-1]
    last, rewarded = np.asarray(last_of(state)), 0
    for row in np.flatnonzero(alive)[:12]:
        reward = np.asarray(rewards_of(jax.tree.map(lambda x: x[row], state), actions))  # noqa: B023
        for action in np.asarray(actions)[reward > 0]:
            assert action.tolist() == last[row].tolist()
            rewarded += 1
    assert rewarded


SMALL_ERRAND = (
    "env.name=errand", "env.errand.hidden=false", "env.errand.transform=false",
    "env.errand.spare_steps=1", "env.errand.places=5", "env.errand.objects=2",
    "env.errand.demo_lazy=0.3", "model.d_model=32", "model.head_dim=16", "model.d_ff=64",
    "sft.steps=60", "sft.lr=1e-2", "sft.batch_size=64", "rollout.temperature=0.7",
)  # fmt: skip


@pytest.mark.slow
def test_continuations_agree_with_the_enumeration(tmp_path):
    session = setup(small_config(*SMALL_ERRAND))
    params = run_warm_start(session, tmp_path)
    how = {"split": "heldout", "sampling": Sampling(0.7)}
    tasks = np.arange(16)
    rollouts = session.player.explore(params, jax.random.key(3), tasks, tasks * 0, **how)
    wide, close = (
        enumerate_steps(session.policy, params, session.suite, session.config, True,
                        rollouts.trajectories, threshold)
        for threshold in (1e-2, 1e-4)
    )  # fmt: skip
    truth, _ = continue_all(
        session.player, params, jax.random.key(3), rollouts, 16, 64, 1,
        session.config.algorithm.gamma, **how,
    )  # fmt: skip
    for (low, high), found in (
        (close.value_s.T, truth.value()[0]),
        (close.action_value_s.T, truth.action_value()[0]),
    ):
        assert (low <= high + 1e-9).all()
        room = 4.5 * np.sqrt(np.maximum(high * (1 - low), 0.02) / 64) + 1e-6
        assert (found > low - room).all() and (found < high + room).all()
    assert truth.value()[0].std() > 0.1  # there is something to agree on
    assert np.ptp(close.value_s, axis=1).mean() < 0.05
    for loose, narrow in zip(wide, close, strict=True):
        assert (narrow[:, 0] >= loose[:, 0] - 1e-6).all()
        assert (narrow[:, 1] <= loose[:, 1] + 1e-6).all()
