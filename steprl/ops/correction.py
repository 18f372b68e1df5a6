"""Importance weights against the policy that really sampled, where that is not the one trained from.

Rollouts of an engine with other kernels or types, or of parameters a few updates old, come from a
policy μ that is not π_old. The losses then need the factor π_old / μ, and a bound on it.
"""

import jax
import jax.numpy as jnp

from steprl.ops.aggregation import active_tokens, local_step_ids
from steprl.ops.losses import LEVELS, _check_shapes, _clamp
from steprl.ops.segments import (
    _check_one_of,
    as_float,
    broadcast_steps,
    masked_mean,
    reduce_steps,
)

CORRECTIONS = ("truncate", "mask")


def rollout_correction_weights(
    logprob: jax.Array,
    rollout_logprob: jax.Array,
    step_ids: jax.Array,
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
        logprob: [T] or [N, T] log-probabilities under the policy that training starts from.
        rollout_logprob: same shape, under the policy that sampled.
        step_ids: same shape, step of each token, -1 where dark.
        level: "token", "step" or "sequence".
        bound: largest weight, above 1.
        how: "truncate" or "mask".

    Returns:
        Weights of the same shape, 0 at dark tokens, without gradient; pass them to `policy_loss` as
        `rollout_weights`. And the metrics `rollout_is_mean`, `rollout_is_bound_frac` (share of
        active tokens where the bound acted), `rollout_kl` (mean of -d: an estimate of KL(μ, π_old)).

    Raises:
        ValueError: `level` or `how` is unknown, the bound is not above 1, or the shapes differ.

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
    _check_one_of("level", level, LEVELS)
    _check_one_of("how", how, CORRECTIONS)
    if not isinstance(bound, jax.Array) and not bound > 1:
        raise ValueError(f"bound={bound!r} must be above 1")
    _check_shapes(logprob=logprob, rollout_logprob=rollout_logprob, step_ids=step_ids)
    active = active_tokens(step_ids)
    difference = jnp.where(active, as_float(logprob), 0)
    difference = difference - jnp.where(active, as_float(rollout_logprob), 0)
    difference = jax.lax.stop_gradient(difference)
    total = difference
    if level == "sequence":
        total = jnp.broadcast_to(jnp.sum(difference, -1, keepdims=True), difference.shape)
    elif level == "step":

        def pool(difference_t: jax.Array, local_t: jax.Array) -> jax.Array:
            sum_s = reduce_steps(difference_t, local_t, local_t.shape[0], "sum")
            return broadcast_steps(sum_s, local_t)

        local = local_step_ids(step_ids)
        total = (pool if local.ndim == 1 else jax.vmap(pool))(difference, local)
    ratio = jnp.exp(_clamp(total, -20.0, 20.0))
    acted = ratio > bound
    if how == "truncate":
        weights = jnp.where(acted, bound, ratio)
    else:
        acted = acted | (ratio < 1 / bound)
        weights = jnp.where(acted, 0, ratio)
    weights = jnp.where(active, weights, 0)
    metrics = {
        "rollout_is_mean": masked_mean(weights, active),
        "rollout_is_bound_frac": masked_mean(acted, active),
        "rollout_kl": masked_mean(-difference, active),
    }
    return weights, metrics
