"""Tokens point at steps: numbering, reducing, broadcasting, and masked statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops

FEW = settings(max_examples=15, deadline=None)
NAN = float("nan")
rows = st.lists(st.integers(0, 1), min_size=7, max_size=7)  # one length: one compilation


@pytest.mark.parametrize(
    ("mask", "starts", "expected"),
    [
        ([0, 1, 1, 0, 1], None, [-1, 0, 0, -1, 1]),
        ([0, 0, 0], None, [-1, -1, -1]),
        ([1, 1, 1], None, [0, 0, 0]),
        ([1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1]),
        ([1, 1, 0, 1], [0, 0, 0, 0], [0, 0, -1, 1]),  # a run starts a step, marked or not
        ([1, 0, 1], [0, 1, 0], [0, -1, 1]),  # a mark on a masked token is ignored
    ],
)
def test_step_ids_number_the_runs_of_the_action_mask(mask, starts, expected):
    starts = None if starts is None else jnp.array(starts)
    ids = ops.step_ids_from_mask(jnp.array(mask), starts)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, expected)


@FEW
@given(rows, rows)
def test_step_ids_equal_a_loop(mask, starts):
    expected, step = [], -1
    for t, active in enumerate(mask):
        if active and (starts[t] or t == 0 or not mask[t - 1]):
            step += 1
        expected.append(step if active else -1)
    ids = ops.step_ids_from_mask(jnp.array(mask), jnp.array(starts))
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([-1, 0, 0, 1], [0, 1, 0, 1]),
        ([0, -1, 0, 1], [1, 0, 0, 1]),  # masked tokens inside a step do not start it anew
        ([7, 7, -1, 3], [1, 0, 0, 1]),  # any numbers do: flat ids, ids out of order
        ([-1, -1], [0, 0]),
    ],
)
def test_step_starts_marks_the_first_token_of_each_step(ids, expected):
    np.testing.assert_array_equal(ops.step_starts(jnp.array(ids)), np.array(expected, bool))


@FEW
@given(rows, rows)
def test_there_are_as_many_starts_as_steps(mask, starts):
    ids = ops.step_ids_from_mask(jnp.array(mask), jnp.array(starts))
    assert int(ops.step_starts(ids).sum()) == int(ids.max()) + 1


IDS, X = [-1, 0, 0, 2, -1, 2], [NAN, 1.0, 3.0, 5.0, NAN, 6.0]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("sum", [4, 0, 11]), ("mean", [2, 0, 5.5]), ("first", [1, 0, 5]), ("last", [3, 0, 6])],
)
def test_reduce_steps_table(how, expected):
    reduced = ops.reduce_steps(jnp.array(X), jnp.array(IDS), 3, how)
    np.testing.assert_array_equal(reduced, expected)


@FEW
@given(st.lists(st.integers(-1, 3), min_size=7, max_size=7))
def test_reduce_steps_equals_a_loop(ids):
    x, active = np.arange(1.0, 8.0, dtype=np.float32), np.array(ids) >= 0
    ids = np.array(ids)
    ids[active] = np.sort(ids[active])[::-1]  # not interleaved, though out of order
    loops = {"sum": np.sum, "mean": np.mean, "first": lambda v: v[0], "last": lambda v: v[-1]}
    for how, loop in loops.items():
        tokens = [x[np.array(ids) == s] for s in range(4)]
        expected = [loop(v) if len(v) else 0 for v in tokens]
        reduced = ops.reduce_steps(jnp.array(x), jnp.array(ids), 4, how)
        np.testing.assert_allclose(reduced, expected, rtol=1e-6)


def test_steps_outside_the_table_are_dropped():
    reduced = ops.reduce_steps(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 5, -1]), 2)
    np.testing.assert_array_equal(reduced, [1, 0])


@pytest.mark.parametrize("how", ["mean", "first", "last"])
def test_reducing_what_was_broadcast_gives_it_back(how):
    x_s, ids = jnp.array([2.0, 7.0, -1.0]), jnp.array([0, 0, -1, 1, 2, 2])
    np.testing.assert_array_equal(ops.reduce_steps(ops.broadcast_steps(x_s, ids), ids, 3, how), x_s)


def test_broadcast_steps_table():
    x_s, ids = jnp.array([5.0, NAN]), jnp.array([-1, 0, 0, 3])
    np.testing.assert_array_equal(ops.broadcast_steps(x_s, ids), [0, 5, 5, 0])
    np.testing.assert_array_equal(ops.broadcast_steps(x_s, ids, fill=-1.0), [-1, 5, 5, -1])
    np.testing.assert_array_equal(ops.broadcast_steps(jnp.zeros(0), ids), [0, 0, 0, 0])


def test_unknown_names_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"how='max'.*sum, mean, first, last"):
        ops.reduce_steps(jnp.ones(2), jnp.zeros(2, int), 1, "max")
    with pytest.raises(ValueError, match=r"epsilon_at='inside'.*variance, std"):
        ops.masked_whiten(jnp.ones(2), jnp.ones(2), epsilon_at="inside")


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.step_ids_from_mask(jnp.ones((2, 3))),
        lambda: ops.step_starts(jnp.zeros((2, 3), int)),
        lambda: ops.reduce_steps(jnp.ones((2, 3)), jnp.zeros((2, 3), int), 2),
        lambda: ops.broadcast_steps(jnp.ones((2, 3)), jnp.zeros(3, int)),
        lambda: ops.masked_sum(jnp.ones((2, 3)), jnp.ones(3)),
    ],
)
def test_wrong_ranks_and_shapes_are_refused(call):
    with pytest.raises(AssertionError):
        call()


# --- Masked statistics ----------------------------------------------------------------------------

VALUES, MASK = jnp.array([1.0, NAN, 3.0, 8.0]), jnp.array([1, 0, 1, 1])


def test_statistics_table():
    assert ops.masked_sum(VALUES, MASK) == 12
    assert ops.masked_mean(VALUES, MASK) == 4
    np.testing.assert_allclose(ops.masked_variance(VALUES, MASK), 26 / 3, rtol=1e-6)
    np.testing.assert_allclose(ops.masked_variance(VALUES, MASK, ddof=1), 13, rtol=1e-6)
    expected = np.array([-3, 0, -1, 4]) / np.sqrt(13)
    np.testing.assert_allclose(ops.masked_whiten(VALUES, MASK), expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1)])
def test_statistics_equal_numpys_masked_arrays(axis):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(3, 2, (5, 6)).astype(np.float32), rng.random((5, 6)) < 0.7
    masked = np.ma.array(x, mask=~mask)
    for ours, theirs in (
        (ops.masked_sum(x, mask, axis), masked.sum(axis)),
        (ops.masked_mean(x, mask, axis), masked.mean(axis)),
        (ops.masked_variance(x, mask, axis), masked.var(axis)),
        (ops.masked_variance(x, mask, axis, ddof=1), masked.var(axis, ddof=1)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("epsilon_at", "denominator"), [("variance", np.sqrt(4 + 5.0)), ("std", np.sqrt(4) + 5.0)]
)
def test_epsilon_stands_where_it_is_asked_to(epsilon_at, denominator):
    x = jnp.array([-2.0, 2.0])
    whitened = ops.masked_whiten(x, jnp.ones(2), ddof=0, epsilon=5.0, epsilon_at=epsilon_at)
    np.testing.assert_allclose(whitened, x / denominator, rtol=1e-6)


def test_without_shift_the_mean_stays():
    x = ops.masked_whiten(VALUES, MASK, shift_mean=False)
    np.testing.assert_allclose(ops.masked_mean(x, MASK), 4, rtol=1e-6)
    np.testing.assert_allclose(ops.masked_variance(x, MASK, ddof=1), 1, rtol=1e-6)


@pytest.mark.parametrize("epsilon_at", ["variance", "std"])
@pytest.mark.parametrize(
    ("x", "mask"),
    [
        pytest.param(np.full(1000, 0.1), np.ones(1000), id="equal"),
        pytest.param(np.full(1000, -1e6), np.ones(1000), id="equal and large"),
        # the next float up: a residue of rounding, not a signal
        pytest.param(np.nextafter(np.float32(0.1), np.float32([0.1, 1])), np.ones(2), id="rounded"),
        pytest.param([NAN, 3.0, NAN], [0, 1, 0], id="one element"),
        pytest.param([NAN, NAN], [0, 0], id="none"),
    ],
)
def test_without_spread_whitening_gives_exactly_zero(x, mask, epsilon_at):
    x = jnp.asarray(x, jnp.float32)
    whitened = ops.masked_whiten(x, jnp.asarray(mask), epsilon=1e-8, epsilon_at=epsilon_at)
    np.testing.assert_array_equal(whitened, np.zeros(len(x)))


def test_small_but_real_spread_is_whitened():
    x = jnp.array([1.0, 1.0 + 1e-5])
    whitened = ops.masked_whiten(x, jnp.ones(2), epsilon_at="std")
    np.testing.assert_allclose(whitened, [-np.sqrt(0.5), np.sqrt(0.5)], rtol=1e-2)


@FEW
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6),
    st.floats(0.5, 4, width=32),
    st.floats(-10, 10, width=32),
)
def test_whitening_forgets_scale_and_origin(x, scale, origin):
    x, mask = np.array(x, np.float32), jnp.ones(6)
    if np.ptp(x) < 1:  # a spread that survives being moved
        return
    np.testing.assert_allclose(
        ops.masked_whiten(jnp.array(x * scale + origin), mask, epsilon=1e-12),
        ops.masked_whiten(jnp.array(x), mask, epsilon=1e-12),
        atol=1e-3,
    )


def test_empty_statistics_are_zero():
    x, none = jnp.array([NAN, 1.0]), jnp.zeros(2)
    for statistic in (ops.masked_sum, ops.masked_mean, ops.masked_variance):
        assert statistic(x, none) == 0
    assert ops.masked_variance(jnp.array([5.0, NAN]), jnp.array([1, 0]), ddof=1) == 0
