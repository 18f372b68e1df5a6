"""Losses on arrays: clipped policy surrogates, value loss, KL estimators, entropy.

Functions of tokens take one row [T] or a batch of rows [N, T]. Masked tokens (step id -1) are never
read.
Gradients are stopped here, once: through advantages, old and reference log-probabilities, returns,
old values and importance weights.
"""

import jax
import jax.numpy as jnp

from steprl.ops.aggregation import active_tokens, aggregate, local_step_ids
from steprl.ops.checks import check_one_of, check_same_shape
from steprl.ops.segments import as_float, broadcast_steps, masked_mean, reduce_steps

LEVELS = ("token", "step", "sequence")
LEVEL_REDUCTIONS = {
    "token": "token-mean",
    "step": "step-mean-token-mean",
    "sequence": "seq-mean-token-mean",
}
"""What goes with each level: every unit that has a ratio of its own weighs the same."""

KL_KINDS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")


def log_ratio(
    logprob_t: jax.Array, old_logprob_t: jax.Array, step_ids_t: jax.Array, level: str = "step"
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
        logprob_t: [T] or [N, T] log-probabilities under the policy being trained.
        old_logprob_t: same shape, under the policy that sampled; gradient stopped.
        step_ids_t: same shape, step of each token, -1 where masked.
        level: "token", "step" or "sequence".

    Returns:
        [T] or [N, T] log ratios, 0 at masked tokens.

    Raises:
        ValueError: `level` is unknown, the ids cannot be step ids, or the shapes differ.

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
    check_one_of("level", level, LEVELS)
    check_same_shape(logprob_t=logprob_t, old_logprob_t=old_logprob_t, step_ids_t=step_ids_t)
    active_t = active_tokens(step_ids_t)
    logprob_t = jnp.where(active_t, as_float(logprob_t), 0)
    old_logprob_t = jax.lax.stop_gradient(jnp.where(active_t, as_float(old_logprob_t), 0))
    if level == "token":
        return _clamp(logprob_t - old_logprob_t, -20.0, 20.0)

    difference_t = jax.lax.stop_gradient(logprob_t) - old_logprob_t
    if level == "sequence":
        count = jnp.sum(active_t, axis=-1, keepdims=True, dtype=jnp.int32)
        total = jnp.sum(difference_t, axis=-1, keepdims=True)
        pooled_t = jnp.broadcast_to(total / jnp.maximum(count, 1), difference_t.shape)
    else:

        def pool(difference_t: jax.Array, local_t: jax.Array) -> jax.Array:
            mean_s = reduce_steps(difference_t, local_t, local_t.shape[0], "mean")
            return broadcast_steps(mean_s, local_t)

        pool_rows = pool if step_ids_t.ndim == 1 else jax.vmap(pool)
        pooled_t = pool_rows(difference_t, local_step_ids(step_ids_t))
    straight_through_t = logprob_t - jax.lax.stop_gradient(logprob_t) + pooled_t
    return jnp.where(active_t, _clamp(straight_through_t, None, 10.0), 0)


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
    reduction: str | None = None,
    weights_t: jax.Array | None = None,
    rollout_weights_t: jax.Array | None = None,
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
        step_ids_t: same shape, step of each token, -1 where it was not sampled. A loss mask of 0
            and 1 is something else: `step_ids_from_mask` makes ids of it.
        level: "token", "step" or "sequence", see `log_ratio`.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.
        dual_clip: c > 1 bounds the loss where the advantage is negative; None is without.
        reduction: see `aggregation_weights`; not used when `weights_t` is given. None is the level's
            own: "token-mean", "step-mean-token-mean" or "seq-mean-token-mean".
        weights_t: same shape, `aggregation_weights` of the whole mini-batch, of which this may be a
            part; the losses of the parts add up.
        rollout_weights_t: same shape, importance weights of the tokens against the engine that
            sampled them; gradient stopped.

    Returns:
        The loss, and the metrics `pg_clipfrac` (share of active tokens where the clip binds),
        `pg_clipfrac_lower` (where the dual clip binds), `ppo_kl` (mean of -log ratio, with the
        ratio as in `log_ratio`, before the cap of pooled ratios at 10).

    Raises:
        ValueError: `level` or `reduction` is unknown, `dual_clip` <= 1, the shapes differ, or the
            ids cannot be step ids: bool, or an id that comes back after that of another step, as
            in a mask. Ids of 0 and 1 without any -1 bring a warning.

    Note:
        Under `jit` the values of the ids cannot be seen: an integer mask given as ids trains the
        prompt there, as step 0, without a word. Make ids of masks with `step_ids_from_mask`.

        verl's GSPO ignores the requested reduction and always takes seq-mean-token-mean; here what
        is asked for is done. With every token masked the loss and its gradient are 0, not NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> logprob, old = jnp.log(jnp.array([0.8, 0.1, 1])), jnp.log(jnp.array([0.4, 0.1, 1]))
        >>> ids, advantage = jnp.array([0, 1, -1]), jnp.array([1.0, -1.0, 0.0])
        >>> loss, metrics = policy_loss(logprob, old, advantage, ids, level="token", clip_high=0.5)
        >>> print(loss, metrics["pg_clipfrac"])
        -0.25 0.5
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip={dual_clip!r} must be above 1, or None")
    check_same_shape(
        logprob_t=logprob_t,
        advantage_t=advantage_t,
        weights_t=weights_t,
        rollout_weights_t=rollout_weights_t,
    )
    log_ratio_t = log_ratio(logprob_t, old_logprob_t, step_ids_t, level)
    active_t = jnp.asarray(step_ids_t) >= 0
    advantage_t = jax.lax.stop_gradient(jnp.where(active_t, as_float(advantage_t), 0))

    ratio_t = jnp.exp(log_ratio_t)
    plain_t = -advantage_t * ratio_t
    clipped_t = -advantage_t * _clamp(ratio_t, 1 - clip_low, 1 + clip_high)
    loss_t = jnp.maximum(plain_t, clipped_t)
    lower_t = jnp.zeros_like(active_t)
    if dual_clip is not None:
        bound_t = -advantage_t * dual_clip
        lower_t = (loss_t > bound_t) & (advantage_t < 0)
        loss_t = jnp.where(advantage_t < 0, jnp.minimum(loss_t, bound_t), loss_t)
    if rollout_weights_t is not None:
        rollout_weights_t = jnp.where(active_t, as_float(rollout_weights_t), 0)
        loss_t = loss_t * jax.lax.stop_gradient(rollout_weights_t)

    kl_t = _minus_log_ratio(logprob_t, old_logprob_t, active_t, level)
    metrics = {
        "pg_clipfrac": masked_mean(clipped_t > plain_t, active_t),
        "pg_clipfrac_lower": masked_mean(lower_t, active_t),
        "ppo_kl": masked_mean(kl_t, active_t),
    }
    reduction = LEVEL_REDUCTIONS[level] if reduction is None else reduction
    return aggregate(loss_t, step_ids_t, reduction, weights_t=weights_t), metrics


def value_loss(
    value_t: jax.Array,
    return_t: jax.Array,
    old_value_t: jax.Array,
    step_ids_t: jax.Array,
    *,
    clip: float | jax.Array | None = None,
    reduction: str = "token-mean",
    weights_t: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error of the critic, optionally clipped around its old prediction.

        l = 1/2 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2)

    The clipped form of the PPO implementation; see https://arxiv.org/abs/2005.12729 for its role.

    Args:
        value_t: [T] or [N, T] predictions of the critic being trained.
        return_t: same shape, targets; gradient stopped.
        old_value_t: same shape, predictions at the time of the rollout; gradient stopped. Not used
            when `clip` is None.
        step_ids_t: same shape, step of each token, -1 where masked. A critic of steps has one target
            a step: it takes `jnp.where(step_starts(step_ids_t), step_ids_t, -1)`.
        clip: c; None is without.
        reduction: see `aggregation_weights`; not used when `weights_t` is given.
        weights_t: same shape, `aggregation_weights` of the whole mini-batch.

    Returns:
        The loss, and the metric `vf_clipfrac` (share of the counted tokens where the clip binds).

    Raises:
        ValueError: `reduction` is unknown, the ids cannot be step ids, or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> value, target, old = jnp.array([2.0, 5.0]), jnp.array([0.0, 9.0]), jnp.zeros(2)
        >>> loss, _ = value_loss(value, target, old, jnp.array([0, -1]), clip=0.5)
        >>> print(loss)
        2.0
    """
    check_same_shape(
        value_t=value_t,
        return_t=return_t,
        old_value_t=old_value_t,
        step_ids_t=step_ids_t,
        weights_t=weights_t,
    )
    active_t = active_tokens(step_ids_t)
    value_t = jnp.where(active_t, as_float(value_t), 0)
    return_t = jax.lax.stop_gradient(jnp.where(active_t, as_float(return_t), 0))
    loss_t = jnp.square(value_t - return_t)
    bound_t = jnp.zeros_like(active_t)
    if clip is not None:
        old_t = jax.lax.stop_gradient(jnp.where(active_t, as_float(old_value_t), 0))
        near_t = jnp.maximum(jnp.minimum(value_t, old_t + clip), old_t - clip)
        clipped_t = jnp.square(near_t - return_t)
        bound_t = clipped_t > loss_t
        loss_t = jnp.maximum(loss_t, clipped_t)
    loss = aggregate(0.5 * loss_t, step_ids_t, reduction, weights_t=weights_t)
    return loss, {"vf_clipfrac": masked_mean(bound_t, active_t)}


def kl_penalty(
    logprob_t: jax.Array,
    ref_logprob_t: jax.Array,
    kind: str = "low_var_kl",
    step_ids_t: jax.Array | None = None,
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
        logprob_t: [T] or [N, T] log-probabilities of the tokens under the policy; of any shape
            where no step ids are given.
        ref_logprob_t: same shape, under the reference; gradient stopped.
        kind: one of the above, optionally followed by "+".
        step_ids_t: same shape, optional: masked tokens become 0 and are never read.

    Returns:
        Float estimates of the same shape.

    Raises:
        ValueError: `kind` is unknown, the ids cannot be step ids, or the shapes differ.

    Note:
        verl documents the kinds with "+" and "full", but raises for each of them. The "+" ones
        work here; "full" needs whole distributions and is refused.

    Example:
        >>> import jax.numpy as jnp
        >>> print(kl_penalty(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0]), "k2"))
        [0. 2.]
    """
    check_one_of("kind", kind, KL_KINDS + tuple(k + "+" for k in KL_KINDS))
    check_same_shape(logprob_t=logprob_t, ref_logprob_t=ref_logprob_t, step_ids_t=step_ids_t)
    logprob_t, ref_logprob_t = as_float(logprob_t), as_float(ref_logprob_t)
    if step_ids_t is not None:
        active_t = active_tokens(step_ids_t)
        logprob_t = jnp.where(active_t, logprob_t, 0)
        ref_logprob_t = jnp.where(active_t, ref_logprob_t, 0)
    difference_t = logprob_t - jax.lax.stop_gradient(ref_logprob_t)
    name = kind.removesuffix("+")
    if name in ("kl", "k1"):
        estimate_t = difference_t
    elif name == "abs":
        # jnp.abs has gradient 1 at 0, where policy and reference agree; the sign there is 0.
        estimate_t = difference_t * jax.lax.stop_gradient(jnp.sign(difference_t))
    elif name in ("mse", "k2"):
        estimate_t = 0.5 * jnp.square(difference_t)
    else:
        x_t = _clamp(-difference_t, -20.0, 20.0)
        estimate_t = _clamp(jnp.expm1(x_t) - x_t, -10.0, 10.0)
    if kind.endswith("+"):
        k2_t = 0.5 * jnp.square(difference_t)
        estimate_t = k2_t - jax.lax.stop_gradient(k2_t) + jax.lax.stop_gradient(estimate_t)
    return estimate_t


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


def entropy_from_logits(logits_V: jax.Array) -> jax.Array:
    """Entropy of the distributions that logits describe.

        H = logsumexp(z) - sum_v softmax(z)_v z_v

    Args:
        logits_V: [..., V]; -inf marks an excluded entry.

    Returns:
        [...] float entropies in nats.

    Note:
        verl's is NaN where a logit is -inf (0 times infinity).

    Example:
        >>> import jax.numpy as jnp
        >>> print(entropy_from_logits(jnp.array([0.0, 0.0, -jnp.inf])).round(4))
        0.6931
    """
    logits_V = as_float(logits_V)
    finite_V = jnp.where(jnp.isneginf(logits_V), 0, logits_V)
    expected = jnp.sum(jax.nn.softmax(logits_V, axis=-1) * finite_V, axis=-1)
    return jax.nn.logsumexp(logits_V, axis=-1) - expected


def _minus_log_ratio(
    logprob_t: jax.Array, old_logprob_t: jax.Array, active_t: jax.Array, level: str
) -> jax.Array:
    """-(log π - log π_old), under the clamp that the token ratio has; no gradient."""
    old_logprob_t = jnp.where(active_t, as_float(old_logprob_t), 0)
    difference_t = old_logprob_t - jnp.where(active_t, as_float(logprob_t), 0)
    difference_t = jax.lax.stop_gradient(difference_t)
    return _clamp(difference_t, -20.0, 20.0) if level == "token" else difference_t


def _clamp(
    x: jax.Array, low: float | jax.Array | None, high: float | jax.Array | None
) -> jax.Array:
    """Clip whose gradient is 1 on the bounds too, as torch.clamp (jnp.clip has 1/2 there)."""
    if low is not None:
        x = jnp.where(x < low, low, x)
    return x if high is None else jnp.where(x > high, high, x)
