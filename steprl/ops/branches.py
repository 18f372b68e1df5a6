"""BranPO: credit for a shared prefix and for its suffixes, and the rules that make the suffixes.

A rollout is cut a few steps before its end, and continuations are sampled from there until one is
better or worse than the original ending. Prefix and suffixes are credited apart: the prefix with what
its suffixes scored on average, each suffix with its own score. A row of tokens is one prefix with one
suffix; the prefix is trained on the original row only.

BranPO (https://arxiv.org/abs/2602.03719). Rewards of `threshold` or more count as correct.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from steprl.ops.checks import check_one_of, check_step_ids
from steprl.ops.groups import group_advantages
from steprl.ops.segments import AxisName, as_float

# The calls that each row of the difficulty table makes, one after the other: the number of branches
# (the original included), and how many steps before the end they begin.
_NUM_BRANCHES = np.array([[1, 0, 0], [6, 0, 0], [2, 0, 0], [3, 3, 3], [3, 3, 0]], np.int32)
_STEPS_FROM_END = np.array([[2, 0, 0], [2, 0, 0], [1, 0, 0], [1, 2, 3], [1, 2, 0]], np.int32)
_PLAIN, _LONG, _EASY, _HARD, _MIXED = range(5)


class BranchPair(NamedTuple):
    """What `pair_branches` decided about one rollout."""

    attempts: jax.Array  # continuations that were run
    kept: jax.Array  # index of the one that was kept, -1 if none
    preference_original: jax.Array  # +1, -1, or 0 without a pair
    preference_new: jax.Array


def branpo_masks(
    step_ids_nt: jax.Array, branch_step_n: jax.Array, is_original_n: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Split the active tokens of each row at its branch point.

        base_nt   = step_ids_nt < branch_step_n, on original rows only
        branch_nt = step_ids_nt >= branch_step_n
        first_nt  = step_ids_nt = branch_step_n

    Args:
        step_ids_nt: [N, T] step of each token, -1 where masked. Rows are trajectories that number
            their own steps 0, 1, 2, ...
        branch_step_n: [N] the step with which the suffix begins; 0 for an empty prefix.
        is_original_n: [N] non-zero where the row holds the original suffix. The prefix of the other
            rows is the same tokens again, and is left out.

    Returns:
        (base, branch, first), each [N, T] bool and False where masked.

    Raises:
        ValueError: the ids cannot be step ids.
        AssertionError: ranks, lengths or types do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> ids = jnp.array([[0, -1, 1, 2], [0, -1, 1, 1]])
        >>> for mask in branpo_masks(ids, jnp.array([1, 1]), jnp.array([1, 0])):
        ...     print(mask.astype(int).tolist())
        [[1, 0, 0, 0], [0, 0, 0, 0]]
        [[0, 0, 1, 1], [0, 0, 1, 1]]
        [[0, 0, 1, 0], [0, 0, 1, 1]]
    """
    chex.assert_rank([step_ids_nt, branch_step_n, is_original_n], [2, 1, 1])
    chex.assert_equal_shape_prefix([step_ids_nt, branch_step_n, is_original_n], 1)
    check_step_ids(step_ids_nt, "step_ids_nt")
    chex.assert_type(branch_step_n, int)
    active_nt = step_ids_nt >= 0
    branch_step_n1 = branch_step_n[:, None]
    original_n1 = jnp.asarray(is_original_n).astype(bool)[:, None]
    base_nt = active_nt & (step_ids_nt < branch_step_n1) & original_n1
    branch_nt = active_nt & (step_ids_nt >= branch_step_n1)
    return base_nt, branch_nt, active_nt & (step_ids_nt == branch_step_n1)


