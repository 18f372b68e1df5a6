"""What follows a token: future values, and the future-KL loss."""

import doctest
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.ops import future_kl

FEW = settings(max_examples=20, deadline=None)
NAN = float("nan")
CLOSE = {"rtol": 5e-5, "atol": 5e-6}
N, T = 4, 7
EVERY = np.zeros((N, T), np.int32)
seeds = st.integers(0, 2**31)


def batch(seed, spread=1.0):
    """log-probs, old log-probs, advantages, step ids [N, T] with masked tokens and an empty row."""
    rng = np.random.default_rng(seed)
    old, shift, advantage = rng.normal(size=(3, N, T)).astype("f")
    ids = np.where(rng.random((N, T)) < 0.7, np.arange(T) // 3, -1).astype(np.int32)
    ids[0] = -1
    return old + np.float32(spread) * shift, old, advantage, ids


def future_sum(x, gamma):
    """sum_{k >= t} gamma^(k - t) x_k with the whole matrix of distances."""
    distance = np.arange(T)[None, :] - np.arange(T)[:, None]
    weight = np.where(distance >= 0, float(gamma) ** np.maximum(distance, 0), 0.0)
    return np.asarray(x, np.float64) @ weight.T


# --- Future values --------------------------------------------------------------------------------

in_rows = jax.jit(jax.vmap(ops.appo_future_value, in_axes=(0, 0, None, None)), static_argnums=3)


@FEW
@given(seeds, st.sampled_from([0.0, 0.5, 0.97, 1.0]), st.sampled_from([None, 0.0, 0.2]))
def test_future_value_equals_the_matrix_of_distances(seed, gamma, clip):
    logprob, old, _, ids = batch(seed)
    active = ids >= 0
    future = future_sum(np.where(active, logprob - old, 0), gamma)
    expected = np.exp(np.clip(future, -20, 20))
    if clip:
        expected = np.clip(expected, 1 - clip, 1 + clip)
    ours = in_rows(logprob - old, ids, gamma, clip)
    np.testing.assert_allclose(ours, np.where(active, expected, 0), rtol=1e-4, atol=1e-6)


def test_future_value_is_one_where_the_policies_agree():
    ids = batch(0)[3]
    np.testing.assert_array_equal(in_rows(np.zeros((N, T), "f"), ids, 0.9, 0.2), ids >= 0)


def test_future_value_stays_finite_and_reads_no_masked_token():
    d = np.full((N, T), 1e4, "f") * np.array([1, -1, 1, -1])[:, None].astype("f")
    ids = batch(1)[3]
    ours = np.asarray(in_rows(np.where(ids >= 0, d, NAN), ids, 1.0, None))
    assert np.isfinite(ours).all()
    assert ours.max() == pytest.approx(math.exp(20), rel=1e-5)
    np.testing.assert_array_equal(ours[ids < 0], 0)

    def total(d_t, ids_t):
        return jnp.sum(ops.appo_future_value(d_t, ids_t, 1.0, None))

    gradient = jax.jit(jax.vmap(jax.grad(total)))(np.where(ids >= 0, d / 1e4, NAN), ids)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[ids < 0], 0)


# --- Weights --------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"decay": 64, "high_only": True, "safety": 6.0},  # the launch scripts
    {"decay": 1, "clip": 0.0, "safety": 2.0},
    {"decay": 4, "clip": 0.5, "dual_clip": 10.0},
]
weigh = {i: jax.jit(partial(ops.future_kl_weights, **o)) for i, o in enumerate(OPTIONS)}
everywhere = pytest.mark.parametrize("which", weigh)


def expected_weights(
    d, advantage, active, decay=128, clip=0.2, high_only=False, safety=4.0, dual_clip=3.0
):
    d = np.where(active, d, 0).astype(np.float64)
    raw = np.exp(future_sum(np.where(d <= math.log(dual_clip), d, 0), 2 ** (-1 / decay)))
    low = 1 if high_only else 1 - clip
    weight = np.clip(raw, low, 1 + clip) if clip else np.minimum(raw, 10)
    unsafe = (advantage < 0) & (np.exp(d) > safety)
    return np.where(unsafe, np.clip(weight, 0.8, 1), weight), raw


