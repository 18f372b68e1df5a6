"""Weights against the policy that really sampled: what they are, and that they undo its bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl.ops import LEVELS, policy_loss, rollout_correction_weights

IDS = np.array([[-1, 0, 0, -1, 1, 1], [0, 1, -1, -1, -1, -1]], np.int32)
weights_of = jax.jit(rollout_correction_weights, static_argnames=("level", "how"))


def gap(seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = np.log(rng.uniform(0.2, 0.9, IDS.shape)).astype(np.float32)
    return old, (old - spread * rng.normal(size=IDS.shape)).astype(np.float32)


@pytest.mark.parametrize(
    "level, expected",
    [
        ("token", [0, 1.1, 1.2, 0, 0.5, 1.5]),
        ("step", [0, 1.32, 1.32, 0, 0.75, 0.75]),
        ("sequence", [0, 0.99, 0.99, 0, 0.99, 0.99]),
    ],
)
def test_tokens_of_a_step_or_row_multiply(level, expected):
    difference = jnp.log(jnp.array([9.0, 1.1, 1.2, 9.0, 0.5, 1.5]))
    weights, _ = weights_of(difference, jnp.zeros(6), IDS[0], level=level)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.parametrize("how, high, low", [("truncate", 2.0, 0.25), ("mask", 0.0, 0.0)])
def test_beyond_the_bound_a_weight_is_cut_or_left_out(how, high, low):
    difference, ids = jnp.log(jnp.array([3.0, 1.5, 0.25])), jnp.array([0, 0, 0])
    weights, metrics = weights_of(difference, jnp.zeros(3), ids, bound=2.0, how=how)
    np.testing.assert_allclose(weights, [high, 1.5, low], rtol=1e-6)
    assert metrics["rollout_is_bound_frac"] == pytest.approx(1 / 3 if how == "truncate" else 2 / 3)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_policy_that_sampled_has_weight_one(level, seed):
    old, _ = gap(seed)
    weights, metrics = weights_of(old, old, IDS, level=level)
    np.testing.assert_array_equal(weights, IDS >= 0)
    assert metrics["rollout_kl"] == 0 and metrics["rollout_is_mean"] == 1


@pytest.mark.parametrize("how", ["truncate", "mask"])
@pytest.mark.parametrize("level", LEVELS)
def test_masked_tokens_are_not_read_and_nothing_is_differentiated(level, how):
    old, rollout = gap()
    poison = [np.where(IDS >= 0, x, np.float32("nan")) for x in (old, rollout)]
    clean, clean_metrics = weights_of(old, rollout, IDS, level=level, how=how)
    ours, metrics = weights_of(*poison, IDS, level=level, how=how)
    np.testing.assert_array_equal(ours, clean)
    np.testing.assert_array_equal(np.where(IDS < 0, ours, 0), 0)
    assert {k: float(v) for k, v in metrics.items()} == {
        k: float(v) for k, v in clean_metrics.items()
    }

    def total(x):
        return jnp.sum(rollout_correction_weights(x, rollout, IDS, level=level, how=how)[0])

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(old)), 0)


def test_a_weighted_mean_over_another_policy_is_the_mean_over_ours():
    """Unbounded weights turn the expectation under μ into the one under π, at every level that
    multiplies the tokens of what is averaged."""
    ours, other = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    actions = np.array([[a, b] for a in (0, 1) for b in (0, 1)])  # all rows of two tokens
    value = np.array([1.0, -2.0, 0.5, 3.0])
    ids = np.zeros((4, 2), np.int32)
    weights, _ = rollout_correction_weights(
        jnp.log(ours[actions]), jnp.log(other[actions]), ids, level="sequence", bound=1e6
    )
    got = np.sum(np.prod(other[actions], 1) * np.asarray(weights)[:, 0] * value)
    np.testing.assert_allclose(got, np.sum(np.prod(ours[actions], 1) * value), rtol=1e-6)


def test_the_loss_takes_the_weights():
    old, rollout = gap()
    weights, _ = weights_of(old, rollout, IDS, bound=1e6)
    advantage = np.ones_like(old)
    loss, _ = policy_loss(old, old, advantage, IDS, level="token", rollout_weights_t=weights)
    np.testing.assert_allclose(loss, -np.sum(weights) / np.sum(IDS >= 0), rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"level": "word"}, "level='word'"),
        ({"how": "drop"}, "how='drop'"),
        ({"bound": 1.0}, "bound=1.0 must be above 1"),
    ],
)
def test_bad_settings_are_named(change, message):
    old, rollout = gap()
    with pytest.raises(ValueError, match=message):
        rollout_correction_weights(old, rollout, IDS, **change)