def branpo_advantages(
    base_score_n: jax.Array,
    branch_score_n: jax.Array,
    preference_n: jax.Array,
    group_ids_n: jax.Array,
    num_groups: int,
    base_mask_nt: jax.Array,
    branch_mask_nt: jax.Array,
    first_mask_nt: jax.Array,
    *,
    kind: str = "grpo",
    redundant: str = "first_step",
    epsilon: float = 1e-6,
    singleton: str = "score",
    axis_name: AxisName = None,
) -> jax.Array:
    """Credit prefixes among prefixes and suffixes among suffixes of a prompt.

        A_nt = B_n base_nt + C_n branch_nt (1 - redundant_nt)
        redundant_nt = [preference_n < 0] [C_n > 0] first_nt

    B and C are group advantages of the two scores. A suffix that lost against another one of the
    same prefix, and that is still better than the average of its prompt, was correct but longer:
    its redundant step gets no credit. BranPO (https://arxiv.org/abs/2602.03719).

    Without branches (a row a trajectory, no prefix, no preference) this is GRPO.

    Args:
        base_score_n: [N] score of the row's prefix: the mean reward of its suffixes.
        branch_score_n: [N] reward of the row's suffix.
        preference_n: [N] +1, 0 or -1, as `pair_branches` gives it.
        group_ids_n: [N] prompt of each row; outside 0 .. num_groups - 1 for none.
        num_groups: static number of prompts; a bound is enough.
        base_mask_nt: [N, T] non-zero at the trained tokens of the prefix. Rows without any are left
            out of the statistics of the prefixes; their base score is never read.
        branch_mask_nt: [N, T] non-zero at the trained tokens of the suffix; likewise.
        first_mask_nt: [N, T] non-zero at the tokens of the suffix's first step.
        kind: how scores are normalised, see `group_advantages`.
        redundant: "first_step" takes the credit C from the first step of a redundant suffix,
            "suffix" from all of it.
        epsilon: added to the standard deviation.
        singleton: what the only prefix, or suffix, of a prompt gets, see `group_advantages`.
        axis_name: mapped axis over which the rows of a prompt are spread.

    Returns:
        [N, T] advantages, 0 outside both masks.

    Raises:
        ValueError: `kind` or `redundant` is unknown.
        AssertionError: ranks or shapes do not fit.

    Note:
        The reference means to mask the first step, but passes the mask of the suffix in its place;
        redundant="suffix" is what it runs. A preferred suffix gets nothing extra, and one that is
        not preferred keeps a C of 0 or less. Equal scores give exactly 0, where the reference
        divides a rounding residue by epsilon.

    Example:
        >>> import jax.numpy as jnp
        >>> ids = jnp.array([[0, 1, 2], [0, 1, -1]])
        >>> masks = branpo_masks(ids, jnp.array([1, 1]), jnp.array([True, False]))
        >>> base, branch = jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])
        >>> preference, prompt = jnp.array([-1, 1]), jnp.array([0, 0])
        >>> print(branpo_advantages(base, branch, preference, prompt, 1, *masks, kind="dr_grpo"))
        [[ 0.5  0.   0.5]
         [ 0.  -0.5  0. ]]
    """
    check_one_of("redundant", redundant, ("first_step", "suffix"))
    chex.assert_rank([base_score_n, branch_score_n, preference_n, group_ids_n], 1)
    chex.assert_equal_shape([base_score_n, branch_score_n, preference_n, group_ids_n])
    chex.assert_rank([base_mask_nt, branch_mask_nt, first_mask_nt], 2)
    chex.assert_equal_shape([base_mask_nt, branch_mask_nt, first_mask_nt])
    chex.assert_equal_shape_prefix([base_score_n, base_mask_nt], 1)

    def credit(score_n: jax.Array, mask_nt: jax.Array) -> jax.Array:
        return group_advantages(
            score_n,
            group_ids_n,
            num_groups,
            kind,
            mask_nt.any(axis=1),
            epsilon=epsilon,
            singleton=singleton,
            axis_name=axis_name,
        )

    base_nt, branch_nt, first_nt = (
        jnp.asarray(mask_nt).astype(bool)
        for mask_nt in (base_mask_nt, branch_mask_nt, first_mask_nt)
    )
    base_n, branch_n = credit(base_score_n, base_nt), credit(branch_score_n, branch_nt)
    redundant_n = (preference_n < 0) & (branch_n > 0)
    within_nt = first_nt if redundant == "first_step" else branch_nt
    credited_nt = branch_nt & ~(redundant_n[:, None] & within_nt)
    base_credit_nt = jnp.where(base_nt, base_n[:, None], 0)
    return base_credit_nt + jnp.where(credited_nt, branch_n[:, None], 0)


