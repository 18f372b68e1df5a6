"""The yardstick of critics in one program: a game whose values are known, and critics that know them."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.envs.device_env import DeviceObservation
from steprl.envs.games import Game
from steprl.laboratory import ValueSample, make_program, make_value_audit
from tests.lock import key_of, table_policy
from tests.small import small_config

FIRST, STEPS, HEADS = 3, 5, 0.6
TURNS = tuple(f"turn {number}" for number in range(STEPS + 1))


class CoinState(NamedTuple):
    turn: jax.Array


@dataclasses.dataclass(frozen=True)
class Coin:
    """Five turns, each named; whoever says "turn 0" is rewarded, so the turn alone decides the value."""

    heldout: bool | jax.Array = False
    prompt_width = 1
    action_width = 1
    observation_width = 1
    max_steps = STEPS
    vocab_size = FIRST + len(TURNS)
    stop_ids: ClassVar[tuple[int, ...]] = ()

    def reset(self, task, key):
        zero = jnp.zeros((), jnp.int32)
        return CoinState(zero), jnp.full(1, FIRST, jnp.int32)

    def step(self, state, action):
        turn = state.turn + 1
        done = turn >= self.max_steps
        right = action[0] == FIRST
        return CoinState(turn), DeviceObservation(
            tokens=(FIRST + turn)[None].astype(jnp.int32),
            reward=right.astype(jnp.float32),
            terminated=done,
            truncated=jnp.zeros((), bool),
            valid=jnp.ones((), bool),
            success=done & right,
        )


def logits():
    """Whatever was read, heads with probability HEADS and else any other word of the game."""
    size = Coin.vocab_size
    row = np.full(size, -1e9, np.float32)
    row[FIRST:] = np.log((1 - HEADS) / (len(TURNS) - 1))
    row[FIRST] = np.log(HEADS)
    return jnp.asarray(np.tile(row, (size, 1)))


def true_values(gamma):
    """Before each step: HEADS for each turn that is left."""
    return np.array([HEADS * sum(gamma**k for k in range(STEPS - s)) for s in range(STEPS)])


@pytest.fixture(scope="module")
def audited():
    """Of two critics, one that knows the values and one that knows nothing, by the discount."""
    config = small_config("sft.steps=0", "algorithm.gamma=0.8", "model.value_head=shared")
    policy = table_policy(logits())
    program = make_program(config, env=Game(Coin, TURNS), policy=policy)
    audit = jax.jit(make_value_audit(program, config, rows=40, states=60, continuations=64))
    params = policy.init(key_of(0))
    params["decoder"] = {"table": logits()}
    head = jnp.zeros(Coin.vocab_size).at[FIRST : FIRST + STEPS].set(true_values(0.8))
    wise = {**params, "value": {"head": head}}
    return audit(wise, key_of(1)), audit(params, key_of(1))


def test_continuations_find_the_values(audited):
    sample, _ = audited
    value, error = sample.value()
    assert sample.there_K.all() and sample.return_KM.shape == (60, 64)
    assert set(np.asarray(sample.step_K)) == set(range(STEPS))
    off = (value - true_values(0.8)[np.asarray(sample.step_K)]) / np.maximum(error, 1e-3)
    assert np.abs(off).max() < 4.5 and 0.6 < np.mean(off**2) < 1.6


def test_continuations_of_a_state_differ(audited):
    returns = np.asarray(audited[0].return_KM)[np.asarray(audited[0].step_K) == 0]
    assert len(returns) > 3 and len({tuple(row) for row in returns}) == len(returns)


def test_the_critic_is_read_at_the_state_before_the_step(audited):
    sample, _ = audited
    np.testing.assert_allclose(
        sample.critic_K, true_values(0.8)[np.asarray(sample.step_K)], rtol=1e-5
    )


def test_a_critic_that_knows_reaches_the_ceiling_and_one_that_does_not_has_no_rank(audited):
    wise, ignorant = audited
    assert wise.explained_variance() == pytest.approx(1.0, abs=0.05)
    assert wise.ceiling() - 0.05 < wise.rank_correlation() <= 1.0
    assert ignorant.explained_variance() == pytest.approx(0.0, abs=0.02)
    assert np.isnan(ignorant.rank_correlation())


def test_states_that_are_not_there_do_not_count():
    returns = np.array([[0.0, 1.0], [1.0, 1.0], [9.0, -9.0]])
    sample = ValueSample(
        np.array([True, True, False]), np.arange(3), np.array([1.0, 2, -5]), returns
    )
    np.testing.assert_allclose(sample.value()[0], [0.5, 1.0])
    np.testing.assert_allclose(sample.value()[1], [0.5, 0.0])
    assert sample.rank_correlation() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2, 2), "rows=0: must be at least 1"),
        ((1, 2, 1), "continuations=1: must be at least 2"),
        ((1, 6, 2), "states=6: 1 episodes of 5 steps have no more than 5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    config = small_config("sft.steps=0")
    program = make_program(config, env=Game(Coin, TURNS), policy=table_policy(logits()))
    with pytest.raises(ValueError, match=message):
        make_value_audit(program, config, *sizes)
