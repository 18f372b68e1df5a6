"""Where to branch a response, and what the branches say about the tokens before them.

APPO (https://arxiv.org/abs/2606.12384) samples some responses to a prompt, restarts from the tokens
where an alternative is likely and matters (branching score), and credits the tokens that a branch
shares with its origin by how the branches of the prompt compare. ARPO
(https://arxiv.org/abs/2507.19849) is the special case that scores by entropy alone.

Suffixes beside `_t`, `_n` and `_nt`: `_r` row of one prompt, `_b` branch, `_k` alternative, `_i` place
in a flattened table.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from steprl.ops.checks import check_one_of, check_row_step_ids
from steprl.ops.groups import group_advantages
from steprl.ops.returns import reverse_recurrence
from steprl.ops.segments import as_float, masked_whiten


def appo_branching_scores(
    entropy_t: jax.Array,
    step_ids_t: jax.Array,
    future_value_t: jax.Array | None = None,
    *,
    where: jax.Array | None = None,
    negative_pairs: str = "last",
    epsilon: float = 1e-6,
) -> tuple[jax.Array, jax.Array]:
    """How promising each token of a response is as a place to branch.

        z(x)_t = (x_t - mean) / (std + epsilon) over the tokens that count, std of the population
        score_t = z(H)_t z(w)_t, or z(H)_t without future values
        strict_t = z(H)_t > 0 and z(w)_t > 0 and score_t > 0

    The branching score of APPO (https://arxiv.org/abs/2606.12384); without future values the
    entropy criterion of ARPO (https://arxiv.org/abs/2507.19849).

    Args:
        entropy_t: [T] H, entropy of the distribution each token was sampled from.
        step_ids_t: [T] step of each token, -1 where masked.
        future_value_t: [T] w, see `appo_future_value`; None scores by entropy alone.
        where: [T] non-zero at the tokens that count; all active tokens by default.
        negative_pairs: what two negative z, whose product is positive, score: "last" is minus
            their product, "product" the product (the reference).
        epsilon: added to the standard deviation.

    Returns:
        The scores, and whether a token qualifies outright: [T] float and [T] bool; 0 and False
        where a token is masked or does not count.

    Raises:
        ValueError: `negative_pairs` is unknown, or the ids cannot be step ids.
        AssertionError: an input is batched (use `jax.vmap`), or the shapes differ.

    Note:
        In the reference a token of low entropy and low value is the first choice wherever too few
        qualify. Its z of equal values is rounding residue over epsilon, and its sign decides who
        qualifies; here it is exactly 0.

    Example:
        >>> import jax.numpy as jnp
        >>> entropy, value = jnp.array([2.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0])
        >>> score, strict = appo_branching_scores(entropy, jnp.array([0, 0, 0]), value)
        >>> print(score.round(2), strict)
        [ 1.5  0.  -1.5] [ True False False]
    """
    check_one_of("negative_pairs", negative_pairs, ("last", "product"))
    check_row_step_ids(step_ids_t)
    counts_t = step_ids_t >= 0
    if where is not None:
        counts_t &= jnp.asarray(where).astype(bool)
    z_t = masked_whiten(entropy_t, counts_t, ddof=0, epsilon=epsilon, epsilon_at="std")
    if future_value_t is None:
        return z_t, z_t > 0
    z_value_t = masked_whiten(future_value_t, counts_t, ddof=0, epsilon=epsilon, epsilon_at="std")
    score_t = z_t * z_value_t
    strict_t = (z_t > 0) & (z_value_t > 0) & (score_t > 0)
    if negative_pairs == "last":
        score_t = jnp.where((z_t < 0) & (z_value_t < 0), -score_t, score_t)
    return score_t, strict_t


class BranchPoints(NamedTuple):
    """Where the branches of one prompt start, in order of choice."""

    row_b: jax.Array  # row of the prompt, -1 where there is no branch
    token_b: jax.Array  # the last token that the branch shares with that row, -1 likewise
    score_b: jax.Array  # 0 where there is no branch
    kind_b: jax.Array  # 0 strict, 1 fallback, 2 repeated, -1 none
    num_strict: jax.Array
    num_fallback: jax.Array
    num_repeated: jax.Array


def select_branch_points(
    score_rt: jax.Array,
    strict_rt: jax.Array,
    candidate_rt: jax.Array,
    budget: int,
    *,
    refill: str = "none",
) -> BranchPoints:
    """Choose the tokens of one prompt's responses from which to branch.

    The strict candidates by falling score, then the other ones by falling score; equal scores in
    the order of rows, then tokens. With refill="cycle" the list is repeated from its head until the
    budget is spent.

    Args:
        score_rt: [R, T] score of each token, see `appo_branching_scores`.
        strict_rt: [R, T] non-zero where a token qualifies outright.
        candidate_rt: [R, T] non-zero where a branch may start; nothing else is read.
        budget: static number of branches B.
        refill: "none" leaves what cannot be filled empty, "cycle" repeats (the reference).

    Returns:
        `BranchPoints` of [B] arrays, and how many of each kind were chosen.

    Raises:
        ValueError: `refill` is unknown, or the budget is negative.
        AssertionError: an input is not of rank 2 (use `jax.vmap` for prompts), or shapes differ.

    Note:
        Repeating spends rollouts on prefixes that have a branch already.

    Example:
        >>> import jax.numpy as jnp
        >>> score, strict = jnp.array([[0.5, 3.0, 2.0]]), jnp.array([[1, 0, 1]])
        >>> points = select_branch_points(score, strict, jnp.ones((1, 3)), 4)
        >>> print(points.token_b, points.kind_b)
        [ 2  0  1 -1] [ 0  0  1 -1]
    """
    check_one_of("refill", refill, ("none", "cycle"))
    if budget < 0:
        raise ValueError(f"budget={budget!r} must not be negative")
    chex.assert_rank([score_rt, strict_rt, candidate_rt], 2)
    chex.assert_equal_shape([score_rt, strict_rt, candidate_rt])
    size, width = score_rt.size, score_rt.shape[1]
    candidate_i = jnp.asarray(candidate_rt).astype(bool).reshape(-1)
    strict_i = candidate_i & jnp.asarray(strict_rt).astype(bool).reshape(-1)
    score_i = jnp.where(candidate_i, as_float(score_rt).reshape(-1), 0)
    tier_i = jnp.where(strict_i, 0, jnp.where(candidate_i, 1, 2))
    index_i = jnp.arange(size, dtype=jnp.int32)
    ranked_i = jax.lax.sort((tier_i, -score_i, index_i), num_keys=2, is_stable=True)[2]

    number = jnp.sum(candidate_i, dtype=jnp.int32)
    strict_number = jnp.sum(strict_i, dtype=jnp.int32)
    place_b = jnp.arange(budget, dtype=jnp.int32)
    first_b = place_b < number
    chosen_b = first_b if refill == "none" else jnp.broadcast_to(number > 0, (budget,))
    kind_b = jnp.where(first_b, jnp.where(place_b < strict_number, 0, 1), 2)
    kind_b = jnp.where(chosen_b, kind_b, -1)
    # A spare entry at the end, so that there is something to read where there are no tokens.
    ranked_i, score_i = jnp.append(ranked_i, 0), jnp.append(score_i, 0)
    index_b = ranked_i[place_b % jnp.maximum(number, 1)]
    return BranchPoints(
        row_b=jnp.where(chosen_b, index_b // max(width, 1), -1),
        token_b=jnp.where(chosen_b, index_b % max(width, 1), -1),
        score_b=jnp.where(chosen_b, score_i[index_b], 0),
        kind_b=kind_b,
        num_strict=jnp.sum(kind_b == 0, dtype=jnp.int32),
        num_fallback=jnp.sum(kind_b == 1, dtype=jnp.int32),
        num_repeated=jnp.sum(kind_b == 2, dtype=jnp.int32),
    )


def entropy_from_topk(logprob_k: jax.Array) -> jax.Array:
    """The part of a token's entropy that its most likely alternatives make up.

        H = -sum_k p_k log p_k,   not renormalised: the alternatives left out count nothing

    What APPO (https://arxiv.org/abs/2606.12384) takes from an engine that returns its top 10.

    Args:
        logprob_k: [..., K] log-probabilities; -inf marks an excluded entry.

    Returns:
        [...] float entropies in nats, no larger than those of the whole distribution.

    Example:
        >>> import jax.numpy as jnp
        >>> print(entropy_from_topk(jnp.log(jnp.array([0.5, 0.25, 0.0]))).round(4))
        0.6931
    """
    logprob_k = as_float(logprob_k)
    excluded_k = jnp.isneginf(logprob_k)
    finite_k = jnp.where(excluded_k, 0, logprob_k)
    return -jnp.sum(jnp.where(excluded_k, 0, jnp.exp(finite_k) * finite_k), axis=-1)


def appo_reward_factor(
    token_index: int | jax.Array,
    score: float | jax.Array,
    max_score: float | jax.Array,
    length: int,
    discount: float | jax.Array = 0.9,
) -> jax.Array:
    """Factor on the rewards of the tokens that lead to one branch.

        M_t = 1 + (score / max_score) discount^(b - t) for t <= b, else 1;   score <= 0: M = 1

    Procedure-level scaling of APPO (https://arxiv.org/abs/2606.12384); `appo_reward_scale` is this
    for a batch.

    Args:
        token_index: b, the last token that the branch shares; may lie behind the row.
        score: score of the branch.
        max_score: largest score of all branches; not positive: M = 1.
        length: static T.
        discount: how the factor fades before the branch.

    Returns:
        [T] float.

    Raises:
        AssertionError: an argument is batched (use `jax.vmap`).

    Example:
        >>> print(appo_reward_factor(1, 1.0, 2.0, 3, discount=0.5))
        [1.25 1.5  1.  ]
    """
    chex.assert_rank([token_index, score, max_score, discount], 0)
    # Numbers of Python take the type of the arrays beside them, under x64 too.
    dtype = jnp.promote_types(jnp.result_type(score, max_score), jnp.float32)
    score, max_score = jnp.asarray(score, dtype), jnp.asarray(max_score, dtype)
    distance_t = token_index - jnp.arange(length, dtype=jnp.int32)
    positive = (score > 0) & (max_score > 0)
    share = jnp.where(positive, score / jnp.where(positive, max_score, 1), 0)
    faded_t = jnp.power(jnp.asarray(discount, dtype), jnp.maximum(distance_t, 0))
    return 1 + jnp.where(distance_t >= 0, share * faded_t, 0)


def appo_reward_scale(
    reward_nt: jax.Array,
    origin_b: jax.Array,
    token_b: jax.Array,
    score_b: jax.Array,
    placed_b: jax.Array,
    discount: float | jax.Array = 0.9,
) -> jax.Array:
    """Scale the rewards of the rows that branches started from.

        r'_nt = r_nt * mean of `appo_reward_factor` over the placed branches of row n

    The mean includes branches whose factor is 1; the largest score is that of all placed branches
    of the batch (https://arxiv.org/abs/2606.12384).

    Args:
        reward_nt: [N, T] reward of each token.
        origin_b: [B] row that the branch started from; rows out of range scale nothing, but their
            score counts in the largest one.
        token_b: [B] last token that the branch shares with that row.
        score_b: [B] score of the branch.
        placed_b: [B] non-zero where the branch was sampled.
        discount: how the factor fades before the branch.

    Returns:
        [N, T] float.

    Raises:
        AssertionError: the ranks are others, or the shapes of the branch arrays differ.

    Note:
        An outcome reward on the last token lies behind every earlier branch, so nothing changes.

    Example:
        >>> import jax.numpy as jnp
        >>> branch = [jnp.array([x]) for x in (1, 1, 2.0, True)]
        >>> print(appo_reward_scale(jnp.ones((2, 3)), *branch, discount=0.5))
        [[1.  1.  1. ]
         [1.5 2.  1. ]]
    """
    chex.assert_rank([reward_nt, origin_b], [2, 1])
    chex.assert_equal_shape([origin_b, token_b, score_b, placed_b])
    reward_nt = as_float(reward_nt)
    num_rows, width = reward_nt.shape
    if width == 0:
        return reward_nt
    dtype = jnp.promote_types(reward_nt.dtype, as_float(score_b).dtype)
    placed_b = jnp.asarray(placed_b).astype(bool)
    score_b = jnp.where(placed_b, as_float(score_b), 0).astype(dtype)
    max_score = jnp.max(score_b, initial=0)
    counted_b = placed_b & (origin_b >= 0) & (origin_b < num_rows)
    row_b = jnp.where(counted_b, origin_b, num_rows)  # out of range: dropped

    # A branch adds its share at its last token; from there it fades backwards, all rows at once.
    share_b = jnp.maximum(score_b, 0) / jnp.where(max_score > 0, max_score, 1)
    behind_b = jnp.maximum(token_b - (width - 1), 0)
    share_b = share_b * jnp.power(jnp.asarray(discount, dtype), behind_b)
    share_b = jnp.where(token_b >= 0, share_b, 0)
    place_b = jnp.clip(token_b, 0, width - 1)
    share_nt = jnp.zeros((num_rows, width), dtype).at[row_b, place_b].add(share_b, mode="drop")
    total_nt = reverse_recurrence(share_nt.T, discount).T
    number_n = jnp.zeros((num_rows,), jnp.int32).at[row_b].add(1, mode="drop")
    return reward_nt * (1 + total_nt / jnp.maximum(number_n, 1).astype(dtype)[:, None])


def appo_advantages(
    score_n: jax.Array,
    group_ids_n: jax.Array,
    num_groups: int,
    is_initial_n: jax.Array,
    where: jax.Array,
    origin_b: jax.Array,
    branch_b: jax.Array,
    token_b: jax.Array,
    *,
    kind: str = "grpo",
    epsilon: float = 1e-6,
) -> jax.Array:
    """Advantages of initial responses, with those of the branches on the tokens they share.

        a_n = advantage of row n among the initial rows, or the branches, of its prompt
        A_nt = a_n + mean of a_branch over the branches of row n with t <= token    initial rows
        A_nt = 0                                                                    branches

    Dual-group advantages of APPO (https://arxiv.org/abs/2606.12384).

    Args:
        score_n: [N] score of each row.
        group_ids_n: [N] prompt of each row, in 0 .. num_groups - 1.
        num_groups: static number of prompts.
        is_initial_n: [N] non-zero at initial rows, 0 at branches.
        where: [N, T] non-zero at tokens that get an advantage.
        origin_b: [B] initial row that the branch started from.
        branch_b: [B] row that holds the branch.
        token_b: [B] last token that the branch shares with its origin. Entries with rows out of
            range or of the wrong kind, or a negative token, are skipped.
        kind: see `group_advantages`: "grpo" divides by the standard deviation, "dr_grpo" does not.
        epsilon: added to the standard deviation.

    Returns:
        [N, T] float, 0 where not selected.

    Raises:
        ValueError: `kind` is unknown.
        AssertionError: the ranks are others, or the shapes differ.

    Note:
        Statistics are those of the population, and a group of one gets 0 (elsewhere its score).

    Example:
        >>> import jax.numpy as jnp
        >>> score, groups = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.zeros(4, int)
        >>> initial, where = jnp.array([1, 1, 0, 0]), jnp.ones((4, 2))
        >>> origin, branch, token = jnp.array([1, 1]), jnp.array([2, 3]), jnp.array([1, 0])
        >>> args = (score, groups, 1, initial, where, origin, branch, token)
        >>> print(appo_advantages(*args, kind="dr_grpo"))
        [[ 0.5  0.5]
         [-0.5  0. ]
         [ 0.   0. ]
         [ 0.   0. ]]
    """
    chex.assert_rank([score_n, where, origin_b], [1, 2, 1])
    chex.assert_equal_shape([score_n, group_ids_n, is_initial_n])
    chex.assert_equal_shape([origin_b, branch_b, token_b])
    num_rows, width = where.shape
    chex.assert_shape(score_n, (num_rows,))
    initial_n = jnp.asarray(is_initial_n).astype(bool)
    inside_n = (group_ids_n >= 0) & (group_ids_n < num_groups)
    pair_n = jnp.where(inside_n, 2 * group_ids_n + initial_n, -1)
    a_n = group_advantages(
        score_n, pair_n, 2 * num_groups, kind, ddof=0, epsilon=epsilon, singleton="zero"
    )

    def inside(row_b: jax.Array) -> jax.Array:
        return (row_b >= 0) & (row_b < num_rows)

    origin_at_b, branch_at_b = (jnp.clip(x, 0, num_rows - 1) for x in (origin_b, branch_b))
    valid_b = inside(origin_b) & inside(branch_b) & (token_b >= 0)
    valid_b &= initial_n[origin_at_b] & ~initial_n[branch_at_b]
    # A branch counts at the last token it shares; sums from the end on reach every token before it.
    place = jnp.where(valid_b, origin_b, num_rows), jnp.minimum(token_b, width - 1)
    sum_nt = jnp.zeros((num_rows, width), a_n.dtype).at[place].add(a_n[branch_at_b], mode="drop")
    number_nt = jnp.zeros((num_rows, width), jnp.int32).at[place].add(1, mode="drop")
    sum_nt = reverse_recurrence(sum_nt.T, 1.0).T
    number_nt = jnp.cumsum(number_nt[:, ::-1], axis=1)[:, ::-1]
    shared_nt = sum_nt / jnp.maximum(number_nt, 1).astype(a_n.dtype)
    gets_nt = initial_n[:, None] & jnp.asarray(where).astype(bool)
    return jnp.where(gets_nt, a_n[:, None] + shared_nt, 0)
