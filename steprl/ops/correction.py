"""Importance weights against the policy that really sampled, where that is not the one trained from.

Rollouts of an engine with other kernels or types, or of parameters a few updates old, come from a
policy μ that is not π_old. The losses then need the factor π_old / μ, and a bound on it.
"""

import jax
import jax.numpy as jnp

from steprl.ops.aggregation import active_tokens, local_step_ids
from steprl.ops.checks import check_one_of, check_same_shape
from steprl.ops.losses import LEVELS, _clamp
from steprl.ops.segments import as_float, broadcast_steps, masked_mean, reduce_steps

CORRECTIONS = ("truncate", "mask")


def rollout_correction_weights(
    logprob_t: jax.Array,
    rollout_logprob_t: jax.Array,
    step_ids_t: jax.Array,
    *,
    level: str = "token",
    bound: float | jax.Array = 2.0,
    how: str = "truncate",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Bounded importance weight of each sampled token against the policy that sampled it.

        d = log π_old(a_t) - log μ(a_t)
        token:    w = exp(d)
        step:     w = exp(sum of d over the active tokens of the step)
        sequence: w = exp(sum of d over the active tokens of the row)
        truncate: w <- min(w, bound)        mask: w <- w where 1/bound <= w <= bound, else 0

    Truncated importance sampling of rollouts (https://fengyao.notion.site/off-policy-rl, as in
    verl's rollout correction) is `truncate`; leaving out what lies outside is the masked form
    (https://arxiv.org/abs/2510.18855, section 3, IcePop). The exponent is clipped to +-20.

    Args:
        logprob_t: [T] or [N, T] log-probabilities under the policy that training starts from.
        rollout_logprob_t: same shape, under the policy that sampled.
        step_ids_t: same shape, step of each token, -1 where masked.
        level: "token", "step" or "sequence".
        bound: largest weight, above 1.
        how: "truncate" or "mask".

    Returns:
        Weights of the same shape, 0 at masked tokens, without gradient; pass them to `policy_loss`
        as `rollout_weights_t`. And the metrics `rollout_is_mean`, `rollout_is_bound_frac` (share of
        active tokens where the bound acted), `rollout_kl` (mean of -d: an estimate of KL(μ, π_old)).

    Raises:
        ValueError: `level` or `how` is unknown, the bound is not above 1, the ids cannot be step ids,
            or the shapes differ.

    Note:
        Unlike `log_ratio`, steps and sequences multiply the ratios of their tokens: this weight is a
        change of measure, not a trust region. Levels above token have less bias and more variance.

    Example:
        >>> import jax.numpy as jnp
        >>> old, rollout = jnp.log(jnp.array([0.6, 0.1])), jnp.log(jnp.array([0.2, 0.1]))
        >>> weights, _ = rollout_correction_weights(old, rollout, jnp.array([0, 0]))
        >>> print(weights)
        [2. 1.]
    """
    check_one_of("level", level, LEVELS)
    check_one_of("how", how, CORRECTIONS)
    if not isinstance(bound, jax.Array) and not bound > 1:
        raise ValueError(f"bound={bound!r} must be above 1")
    check_same_shape(
        logprob_t=logprob_t, rollout_logprob_t=rollout_logprob_t, step_ids_t=step_ids_t
    )
    active_t = active_tokens(step_ids_t)
    difference_t = jnp.where(active_t, as_float(logprob_t), 0)
    difference_t = difference_t - jnp.where(active_t, as_float(rollout_logprob_t), 0)
    difference_t = jax.lax.stop_gradient(difference_t)
    total_t = difference_t
    if level == "sequence":
        total_t = jnp.broadcast_to(jnp.sum(difference_t, -1, keepdims=True), difference_t.shape)
    elif level == "step":

        def pool(difference_t: jax.Array, local_t: jax.Array) -> jax.Array:
            sum_s = reduce_steps(difference_t, local_t, local_t.shape[0], "sum")
            return broadcast_steps(sum_s, local_t)

        pool_rows = pool if step_ids_t.ndim == 1 else jax.vmap(pool)
        total_t = pool_rows(difference_t, local_step_ids(step_ids_t))
    ratio_t = jnp.exp(_clamp(total_t, -20.0, 20.0))
    beyond_t = ratio_t > bound
    if how == "truncate":
        weights_t = jnp.where(beyond_t, bound, ratio_t)
    else:
        beyond_t = beyond_t | (ratio_t < 1 / bound)
        weights_t = jnp.where(beyond_t, 0, ratio_t)
    weights_t = jnp.where(active_t, weights_t, 0)
    metrics = {
        "rollout_is_mean": masked_mean(weights_t, active_t),
        "rollout_is_bound_frac": masked_mean(beyond_t, active_t),
        "rollout_kl": masked_mean(-difference_t, active_t),
    }
    return weights_t, metrics
