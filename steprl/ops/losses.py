"""Losses on arrays: clipped policy surrogates, value loss, KL estimators, entropy.

Row functions take one row [T] or a batch of rows [N, T]. Dark tokens (step id -1) are never read.
Gradients are stopped here, once: through advantages, old and reference log-probabilities, returns,
old values and importance weights.
"""

import jax
import jax.numpy as jnp

from steprl.ops.aggregation import active_tokens, aggregate, local_step_ids
from steprl.ops.segments import (
    _check_one_of,
    as_float,
    broadcast_steps,
    masked_mean,
    reduce_steps,
)

LEVELS = ("token", "step", "sequence")
KL_KINDS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")


def log_ratio(
    logprob: jax.Array, old_logprob: jax.Array, step_ids: jax.Array, level: str = "step"
) -> jax.Array:
    """Log importance ratio of each token, pooled over its token, step or row.

        d_t = log π(a_t) - log π_old(a_t)
        token:    clip(d_t, -20, 20)
        step:     min(10, mean of d over the active tokens of the step)
        sequence: min(10, mean of d over the active tokens of the row)

    Token is PPO (https://arxiv.org/abs/1707.06347), sequence is the length-normalised ratio of
    GSPO (https://arxiv.org/abs/2507.18071, eq. 7 and its token-level form, eq. 13 and 14), step
    applies it to each agent step of a row, the action of StepPO (https://arxiv.org/abs/2604.18401).
    Pooled ratios are straight-through: the value is the mean, the gradient with respect to
    log π(a_t) is 1, so that no other token's gradient depends on how the row was pooled.

    Args:
        logprob: [T] or [N, T] log-probabilities under the policy being trained.
        old_logprob: same shape, under the policy that sampled; gradient stopped.
        step_ids: same shape, step of each token, -1 where dark.
        level: "token", "step" or "sequence".

    Returns:
        [T] or [N, T] log ratios, 0 at dark tokens.

    Raises:
        ValueError: `level` is unknown, or the shapes differ.

    Note:
        As in verl, pooled ratios have no lower cap, and the token clamp does not apply to them.
        With one step a row, step and sequence are the same; a step stored as a row of its own has
        the reference's sequence ratio.

    Example:
        >>> import jax.numpy as jnp
        >>> d, ids = jnp.array([1.0, 3.0, jnp.nan, 5.0]), jnp.array([0, 0, -1, 1])
        >>> print(log_ratio(d, jnp.zeros(4), ids, "step"))
        [2. 2. 0. 5.]
    """
    _check_one_of("level", level, LEVELS)
    _check_shapes(logprob=logprob, old_logprob=old_logprob, step_ids=step_ids)
    active = active_tokens(step_ids)
    logprob = jnp.where(active, as_float(logprob), 0)
    old_logprob = jax.lax.stop_gradient(jnp.where(active, as_float(old_logprob), 0))
    if level == "token":
        return _clamp(logprob - old_logprob, -20.0, 20.0)

    difference = jax.lax.stop_gradient(logprob) - old_logprob
    if level == "sequence":
        count = jnp.sum(active, axis=-1, keepdims=True, dtype=jnp.int32)
        total = jnp.sum(difference, axis=-1, keepdims=True)
        pooled = jnp.broadcast_to(total / jnp.maximum(count, 1), difference.shape)
    else:

        def pool(difference_t: jax.Array, local_t: jax.Array) -> jax.Array:
            mean_s = reduce_steps(difference_t, local_t, local_t.shape[0], "mean")
            return broadcast_steps(mean_s, local_t)

        local = local_step_ids(step_ids)
        pooled = (pool if local.ndim == 1 else jax.vmap(pool))(difference, local)
    straight_through = logprob - jax.lax.stop_gradient(logprob) + pooled
    return jnp.where(active, _clamp(straight_through, None, 10.0), 0)


