"""APPO: where responses are branched, how rewards are scaled, whom a branch gives credit."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprl import ops
from steprl.ops import procedures

FEW = settings(max_examples=25, deadline=None)
NAN = float("nan")
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
T = 6
EVERY = np.zeros(T, np.int32)
SOME = np.array([-1, 0, 0, -1, 1, 2], np.int32)
seeds = st.integers(0, 2**31)


def arrays(length, low=-3, high=3):
    """Float rows in steps of an eighth: exact in every type, with ties."""
    numbers = st.integers(low * 8, high * 8).map(lambda i: i / 8)
    return st.lists(numbers, min_size=length, max_size=length).map(lambda x: np.array(x, "f"))


# --- Branching scores -----------------------------------------------------------------------------

entropy_scores = jax.jit(ops.appo_branching_scores)
value_scores = jax.jit(ops.appo_branching_scores, static_argnames="negative_pairs")


def z_scores(x, counts):
    x = np.asarray(x, np.float64)
    z = np.zeros(x.shape)
    if counts.any() and np.ptp(x[counts]):
        z[counts] = (x[counts] - x[counts].mean()) / (x[counts].std() + 1e-6)
    return z


@FEW
@given(arrays(T), arrays(T))
def test_scores_are_products_of_z_scores(entropy, value):
    active = SOME >= 0
    z, z_value = z_scores(entropy, active), z_scores(value, active)
    score, strict = value_scores(entropy, SOME, value, negative_pairs="product")
    np.testing.assert_allclose(score, z * z_value, **CLOSE)
    apart = (abs(z) > 1e-5) & (abs(z_value) > 1e-5)
    np.testing.assert_array_equal(np.asarray(strict)[apart], ((z > 0) & (z_value > 0))[apart])
    alone, strict = entropy_scores(entropy, SOME)
    np.testing.assert_allclose(alone, z, **CLOSE)
    np.testing.assert_array_equal(strict, np.asarray(alone) > 0)


@FEW
@given(arrays(T), arrays(T))
def test_two_negative_z_never_score_above_zero_by_default(entropy, value):
    shipped, strict = value_scores(entropy, EVERY, value, negative_pairs="product")
    score, same_strict = value_scores(entropy, EVERY, value)
    both = (z_scores(entropy, EVERY >= 0) < 0) & (z_scores(value, EVERY >= 0) < 0)
    np.testing.assert_array_equal(score, np.where(both, -np.asarray(shipped), shipped))
    np.testing.assert_array_equal(strict, same_strict)
    np.testing.assert_array_equal(np.asarray(score) > 0, strict)


def test_two_negative_z_are_chosen_last_and_were_chosen_first():
    # No token has both above the mean; the last one has both far below.
    entropy, value = np.array([2, 0, NAN, NAN, NAN, -2], "f"), np.array([0, 2, 1, 1, 1, -2], "f")
    ids = np.array([0, 0, -1, -1, -1, 0], np.int32)
    candidate = np.stack([ids >= 0, ids < -1, ids < -1])
    choices = {}
    for pairs in ("last", "product"):
        score, strict = value_scores(entropy, ids, value, negative_pairs=pairs)
        points = select(*(np.stack([x] * ROWS) for x in (score, strict)), candidate, budget=4)
        assert int(points.num_strict) == 0
        choices[pairs] = points.token_b.tolist()
    assert choices == {"last": [0, 1, 5, -1], "product": [5, 0, 1, -1]}


@pytest.mark.parametrize("x", [0.1, 0.3, 7e5, 0.0])
def test_equal_entropies_or_values_qualify_nobody(x):
    ramp, same = jnp.arange(T, dtype=jnp.float32), jnp.full(T, x)
    for score, strict in (
        entropy_scores(same, EVERY),
        value_scores(ramp, EVERY, same),
        value_scores(same, EVERY, ramp),
    ):
        np.testing.assert_array_equal(score, 0)
        assert not strict.any()


def test_only_the_tokens_that_count_are_in_the_statistics():
    entropy, where = np.array([5, 1, 9, 9, 3, 7], "f"), np.array([1, 1, 0, 1, 1, 0])
    counts = (SOME >= 0) & (where > 0)
    score, strict = entropy_scores(entropy, SOME, None, where=where)
    np.testing.assert_allclose(score, z_scores(entropy, counts), **CLOSE)
    np.testing.assert_array_equal(strict, [0, 0, 0, 0, 1, 0])
    poisoned = np.where(counts, entropy, NAN)
    np.testing.assert_array_equal(entropy_scores(poisoned, SOME, None, where=where)[0], score)


# --- Selection ------------------------------------------------------------------------------------

ROWS = 3
select = jax.jit(ops.select_branch_points, static_argnames=("budget", "refill"))
budgets = st.sampled_from([0, 1, 4, 30])


def expected_points(score, strict, candidate, budget, refill):
    """(row, token, kind) by sorting Python lists, as the definition says."""
    places = [(r, t) for r in range(ROWS) for t in range(T) if candidate[r, t]]
    ranked = sorted(places, key=lambda at: -score[at])
    chosen = [(*at, 0) for at in ranked if strict[at]] + [
        (*at, 1) for at in ranked if not strict[at]
    ]
    whole = chosen[:]
    while refill == "cycle" and whole and len(chosen) < budget:
        chosen += [(row, token, 2) for row, token, _ in whole]
    return chosen[:budget] + [(-1, -1, -1)] * (budget - len(chosen))


@FEW
@given(arrays(ROWS * T), seeds, budgets, st.sampled_from(["none", "cycle"]), st.floats(0, 1))
def test_selection_equals_sorted_lists(score, seed, budget, refill, share):
    rng = np.random.default_rng(seed)
    score = score.reshape(ROWS, T)
    strict, candidate = rng.random((2, ROWS, T)) < np.array([0.3, share])[:, None, None]
    points = select(score, strict, candidate, budget=budget, refill=refill)
    expected = expected_points(score, strict, candidate, budget, refill)
    ours = np.stack([points.row_b, points.token_b, points.kind_b], axis=1)
    np.testing.assert_array_equal(ours, np.array(expected, int).reshape(-1, 3))
    scores = [score[row, token] if kind >= 0 else 0 for row, token, kind in expected]
    np.testing.assert_array_equal(points.score_b, np.array(scores, "f"))
    kinds = ours[:, 2].tolist()
    numbers = (points.num_strict, points.num_fallback, points.num_repeated)
    assert [int(n) for n in numbers] == [kinds.count(kind) for kind in (0, 1, 2)]


@FEW
@given(arrays(ROWS * T), seeds, budgets)
def test_no_token_is_branched_twice_by_default(score, seed, budget):
    candidate = np.random.default_rng(seed).random((ROWS, T)) < 0.7
    points = select(score.reshape(ROWS, T), candidate, candidate, budget=budget)
    found = np.asarray(points.row_b) >= 0
    places = list(zip(points.row_b[found].tolist(), points.token_b[found].tolist(), strict=True))
    assert len(places) == len(set(places)) == min(budget, candidate.sum())
    assert all(candidate[place] for place in places)


def test_scores_of_others_are_not_read_and_nothing_comes_of_nothing():
    score = np.array([[NAN, 1.0, -np.inf, NAN]], "f")
    points = select(score, np.ones((1, 4)), np.array([[0, 1, 1, 0]]), budget=3)
    np.testing.assert_array_equal(points.token_b, [1, 2, -1])
    for shape in ((2, 3), (0, 3), (2, 0)):
        zeros = np.zeros(shape, "f")
        for refill in ("none", "cycle"):
            nobody = ops.select_branch_points(zeros, zeros, zeros, 2, refill=refill)
            np.testing.assert_array_equal(nobody.row_b, [-1, -1])
            np.testing.assert_array_equal(nobody.score_b, 0)


# --- Entropy of the top alternatives --------------------------------------------------------------


@FEW
@given(arrays(5))
def test_entropy_from_all_alternatives_is_the_entropy(logits):
    logprob = jax.nn.log_softmax(jnp.append(logits, -jnp.inf))
    np.testing.assert_allclose(
        ops.entropy_from_topk(logprob), ops.entropy_from_logits(logits), **CLOSE
    )
    assert ops.entropy_from_topk(logprob[:3]) <= ops.entropy_from_topk(logprob)
    gradient = jax.grad(ops.entropy_from_topk)(logprob)
    assert np.isfinite(gradient).all()


# --- Reward scale ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((2, 1.0, 2.0, 4, 0.5), [1.125, 1.25, 1.5, 1.0]),
        ((0, 1.0, 1.0, 3, 0.5), [2.0, 1.0, 1.0]),
        ((4, 1.0, 1.0, 3, 0.5), [1.0625, 1.125, 1.25]),  # behind the row
        ((1, 1.0, 1.0, 3, 0.0), [1.0, 2.0, 1.0]),
        ((1, -1.0, 1.0, 3, 0.5), [1.0] * 3),
        ((1, 1.0, 0.0, 3, 0.5), [1.0] * 3),
        ((-1, 1.0, 1.0, 3, 0.5), [1.0] * 3),
    ],
)
def test_reward_factors(arguments, expected):
    np.testing.assert_array_equal(ops.appo_reward_factor(*arguments), expected)


N, B = 5, 4
reward_scale = jax.jit(ops.appo_reward_scale)


def branches(rng):
    """origin, token, score and placed of B branches, some out of range."""
    return (
        rng.integers(-1, N + 1, B),
        rng.integers(-1, T + 3, B),
        rng.normal(size=B).astype("f"),
        rng.random(B) < 0.7,
    )


@FEW
@given(seeds, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_rewards_are_scaled_by_the_mean_of_the_factors(seed, discount):
    rng = np.random.default_rng(seed)
    reward, (origin, token, score, placed) = rng.normal(size=(N, T)).astype("f"), branches(rng)
    largest = score[placed].max(initial=0)
    expected = reward.copy()
    for row in range(N):
        own = np.flatnonzero(placed & (origin == row))
        for t in range(T):
            gains = [
                score[b] / largest * discount ** (token[b] - t)
                if score[b] > 0 and t <= token[b]
                else 0
                for b in own
            ]
            expected[row, t] *= 1 + (np.mean(gains) if gains else 0)
    ours = reward_scale(reward, origin, token, score, placed, discount)
    np.testing.assert_allclose(ours, expected, **CLOSE)


def test_an_outcome_reward_behind_the_branch_is_not_scaled():
    reward = np.zeros((2, T), "f")
    reward[:, -1] = 0.3
    one = np.ones(1, int)
    np.testing.assert_array_equal(reward_scale(reward, one, one + 1, one, one), reward)
    none = np.zeros(0, int)
    np.testing.assert_array_equal(reward_scale(reward, none, none, none, none), reward)


# --- Dual-group advantages ------------------------------------------------------------------------

ROW_COUNT, GROUPS = 10, 3
advantages = jax.jit(ops.appo_advantages, static_argnames=("num_groups", "kind"))


def dual_group_batch(seed):
    """Scores with ties and metas of every sort, good and bad."""
    rng = np.random.default_rng(seed)
    return {
        "score_n": rng.integers(0, 4, ROW_COUNT).astype("f") / 4,
        "group_ids_n": rng.integers(0, GROUPS, ROW_COUNT),
        "num_groups": GROUPS,
        "is_initial_n": rng.random(ROW_COUNT) < 0.5,
        "where": rng.random((ROW_COUNT, T)) < 0.8,
        "origin_b": rng.integers(-1, ROW_COUNT + 1, 12),
        "branch_b": rng.integers(-1, ROW_COUNT + 1, 12),
        "token_b": rng.integers(-1, T + 2, 12),
    }


def expected_advantages(batch, kind):
    score, initial = batch["score_n"].astype(np.float64), batch["is_initial_n"]
    a = np.zeros(ROW_COUNT)
    for n in range(ROW_COUNT):
        same = (batch["group_ids_n"] == batch["group_ids_n"][n]) & (initial == initial[n])
        if same.sum() > 1 and np.ptp(score[same]):
            scale = score[same].std() + 1e-6 if kind == "grpo" else 1
            a[n] = (score[n] - score[same].mean()) / scale
    out = np.zeros((ROW_COUNT, T))
    metas = list(zip(batch["origin_b"], batch["branch_b"], batch["token_b"], strict=True))
    good = [m for m in metas if 0 <= m[1] < ROW_COUNT and not initial[m[1]] and m[2] >= 0]
    for n in np.flatnonzero(initial):
        for t in np.flatnonzero(batch["where"][n]):
            shared = [a[branch] for origin, branch, token in good if origin == n and t <= token]
            out[n, t] = a[n] + (np.mean(shared) if shared else 0)
    return out


@FEW
@given(seeds, st.sampled_from(["grpo", "dr_grpo"]))
def test_advantages_equal_loops_over_rows_tokens_and_branches(seed, kind):
    batch = dual_group_batch(seed)
    ours = np.asarray(advantages(**batch, kind=kind))
    np.testing.assert_allclose(ours, expected_advantages(batch, kind), **CLOSE)
    np.testing.assert_array_equal(ours[~batch["is_initial_n"]], 0)
    np.testing.assert_array_equal(ours[~batch["where"]], 0)


@FEW
@given(seeds)
def test_the_order_of_rows_and_branches_does_not_matter(seed):
    batch = dual_group_batch(seed)
    rng = np.random.default_rng(seed + 1)
    order, metas = rng.permutation(ROW_COUNT), rng.permutation(12)
    moved = {n: batch[n][order] for n in batch if n.endswith(("_n", "where"))}
    now_at = np.argsort(order)
    for name in ("origin_b", "branch_b"):
        row = batch[name]
        inside = (row >= 0) & (row < ROW_COUNT)
        moved[name] = np.where(inside, now_at[np.clip(row, 0, ROW_COUNT - 1)], row)[metas]
    moved["token_b"] = batch["token_b"][metas]
    ours = advantages(**(batch | moved))
    np.testing.assert_allclose(ours, np.asarray(advantages(**batch))[order], **CLOSE)


def test_equal_scores_and_groups_of_one_give_exactly_zero():
    batch = dual_group_batch(0) | {"score_n": np.full(ROW_COUNT, 0.1, "f")}
    np.testing.assert_array_equal(advantages(**batch), 0)
    alone = np.array([1, 0] + [0] * (ROW_COUNT - 2), bool)
    batch = dual_group_batch(0) | {"is_initial_n": alone, "group_ids_n": np.arange(ROW_COUNT) % 3}
    batch |= {"branch_b": np.full(12, -1)}
    np.testing.assert_array_equal(advantages(**batch), 0)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.appo_branching_scores(x, EVERY, negative_pairs="first"),
        lambda x: ops.select_branch_points(x[None], x[None], x[None], 2, refill="random"),
        lambda x: ops.select_branch_points(x[None], x[None], x[None], -1),
        lambda x: ops.appo_advantages(x, EVERY, 1, x, x[:, None], x, x, x, kind="best"),
    ],
)
def test_what_is_unknown_is_refused(call):
    with pytest.raises(ValueError):
        call(jnp.zeros(T))


@pytest.mark.slow
def test_examples_in_docstrings_run():
    failed, tried = doctest.testmod(procedures)
    assert tried > 0
    assert failed == 0
