"""Returns and advantages: one recurrence, a zero discount ends a trajectory, masked tokens are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops

FEW = settings(max_examples=15, deadline=None)
NAN = float("nan")
numbers = st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6)
fractions = st.floats(0, 1, width=32)


def random_row(seed=0, length=9):
    """rewards, discounts with an end inside, values, step ids with masked places."""
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, length)).astype(np.float32)
    discount = np.full(length, 0.9, np.float32)
    discount[[length // 2, -1]] = 0
    ids = np.where(rng.random(length) < 0.6, np.arange(length) // 3, -1)
    return reward, discount, value, ids


# --- The recurrence -------------------------------------------------------------------------------


def test_reverse_recurrence_table():
    y = ops.reverse_recurrence(jnp.array([1.0, 1.0, 1.0]), jnp.array([0.5, 0.0, 2.0]), 3.0)
    np.testing.assert_array_equal(y, [1.5, 1.0, 7.0])


@FEW
@given(numbers, numbers, st.floats(-5, 5, width=32))
def test_reverse_recurrence_equals_a_loop(x, c, initial):
    expected, y = [], np.float64(initial)
    for x_t, c_t in zip(reversed(x), reversed(c), strict=True):
        y = x_t + c_t * y
        expected.insert(0, y)
    ours = ops.reverse_recurrence(jnp.array(x), jnp.array(c), initial)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_padding_changes_no_bit(jit):
    function = jax.jit(ops.reverse_recurrence) if jit else ops.reverse_recurrence
    x, c, *_ = random_row(length=50)
    padded = function(np.append(x, np.zeros(13, "f")), np.append(c, np.ones(13, "f")), 0.7)
    np.testing.assert_array_equal(function(x, c, 0.7), padded[:50])


def test_scalar_coefficient_and_columns():
    x = jnp.arange(6.0).reshape(3, 2)
    ours = ops.reverse_recurrence(x, 0.5)
    for column in range(2):
        np.testing.assert_array_equal(
            ours[:, column], ops.reverse_recurrence(x[:, column], jnp.full(3, 0.5))
        )


def test_an_empty_row_has_no_returns():
    nothing = jnp.zeros(0)
    assert ops.discounted_returns(nothing, nothing).shape == (0,)
    assert ops.step_gae(nothing, nothing, nothing, 0.9).shape == (0,)
    assert ops.token_gae(nothing, nothing, nothing, 0.9, jnp.zeros(0, int)).shape == (0,)


# --- Discounted returns ---------------------------------------------------------------------------


def test_discounted_returns_table():
    reward, discount = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.0, 0.5])
    np.testing.assert_array_equal(ops.discounted_returns(reward, discount), [2, 2, 4])
    np.testing.assert_array_equal(ops.discounted_returns(reward, discount, 10.0), [2, 2, 9])


def test_discounted_returns_are_the_sum_of_the_definition():
    reward = np.random.default_rng(0).normal(size=8).astype(np.float32)
    expected = [sum(0.8**k * r for k, r in enumerate(reward[t:])) for t in range(8)]
    ours = ops.discounted_returns(reward, np.full(8, 0.8, np.float32))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# --- Step GAE -------------------------------------------------------------------------------------

REWARD, DISCOUNT = jnp.array([0.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.0])
VALUE = jnp.array([0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        (0.0, [0.0, -0.125, 0.25]),  # the TD error
        (1.0, [0.0, 0.0, 0.25]),  # return - value: 1/4 - 1/4, 1/2 - 1/2, 1 - 3/4
        (0.5, [-0.015625, -0.0625, 0.25]),
    ],
)
def test_step_gae_table(lambda_, expected):
    np.testing.assert_array_equal(ops.step_gae(REWARD, DISCOUNT, VALUE, lambda_), expected)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_step_gae_equals_the_double_sum_of_the_paper(lambda_):
    reward, _, value, _ = random_row()
    gamma, length = 0.9, len(reward)
    discount = np.append(np.full(length - 1, gamma), 0).astype(np.float32)
    delta = reward + gamma * np.append(value[1:], 0) - value
    expected = [
        sum((gamma * lambda_) ** k * delta[t + k] for k in range(length - t)) for t in range(length)
    ]
    ours = ops.step_gae(reward, discount, value, lambda_)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@FEW
@given(numbers, numbers, fractions)
def test_with_lambda_one_the_td_errors_telescope_to_return_minus_value(reward, value, gamma):
    reward, value = jnp.array(reward), jnp.array(value)
    discount = jnp.full(6, gamma).at[-1].set(0)
    np.testing.assert_allclose(
        ops.step_gae(reward, discount, value, 1.0),
        ops.discounted_returns(reward, discount) - value,
        atol=1e-4,
    )


@FEW
@given(numbers, numbers, fractions)
def test_a_critic_that_is_right_leaves_no_advantage(reward, discount, lambda_):
    reward, discount = jnp.array(reward), jnp.clip(jnp.array(discount), 0, 1)
    value = ops.discounted_returns(reward, discount, 2.0)
    ours = ops.step_gae(reward, discount, value, lambda_, bootstrap_value=2.0)
    np.testing.assert_allclose(ours, np.zeros(6), atol=1e-4)


def test_packed_trajectories_do_not_see_each_other():
    a, b = random_row(1, 4)[:3], random_row(2, 5)[:3]
    packed = ops.step_gae(*(jnp.append(x, y) for x, y in zip(a, b, strict=True)), 0.9)
    alone = [ops.step_gae(*x, 0.9) for x in (a, b)]
    np.testing.assert_array_equal(packed, jnp.concatenate(alone))


def test_a_truncated_trajectory_bootstraps_and_a_terminated_one_does_not():
    one, value = jnp.ones(1), jnp.array([0.5])
    assert ops.step_gae(one, 0.5 * one, value, 0.9, bootstrap_value=4.0)[0] == 1 + 2 - 0.5
    assert ops.step_gae(one, 0 * one, value, 0.9, bootstrap_value=4.0)[0] == 1 - 0.5


def test_gradients_are_not_stopped():
    grad = jax.grad(lambda v: ops.step_gae(REWARD, DISCOUNT, v, 1.0).sum())(VALUE)
    np.testing.assert_array_equal(grad, [-1, -1, -1])  # A = G - V


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.discounted_returns(x, x),
        lambda x: ops.step_gae(x, x, x, 0.9),
        lambda x: ops.token_gae(x, x, x, 0.9, jnp.zeros((2, 3), int)),
        lambda x: ops.step_gae(x[0], x[0], x[0], 0.9, bootstrap_value=x[0]),
        lambda x: ops.step_gae(x[0], x[0], x[0, :2], 0.9),
    ],
)
def test_a_batch_passed_without_vmap_is_refused(call):
    with pytest.raises(AssertionError):
        call(jnp.ones((2, 3)))


# --- Token GAE ------------------------------------------------------------------------------------


def test_token_gae_table():
    reward, value = jnp.array([0.0, NAN, 0.0, 1.0]), jnp.array([0.25, NAN, 0.5, 0.75])
    discount, ids = jnp.array([0.5, NAN, 0.5, 0.0]), jnp.array([0, -1, 1, 1])
    ours = ops.token_gae(reward, discount, value, 0.5, ids)
    np.testing.assert_array_equal(ours, [-0.015625, 0, -0.0625, 0.25])


@pytest.mark.parametrize("seed", range(3))
def test_token_gae_equals_a_loop_over_active_tokens(seed):
    reward, discount, value, ids = random_row(seed)
    expected, later, next_value = np.zeros(len(ids)), 0.0, 0.3
    for t in reversed(range(len(ids))):
        if ids[t] < 0:
            continue
        delta = reward[t] + discount[t] * next_value - value[t]
        expected[t] = later = delta + discount[t] * 0.8 * later
        next_value = value[t]
    ours = ops.token_gae(reward, discount, value, 0.8, ids, bootstrap_value=0.3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bootstrap", [0.0, 0.7])
def test_one_token_a_step_makes_steppo_token_gae_exactly(seed, bootstrap):
    reward, _, value, ids = random_row(seed)
    ids = np.where(ids >= 0, np.cumsum(ids >= 0) - 1, -1)  # every active token is a step
    discount, steps = np.full(len(ids), 0.9, np.float32), int(ids.max()) + 1
    by_step = ops.step_gae(
        *(ops.reduce_steps(x, ids, steps) for x in (reward, discount, value)), 0.8, bootstrap
    )
    by_token = ops.token_gae(reward, discount, value, 0.8, ids, bootstrap)
    np.testing.assert_array_equal(ops.broadcast_steps(by_step, ids), by_token)


def test_a_trajectory_in_pieces_is_the_whole():
    reward, discount, value, ids = random_row(3)
    whole = ops.token_gae(reward, discount, value, 0.8, ids, 0.3)
    cut = int(np.flatnonzero(ids >= 0)[1])  # the first active token of the later piece
    pieces = [
        ops.token_gae(
            reward[:cut], discount[:cut], value[:cut], 0.8, ids[:cut], value[cut], whole[cut]
        ),
        ops.token_gae(reward[cut:], discount[cut:], value[cut:], 0.8, ids[cut:], 0.3),
    ]
    np.testing.assert_array_equal(jnp.concatenate(pieces), whole)


def test_masked_tokens_are_cut_out():
    reward, discount, value, ids = random_row(4)
    kept = ids >= 0
    full = ops.token_gae(reward, discount, value, 0.8, ids, 0.3)
    short = ops.token_gae(reward[kept], discount[kept], value[kept], 0.8, ids[kept], 0.3)
    np.testing.assert_array_equal(full[kept], short)
    np.testing.assert_array_equal(full[~kept], 0)


# --- Running moments ------------------------------------------------------------------------------


def test_running_moments_of_batches_are_those_of_all():
    rng = np.random.default_rng(0)
    batches = [rng.normal(i, 1 + i, 20).astype(np.float32) for i in range(3)]
    moments = ops.RunningMoments(0.0, 0.0, 0.0)
    for batch in batches:
        padded, mask = np.append(batch, NAN).astype("f"), np.append(np.ones(20), 0)
        moments = ops.update_running_moments(moments, padded, mask)
    everything = np.concatenate(batches)
    np.testing.assert_allclose(moments, [everything.mean(), everything.var(), 60], rtol=1e-5)


def test_an_empty_batch_leaves_running_moments_alone():
    moments = ops.update_running_moments(ops.RunningMoments(), jnp.array([NAN]), jnp.zeros(1))
    np.testing.assert_allclose(moments, ops.RunningMoments(), rtol=1e-6)