@everywhere
@FEW
@given(seed=seeds)
def test_weights_equal_the_matrix_of_distances(which, seed):
    logprob, old, advantage, ids = batch(seed)
    active = ids >= 0
    ours, metrics = weigh[which](logprob - old, advantage, ids)
    weight, raw = expected_weights(logprob - old, advantage, active, **OPTIONS[which])
    np.testing.assert_allclose(ours, np.where(active, weight, 0), **CLOSE)
    for name, x in (("iw", weight), ("iw_raw", raw)):
        for how in ("mean", "min", "max"):
            expected = getattr(x[active], how)()
            np.testing.assert_allclose(metrics[f"fipo_{name}_{how}"], expected, **CLOSE)


@everywhere
def test_weights_on_policy_are_one(which):
    _, _, advantage, ids = batch(2)
    weights, metrics = weigh[which](np.zeros((N, T), "f"), advantage, ids)
    np.testing.assert_array_equal(weights, ids >= 0)
    assert float(metrics["fipo_iw_mean"]) == 1


def test_a_bad_token_that_became_likely_gets_no_extra_weight():
    d = np.zeros((N, T), "f")
    d[:, 0], d[:, 1] = math.log(5), 0.15  # the rest of the response became more likely too
    weights, _ = weigh[0](d, -np.ones((N, T), "f"), EVERY)
    np.testing.assert_allclose(weights[:, 0], 1)
    weights, _ = weigh[0](d, np.ones((N, T), "f"), EVERY)
    assert (np.asarray(weights)[:, 0] > 1.1).all()


def test_shares_at_the_bounds():
    d = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], "f")
    _, metrics = ops.future_kl_weights(d, np.ones_like(d), np.zeros(d.shape, np.int32), decay=0.1)
    upper, lower, total = (float(metrics[f"fipo_iw_clip_{n}"]) for n in ("upper", "lower", "total"))
    np.testing.assert_allclose([upper, lower, total], [1 / 6, 1 / 6, 1 / 3], rtol=1e-6)


def test_long_rows_keep_the_metrics_finite():
    d = np.full((1, 4000), 1.0, "f")
    weights, metrics = ops.future_kl_weights(d, d, np.zeros(d.shape, np.int32), decay=1e6)
    np.testing.assert_allclose(weights, 1.2, rtol=1e-6)
    assert all(np.isfinite(x) for x in metrics.values())


# --- Loss -----------------------------------------------------------------------------------------


def value_and_grad(**options):
    def loss(logprob, old, advantage, ids, weights=None):
        return ops.future_kl_policy_loss(logprob, old, advantage, ids, weights_t=weights, **options)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


default, without = value_and_grad(), value_and_grad(weight=0.0)


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def dual_clip_ppo(logprob, old, advantage, ids):
    return ops.policy_loss(logprob, old, advantage, ids, level="token", dual_clip=3.0)


def rows_cut_off_twice(logprob, old, advantage, ids):
    cut = (ids >= 0) & (advantage < 0) & (np.exp(logprob - old) > 3)
    return cut.sum(axis=1) > 1


@FEW
@given(seeds, st.sampled_from([0.3, 1.0, 2.0]))
def test_with_weight_zero_it_is_dual_clip_ppo_over_the_rows_that_are_left(seed, spread):
    logprob, old, advantage, ids = batch(seed, spread)
    dropped = rows_cut_off_twice(logprob, old, advantage, ids)
    left = np.where(dropped[:, None], -1, ids)
    (loss, metrics), gradient = without(logprob, old, advantage, ids)
    (expected, _), expected_gradient = dual_clip_ppo(logprob, old, advantage, left)
    np.testing.assert_allclose(loss, expected, **CLOSE)
    np.testing.assert_allclose(gradient, expected_gradient, **CLOSE)
    # What is reported is about every row.
    (_, everything), _ = dual_clip_ppo(logprob, old, advantage, ids)
    for name, x in everything.items():
        np.testing.assert_allclose(metrics[name], x, **CLOSE)
    occupied = (ids >= 0).any(axis=1).sum()
    np.testing.assert_allclose(metrics["fipo_rows_dropped"], dropped.sum() / max(occupied, 1))


@FEW
@given(seeds)
def test_the_weights_scale_advantages_and_pass_no_gradient(seed):
    logprob, old, advantage, ids = batch(seed, 0.4)
    weights, _ = weigh[0](logprob - old, advantage, ids)
    dropped = rows_cut_off_twice(logprob, old, advantage, ids)
    left = np.where(dropped[:, None], -1, ids)
    (loss, _), gradient = default(logprob, old, advantage, ids)
    (expected, _), expected_gradient = dual_clip_ppo(logprob, old, advantage * (1 + weights), left)
    np.testing.assert_allclose(loss, expected, **CLOSE)
    np.testing.assert_allclose(gradient, expected_gradient, **CLOSE)


