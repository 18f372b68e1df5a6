"""The critic: explained variance, the scale of returns, values as distributions over bins."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from steprl import ops

NAN = float("nan")
BINS = ops.ValueSupport(-1.0, 3.0, 51)
WIDTH = 4.0 / 45  # 6 of the bins lie beyond the range
within = st.floats(-1.0, 3.0, width=32, allow_subnormal=False)
unhurried = settings(deadline=None, max_examples=50)
targets = jax.jit(lambda value: ops.hl_gauss_targets(value, BINS))
mean_of = jax.jit(lambda logits: ops.hl_gauss_mean(logits, BINS))

# --- How much the critic explains -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "explained"),
    [
        ([0.0, 1.0, 2.0, NAN], [0.0, 1.0, 2.0, NAN], 1.0),
        ([7.0, 8.0, 9.0, NAN], [0.0, 1.0, 2.0, NAN], 1.0),  # a bias is another matter
        ([1.0, 1.0, 1.0, NAN], [0.0, 1.0, 2.0, NAN], 0.0),
        ([2.0, 1.0, 0.0, NAN], [0.0, 1.0, 2.0, NAN], -3.0),
        ([0.0, 1e-6, 2e-6, NAN], [0.0, 1e-6, 2e-6, NAN], 1.0),  # small is not equal
        ([0.0, 1.0, 2.0, NAN], [1.0, 1.0, 1.0, NAN], 0.0),
        ([0.0, 1.0, 2.0, NAN], [0.3, 0.1 + 0.2, 0.3 + 1e-7, NAN], 0.0),
        ([0.0, 100.0, 0.0, NAN], [9e5, 9e5 + 1, 9e5, NAN], 0.0),
        ([0.0, 1.0, 2.0, NAN], [0.0, 0.0, 0.0, NAN], 0.0),
    ],
)
def test_what_equals_up_to_rounding_leaves_nothing_to_explain(value, target, explained):
    value, target = (jnp.array(x, jnp.float32) for x in (value, target))
    there = jnp.array([1, 1, 1, 0])
    got = ops.explained_variance(value, target, there)
    np.testing.assert_allclose(got, explained, atol=1e-6)
    known_equal = bool(np.ptp(np.asarray(target)[:3]) <= 1e-5 * np.max(np.abs(target[:3])))
    assert ops.all_equal(target, there) == known_equal


def test_of_no_targets_nothing_is_said():
    none = jnp.zeros(3)
    assert ops.explained_variance(jnp.full(3, NAN), jnp.full(3, NAN), none) == 0.0
    assert ops.all_equal(jnp.full(3, NAN), none)


# --- The scale of returns -------------------------------------------------------------------------


def test_recent_moments_are_those_of_all_at_first_and_forget_later():
    batches = np.random.default_rng(0).normal(3.0, 2.0, (4, 5)).astype(np.float32)
    seen, recent = (ops.RunningMoments(0.0, 0.0, 0.0) for _ in range(2))
    for batch in batches:
        seen = ops.update_running_moments(seen, batch, jnp.ones(5))
        recent = ops.recent_moments(recent, batch, jnp.ones(5), batches=4.0)
    np.testing.assert_allclose(recent, seen, rtol=1e-6)
    np.testing.assert_allclose(recent[:2], [batches.mean(), batches.var()], rtol=1e-5)
    changed = ops.recent_moments(recent, jnp.full(5, 100.0), jnp.ones(5), batches=4.0)
    assert changed.mean == pytest.approx(0.75 * float(recent.mean) + 25.0, rel=1e-5)
    unchanged = ops.recent_moments(changed, jnp.full(5, NAN), jnp.zeros(5), batches=4.0)
    np.testing.assert_array_equal(unchanged, changed)


@jax.jit
def scale_of(x, there):
    return ops.return_scale(ops.recent_moments(ops.RunningMoments(0.0, 0.0, 0.0), x, there))


@unhurried
@given(st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=5))
def test_scaled_returns_are_of_order_one_whatever_they_are(returns):
    x, there = np.zeros(5, np.float32), np.arange(5) < len(returns)
    x[: len(returns)] = returns
    scale = float(scale_of(x, there))
    assert np.isfinite(scale) and scale > 0
    scaled = np.asarray(returns) / scale
    assert np.std(scaled) <= 1.001 and np.sqrt(np.mean(scaled**2)) <= 10.01


# --- Values as distributions ----------------------------------------------------------------------


def test_a_target_is_the_histogram_of_a_gaussian_around_it():
    support = ops.ValueSupport(0.0, 1.0, 7, 0.5)  # bins of width 1/3, two on each side of the range
    draws = np.random.default_rng(0).normal(0.25, 0.5 / 3, 200_000)
    counts, _ = np.histogram(draws, bins=np.linspace(-2 / 3, 5 / 3, 8))
    got = ops.hl_gauss_targets(jnp.array(0.25), support)
    np.testing.assert_allclose(got, counts / len(draws), atol=5e-3)


@unhurried
@given(within)
def test_the_mean_of_a_projected_target_is_the_target(value):
    target = targets(np.float32(value))
    assert target.shape == (51,) and abs(float(target.sum()) - 1) < 1e-6
    assert abs(float(mean_of(jnp.log(target))) - value) < 1e-3 * WIDTH


@unhurried
@given(st.floats(allow_nan=False, width=32, allow_subnormal=False))
def test_what_lies_outside_the_range_is_moved_to_its_end(value):
    mean = mean_of(jnp.log(targets(np.float32(value))))
    assert abs(float(mean) - np.clip(value, -1.0, 3.0)) < 2e-3 * WIDTH


@jax.jit
@jax.value_and_grad
def loss_and_gradient(logits, target):
    return ops.hl_gauss_loss(logits[None], target[None], jnp.zeros(1, int), BINS)[0]


@unhurried
@given(
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=51, max_size=51
    ),
    within,
)
def test_whatever_the_logits_value_loss_and_gradient_are_numbers(logits, target):
    """In bfloat16 too, whose bits would not tell the bins apart."""
    logits = jnp.array(logits, jnp.bfloat16)
    mean = mean_of(logits)
    assert mean.dtype == jnp.float32 and -1 - 3 * WIDTH <= mean <= 3 + 3 * WIDTH
    found, gradient = loss_and_gradient(logits, np.float32(target))
    assert np.isfinite(found) and np.isfinite(np.asarray(gradient, np.float32)).all()


def test_the_gradient_is_the_prediction_less_the_target():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 51)), jnp.float32)
    target, ids = jnp.array([0.5, NAN, 7.0]), jnp.array([0, -1, 1])

    @jax.jit
    def loss(logits, target):
        return ops.hl_gauss_loss(logits, target, ids, BINS)[0]

    of_logits, of_target = jax.grad(loss, (0, 1))(logits, target)
    wanted = (jax.nn.softmax(logits) - ops.hl_gauss_targets(target, BINS)) / 2
    np.testing.assert_allclose(of_logits[::2], wanted[::2], atol=1e-6)
    assert not of_logits[1].any() and not of_target[::2].any()
    assert ops.hl_gauss_loss(logits, target, ids, BINS)[1]["vf_outside"] == 0.5
    step = 0.01 * np.random.default_rng(2).normal(size=(3, 51)).astype(np.float32)
    change = loss(logits + step, target) - loss(logits - step, target)
    assert float(change) == pytest.approx(2 * float(np.sum(of_logits * step)), rel=1e-2)


def test_the_loss_is_least_at_the_target():
    target, ids = jnp.array([0.5]), jnp.array([0])
    best = jnp.log(ops.hl_gauss_targets(target, BINS) + 1e-12)
    losses = [ops.hl_gauss_loss(x, target, ids, BINS)[0] for x in (best, best + 3, best * 1.1)]
    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-5) and losses[0] < losses[2]


@pytest.mark.parametrize(
    ("support", "says"),
    [
        (ops.ValueSupport(1.0, 1.0, 51), "low=1.0 must be below high=1.0"),
        (ops.ValueSupport(0.0, 1.0, 6), "bins=6 must be at least 7"),
        (ops.ValueSupport(0.0, 1.0, 12), "the last axis must be the 12 bins"),
    ],
)
def test_bins_that_cannot_hold_a_target_are_refused(support, says):
    with pytest.raises(ValueError, match=says):
        ops.hl_gauss_mean(jnp.zeros((2, 51)), support)
