"""How much more likely one policy makes what follows a token than another policy does.

The sum of the log ratios from a token on is one backward recurrence. It says where a response is
worth branching (`appo_future_value`), and how strongly a token should be learnt from
(`future_kl_policy_loss`).
"""

import math

import chex
import jax
import jax.numpy as jnp

from steprl.ops.aggregation import active_tokens, aggregation_weights
from steprl.ops.checks import check_row_step_ids, check_same_shape
from steprl.ops.losses import _clamp, log_ratio, policy_loss
from steprl.ops.returns import reverse_recurrence
from steprl.ops.segments import as_float, masked_mean


def appo_future_value(
    log_ratio_t: jax.Array,
    step_ids_t: jax.Array,
    gamma: float | jax.Array = 1.0,
    clip: float | None = 0.2,
) -> jax.Array:
    """How much more likely one policy makes the rest of a response than another does.

        F_t = sum_{k >= t} γ^(k - t) d_k,   w_t = clip(exp(clip(F_t, -20, 20)), 1 - clip, 1 + clip)

    The future value of APPO (https://arxiv.org/abs/2606.12384). The distance k - t counts masked
    tokens too. Where the policies agree, w = 1.

    Args:
        log_ratio_t: [T] d, log-probability of each token under the one minus under the other.
        step_ids_t: [T] step of each token, -1 where masked.
        gamma: discount a token.
        clip: largest distance from 1; None or 0 is without.

    Returns:
        [T] float, 0 at masked tokens.

    Raises:
        ValueError: `clip` is negative, or the ids cannot be step ids.
        AssertionError: an input is batched (use `jax.vmap`), or the shapes differ.

    Note:
        The reference has numbers at masked tokens too; nothing reads them.

    Example:
        >>> import jax.numpy as jnp
        >>> d, ids = jnp.log(jnp.array([2.0, 7.0, 0.5])), jnp.array([0, -1, 0])
        >>> print(appo_future_value(d, ids, clip=None))
        [1.  0.  0.5]
    """
    if clip is not None and clip < 0:
        raise ValueError(f"clip={clip!r} must not be negative")
    check_row_step_ids(step_ids_t)
    chex.assert_equal_shape([log_ratio_t, step_ids_t])
    active_t = step_ids_t >= 0
    future_t = reverse_recurrence(jnp.where(active_t, as_float(log_ratio_t), 0), gamma)
    value_t = jnp.exp(_clamp(future_t, -20.0, 20.0))
    if clip:
        value_t = _clamp(value_t, 1 - clip, 1 + clip)
    return jnp.where(active_t, value_t, 0)


