"""Laws that tie the ops to one another, whatever the numbers.

Elsewhere, beside the op they are about: whitening forgets scale and origin (`test_segments`);
returns minus values as the advantage of steps with lambda 1, a critic that is right, StepPO with
one token a step (`test_returns`); RLOO as GRPO without deviation times n / (n - 1), shifts of the
scores, sums of a group, GiGPO with one cluster a group (`test_groups`); BranPO without branches
(`test_branches`); future values where the policies agree, the future-KL loss of weight 0
(`test_future_kl`); the levels and reductions of the losses (`test_losses`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from tests.ops import batch_ops, token_ops
from tests.ops.battery import CLOSE

FEW = settings(max_examples=20, deadline=None)
N, G, T = 8, 3, 5  # one shape: one compilation
PAIRS = np.array([0, 0, 1, 1, 2, 2, 2, -1])  # groups of two and more, and a row of none

eighths = st.integers(-32, 32).map(lambda x: x / 8)  # exact in float32, and so are their sums


def arrays(*shape, of=eighths):
    size = int(np.prod(shape))
    flat = st.lists(of, min_size=size, max_size=size)
    return flat.map(lambda x: np.array(x, np.float32).reshape(shape))


ids_t = st.lists(st.booleans(), min_size=N, max_size=N).map(lambda x: np.where(x, 0, -1))
discounts = arrays(N, of=st.sampled_from([0.0, 0.5, 1.0]))  # 0 ends a trajectory
group_ids = st.lists(st.integers(-1, G - 1), min_size=N, max_size=N).map(np.array)
kinds = st.sampled_from(ops.KINDS)

recur = jax.jit(ops.reverse_recurrence)
returns = jax.jit(ops.discounted_returns)
token_gae = jax.jit(ops.token_gae)
step_gae = jax.jit(ops.step_gae)
advantages = jax.jit(
    ops.group_advantages, static_argnums=(2, 3), static_argnames=("ddof", "singleton")
)
gigpo = jax.jit(ops.gigpo_advantages, static_argnums=(2, 5), static_argnames="kind")
branpo = jax.jit(ops.branpo_advantages, static_argnums=4, static_argnames="kind")
appo = jax.jit(ops.appo_advantages, static_argnums=2, static_argnames="kind")
baseline = jax.jit(ops.reinforce_pp_baseline_advantages, static_argnums=2)
reinforce_pp = jax.jit(ops.reinforce_pp_advantages)
whiten = jax.jit(ops.masked_whiten)


# --- One trajectory -------------------------------------------------------------------------------


def loop_returns(reward, discount, active, behind):
    """Discounted sums over the active elements, which lie as if the others had been cut out."""
    expected = np.zeros(len(reward))
    for t in reversed(range(len(reward))):
        if active[t]:
            expected[t] = behind = reward[t] + discount[t] * behind
    return expected


@FEW
@given(arrays(N), discounts, arrays(N), ids_t, eighths)
def test_td_errors_of_tokens_telescope_to_return_minus_value(reward, discount, value, ids, behind):
    td_errors = token_gae(reward, discount, value, 0.0, ids, behind)
    active = ids >= 0
    summed = recur(td_errors, np.where(active, discount, 1).astype(np.float32))
    expected = np.where(active, loop_returns(reward, discount, active, behind) - value, 0)
    np.testing.assert_allclose(np.where(active, summed, 0), expected, **CLOSE)
    ours = token_gae(reward, discount, value, 1.0, ids, behind)
    np.testing.assert_allclose(ours, expected, **CLOSE)


@FEW
@given(arrays(N), discounts, arrays(N), eighths)
def test_td_errors_of_steps_telescope_to_return_minus_value(reward, discount, value, behind):
    expected = np.asarray(returns(reward, discount, behind)) - value
    td_errors = step_gae(reward, discount, value, 0.0, behind)
    np.testing.assert_allclose(returns(td_errors, discount), expected, **CLOSE)
    np.testing.assert_allclose(step_gae(reward, discount, value, 1.0, behind), expected, **CLOSE)


@FEW
@given(arrays(N), discounts, arrays(N), arrays(N), ids_t, st.sampled_from([0.0, 0.5, 1.0]))
def test_advantages_are_linear_in_rewards_and_values(reward, discount, value, other, ids, lambda_):
    whole = token_gae(reward, discount, value, lambda_, ids)
    parts = token_gae(reward - other, discount, np.zeros(N, np.float32), lambda_, ids)
    parts += token_gae(other, discount, value, lambda_, ids)
    np.testing.assert_allclose(whole, parts, **CLOSE)


# --- Groups ---------------------------------------------------------------------------------------


@FEW
@given(arrays(N), group_ids, st.sampled_from([0.25, 2.0, 8.0]))
def test_without_deviation_advantages_have_the_unit_of_the_scores(score, groups, factor):
    factor = np.float32(factor)
    for kind in ("dr_grpo", "rloo"):
        ours = advantages(factor * score, groups, G, kind)
        np.testing.assert_array_equal(ours, factor * advantages(score, groups, G, kind))
    with_deviation = advantages(score, groups, G, singleton="zero", epsilon=0.0)
    ours = advantages(factor * score, groups, G, singleton="zero", epsilon=0.0)
    np.testing.assert_allclose(ours, with_deviation, **CLOSE)


@FEW
@given(arrays(N), group_ids, st.sampled_from(["grpo", "dr_grpo"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_gigpo_of_one_step_each_from_one_state_counts_the_group_twice(score, groups, kind, weight):
    # The step of a trajectory returns its score; clusters are groups.
    returned, anchors = score[:, None], groups[:, None]
    ours = gigpo(score, groups, G, returned, anchors, G, step_weight=weight, kind=kind)
    episode = advantages(score, groups, G, kind)
    step = advantages(score, groups, G, kind, singleton="zero")
    np.testing.assert_allclose(ours[:, 0], episode + weight * step, **CLOSE)


@FEW
@given(arrays(N), group_ids, st.lists(st.booleans(), min_size=N, max_size=N).map(np.array))
def test_appo_without_branches_compares_initial_rows_with_one_another(score, groups, initial):
    nobody, mask = np.full(2, -1), np.ones((N, T), bool)
    ours = appo(score, groups, G, initial, mask, nobody, nobody, nobody)
    expected = advantages(score, groups, G, "grpo", initial, ddof=0, singleton="zero")
    np.testing.assert_allclose(ours, np.broadcast_to(expected[:, None], (N, T)), **CLOSE)


@FEW
@given(arrays(N), eighths)
def test_one_token_a_trajectory_makes_both_reinforce_pp_whitened_scores(score, by):
    score[0] = score[1] + np.float32(0.5)  # some spread
    ids = np.zeros((N, 1), np.int32)
    whitened = whiten(score, np.ones(N, bool))
    np.testing.assert_allclose(reinforce_pp(score[:, None], ids)[0][:, 0], whitened, **CLOSE)
    one_group = np.zeros(N, np.int32)
    ours = baseline(score + np.float32(by), one_group, 1, ids)
    np.testing.assert_allclose(ours[:, 0], whitened, **CLOSE)


@FEW
@given(arrays(N), arrays(G), st.integers(0, 99))
def test_a_bonus_for_a_whole_group_changes_no_advantage(score, bonus, seed):
    """Whoever is compared with a group of two or more is better by as much as before."""
    rng = np.random.default_rng(seed)
    shifted = score + np.where(PAIRS >= 0, bonus[PAIRS], 0)
    ids = rng.integers(-1, 3, (N, T))
    group_nt = np.broadcast_to(PAIRS[:, None], (N, T))
    step_nt = rng.integers(-32, 32, (N, T)).astype(np.float32) / 8
    step_shifted = step_nt + np.where(group_nt >= 0, bonus[group_nt], 0)
    half = np.broadcast_to(np.arange(T) < 2, (N, T))  # prefix and suffix of every row
    losing = np.where(rng.random(N) < 0.5, -1, 1)
    initial, origin, branch = np.arange(N) % 2 == 0, np.array([0, 2, 4]), np.array([1, 3, 5])
    token = rng.integers(0, T, 3)
    for run in (
        lambda x, steps: gigpo(x, PAIRS, G, steps, group_nt, G),
        lambda x, steps: baseline(x, PAIRS, G, ids),
        lambda x, steps: branpo(x, x, losing, PAIRS, G, half, ~half, ~half),
        lambda x, steps: appo(x, PAIRS, G, initial, ids >= 0, origin, branch, token),
    ):
        np.testing.assert_allclose(run(shifted, step_shifted), run(score, step_nt), **CLOSE)


# --- Precision ------------------------------------------------------------------------------------


# Shares of tokens are counted in float32 whatever the precision of what is counted.
SHARES = {"pg_clipfrac", "pg_clipfrac_lower", "vf_clipfrac", "vf_outside", "rollout_is_bound_frac"}


def dtypes(battery, arguments, dtype):
    """{name of an op: types of its float results}, worked out without running anything."""

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, dtype if x.dtype.kind == "f" else x.dtype)

    results = jax.eval_shape(battery, *jax.tree.map(shape, arguments))
    found = {}
    for name, result in results.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(result):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and not SHARES & {
                getattr(key, "key", None) for key in path
            }:
                found.setdefault(name, set()).add(leaf.dtype)
    return found


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_under_x64_the_type_of_the_inputs_is_kept(name):
    rows = tuple(x[0] for x in token_ops.example())
    with jax.enable_x64(True):
        dtype = jnp.dtype(name)
        for battery, arguments in (
            (token_ops.battery, rows),
            (batch_ops.battery, (batch_ops.example(),)),
        ):
            for op, found in dtypes(battery, arguments, dtype).items():
                assert found == {dtype}, op


def test_float64_is_computed_in_float64():
    score, groups = np.array([0.1, 0.2, 0.7]), np.zeros(3, int)
    with jax.enable_x64(True):
        ours = advantages(score, groups, G)
        expected = (score - score.mean()) / (score.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(ours, expected, rtol=1e-13)
        both = gigpo(score, groups, G, score[:, None], groups[:, None], 1)
        np.testing.assert_allclose(both[:, 0], 2 * expected, rtol=1e-13)
