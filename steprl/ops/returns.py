"""Returns and advantages: one backward recurrence, y_t = x_t + c_t y_{t+1}.

The end of a trajectory is a zero discount, not a `done` flag, so several trajectories can be packed
in one row and each estimator is still one recurrence. Nothing is whitened here and no gradient is
stopped: the caller composes `masked_whiten`, and the losses stop gradients once.

A trajectory that was cut off (time limit) rather than terminated keeps its discount at the last
element and passes the critic's value of the state it reached as `bootstrap_value`. Inside a packed
row, where another trajectory follows, add discount * value to the last reward instead, and set
that discount to 0.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from steprl.ops.checks import check_row_step_ids
from steprl.ops.segments import AxisName, as_float, masked_mean, masked_variance


def reverse_recurrence(
    x: jax.Array, c: jax.Array | float, initial: jax.Array | float = 0.0
) -> jax.Array:
    """The linear recurrence from which every return and advantage here is made.

        y_t = x_t + c_t y_{t+1},   y_T = initial

    Args:
        x: [T, ...] what each element adds.
        c: [T, ...] of the same shape, or a scalar: the share of the future that is carried.
        initial: scalar or [...], the value behind the last element.

    Returns:
        [T, ...] float.

    Raises:
        AssertionError: the shapes differ, or x is a scalar.

    Note:
        Elements are visited one by one, last to first, so that elements appended with x = 0 change
        no bit of the earlier results (an associative scan would regroup the additions).

    Example:
        >>> import jax.numpy as jnp
        >>> print(reverse_recurrence(jnp.array([1.0, 1.0, 1.0]), jnp.array([0.5, 0.0, 9.0])))
        [1.5 1.  1. ]
    """
    x = as_float(x)
    chex.assert_rank(x, {1, 2, 3, 4})
    if jnp.ndim(c):
        chex.assert_equal_shape([x, c])
        x = x.astype(jnp.promote_types(x.dtype, jnp.asarray(c).dtype))
    if x.shape[0] == 0:
        return x
    c = jnp.broadcast_to(jnp.asarray(c, x.dtype), x.shape)
    # A carry made from an element of x varies over a mesh as x does: shard_map requires that.
    behind = jnp.zeros_like(x[0]) + jnp.asarray(initial, x.dtype)

    def visit(after: jax.Array, here: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = here[0] + here[1] * after
        return y, y

    return jax.lax.scan(visit, behind, (x, c), reverse=True)[1]


def discounted_returns(
    reward_s: jax.Array, discount_s: jax.Array, bootstrap_value: jax.Array | float = 0.0
) -> jax.Array:
    """Discounted sum of the rewards from each step on.

        G_s = r_s + γ_s G_{s+1},   G_S = bootstrap_value

    Args:
        reward_s: [S] reward of each step; tokens do as well, where each is an action.
        discount_s: [S] γ, and 0 at the last step of a trajectory.
        bootstrap_value: scalar value of the state behind the row; counts only where the last
            discount is not 0.

    Returns:
        [S] returns.

    Raises:
        AssertionError: an input is batched (use `jax.vmap`), or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> print(discounted_returns(jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.0])))
        [3. 4. 4.]
    """
    chex.assert_rank([reward_s, discount_s], 1)
    chex.assert_equal_shape([reward_s, discount_s])
    chex.assert_rank(bootstrap_value, 0)
    return reverse_recurrence(reward_s, discount_s, bootstrap_value)


def step_gae(
    reward_s: jax.Array,
    discount_s: jax.Array,
    value_s: jax.Array,
    lambda_: jax.Array | float,
    bootstrap_value: jax.Array | float = 0.0,
) -> jax.Array:
    """Advantage of each agent step, the whole response being one action.

        A_s = δ_s + γ_s λ A_{s+1},   δ_s = r_s + γ_s V_{s+1} - V_s,   V_S = bootstrap_value

    StepPO (https://arxiv.org/abs/2604.18401), over GAE (https://arxiv.org/abs/1506.02438, eq. 16).

    Args:
        reward_s: [S] reward of step s, summed over its tokens.
        discount_s: [S] γ, and 0 at the last step of a trajectory; so rows may be packed.
        value_s: [S] critic at the first token of step s.
        lambda_: mixing parameter in [0, 1].
        bootstrap_value: scalar critic at the state behind the last step; counts only where the
            last discount is not 0.

    Returns:
        [S] advantages, not whitened, gradients not stopped. The value target is the advantage
        plus the value.

    Raises:
        AssertionError: an input is batched (use `jax.vmap`), or the shapes differ.

    Note:
        The reference never bootstraps (a cut-off trajectory counts as terminated), whitens inside,
        and treats a step that is missing from a trajectory as one with reward 0 and value 0; lay
        out such a table explicitly to reproduce it.

    Example:
        >>> import jax.numpy as jnp
        >>> reward, value = jnp.array([0.0, 1.0]), jnp.array([0.25, 0.5])
        >>> print(step_gae(reward, jnp.array([1.0, 0.0]), value, lambda_=1.0))
        [0.75 0.5 ]
    """
    chex.assert_rank([reward_s, discount_s, value_s], 1)
    chex.assert_equal_shape([reward_s, discount_s, value_s])
    chex.assert_rank([lambda_, bootstrap_value], 0)
    every_s = jnp.ones_like(value_s, bool)
    return _gae(reward_s, discount_s, value_s, lambda_, every_s, bootstrap_value, 0.0)


def token_gae(
    reward_t: jax.Array,
    discount_t: jax.Array,
    value_t: jax.Array,
    lambda_: jax.Array | float,
    step_ids_t: jax.Array,
    bootstrap_value: jax.Array | float = 0.0,
    bootstrap_advantage: jax.Array | float = 0.0,
) -> jax.Array:
    """Advantage of each sampled token: GAE over the active tokens of a row.

        A_t = δ_t + γ_t λ A_{t'},   δ_t = r_t + γ_t V_{t'} - V_t,   t' the next active token

    GAE (https://arxiv.org/abs/1506.02438, eq. 16) with the token as the action, as in PPO for
    language models. Masked tokens are skipped as if they had been cut out of the row.

    Args:
        reward_t: [T] reward of each token; masked ones are never read.
        discount_t: [T] at an active token: γ, and 0 at the last active token of a trajectory.
        value_t: [T] critic before token t is sampled.
        lambda_: mixing parameter in [0, 1].
        step_ids_t: [T] step of each token, -1 where masked.
        bootstrap_value: scalar critic behind the last active token; counts only where that
            token's discount is not 0.
        bootstrap_advantage: scalar advantage behind it, that of the next sampled token; with both,
            a long trajectory can be taken in pieces, the last one first.

    Returns:
        [T] advantages, 0 at masked tokens, not whitened, gradients not stopped.

    Raises:
        ValueError: the ids cannot be step ids.
        AssertionError: an input is batched (use `jax.vmap`), or the shapes differ.

    Note:
        The reference whitens inside and leaves (0 - mean) / std at masked tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> reward, discount = jnp.array([0.0, 7.0, 1.0]), jnp.array([1.0, 1.0, 0.0])
        >>> value, ids = jnp.array([0.25, jnp.nan, 0.5]), jnp.array([0, -1, 0])
        >>> print(token_gae(reward, discount, value, 1.0, ids))
        [0.75 0.   0.5 ]
    """
    check_row_step_ids(step_ids_t)
    chex.assert_equal_shape([reward_t, discount_t, value_t, step_ids_t])
    chex.assert_rank([lambda_, bootstrap_value, bootstrap_advantage], 0)
    behind = bootstrap_value, bootstrap_advantage
    return _gae(reward_t, discount_t, value_t, lambda_, step_ids_t >= 0, *behind)


def _gae(
    reward: jax.Array,
    discount: jax.Array,
    value: jax.Array,
    lambda_: jax.Array | float,
    active: jax.Array,
    bootstrap_value: jax.Array | float,
    bootstrap_advantage: jax.Array | float,
) -> jax.Array:
    """GAE over the active elements: one backward pass that carries value and advantage.

    Elements are visited one by one, as in `reverse_recurrence`, and a masked one passes the carry
    through, so that masked elements change no bit of the results wherever they are inserted.
    """
    reward, discount, value = as_float(reward), as_float(discount), as_float(value)
    dtype = jnp.result_type(reward, discount, value)
    if reward.shape[0] == 0:
        return reward.astype(dtype)
    lambda_ = jnp.asarray(lambda_, dtype)

    def visit(
        behind: tuple[jax.Array, jax.Array], here: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_value, later = behind
        # Selected before use, and here rather than ahead, which would be passes over the row.
        on = here[3]
        reward, discount, value = (jnp.where(on, x, 0) for x in here[:3])
        delta = reward + discount * next_value - value
        advantage = jnp.where(on, delta + discount * lambda_ * later, later)
        return (jnp.where(on, value, next_value), advantage), advantage

    # A carry made from elements of the row varies over a mesh as they do: shard_map requires that.
    zero = jnp.zeros_like(jnp.where(active[0], reward[0] + discount[0] + value[0], 0))
    behind_value = zero + jnp.asarray(bootstrap_value, dtype)
    behind = behind_value, zero + jnp.asarray(bootstrap_advantage, dtype)
    carried = jax.lax.scan(visit, behind, (reward, discount, value, active), reverse=True)[1]
    return jnp.where(active, carried, 0)


class RunningMoments(NamedTuple):
    """Mean and population variance of all numbers seen so far; the state of reward scaling."""

    mean: jax.Array | float = 0.0
    variance: jax.Array | float = 1.0
    number: jax.Array | float = 1e-4


def update_running_moments(
    moments: RunningMoments, x: jax.Array, where: jax.Array, axis_name: AxisName = None
) -> RunningMoments:
    """Take a batch of numbers into running moments (Chan's parallel merge).

        n = n_a + n_b,  d = μ_b - μ_a,  μ = μ_a + d n_b / n
        n σ² = n_a σ_a² + n_b σ_b² + d² n_a n_b / n

    StepPO scales the rewards of a batch by (σ² + 1e-8)^(-1/2), where σ² follows the discounted
    forward sums D_k = γ D_{k-1} + R_k of the steps of each trajectory (https://arxiv.org/abs/2604.18401).

    Args:
        moments: the state so far; `RunningMoments()` to begin with (the reference's start).
        x: [...] new numbers.
        where: [...] same shape, non-zero where selected.
        axis_name: mapped axis whose devices hold further numbers.

    Returns:
        The new moments.

    Raises:
        AssertionError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = RunningMoments(0.0, 0.0, 0.0)
        >>> seen = update_running_moments(seen, jnp.array([1.0, 3.0]), jnp.ones((2,)))
        >>> print(seen.mean, seen.variance, seen.number)
        2.0 1.0 2.0
    """
    new_mean = masked_mean(x, where, axis_name=axis_name)
    new_variance = masked_variance(x, where, axis_name=axis_name)
    new_count = jnp.sum(jnp.asarray(where).astype(bool), dtype=new_mean.dtype)
    if axis_name is not None:
        new_count = jax.lax.psum(new_count, axis_name)
    count = moments.number + new_count
    share = new_count / jnp.where(count > 0, count, 1)
    apart = new_mean - moments.mean
    variance = (
        moments.variance * (1 - share)
        + new_variance * share
        + jnp.square(apart) * share * (1 - share)
    )
    return RunningMoments(moments.mean + apart * share, variance, count)