def branch_attempts(
    accuracy: jax.Array | float,
    mean_steps_correct: jax.Array | float,
    reward: jax.Array | float,
    num_steps: jax.Array | int,
    resampled: jax.Array | bool = True,
    *,
    threshold: float = 0.8,
) -> tuple[jax.Array, jax.Array]:
    """Decide from where, and how often, a finished rollout is continued anew.

    The first row whose condition holds, with a the accuracy, μ the mean steps of the correct
    rollouts, n the steps of this one:

        0.5 < a < 1, correct, n - μ >= 0.1      (6, 2)
        a = 1                                   (2, 1)
        a < 0.5, wrong                          (3, 1), (3, 2), (3, 3) until a pair is found
        a <= 0.75 or wrong                      (3, 1), (3, 2) until a pair is found
        otherwise, or not `resampled`           (1, 2): only split

    Each pair is (branches with the original one, steps before the end). Difficulty-aware branch
    sampling of BranPO (https://arxiv.org/abs/2602.03719). Works on scalars and on arrays alike.

    Args:
        accuracy: [...] fraction of the prompt's rollouts that are correct.
        mean_steps_correct: [...] mean number of steps of the correct ones.
        reward: [...] reward of this rollout.
        num_steps: [...] number of its steps.
        resampled: [...] False for a rollout that ended by an environment timeout, an invalid format
            or truncation; one that ran out of steps is resampled.
        threshold: rewards from here on are correct.

    Returns:
        (num_branches, branch_step_from_end), each [..., 3] int32: the calls in order, 0 where there
        is no further one. Each call comes only after the one before has found no pair; the split of
        the last call counts. A point is at most the number of steps: then the prefix is empty.

    Raises:
        ValueError: the shapes cannot be broadcast.

    Example:
        >>> num_branches, from_end = branch_attempts(0.25, 3.0, reward=0.0, num_steps=2)
        >>> print(num_branches, from_end)
        [3 3 3] [1 2 2]
    """
    accuracy, num_steps = as_float(jnp.asarray(accuracy)), jnp.asarray(num_steps)
    correct = as_float(jnp.asarray(reward)) >= threshold
    extra = num_steps - as_float(jnp.asarray(mean_steps_correct))
    conditions = (
        (~jnp.asarray(resampled).astype(bool), _PLAIN),
        ((accuracy > 0.5) & (accuracy < 1) & correct & (extra >= 0.1), _LONG),
        (accuracy == 1, _EASY),
        ((accuracy < 0.5) & ~correct, _HARD),
        ((accuracy <= 0.75) | ~correct, _MIXED),
    )
    row = jnp.asarray(_PLAIN)
    for condition, name in reversed(conditions):
        row = jnp.where(condition, name, row)
    limit = jnp.broadcast_to(num_steps, row.shape)[..., None].astype(jnp.int32)
    return jnp.asarray(_NUM_BRANCHES)[row], jnp.minimum(jnp.asarray(_STEPS_FROM_END)[row], limit)


