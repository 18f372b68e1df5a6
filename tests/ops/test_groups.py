"""Group-relative advantages: who is compared with whom, and what happens at the edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.ops import groups as room

FEW = settings(max_examples=20, deadline=None)
NAN = float("nan")
N, G, S, T = 8, 3, 4, 5  # one shape: one compilation
NONE = G  # an id that is no group
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

eighths = st.integers(-32, 32).map(lambda x: x / 8)  # exact in float32, and so are their sums
scores = st.lists(eighths, min_size=N, max_size=N).map(lambda x: np.array(x, np.float32))
ids = st.lists(st.integers(0, G - 1), min_size=N, max_size=N).map(np.array)
ids_and_none = st.lists(st.integers(-1, NONE), min_size=N, max_size=N).map(np.array)
kinds = st.sampled_from(room.KINDS)
orders = st.permutations(range(N)).map(np.array)

advantages = jax.jit(
    ops.group_advantages, static_argnums=(2, 3), static_argnames=("ddof", "singleton")
)
gigpo = jax.jit(ops.gigpo_advantages, static_argnums=(2, 5), static_argnames="kind")
reinforce_pp = jax.jit(ops.reinforce_pp_advantages, static_argnames="across_gaps")
baseline = jax.jit(ops.reinforce_pp_baseline_advantages, static_argnums=2)
informative = jax.jit(ops.informative_groups, static_argnums=2)


def by_loop(score, group_ids, kind="grpo", ddof=1, epsilon=1e-6, singleton="score"):
    """The definition, group by group, in float64."""
    result = np.zeros(len(score))
    for group in range(G):
        members = group_ids == group
        x = score[members].astype(np.float64)
        if len(x) == 1:
            raw = x / (1 + epsilon) if kind == "grpo" else x
            result[members] = raw if singleton == "score" else 0
        elif len(x) and kind == "grpo":
            result[members] = (x - x.mean()) / (x.std(ddof=ddof) + epsilon)
        elif len(x) and kind == "rloo":
            result[members] = [own - np.delete(x, i).mean() for i, own in enumerate(x)]
        elif len(x):
            result[members] = x - x.mean()
    return result


# --- The definition -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", room.KINDS)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("singleton", room.SINGLETONS)
def test_advantages_equal_a_loop_over_groups(kind, ddof, singleton):
    score = np.random.default_rng(0).normal(size=N).astype(np.float32)
    group_ids = np.array([0, 2, 0, 1, -1, 0, NONE, 2])  # of three, one and two; two of no group
    ours = advantages(score, group_ids, G, kind, ddof=ddof, singleton=singleton)
    expected = by_loop(score, group_ids, kind, ddof, 1e-6, singleton)
    np.testing.assert_allclose(ours, expected, **CLOSE)


@FEW
@given(scores, ids_and_none, kinds)
def test_advantages_equal_a_loop_whatever_the_groups(score, group_ids, kind):
    ours = advantages(score, group_ids, G, kind)
    np.testing.assert_allclose(ours, by_loop(score, group_ids, kind), **CLOSE)


def test_epsilon_is_added_to_the_standard_deviation():
    ours = advantages(jnp.array([1.0, 3.0]), jnp.array([0, 0]), 1, ddof=0, epsilon=1.0)
    np.testing.assert_array_equal(ours, [-0.5, 0.5])


def test_a_floor_under_the_deviation_leaves_small_differences_small():
    score, groups = jnp.array([1.0, 0.0, 0.97, 0.99, 0.5, 0.5]), jnp.array([0, 0, 1, 1, 2, 2])
    plain = ops.group_advantages(score, groups, 3, epsilon=0.0)
    floored = ops.group_advantages(score, groups, 3, epsilon=0.0, min_std=0.1)
    np.testing.assert_allclose(plain, np.array([1, -1, -1, 1, 0, 0]) / np.sqrt(2), rtol=1e-4)
    np.testing.assert_allclose(floored[:2], plain[:2])  # its deviation is above the floor
    np.testing.assert_allclose(floored[2:], [-0.1, 0.1, 0, 0], atol=1e-5)
    returns, anchors = jnp.array([[1.0], [0.99]]), jnp.array([[0], [0]])
    both = ops.gigpo_advantages(
        jnp.array([1.0, 0.99]), jnp.array([0, 0]), 1, returns, anchors, 1, min_std=0.1
    )
    np.testing.assert_allclose(both[0, 0], 0.005 / 0.1 + 1 / np.sqrt(2), rtol=1e-3)


@pytest.mark.parametrize("argument", [{"kind": "ppo"}, {"singleton": "mean"}, {"ddof": 2}])
def test_unknown_names_are_refused(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))}=.*allowed"):
        ops.group_advantages(jnp.zeros(2), jnp.zeros(2, int), 1, **argument)


def test_shapes_and_types_are_checked():
    with pytest.raises(AssertionError):
        ops.group_advantages(jnp.zeros((2, 2)), jnp.zeros((2, 2), int), 1)
    with pytest.raises(AssertionError):
        ops.group_advantages(jnp.zeros(2), jnp.zeros(3, int), 1)
    with pytest.raises(AssertionError):
        ops.group_advantages(jnp.zeros(2), jnp.zeros(2), 1)
    with pytest.raises(AssertionError):
        ops.gigpo_advantages(
            jnp.zeros(3), jnp.zeros(3, int), 1, jnp.zeros((2, 2)), jnp.zeros((2, 2), int), 1
        )


# --- Laws -----------------------------------------------------------------------------------------


@FEW
@given(scores, ids)
def test_rloo_is_dr_grpo_times_n_over_n_minus_1(score, group_ids):
    size = np.bincount(group_ids, minlength=G)[group_ids]
    factor = np.where(size > 1, size / np.maximum(size - 1, 1), 1)
    centred = advantages(score, group_ids, G, "dr_grpo")
    np.testing.assert_allclose(advantages(score, group_ids, G, "rloo"), centred * factor, **CLOSE)


@FEW
@given(scores, ids, kinds, eighths)
def test_shifting_all_scores_changes_nothing_in_groups_of_two_or_more(score, group_ids, kind, by):
    shifted = advantages(score + np.float32(by), group_ids, G, kind, singleton="zero")
    np.testing.assert_array_equal(shifted, advantages(score, group_ids, G, kind, singleton="zero"))


@FEW
@given(scores, ids, kinds)
def test_advantages_of_a_group_sum_to_zero(score, group_ids, kind):
    ours = np.asarray(advantages(score, group_ids, G, kind, singleton="zero"), np.float64)
    np.testing.assert_allclose(np.bincount(group_ids, ours), 0, atol=2e-5)


@FEW
@given(scores, ids_and_none, kinds, orders)
def test_the_order_of_rows_does_not_matter(score, group_ids, kind, order):
    ours = advantages(score[order], group_ids[order], G, kind)
    np.testing.assert_allclose(ours, advantages(score, group_ids, G, kind)[order], **CLOSE)


@FEW
@given(scores, ids, kinds, st.permutations(range(G)).map(np.array))
def test_the_names_of_groups_do_not_matter(score, group_ids, kind, name):
    ours = advantages(score, name[group_ids], G, kind)
    np.testing.assert_array_equal(ours, advantages(score, group_ids, G, kind))


@FEW
@given(scores, ids, kinds)
def test_the_number_of_groups_is_only_a_bound(score, group_ids, kind):
    ours = advantages(score, group_ids, G + 4, kind)
    np.testing.assert_allclose(ours, advantages(score, group_ids, G, kind), **CLOSE)


# --- Equal scores, groups of one, rows left out ---------------------------------------------------


@FEW
@given(st.floats(-1e6, 1e6, width=32), kinds, st.integers(2, N))
def test_equal_scores_are_exactly_zero(value, kind, size):
    group_ids = np.where(np.arange(N) < size, 0, -1)
    ours = advantages(np.full(N, value, np.float32), group_ids, G, kind)
    np.testing.assert_array_equal(ours, 0)


@pytest.mark.parametrize("kind", room.KINDS)
def test_scores_equal_up_to_rounding_are_exactly_zero(kind):
    score = np.float32(0.1) * np.array([1, 1 + 2e-7, 1 - 2e-7, 1], np.float32)
    assert np.ptp(score) > 0
    np.testing.assert_array_equal(advantages(score, np.zeros(4, int), G, kind), 0)
    wider = np.array([0.1, 0.1001], np.float32)
    assert np.all(advantages(wider, np.zeros(2, int), G, kind) != 0)


@pytest.mark.parametrize(
    ("kind", "singleton", "expected"),
    [
        ("grpo", "score", 2.5 / 1.25),
        ("dr_grpo", "score", 2.5),
        ("rloo", "score", 2.5),
        ("grpo", "zero", 0),
        ("dr_grpo", "zero", 0),
        ("rloo", "zero", 0),
    ],
)
def test_a_group_of_one(kind, singleton, expected):
    score, group_ids = jnp.array([2.5, 9.0, 8.0]), jnp.array([1, 0, 0])
    ours = advantages(score, group_ids, G, kind, epsilon=0.25, singleton=singleton)
    assert ours[0] == np.float32(expected)


@FEW
@given(scores, ids, kinds, st.lists(st.booleans(), min_size=N, max_size=N).map(np.array))
def test_rows_left_out_are_as_if_they_were_not_there(score, group_ids, kind, where):
    poisoned = np.where(where, score, NAN).astype(np.float32)
    ours = advantages(poisoned, group_ids, G, kind, where)
    expected = advantages(score, np.where(where, group_ids, -1), G, kind)
    np.testing.assert_allclose(ours, expected, **CLOSE)
    np.testing.assert_array_equal(ours[~where], 0)


@pytest.mark.parametrize("outside", [-1, -7, NONE, 100])
def test_an_id_outside_is_no_group(outside):
    score, group_ids = jnp.array([1.0, NAN, 3.0, NAN]), jnp.array([0, outside, 0, outside])
    ours = advantages(score, group_ids, G, "dr_grpo")
    np.testing.assert_array_equal(ours, [-1, 0, 1, 0])
    np.testing.assert_array_equal(informative(score, group_ids, G), [True, False, True, False])


def test_nothing_to_count():
    for kind in room.KINDS:
        np.testing.assert_array_equal(advantages(jnp.full(2, NAN), -jnp.ones(2, int), G, kind), 0)
        assert advantages(jnp.zeros(0), jnp.zeros(0, int), G, kind).shape == (0,)


# --- Informative groups ---------------------------------------------------------------------------


@FEW
@given(scores, ids_and_none)
def test_informative_are_groups_whose_scores_differ(score, group_ids):
    expected = [0 <= group < G and np.ptp(score[group_ids == group]) > 0 for group in group_ids]
    np.testing.assert_array_equal(informative(score, group_ids, G), expected)


def test_what_is_not_informative_has_advantage_zero():
    score = np.array([0.1, 0.1, 0.3, 0.7, 5.0, NAN], np.float32)
    group_ids, where = np.array([0, 0, 1, 1, 2, 1]), np.array([1, 1, 1, 1, 1, 0])
    keep = informative(score, group_ids, G, where)
    np.testing.assert_array_equal(keep, [False, False, True, True, False, False])
    ours = advantages(score, group_ids, G, "grpo", where, singleton="zero")
    np.testing.assert_array_equal(ours != 0, keep)


def test_the_caller_of_the_filter_chooses_the_denominator():
    step_ids = jnp.array([[0, 0], [0, 0], [0, -1]])
    keep = informative(jnp.array([1.0, 0.0, 1.0]), jnp.array([0, 0, 1]), G)
    kept = jnp.where(keep[:, None], step_ids, -1)
    of_kept = ops.aggregation_weights(kept)
    of_all = jnp.where(kept >= 0, ops.aggregation_weights(step_ids), 0)
    np.testing.assert_allclose(of_kept, [[1 / 4, 1 / 4], [1 / 4, 1 / 4], [0, 0]])
    np.testing.assert_allclose(of_all, [[1 / 5, 1 / 5], [1 / 5, 1 / 5], [0, 0]])


# --- GiGPO ----------------------------------------------------------------------------------------


def steps(seed=0):
    """Scores, groups, step returns and anchors: ragged, clusters inside groups, NaN at no step."""
    rng = np.random.default_rng(seed)
    score, returns = rng.normal(size=N), rng.normal(size=(N, S))
    group_ids = np.arange(N) % G
    anchors = group_ids[:, None] * 2 + rng.integers(0, 2, (N, S))
    anchors = np.where(np.arange(S) < rng.integers(1, S + 1, N)[:, None], anchors, -1)
    returns = np.where(anchors >= 0, returns, NAN)
    return score.astype("f"), group_ids, returns.astype("f"), anchors


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_gigpo_with_one_cluster_a_group_compares_all_steps_of_the_group(kind):
    score, group_ids, returns, anchors = steps()
    anchors = np.where(anchors >= 0, group_ids[:, None], -1)
    ours = gigpo(score, group_ids, G, returns, anchors, G, kind=kind, step_weight=0.5)
    episode = by_loop(score, group_ids, kind)
    step = by_loop(returns.ravel(), anchors.ravel(), kind, singleton="zero").reshape(N, S)
    expected = np.where(anchors >= 0, episode[:, None] + 0.5 * step, 0)
    np.testing.assert_allclose(ours, expected, **CLOSE)


def test_gigpo_with_different_states_has_the_episode_term_alone():
    score, group_ids, returns, anchors = steps()
    different = np.where(anchors >= 0, np.arange(N * S).reshape(N, S), -1)
    ours = gigpo(score, group_ids, G, returns, different, N * S, kind="grpo")
    expected = np.where(anchors >= 0, advantages(score, group_ids, G)[:, None], 0)
    np.testing.assert_allclose(ours, expected, **CLOSE)


def test_gigpo_weighs_the_step_term_and_zero_drops_it():
    score, group_ids, returns, anchors = steps()
    run = partial(gigpo, score, group_ids, G, returns, anchors, 2 * G, kind="grpo")
    episode, one, half = (np.asarray(run(step_weight=w)) for w in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(half - episode, (one - episode) / 2, **CLOSE)
    expected = np.where(anchors >= 0, advantages(score, group_ids, G)[:, None], 0)
    np.testing.assert_allclose(episode, expected, **CLOSE)


def test_gigpo_group_of_one_keeps_its_score_and_cluster_of_one_gets_zero():
    score, returns = jnp.array([4.0]), jnp.array([[1.0, 2.0, 6.0]])
    ours = gigpo(score, jnp.array([0]), 1, returns, jnp.array([[0, 1, 1]]), 2, kind="dr_grpo")
    np.testing.assert_array_equal(ours, [[4.0, 2.0, 6.0]])


def test_gigpo_leaves_out_what_where_leaves_out_and_rows_without_a_group():
    score, group_ids, returns, anchors = steps()
    where = np.random.default_rng(1).random((N, S)) < 0.6
    group_ids[0] = -1
    ours = gigpo(score, group_ids, G, np.where(where, returns, NAN), anchors, 2 * G, where=where)
    gone = np.where(where & (group_ids >= 0)[:, None], anchors, -1)
    expected = gigpo(score, group_ids, G, returns, gone, 2 * G)
    np.testing.assert_allclose(ours, expected, **CLOSE)
    np.testing.assert_array_equal(ours[gone < 0], 0)
    assert np.isfinite(ours).all()


def test_gigpo_refuses_an_unknown_kind():
    score, group_ids, returns, anchors = steps()
    with pytest.raises(ValueError, match="kind='std'"):
        ops.gigpo_advantages(score, group_ids, G, returns, anchors, 2 * G, kind="std")


# --- REINFORCE++ ----------------------------------------------------------------------------------

TOOL_IN_BETWEEN = jnp.array([[0, 0, -1, 1, -1]])


@pytest.mark.parametrize(
    ("across_gaps", "expected"),
    [(True, [[1.25, 0.5, 0, 1, 0]]), (False, [[1, 0, 0, 1, 0]])],
    ids=["paper", "shipped code"],
)
def test_whether_a_return_crosses_tool_output(across_gaps, expected):
    reward = jnp.array([[1.0, 0.0, NAN, 1.0, NAN]])
    whitened, returns = reinforce_pp(reward, TOOL_IN_BETWEEN, 0.5, across_gaps=across_gaps)
    np.testing.assert_array_equal(returns, expected)
    mask = TOOL_IN_BETWEEN >= 0
    np.testing.assert_array_equal(whitened, ops.masked_whiten(returns, mask))


@FEW
@given(st.lists(st.booleans(), min_size=T, max_size=T).map(np.array), eighths)
def test_returns_of_the_default_are_those_with_masked_tokens_cut_out(active, reward):
    token_ids = np.where(active, 0, -1)[None]
    rewards = (np.arange(T, dtype=np.float32) + np.float32(reward))[None]
    _, returns = reinforce_pp(rewards, token_ids, 0.5)
    expected, behind = [], 0.0
    for x in rewards[0, active][::-1]:
        behind = x + 0.5 * behind
        expected.insert(0, behind)
    np.testing.assert_array_equal(returns[0, active], expected)


def test_baseline_is_the_centred_score_whitened_over_tokens():
    score, group_ids = np.array([1.0, 3.0, 7.0, NAN], "f"), np.array([0, 0, 1, -1])
    step_ids = np.array([[0, 0, 0], [0, -1, -1], [-1, 0, 1], [0, 0, 0]])
    ours = baseline(score, group_ids, G, step_ids)
    tokens = np.array([-1, -1, -1, 1, 7, 7.0])  # the third trajectory is alone: baseline 0
    expected = np.zeros((4, 3))
    expected[(step_ids >= 0) & (group_ids >= 0)[:, None]] = (tokens - tokens.mean()) / np.sqrt(
        tokens.var(ddof=1) + 1e-8
    )
    np.testing.assert_allclose(ours, expected, **CLOSE)


def test_reinforce_pp_without_spread_is_zero():
    masked, one = np.full((2, 3), -1), np.full((2, 3), -1)
    one[0, 1] = 0
    for step_ids in (masked, one, np.zeros((2, 3), int)):
        for results in (
            reinforce_pp(jnp.zeros((2, 3)), step_ids)[0],
            baseline(jnp.full(2, 0.1), jnp.zeros(2, int), G, step_ids),
        ):
            np.testing.assert_array_equal(results, 0)