def policy_loss(
    logprob_t: jax.Array,
    old_logprob_t: jax.Array,
    advantage_t: jax.Array,
    step_ids_t: jax.Array,
    *,
    level: str = "step",
    clip_low: float | jax.Array = 0.2,
    clip_high: float | jax.Array = 0.2,
    dual_clip: float | None = None,
    reduction: str = "token-mean",
    weights: jax.Array | None = None,
    rollout_weights: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped policy surrogate with the ratio of a token, a step or a row.

        ρ_t = exp(log_ratio_t),   l_t = max(-A_t ρ_t, -A_t clip(ρ_t, 1 - clip_low, 1 + clip_high))
        where A_t < 0 and dual_clip = c:   l_t = min(l_t, -A_t c)
        loss = sum_t weights_t rollout_weights_t l_t

    PPO (https://arxiv.org/abs/1707.06347, eq. 7) at level "token", GSPO
    (https://arxiv.org/abs/2507.18071) at level "sequence", StepPO
    (https://arxiv.org/abs/2604.18401) at level "step"; asymmetric clip of DAPO
    (https://arxiv.org/abs/2503.14476); dual clip (https://arxiv.org/abs/1912.09729, eq. 5).

    Args:
        logprob_t: [T] or [N, T] log-probabilities under the policy being trained.
        old_logprob_t: same shape, under the policy that sampled; gradient stopped.
        advantage_t: same shape; gradient stopped.
        step_ids_t: same shape, step of each token, -1 where dark.
        level: "token", "step" or "sequence", see `log_ratio`.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.
        dual_clip: c > 1 bounds the loss where the advantage is negative; None is without.
        reduction: see `aggregation_weights`; not used when `weights` is given.
        weights: same shape, `aggregation_weights` of the whole mini-batch, of which this may be a
            part; the losses of the parts add up.
        rollout_weights: same shape, importance weights of the tokens against the engine that
            sampled them; gradient stopped.

    Returns:
        The loss, and the metrics `pg_clipfrac` (share of active tokens where the clip binds),
        `pg_clipfrac_lower` (where the dual clip binds), `ppo_kl` (mean of -log ratio, with the
        ratio as in `log_ratio`, before the cap of pooled ratios at 10).

    Raises:
        ValueError: `level` or `reduction` is unknown, `dual_clip` <= 1, or the shapes differ.

    Note:
        verl's GSPO ignores the requested reduction and always takes seq-mean-token-mean; here what
        is asked for is done. With every token dark the loss and its gradient are 0, not NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> logprob, old = jnp.log(jnp.array([0.8, 0.1])), jnp.log(jnp.array([0.4, 0.1]))
        >>> ids, advantage = jnp.array([0, 1]), jnp.array([1.0, -1.0])
        >>> loss, metrics = policy_loss(logprob, old, advantage, ids, level="token", clip_high=0.5)
        >>> print(loss, metrics["pg_clipfrac"])
        -0.25 0.5
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip={dual_clip!r} must be above 1, or None")
    optional = {"weights": weights, "rollout_weights": rollout_weights}
    _check_shapes(logprob_t=logprob_t, advantage_t=advantage_t, **optional)
    ratio_log = log_ratio(logprob_t, old_logprob_t, step_ids_t, level)
    active = active_tokens(step_ids_t)
    advantage_t = jax.lax.stop_gradient(jnp.where(active, as_float(advantage_t), 0))

    ratio = jnp.exp(ratio_log)
    plain = -advantage_t * ratio
    clipped = -advantage_t * _clamp(ratio, 1 - clip_low, 1 + clip_high)
    losses = jnp.maximum(plain, clipped)
    lower = jnp.zeros_like(active)
    if dual_clip is not None:
        bound = -advantage_t * dual_clip
        lower = (losses > bound) & (advantage_t < 0)
        losses = jnp.where(advantage_t < 0, jnp.minimum(losses, bound), losses)
    if rollout_weights is not None:
        rollout_weights = jnp.where(active, as_float(rollout_weights), 0)
        losses = losses * jax.lax.stop_gradient(rollout_weights)

    metrics = {
        "pg_clipfrac": masked_mean(clipped > plain, active),
        "pg_clipfrac_lower": masked_mean(lower, active),
        "ppo_kl": masked_mean(_minus_log_ratio(logprob_t, old_logprob_t, active, level), active),
    }
    return aggregate(losses, step_ids_t, reduction, weights=weights), metrics


def value_loss(
    value: jax.Array,
    return_: jax.Array,
    old_value: jax.Array,
    step_ids: jax.Array,
    *,
    clip: float | jax.Array | None = None,
    reduction: str = "token-mean",
    weights: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error of the critic, optionally clipped around its old prediction.

        l = 1/2 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2)

    The clipped form of the PPO implementation; see https://arxiv.org/abs/2005.12729 for its role.

    Args:
        value: [T] or [N, T] predictions of the critic being trained.
        return_: same shape, targets; gradient stopped.
        old_value: same shape, predictions at the time of the rollout; gradient stopped. Not used
            when `clip` is None.
        step_ids: same shape: step ids (every active token counts: token-level critic), or a bool
            mask such as `step_starts(step_ids)` (one target a step: step-level critic).
        clip: c; None is without.
        reduction: see `aggregation_weights`; not used when `weights` is given.
        weights: same shape, `aggregation_weights` of the whole mini-batch.

    Returns:
        The loss, and the metric `vf_clipfrac` (share of the counted tokens where the clip binds).

    Raises:
        ValueError: `reduction` is unknown, or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> value, target, old = jnp.array([2.0, 5.0]), jnp.array([0.0, 9.0]), jnp.zeros(2)
        >>> loss, _ = value_loss(value, target, old, jnp.array([0, -1]), clip=0.5)
        >>> print(loss)
        2.0
    """
    _check_shapes(
        value=value, return_=return_, old_value=old_value, step_ids=step_ids, weights=weights
    )
    active = active_tokens(step_ids)
    value = jnp.where(active, as_float(value), 0)
    target = jax.lax.stop_gradient(jnp.where(active, as_float(return_), 0))
    losses = jnp.square(value - target)
    bound = jnp.zeros_like(active)
    if clip is not None:
        old = jax.lax.stop_gradient(jnp.where(active, as_float(old_value), 0))
        clipped = jnp.square(jnp.maximum(jnp.minimum(value, old + clip), old - clip) - target)
        bound = clipped > losses
        losses = jnp.maximum(losses, clipped)
    loss = aggregate(0.5 * losses, step_ids, reduction, weights=weights)
    return loss, {"vf_clipfrac": masked_mean(bound, active)}


def kl_penalty(
    logprob: jax.Array,
    ref_logprob: jax.Array,
    kind: str = "low_var_kl",
    step_ids: jax.Array | None = None,
) -> jax.Array:
    """Estimate KL(π || π_ref) at each sampled token.

        kl, k1:         log π - log π_ref
        abs:            |log π - log π_ref|
        mse, k2:        1/2 (log π - log π_ref)^2
        low_var_kl, k3: clip(e^x - x - 1, -10, 10),   x = clip(log π_ref - log π, -20, 20)

    Estimators of http://joschu.net/blog/kl-approx.html; k3 is the one of GRPO
    (https://arxiv.org/abs/2402.03300, eq. 4). A kind followed by "+" has that kind's value and the
    gradient of k2, which is the one whose expectation is the gradient of the KL.

    Args:
        logprob: [...] log-probabilities of the sampled tokens under the policy.
        ref_logprob: same shape, under the reference; gradient stopped.
        kind: one of the above, optionally followed by "+".
        step_ids: same shape [T] or [N, T], optional: dark tokens become 0 and are never read.

    Returns:
        [...] float estimates.

    Raises:
        ValueError: `kind` is unknown, or the shapes differ.

    Note:
        verl documents the kinds with "+" and "full", but raises for each of them. The "+" ones
        work here; "full" needs whole distributions and is refused.

    Example:
        >>> import jax.numpy as jnp
        >>> print(kl_penalty(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0]), "k2"))
        [0. 2.]
    """
    _check_one_of("kind", kind, KL_KINDS + tuple(k + "+" for k in KL_KINDS))
    _check_shapes(logprob=logprob, ref_logprob=ref_logprob, step_ids=step_ids)
    logprob, ref_logprob = as_float(logprob), as_float(ref_logprob)
    if step_ids is not None:
        active = active_tokens(step_ids)
        logprob, ref_logprob = jnp.where(active, logprob, 0), jnp.where(active, ref_logprob, 0)
    difference = logprob - jax.lax.stop_gradient(ref_logprob)
    name = kind.removesuffix("+")
    if name in ("kl", "k1"):
        estimate = difference
    elif name == "abs":
        # jnp.abs has gradient 1 at 0, where policy and reference agree; the sign there is 0.
        estimate = difference * jax.lax.stop_gradient(jnp.sign(difference))
    elif name in ("mse", "k2"):
        estimate = 0.5 * jnp.square(difference)
    else:
        x = _clamp(-difference, -20.0, 20.0)
        estimate = _clamp(jnp.expm1(x) - x, -10.0, 10.0)
    if kind.endswith("+"):
        k2 = 0.5 * jnp.square(difference)
        estimate = k2 - jax.lax.stop_gradient(k2) + jax.lax.stop_gradient(estimate)
    return estimate


def adaptive_kl_coefficient(
    coefficient: jax.Array | float,
    current_kl: jax.Array | float,
    num_samples: jax.Array | float,
    *,
    target: float,
    horizon: float,
) -> jax.Array:
    """Next coefficient of a KL penalty that steers the KL to a target.

        β' = β (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)

    Ziegler et al. (https://arxiv.org/abs/1909.08593, section 2.2).

    Args:
        coefficient: [] β.
        current_kl: [] KL measured with β in force.
        num_samples: [] n, rows the measurement was made on.
        target: KL aimed at.
        horizon: samples over which the coefficient adapts.

    Returns:
        [] the new coefficient.

    Raises:
        ValueError: `target` or `horizon` is not positive.

    Example:
        >>> print(adaptive_kl_coefficient(1.0, 0.3, 10, target=0.1, horizon=100))
        1.02
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target={target!r} and horizon={horizon!r} must be positive")
    error = jnp.clip(as_float(jnp.asarray(current_kl)) / target - 1, -0.2, 0.2)
    return as_float(jnp.asarray(coefficient)) * (1 + error * jnp.asarray(num_samples) / horizon)


def entropy_from_logits(logits: jax.Array) -> jax.Array:
    """Entropy of the distributions that logits describe.

        H = logsumexp(z) - sum_v softmax(z)_v z_v

    Args:
        logits: [..., V]; -inf marks an excluded entry.

    Returns:
        [...] float entropies in nats.

    Note:
        verl's is NaN where a logit is -inf (0 times infinity).

    Example:
        >>> import jax.numpy as jnp
        >>> print(entropy_from_logits(jnp.array([0.0, 0.0, -jnp.inf])).round(4))
        0.6931
    """
    logits = as_float(logits)
    finite = jnp.where(jnp.isneginf(logits), 0, logits)
    expected = jnp.sum(jax.nn.softmax(logits, axis=-1) * finite, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def _minus_log_ratio(
    logprob: jax.Array, old_logprob: jax.Array, active: jax.Array, level: str
) -> jax.Array:
    """-(log π - log π_old), under the clamp that the token ratio has; no gradient."""
    difference = jnp.where(active, as_float(old_logprob), 0) - jnp.where(
        active, as_float(logprob), 0
    )
    difference = jax.lax.stop_gradient(difference)
    return _clamp(difference, -20.0, 20.0) if level == "token" else difference


def _clamp(
    x: jax.Array, low: float | jax.Array | None, high: float | jax.Array | None
) -> jax.Array:
    """Clip whose gradient is 1 on the bounds too, as torch.clamp (jnp.clip has 1/2 there)."""
    if low is not None:
        x = jnp.where(x < low, low, x)
    return x if high is None else jnp.where(x > high, high, x)


def _check_shapes(**arrays: jax.Array | None) -> None:
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")