def branch_preference(
    original_reward: jax.Array | float,
    original_steps: jax.Array | int,
    new_reward: jax.Array | float,
    new_steps: jax.Array | int,
    accuracy: jax.Array | float,
    *,
    threshold: float = 0.8,
) -> jax.Array:
    """Whether a new suffix is preferred to the original one of the same prefix.

        +1: it turns wrong into correct, or is as good and shorter
        -1: it turns correct into wrong, or is as good and longer
         0: no preference

    "As good" requires 0.5 < accuracy < 1, a correct original and exactly the same reward. BranPO
    (https://arxiv.org/abs/2602.03719). Works on scalars and on arrays alike.

    Args:
        original_reward: [...] reward of the original suffix.
        original_steps: [...] number of its steps.
        new_reward: [...] reward of the new suffix.
        new_steps: [...] number of its steps.
        accuracy: [...] fraction of the prompt's rollouts that are correct.
        threshold: rewards from here on are correct.

    Returns:
        [...] int32 preference of the new suffix; that of the original is its negative.

    Raises:
        ValueError: the shapes cannot be broadcast.

    Example:
        >>> print(branch_preference(1.0, 2, 0.0, 2, accuracy=1.0))
        -1
        >>> print(branch_preference(1.0, 2, 1.0, 1, accuracy=0.75))
        1
    """
    original_reward = as_float(jnp.asarray(original_reward))
    new_reward = as_float(jnp.asarray(new_reward))
    accuracy = as_float(jnp.asarray(accuracy))
    was_correct, is_correct = original_reward >= threshold, new_reward >= threshold
    as_good = (accuracy > 0.5) & (accuracy < 1) & was_correct & (new_reward == original_reward)
    original_steps, new_steps = jnp.asarray(original_steps), jnp.asarray(new_steps)
    better = (~was_correct & is_correct) | (as_good & (new_steps < original_steps))
    worse = (was_correct & ~is_correct) | (as_good & (new_steps > original_steps))
    return better.astype(jnp.int32) - worse.astype(jnp.int32)


def pair_branches(
    original_reward: jax.Array | float,
    original_steps: jax.Array | int,
    new_reward_k: jax.Array,
    new_steps_k: jax.Array,
    valid_k: jax.Array,
    accuracy: jax.Array | float,
    num_branches: jax.Array | int,
    *,
    threshold: float = 0.8,
) -> BranchPair:
    """Keep the first continuation that is better or worse than the original suffix.

    At most num_branches - 1 continuations are run, and none after the one that is kept. One that
    does not end normally spends its attempt. BranPO (https://arxiv.org/abs/2602.03719).

    Args:
        original_reward: scalar reward of the original suffix.
        original_steps: scalar number of its steps.
        new_reward_k: [K] rewards of the continuations, in the order in which they are run.
        new_steps_k: [K] numbers of their steps, from the branch point on.
        valid_k: [K] non-zero where the continuation ends normally; elsewhere reward and steps are
            never read.
        accuracy: scalar fraction of the prompt's rollouts that are correct.
        num_branches: scalar, the original included, as `branch_attempts` gives it.
        threshold: rewards from here on are correct.

    Returns:
        `BranchPair` of int32 scalars.

    Raises:
        AssertionError: an input is batched (use `jax.vmap`), or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> reward, steps = jnp.array([1.0, 0.0, 0.0]), jnp.array([2, 9, 1])
        >>> pair = pair_branches(1.0, 2, reward, steps, jnp.array([1, 0, 1]), 0.75, num_branches=6)
        >>> print(*pair)
        3 2 1 -1
    """
    chex.assert_rank([new_reward_k, new_steps_k, valid_k], 1)
    chex.assert_equal_shape([new_reward_k, new_steps_k, valid_k])
    chex.assert_rank([original_reward, original_steps, accuracy, num_branches], 0)
    preference_k = branch_preference(
        original_reward, original_steps, new_reward_k, new_steps_k, accuracy, threshold=threshold
    )
    size = new_reward_k.shape[0]
    index_k = jnp.arange(size, dtype=jnp.int32)
    allowed = jnp.clip(jnp.asarray(num_branches) - 1, 0, size).astype(jnp.int32)
    valid_k = jnp.asarray(valid_k).astype(bool)
    pairs_k = (preference_k != 0) & valid_k & (index_k < allowed)
    first = jnp.min(jnp.where(pairs_k, index_k, size), initial=size)  # an empty argmax would raise
    paired = first < size
    preference = jnp.sum(jnp.where(index_k == first, preference_k, 0), dtype=jnp.int32)
    attempts = jnp.where(paired, first + 1, allowed)
    return BranchPair(attempts, jnp.where(paired, first, -1), -preference, preference)
