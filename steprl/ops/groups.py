"""Group-relative advantages: a trajectory is compared with the others of its prompt, not a critic.

A group is the trajectories sampled for one prompt. Rows `_n` are trajectories, `group_ids_n` is the
number of the group of each, and an id outside 0 .. num_groups - 1 (-1, say) belongs to no group:
such a row is never read and its result is exactly 0. Everything is segment sums, so groups may be
of any sizes and their rows in any order.
"""

import chex
import jax
import jax.numpy as jnp

from steprl.ops.checks import check_one_of, check_step_ids
from steprl.ops.returns import reverse_recurrence
from steprl.ops.segments import AxisName, _psum, as_float, masked_whiten

KINDS = ("grpo", "dr_grpo", "rloo")
SINGLETONS = ("score", "zero")


def group_advantages(
    score_n: jax.Array,
    group_ids_n: jax.Array,
    num_groups: int,
    kind: str = "grpo",
    where: jax.Array | None = None,
    *,
    ddof: int = 1,
    epsilon: float = 1e-6,
    min_std: jax.Array | float = 0.0,
    singleton: str = "score",
    axis_name: AxisName = None,
) -> jax.Array:
    """Advantage of each trajectory over the others of its group.

        grpo:    (S - mean) / (max(std, min_std) + epsilon)
        dr_grpo: S - mean
        rloo:    (S - mean) n / (n - 1), which is S - mean of the others

    GRPO (https://arxiv.org/abs/2402.03300, section 4.1.2), Dr. GRPO
    (https://arxiv.org/abs/2503.20783), RLOO (https://arxiv.org/abs/2402.14740). n, the mean and
    the standard deviation are those of the group.

    Args:
        score_n: [N] score S of each trajectory.
        group_ids_n: [N] group of each trajectory; outside 0 .. num_groups - 1 for none.
        num_groups: static number of groups; a bound is enough.
        kind: "grpo", "dr_grpo" or "rloo".
        where: [N] optional, non-zero at the rows to count; the others are not read, left out of
            the statistics, and 0.
        ddof: of "grpo"'s deviation: 1 for the sample's, 0 for the population's (APPO).
        epsilon: added to the standard deviation.
        min_std: of "grpo": floor under the deviation; below it, advantages shrink with the differences.
        singleton: what a group of one gets: "score", its raw score as in the references of GRPO
            (there S / (1 + epsilon)), Dr. GRPO, RLOO and BranPO, or "zero", as in those of APPO
            and of GiGPO's steps.
        axis_name: mapped axis over whose devices the groups are spread.

    Returns:
        [N] float advantages.

    Raises:
        ValueError: `kind`, `singleton` or `ddof` is unknown.
        AssertionError: an input is not of rank 1, the shapes differ, or ids are not integers.

    Note:
        Equal scores give exactly 0, whatever their value and number: a group whose range is within
        8 roundings of its largest magnitude counts as equal, where the references divide the
        rounding residue by epsilon. Gradients are 0 there.

    Example:
        >>> import jax.numpy as jnp
        >>> score, groups = jnp.array([1.0, 0.0, 5.0, 2.0]), jnp.array([0, 0, 1, 0])
        >>> print(group_advantages(score, groups, 2, "dr_grpo"))
        [ 0. -1.  5.  1.]
        >>> print(group_advantages(score, groups, 2, "rloo", singleton="zero"))
        [ 0.  -1.5  0.   1.5]
    """
    check_one_of("kind", kind, KINDS)
    check_one_of("singleton", singleton, SINGLETONS)
    if ddof not in (0, 1):
        raise ValueError(f"ddof={ddof!r} is unknown; allowed: 0, 1")
    score_n, slot_n = _slots(score_n, group_ids_n, num_groups, where)
    count_g, low_g, constant_g = _range(score_n, slot_n, num_groups, axis_name)

    def total(x_n: jax.Array) -> jax.Array:
        return _psum(jax.ops.segment_sum(x_n, slot_n, num_groups + 1), axis_name)

    # Measured from the smallest score, so that equal scores leave no residue at all.
    above_n = score_n - low_g[slot_n]
    size_g = jnp.maximum(count_g, 1).astype(score_n.dtype)
    deviation_n = above_n - (total(above_n) / size_g)[slot_n]

    if kind == "grpo":
        variance_g = total(jnp.square(deviation_n)) / jnp.maximum(size_g - ddof, 1)
        # The root of zero has an infinite gradient; tiny also catches squares that underflow.
        variance_g = jnp.maximum(variance_g, jnp.finfo(variance_g.dtype).tiny)
        std_g = jnp.maximum(jnp.sqrt(jnp.where(constant_g, 1, variance_g)), min_std)
        scale_g = 1 / (std_g + epsilon)
        raw = 1 / (1 + epsilon)
    elif kind == "rloo":
        scale_g, raw = size_g / jnp.maximum(size_g - 1, 1), 1.0
    else:
        scale_g, raw = jnp.ones_like(size_g), 1.0
    advantage_n = deviation_n * jnp.where(constant_g, 0, scale_g)[slot_n]
    if singleton == "score":
        advantage_n = jnp.where((count_g == 1)[slot_n], score_n * raw, advantage_n)
    return jnp.where(slot_n < num_groups, advantage_n, 0)