def test_on_policy_the_advantage_is_doubled():
    _, old, advantage, ids = batch(5)
    (loss, _), gradient = default(old, old, advantage, ids)
    (once, _), once_gradient = dual_clip_ppo(old, old, advantage, ids)
    np.testing.assert_allclose(loss, 2 * once, **CLOSE)
    np.testing.assert_allclose(gradient, 2 * once_gradient, **CLOSE)


def row_with_cuts(number):
    """Rows of which the first has `number` tokens that the dual clip cuts off."""
    old = np.zeros((N, T), "f")
    logprob = old.copy()
    logprob[0, :number] = math.log(5)
    return logprob, old, -np.ones((N, T), "f"), EVERY.copy()


def test_one_token_cut_off_is_allowed_two_are_not():
    for number, dropped in ((0, 0), (1, 0), (2, 1)):
        (_, metrics), gradient = without(*row_with_cuts(number))
        assert float(metrics["fipo_rows_dropped"]) == dropped / N
        assert bool((np.asarray(gradient)[0] == 0).all()) == bool(dropped)
    logprob, old, advantage, ids = row_with_cuts(2)
    ids[0, 1] = -1  # a masked token is not counted
    assert float(without(logprob, old, advantage, ids)[0][1]["fipo_rows_dropped"]) == 0


def test_with_every_row_dropped_the_loss_is_zero():
    old = np.zeros((N, T), "f")
    (loss, metrics), gradient = default(old + 2, old, old - 1, EVERY)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0)
    assert float(metrics["fipo_rows_dropped"]) == 1


def test_weights_of_the_mini_batch_are_kept_and_parts_add_up():
    arguments = row_with_cuts(2)
    weights = np.asarray(ops.aggregation_weights(arguments[3], "token-mean"))
    (whole, _), gradient = without(*arguments, weights)
    # Three rows of loss 1 a token are left of four, and weigh what they weighed.
    np.testing.assert_allclose(whole, 0.75, rtol=1e-6)
    (alone, _), _ = without(*arguments)
    np.testing.assert_allclose(alone, 1.0, rtol=1e-6)
    parts = [without(*(a[rows] for a in (*arguments, weights))) for rows in ([0, 1], [2, 3])]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), gradient, rtol=1e-6)


def test_rollout_weights_multiply_the_losses():
    logprob, old, advantage, ids = batch(3, 0.1)
    plain, _ = ops.future_kl_policy_loss(logprob, old, advantage, ids)
    halved = np.full((N, T), 0.5, "f")
    ours, _ = ops.future_kl_policy_loss(logprob, old, advantage, ids, rollout_weights_t=halved)
    np.testing.assert_allclose(ours, plain / 2, rtol=1e-6)


# --- However it is run ----------------------------------------------------------------------------


def test_everything_is_finite_at_the_edges():
    floats = [np.full((N, T), 0.1, "f")] * 3
    one = np.full((N, T), -1, np.int32)
    one[2, 3] = 0
    for ids in (np.full((N, T), -1, np.int32), one):
        for x in jax.tree.leaves(default(*floats, ids)):
            assert np.isfinite(x).all()
    (loss, metrics), gradient = default(*floats, np.full((N, T), -1, np.int32))
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0)
    assert all(float(x) == 0 for name, x in metrics.items() if name != "fipo_iw_weight")


def test_a_row_may_come_alone():
    row = tuple(x[1] for x in batch(8))
    (alone, _), gradient = default(*row)
    (table, _), gradients = default(*(x[None] for x in row))
    np.testing.assert_allclose(alone, table, rtol=1e-6)
    np.testing.assert_allclose(gradient, gradients[0], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0}, {"future_clip": -0.1}, {"dual_clip": 1.0}, {"reduction": "mean"},
        {"weights_t": np.zeros((N, 1), "f")},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_range_is_refused(options):
    with pytest.raises(ValueError):
        ops.future_kl_policy_loss(*batch(0), **options)
    with pytest.raises(ValueError):
        ops.appo_future_value(jnp.zeros(T), EVERY[0], clip=-0.1)


@pytest.mark.slow
def test_examples_in_docstrings_run():
    failed, tried = doctest.testmod(future_kl)
    assert tried > 0
    assert failed == 0