def future_kl_weights(
    log_ratio_t: jax.Array,
    advantage_t: jax.Array,
    step_ids_t: jax.Array,
    *,
    decay: float = 128,
    clip: float = 0.2,
    high_only: bool = False,
    safety: float = 4.0,
    dual_clip: float = 3.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Influence of each token on how likely the rest of the response has become.

        x_t = d_t where d_t <= ln(dual_clip), else 0
        F_t = sum_{k >= t} 2^(-(k - t) / decay) x_k,   w_t = clip(exp(F_t), low, 1 + clip)
        low = 1 - clip, or 1 where high_only;   clip = 0:   w_t = min(exp(F_t), 10)
        where A_t < 0 and exp(d_t) > safety:   w_t <- clip(w_t, 0.8, 1)

    Future-KL weights of FIPO (https://arxiv.org/abs/2603.19835) as APPO
    (https://arxiv.org/abs/2606.12384) uses them. The distance k - t counts masked tokens too.

    Args:
        log_ratio_t: [T] or [N, T] d, see `log_ratio` at level "token".
        advantage_t: same shape, A; only its sign matters.
        step_ids_t: same shape, step of each token, -1 where masked.
        decay: tokens after which a ratio counts half.
        clip: largest distance from 1; 0 leaves the cap at 10 alone.
        high_only: no weight is below 1.
        safety: ratio above which a bad token gets no extra weight.
        dual_clip: ratio above which a token is left out of the sums.

    Returns:
        Weights of the same shape, 0 at masked tokens, without gradient, and metrics under the names
        of the reference: `fipo_iw_mean`, `_min`, `_max` of the weights, `fipo_iw_clip_upper`,
        `_lower`, `_total` (shares of active tokens whose weight is at a bound),
        `fipo_iw_raw_mean`, `_min`, `_max` of exp(F).

    Raises:
        ValueError: `decay`, `clip` or `dual_clip` is out of range, the ids cannot be step ids, or the
            shapes differ.

    Note:
        The reference multiplies with T x T matrices, in chunks; here it is one scan. F is capped at
        60, beyond every bound on w, so that the metrics of exp(F) stay finite.

    Example:
        >>> import jax.numpy as jnp
        >>> d, ids = jnp.log(jnp.array([2.0, 0.25, 7.0])), jnp.array([0, 0, -1])
        >>> print(future_kl_weights(d, jnp.ones(3), ids, decay=1, clip=0.5)[0].round(3))
        [1.  0.5 0. ]
    """
    if not decay > 0 or clip < 0 or not dual_clip > 1:
        raise ValueError(
            f"decay={decay!r} must be positive, clip={clip!r} not negative, "
            f"dual_clip={dual_clip!r} above 1"
        )
    check_same_shape(log_ratio_t=log_ratio_t, advantage_t=advantage_t, step_ids_t=step_ids_t)
    active_t = active_tokens(step_ids_t)
    log_ratio_t = jax.lax.stop_gradient(jnp.where(active_t, as_float(log_ratio_t), 0))
    negative_t = jnp.where(active_t, advantage_t, 0) < 0

    counted_t = jnp.where(log_ratio_t <= math.log(dual_clip), log_ratio_t, 0)
    future = reverse_recurrence(jnp.moveaxis(counted_t, -1, 0), 2.0 ** (-1.0 / decay))
    raw_t = jnp.exp(_clamp(jnp.moveaxis(future, 0, -1), None, 60.0))
    low, high = (1.0 if high_only else 1.0 - clip, 1.0 + clip) if clip else (0.0, 10.0)
    weights_t = _clamp(raw_t, low, high)
    unsafe_t = negative_t & (jnp.exp(log_ratio_t) > safety)
    weights_t = jnp.where(unsafe_t, _clamp(weights_t, 0.8, 1.0), weights_t)
    upper = _share(weights_t >= high - 1e-7, active_t, weights_t.dtype)
    lower = _share(weights_t <= low + 1e-7, active_t, weights_t.dtype)
    metrics = {
        "fipo_iw_mean": masked_mean(weights_t, active_t),
        "fipo_iw_min": _extreme(weights_t, active_t, -1),
        "fipo_iw_max": _extreme(weights_t, active_t, 1),
        "fipo_iw_clip_total": upper + lower,
        "fipo_iw_clip_upper": upper,
        "fipo_iw_clip_lower": lower,
        "fipo_iw_raw_mean": masked_mean(raw_t, active_t),
        "fipo_iw_raw_min": _extreme(raw_t, active_t, -1),
        "fipo_iw_raw_max": _extreme(raw_t, active_t, 1),
    }
    return jnp.where(active_t, weights_t, 0), metrics


def future_kl_policy_loss(
    logprob_t: jax.Array,
    old_logprob_t: jax.Array,
    advantage_t: jax.Array,
    step_ids_t: jax.Array,
    *,
    weight: float | jax.Array = 1.0,
    clip_low: float | jax.Array = 0.2,
    clip_high: float | jax.Array = 0.2,
    dual_clip: float = 3.0,
    decay: float = 128,
    future_clip: float = 0.2,
    high_only: bool = False,
    safety: float = 4.0,
    reduction: str = "token-mean",
    weights_t: jax.Array | None = None,
    rollout_weights_t: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Dual-clip PPO whose advantages grow with the influence of a token.

        A'_t = A_t (1 + weight w_t),   w: `future_kl_weights`
        loss = `policy_loss` of A' at level "token", over the rows in which at most one active token
               has A'_t < 0 and exp(d_t) > dual_clip, that is, a loss cut off by the dual clip

    The loss of APPO (https://arxiv.org/abs/2606.12384), after FIPO
    (https://arxiv.org/abs/2603.19835). With weight 0 it is dual-clip PPO with that row filter. At
    the policy that sampled w is 1, so weight 1 doubles the advantages.

    Args:
        logprob_t: [T] or [N, T] log-probabilities under the policy being trained.
        old_logprob_t: same shape, under the policy that sampled; gradient stopped.
        advantage_t: same shape; gradient stopped.
        step_ids_t: same shape, step of each token, -1 where masked.
        weight: how much the influence counts; not negative.
        clip_low, clip_high, dual_clip: see `policy_loss`.
        decay, future_clip, high_only, safety: see `future_kl_weights`.
        reduction: see `aggregation_weights`, taken over the rows that are left; not used when
            `weights_t` is given.
        weights_t: same shape, `aggregation_weights` of the whole mini-batch. They are made before it
            is known which rows are dropped: dropped rows weigh 0, and the others keep their weight.
        rollout_weights_t: see `policy_loss`.

    Returns:
        The loss, and the metrics of `policy_loss` and `future_kl_weights` (over all active tokens,
        dropped rows included), `fipo_iw_weight` (the argument) and `fipo_rows_dropped` (share of
        the rows with active tokens).

    Raises:
        ValueError: see `policy_loss` and `future_kl_weights`.

    Note:
        With every row dropped, the loss and its gradient are 0. No gradient flows through w.

    Example:
        >>> import jax.numpy as jnp
        >>> logprob, ids = jnp.log(jnp.array([0.8, 0.1])), jnp.array([0, 0])
        >>> loss, metrics = future_kl_policy_loss(logprob, logprob, jnp.ones(2), ids)
        >>> print(loss, metrics["fipo_iw_mean"])
        -2.0 1.0
    """
    check_same_shape(logprob_t=logprob_t, advantage_t=advantage_t, weights_t=weights_t)
    log_ratio_t = log_ratio(logprob_t, old_logprob_t, step_ids_t, "token")
    active_t = jnp.asarray(step_ids_t) >= 0
    influence_t, metrics = future_kl_weights(
        log_ratio_t,
        advantage_t,
        step_ids_t,
        decay=decay,
        clip=future_clip,
        high_only=high_only,
        safety=safety,
        dual_clip=dual_clip,
    )
    advantage_t = jnp.where(active_t, as_float(advantage_t), 0) * (1 + weight * influence_t)

    # Where the ratio is above dual_clip > 1, the clipped surrogate is -A' ratio, above -A' dual_clip.
    ratio_t = jnp.exp(jax.lax.stop_gradient(log_ratio_t))
    cut_t = active_t & (advantage_t < 0) & (ratio_t > dual_clip)
    dropped = jnp.sum(cut_t, axis=-1, keepdims=True, dtype=jnp.int32) > 1
    kept_t = active_t & ~dropped
    if weights_t is None:
        kept_ids_t = jnp.where(kept_t, step_ids_t, -1)
        weights_t = aggregation_weights(kept_ids_t, reduction, dtype=ratio_t.dtype)
    loss, policy_metrics = policy_loss(
        logprob_t,
        old_logprob_t,
        advantage_t,
        step_ids_t,
        level="token",
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        weights_t=jnp.where(kept_t, weights_t, 0),
        rollout_weights_t=rollout_weights_t,
    )
    too_high_t = (advantage_t > 0) & (ratio_t > 1 + clip_high)
    too_low_t = (advantage_t < 0) & (ratio_t < 1 - clip_low)
    occupied = jnp.any(active_t, axis=-1, keepdims=True)
    metrics |= policy_metrics | {
        # The shares of `policy_loss`, in the precision of the ratio.
        "pg_clipfrac": _share(too_high_t | too_low_t, active_t, ratio_t.dtype),
        "pg_clipfrac_lower": _share(cut_t, active_t, ratio_t.dtype),
        "fipo_iw_weight": jnp.asarray(weight, ratio_t.dtype),
        "fipo_rows_dropped": _share(dropped, occupied, ratio_t.dtype),
    }
    return loss, metrics


def _share(holds: jax.Array, where: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return masked_mean(holds.astype(dtype), where)


def _extreme(x: jax.Array, where: jax.Array, sign: int) -> jax.Array:
    """Largest (sign 1) or smallest (sign -1) selected element; 0 where there is none."""
    largest = jnp.max(jnp.where(where, sign * x, -jnp.inf), initial=-jnp.inf)
    return jnp.where(jnp.any(where), sign * largest, 0)