def gigpo_advantages(
    score_n: jax.Array,
    group_ids_n: jax.Array,
    num_groups: int,
    step_return_ns: jax.Array,
    anchor_ids_ns: jax.Array,
    num_anchors: int,
    *,
    step_weight: jax.Array | float = 1.0,
    kind: str = "grpo",
    where: jax.Array | None = None,
    epsilon: float = 1e-6,
    min_std: jax.Array | float = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """Advantage of each step: its trajectory's in the group, plus its own among equal states.

        A_ns = E_n + step_weight Q_ns
        E: group_advantages of the scores in their groups (a group of one keeps its raw score)
        Q: group_advantages of the step returns in their anchor clusters (a cluster of one gets 0)

    GiGPO (https://arxiv.org/abs/2505.10978, eq. 3, 7 and 8). A cluster is the steps of one group
    that started from the same observation, the anchor state; see `anchor_ids`.

    Args:
        score_n: [N] score of each trajectory.
        group_ids_n: [N] group of each trajectory; outside 0 .. num_groups - 1 for none.
        num_groups: static number of groups; a bound is enough.
        step_return_ns: [N, S] discounted return of each step from there on; see
            `discounted_returns`.
        anchor_ids_ns: [N, S] cluster of each step in 0 .. num_anchors - 1, -1 where there is no
            step. Ids are unique over the batch, so that clusters lie inside groups.
        num_anchors: static number of clusters. A bound is enough, and N * S is one that does not
            change from batch to batch, which would mean another compilation.
        step_weight: weight of Q.
        kind: "grpo" is the reference's `mean_std_norm`, "dr_grpo" its `mean_norm`; "rloo" works
            too.
        where: [N, S] optional, non-zero at steps; the others are never read.
        epsilon: added to the standard deviations.
        min_std: floor under those of the groups, as in `group_advantages`.
        axis_name: mapped axis over whose devices groups and clusters are spread.

    Returns:
        [N, S] float advantages, 0 where there is no step or the trajectory has no group.

    Raises:
        ValueError: `kind` is unknown.
        AssertionError: an input is of another rank, the shapes differ, or ids are not integers.

    Note:
        Two repetitions of a state inside one trajectory count as two members of its cluster, as in
        the reference. Equal scores or returns give exactly 0; see `group_advantages`.

    Example:
        >>> import jax.numpy as jnp
        >>> returns = jnp.array([[2.0, 2.0], [0.0, 8.0]])
        >>> anchors = jnp.array([[0, 1], [0, -1]])
        >>> score, groups = jnp.array([2.0, 0.0]), jnp.array([0, 0])
        >>> print(gigpo_advantages(score, groups, 1, returns, anchors, 2, kind="dr_grpo"))
        [[ 2.  1.]
         [-2.  0.]]
    """
    chex.assert_rank([step_return_ns, anchor_ids_ns], 2)
    chex.assert_equal_shape([step_return_ns, anchor_ids_ns])
    chex.assert_equal_shape_prefix([score_n, step_return_ns], 1)
    chex.assert_type(anchor_ids_ns, int)
    episode_n = group_advantages(
        score_n,
        group_ids_n,
        num_groups,
        kind,
        epsilon=epsilon,
        min_std=min_std,
        axis_name=axis_name,
    )
    exists_ns = (anchor_ids_ns >= 0) & (anchor_ids_ns < num_anchors)
    exists_ns = exists_ns & _inside(group_ids_n, num_groups)[:, None]
    if where is not None:
        chex.assert_equal_shape([step_return_ns, where])
        exists_ns = exists_ns & jnp.asarray(where).astype(bool)
    step = group_advantages(
        step_return_ns.reshape(-1),
        anchor_ids_ns.reshape(-1),
        num_anchors,
        kind,
        exists_ns.reshape(-1),
        epsilon=epsilon,
        singleton="zero",
        axis_name=axis_name,
    )
    both_ns = episode_n[:, None] + step_weight * step.reshape(exists_ns.shape)
    return jnp.where(exists_ns, both_ns, 0)


def reinforce_pp_advantages(
    reward_nt: jax.Array,
    step_ids_nt: jax.Array,
    gamma: jax.Array | float = 1.0,
    *,
    across_gaps: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
    """REINFORCE++: token returns of each row, whitened over all active tokens of the batch.

        G_t = r_t + γ G_{t'},   t' the next active token of the row
        A = masked_whiten(G)

    REINFORCE++ (https://arxiv.org/abs/2501.03262). A row is one trajectory, or one step of one
    where the rows are steps.

    Args:
        reward_nt: [N, T] reward of each token, a KL penalty included if there is one; masked ones
            are never read.
        step_ids_nt: [N, T] step of each token, -1 where masked.
        gamma: discount of a token.
        across_gaps: True carries a return over masked tokens as if they had been cut out, so that
            the reward at the end of a trajectory reaches the actions of all its turns. False is
            the shipped code: there a masked token stops it, and nothing before a tool's output sees
            what came after.
        axis_name: mapped axis over whose devices the batch is spread.

    Returns:
        advantage_nt: [N, T], 0 at masked tokens.
        return_nt: [N, T] G, 0 at masked tokens.

    Raises:
        ValueError: the ids cannot be step ids.
        AssertionError: an input is not of rank 2, or the shapes differ.

    Note:
        The reference has across_gaps=False, keeps returns at masked tokens, and raises where less
        than two tokens are active; here the advantage is 0 there.

    Example:
        >>> import jax.numpy as jnp
        >>> reward, ids = jnp.array([[0.0, 9.0, 1.0, -1.0]]), jnp.array([[0, -1, 1, 1]])
        >>> print(reinforce_pp_advantages(reward, ids, 0.5)[1])
        [[ 0.25  0.    0.5  -1.  ]]
        >>> print(reinforce_pp_advantages(reward, ids, 0.5, across_gaps=False)[1])
        [[ 0.   0.   0.5 -1. ]]
    """
    chex.assert_rank([reward_nt, step_ids_nt], 2)
    chex.assert_equal_shape([reward_nt, step_ids_nt])
    check_step_ids(step_ids_nt, "step_ids_nt")
    chex.assert_rank(gamma, 0)
    active_nt = step_ids_nt >= 0
    reward_nt = jnp.where(active_nt, as_float(reward_nt), 0)
    # A masked token either passes the sum behind it through unchanged, or cuts it off.
    carry_of_masked = 1 if across_gaps else 0
    carry_nt = jnp.where(active_nt, jnp.asarray(gamma, reward_nt.dtype), carry_of_masked)
    return_nt = reverse_recurrence(reward_nt.T, carry_nt.T).T
    return_nt = jnp.where(active_nt, return_nt, 0)
    return masked_whiten(return_nt, active_nt, axis_name=axis_name), return_nt


def reinforce_pp_baseline_advantages(
    score_n: jax.Array,
    group_ids_n: jax.Array,
    num_groups: int,
    step_ids_nt: jax.Array,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    """REINFORCE++ with a group baseline: centred in the group, whitened over the batch.

        x_n = S_n - mean of the group (a group of one: S_n)
        A_nt = masked_whiten(x_n at the active tokens of the batch)

    REINFORCE++ (https://arxiv.org/abs/2501.03262).

    Args:
        score_n: [N] score S of each trajectory.
        group_ids_n: [N] group of each trajectory; outside 0 .. num_groups - 1 for none.
        num_groups: static number of groups; a bound is enough.
        step_ids_nt: [N, T] step of each token, -1 where masked.
        axis_name: mapped axis over whose devices the batch and its groups are spread.

    Returns:
        [N, T] float advantages; 0 at masked tokens and in trajectories without a group, whose tokens
        the whitening does not count.

    Raises:
        ValueError: the ids of the steps cannot be step ids.
        AssertionError: an input is of another rank, the shapes differ, or ids are not integers.

    Note:
        Statistics are over tokens: a long trajectory weighs more in them. A trajectory without
        active tokens still counts in the mean of its group. The reference raises where less than
        two tokens are active; here the advantage is 0 there.

    Example:
        >>> import jax.numpy as jnp
        >>> ids = jnp.array([[0, -1], [0, -1]])
        >>> score, groups = jnp.array([3.0, 1.0]), jnp.array([0, 0])
        >>> print(reinforce_pp_baseline_advantages(score, groups, 1, ids).round(4))
        [[ 0.7071  0.    ]
         [-0.7071  0.    ]]
    """
    chex.assert_rank(step_ids_nt, 2)
    chex.assert_equal_shape_prefix([score_n, step_ids_nt], 1)
    check_step_ids(step_ids_nt, "step_ids_nt")
    centred_n = group_advantages(score_n, group_ids_n, num_groups, "dr_grpo", axis_name=axis_name)
    active_nt = (step_ids_nt >= 0) & _inside(group_ids_n, num_groups)[:, None]
    spread_nt = jnp.broadcast_to(centred_n[:, None], active_nt.shape)
    return masked_whiten(spread_nt, active_nt, axis_name=axis_name)


def informative_groups(
    score_n: jax.Array,
    group_ids_n: jax.Array,
    num_groups: int,
    where: jax.Array | None = None,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mark the trajectories of groups whose scores are not all equal: only those teach anything.

        keep_n = max of the group > min of the group, up to rounding

    The filter of DAPO's dynamic sampling (https://arxiv.org/abs/2503.14476, eq. 11). It does not
    say what a loss is divided by: that is the caller's choice, in the weights:

        kept_nt = jnp.where(keep_n[:, None], step_ids_nt, -1)
        weights = aggregation_weights(kept_nt)              # of the kept rows, as in DAPO
        weights = jnp.where(kept_nt >= 0, aggregation_weights(step_ids_nt), 0)  # of all rows

    The first keeps the size of a step, however few groups are kept, the second lets it shrink.

    Args:
        score_n: [N] score of each trajectory.
        group_ids_n: [N] group of each trajectory; outside 0 .. num_groups - 1 for none.
        num_groups: static number of groups; a bound is enough.
        where: [N] optional, non-zero at the rows to count; the others are not read, and False.
        axis_name: mapped axis over whose devices the groups are spread.

    Returns:
        [N] bool; False in groups of one.

    Raises:
        AssertionError: an input is not of rank 1, the shapes differ, or ids are not integers.

    Note:
        Scores are equal by the rule of `group_advantages`, so what is False here has advantage 0
        there, groups of one apart.

    Example:
        >>> import jax.numpy as jnp
        >>> score, groups = jnp.array([1.0, 0.0, 1.0, 1.0, 5.0]), jnp.array([0, 0, 1, 1, 2])
        >>> print(informative_groups(score, groups, 3))
        [ True  True False False False]
    """
    score_n, slot_n = _slots(score_n, group_ids_n, num_groups, where)
    _, _, constant_g = _range(score_n, slot_n, num_groups, axis_name)
    return (slot_n < num_groups) & ~constant_g[slot_n]


def _inside(group_ids_n: jax.Array, num_groups: int) -> jax.Array:
    return (group_ids_n >= 0) & (group_ids_n < num_groups)


def _slots(
    score_n: jax.Array, group_ids_n: jax.Array, num_groups: int, where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Scores (0 where not counted), and the group of each row, `num_groups` where not counted."""
    chex.assert_rank([score_n, group_ids_n], 1)
    chex.assert_type(group_ids_n, int)
    chex.assert_equal_shape([score_n, group_ids_n])
    counted_n = _inside(group_ids_n, num_groups)
    if where is not None:
        chex.assert_equal_shape([score_n, where])
        counted_n = counted_n & jnp.asarray(where).astype(bool)
    slot_n = jnp.where(counted_n, group_ids_n, num_groups)
    return jnp.where(counted_n, as_float(score_n), 0), slot_n


def _range(
    score_n: jax.Array, slot_n: jax.Array, num_groups: int, axis_name: AxisName
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each group: its size, its smallest score, and whether all are equal up to rounding."""
    score_n, size = jax.lax.stop_gradient(score_n), num_groups + 1
    ones_n = jnp.ones_like(slot_n, jnp.int32)
    count_g = _psum(jax.ops.segment_sum(ones_n, slot_n, size), axis_name)
    low_g = jax.ops.segment_min(score_n, slot_n, size)
    high_g = jax.ops.segment_max(score_n, slot_n, size)
    if axis_name is not None:
        low_g, high_g = jax.lax.pmin(low_g, axis_name), jax.lax.pmax(high_g, axis_name)
    low_g, high_g = jnp.where(count_g > 0, low_g, 0), jnp.where(count_g > 0, high_g, 0)
    magnitude_g = jnp.maximum(jnp.abs(low_g), jnp.abs(high_g))
    rounding_g = 8 * jnp.finfo(score_n.dtype).eps * magnitude_g
    return count_g, low_g, ~(high_g - low_g > rounding_g)
