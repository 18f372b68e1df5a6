"""The critic: how much it explains, the scale of what it learns, and values as distributions."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from steprl.ops.aggregation import active_tokens, aggregate
from steprl.ops.checks import check_same_shape
from steprl.ops.returns import RunningMoments, update_running_moments
from steprl.ops.segments import AxisName, as_float, masked_mean, masked_variance

_ROUNDINGS = 32  # a return is a sum over the steps of a trajectory
_REACH = 4.0  # deviations of the Gaussian between the range of values and the last bin
_LEAST_SCALE = 0.1  # of the root mean square


def all_equal(x: jax.Array, where: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Whether the selected numbers are the same up to rounding.

        max x - min x <= 32 ε max |x|,   ε the rounding of the type

    Args:
        x: [...] numbers; elements that are not selected are never read.
        where: [...] same shape, non-zero where selected.
        axis_name: mapped axis whose devices hold further numbers.

    Returns:
        [] bool; True where nothing is selected.

    Raises:
        AssertionError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> print(all_equal(jnp.array([0.3, 5.0, 0.1 + 0.2]), jnp.array([1, 0, 1])))
        True
    """
    chex.assert_equal_shape([x, where])
    x, selected = as_float(x), jnp.asarray(where).astype(bool)
    low = jnp.min(jnp.where(selected, x, jnp.inf), initial=jnp.inf)
    high = jnp.max(jnp.where(selected, x, -jnp.inf), initial=-jnp.inf)
    if axis_name is not None:
        low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
    largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    return (low > high) | (high - low <= _ROUNDINGS * jnp.finfo(x.dtype).eps * largest)


def explained_variance(
    value: jax.Array, target: jax.Array, where: jax.Array, axis_name: AxisName = None
) -> jax.Array:
    """Share of the variance of the targets that the values explain; 1 is best.

        1 - Var(target - value) / Var(target)

    Args:
        value: [...] predictions.
        target: [...] same shape, what they should have been.
        where: [...] same shape, non-zero where selected.
        axis_name: mapped axis whose devices hold further numbers.

    Returns:
        [] at most 1, below 0 where a constant would have been better; 0 where there is nothing to
        explain, because the targets are equal up to rounding (`all_equal`).

    Raises:
        AssertionError: the shapes differ.

    Note:
        verl and others divide by Var(target) + 1e-8, which gives large negative numbers where the
        targets are equal.

    Example:
        >>> import jax.numpy as jnp
        >>> value, there = jnp.array([0.0, 1.0]), jnp.ones(2)
        >>> print(explained_variance(value, jnp.array([0.0, 2.0]), there))
        0.75
        >>> print(explained_variance(value, jnp.array([2.0, 2.0]), there))
        0.0
    """
    chex.assert_equal_shape([value, target, where])
    spread = masked_variance(target, where, axis_name=axis_name)
    error = masked_variance(target - value, where, axis_name=axis_name)
    constant = all_equal(target, where, axis_name) | (spread == 0)
    return jnp.where(constant, 0.0, 1.0 - error / jnp.where(constant, 1.0, spread))


# --- The scale of returns --------------------------------------------------------------------------


def recent_moments(
    moments: RunningMoments,
    x: jax.Array,
    where: jax.Array,
    batches: float = 100.0,
    axis_name: AxisName = None,
) -> RunningMoments:
    """`update_running_moments` that forgets: a batch counts for at least 1 / `batches` of the whole.

    Over the first batches these are the moments of all numbers seen, from then on exponential means
    that follow what is learnt, as in PopArt (https://arxiv.org/abs/1602.07714).

    Args:
        moments: the state so far; `RunningMoments(0.0, 0.0, 0.0)` to begin with.
        x: [...] new numbers.
        where: [...] same shape, non-zero where selected.
        batches: how far back the moments reach.
        axis_name: mapped axis whose devices hold further numbers.

    Returns:
        The new moments; the old ones where nothing is selected.

    Raises:
        AssertionError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> seen, one = RunningMoments(0.0, 0.0, 1e6), jnp.ones(1)
        >>> print(recent_moments(seen, jnp.ones(1), one, batches=4.0).mean)
        0.25
    """
    dtype = as_float(x).dtype
    new = jnp.sum(jnp.asarray(where).astype(bool), dtype=dtype)
    if axis_name is not None:
        new = jax.lax.psum(new, axis_name)
    number = jnp.asarray(moments.number, dtype)
    number = jnp.where(new > 0, jnp.minimum(number, (batches - 1) * new), number)
    return update_running_moments(moments._replace(number=number), x, where, axis_name)


def return_scale(moments: RunningMoments) -> jax.Array:
    """What returns are divided by, so that a critic learns numbers of order 1.

        s = max(σ, sqrt(μ² + σ²) / 10),   and 1 where all returns were 0

    The lower bound stands for the fixed one of https://arxiv.org/abs/1809.04474 (1e-4), and
    scales with the returns: without one, rounding would be learnt where all returns are equal.

    Args:
        moments: of the returns.

    Returns:
        [] positive.

    Example:
        >>> print(return_scale(RunningMoments(5.0, 4.0, 10.0)))
        2.0
        >>> print(return_scale(RunningMoments(0.0, 0.0, 0.0)))
        1.0
    """
    mean, variance = (as_float(jnp.asarray(x)) for x in (moments.mean, moments.variance))
    square = jnp.square(mean) + variance
    scale = jnp.sqrt(jnp.maximum(variance, _LEAST_SCALE**2 * square))
    return jnp.where(square > 0, scale, 1.0)


# --- Values as distributions -----------------------------------------------------------------------


class ValueSupport(NamedTuple):
    """The bins of a categorical critic, and how a number is spread over them."""

    low: float  # the range of values
    high: float
    bins: int
    sigma_ratio: float = 0.75  # deviation of the Gaussian around a target, in widths of a bin


def hl_gauss_targets(value: jax.Array, support: ValueSupport) -> jax.Array:
    """Spread each number over bins: the histogram of a Gaussian around it.

        p_z = Φ((e_{z+1} - v) / σ) - Φ((e_z - v) / σ),   divided by their sum

    HL-Gauss of "Stop Regressing" (https://arxiv.org/abs/2403.03950, section 3.1). The mean of the
    histogram (see `hl_gauss_mean`) is the number itself.

    Args:
        value: [...] numbers; those outside the range are moved to its end.
        support: Z bins.

    Returns:
        [..., Z] float32 probabilities; no gradient.

    Raises:
        ValueError: the range is empty, or has too few bins for the width of the Gaussian.

    Note:
        The bins of the paper end where the range ends, which cuts the Gaussian off and moves the
        mean inwards. Ours go on for four deviations on both sides, so that the mean is right up
        to both ends.

    Example:
        >>> import jax.numpy as jnp
        >>> print(hl_gauss_targets(jnp.array(0.0), ValueSupport(-1.0, 1.0, 7, 0.5)).round(3))
        [0.    0.001 0.157 0.683 0.157 0.001 0.   ]
    """
    value = as_float(value)
    edge_e, width = _edges(support, value.dtype)
    value = jnp.clip(value, support.low, support.high)
    value = jax.lax.stop_gradient(value)[..., None]
    below = (_behind(value, edge_e) - value) / (support.sigma_ratio * width)
    mass = jnp.diff(jax.scipy.stats.norm.cdf(below), axis=-1)
    return mass / jnp.sum(mass, axis=-1, keepdims=True)


def hl_gauss_mean(logits_z: jax.Array, support: ValueSupport) -> jax.Array:
    """The value that a categorical critic predicts: the mean of its distribution.

        v = sum_z softmax(l)_z c_z,   c_z the middle of bin z

    https://arxiv.org/abs/2403.03950, eq. 3.

    Args:
        logits_z: [..., Z] of the bins.
        support: Z bins.

    Returns:
        [...] float32 numbers.

    Raises:
        ValueError: as of `hl_gauss_targets`, or the number of logits is another one.

    Example:
        >>> import jax.numpy as jnp
        >>> print(hl_gauss_mean(jnp.zeros(51), ValueSupport(0.0, 1.0, 51)).round(3))
        0.5
    """
    logits_z = as_float(logits_z)
    edge_e, width = _edges(support, logits_z.dtype)
    _check_bins(logits_z, support)
    # Measured from the middle, so that a new critic, of equal logits, is off by rounding at most.
    middle = 0.5 * (support.low + support.high)
    off_z = edge_e[:-1] + 0.5 * width - middle
    prob_z = jax.nn.softmax(logits_z, axis=-1)
    return middle + jnp.sum(prob_z * _behind(prob_z, off_z), axis=-1)


def hl_gauss_loss(
    logits_tz: jax.Array,
    return_t: jax.Array,
    step_ids_t: jax.Array,
    support: ValueSupport,
    *,
    reduction: str = "token-mean",
    weights_t: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of a categorical critic against the histogram of its target.

        l = -sum_z p_z(R) log softmax(l)_z

    https://arxiv.org/abs/2403.03950, eq. 4.

    Args:
        logits_tz: [T, Z] or [N, T, Z] predictions of the critic being trained.
        return_t: [T] or [N, T] targets; no gradient.
        step_ids_t: same shape, step of each token, -1 where masked; see `value_loss`.
        support: Z bins.
        reduction: see `aggregation_weights`; not used when `weights_t` is given.
        weights_t: same shape, `aggregation_weights` of the whole mini-batch.

    Returns:
        The loss, and the metric `vf_outside` (share of the counted tokens whose target lies outside
        the range of the bins).

    Raises:
        ValueError: as of `hl_gauss_mean`; the ids cannot be step ids, or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> target, ids = jnp.array([0.5, 9.0]), jnp.array([0, -1])
        >>> loss, _ = hl_gauss_loss(jnp.zeros((2, 51)), target, ids, ValueSupport(0.0, 1.0, 51))
        >>> print(f"{loss:.3f} {jnp.log(51):.3f}")
        3.932 3.932
    """
    _check_bins(logits_tz, support)
    per_token = logits_tz[..., 0]
    check_same_shape(
        logits_t=per_token, return_t=return_t, step_ids_t=step_ids_t, weights_t=weights_t
    )
    active_t = active_tokens(step_ids_t)
    return_t = jnp.where(active_t, as_float(return_t), support.low)
    outside_t = (return_t < support.low) | (return_t > support.high)
    logits_tz = jnp.where(active_t[..., None], as_float(logits_tz), 0)
    log_prob_tz = jax.nn.log_softmax(logits_tz, axis=-1)
    target_tz = hl_gauss_targets(return_t, support)
    # A bin that the target leaves empty adds nothing, however unlikely the critic finds it.
    loss_t = -jnp.sum(jnp.where(target_tz > 0, target_tz * log_prob_tz, 0.0), axis=-1)
    loss = aggregate(loss_t, step_ids_t, reduction, weights_t=weights_t)
    return loss, {"vf_outside": masked_mean(outside_t, active_t)}


def _edges(support: ValueSupport, dtype: jnp.dtype) -> tuple[jax.Array, float]:
    """[Z + 1] the ends of the bins, and the width of one."""
    low, high, bins, ratio = support
    inner = bins - 2 * _REACH * ratio  # bins that the range itself covers
    if not low < high:
        raise ValueError(f"support: low={low!r} must be below high={high!r}")
    if inner < 1:
        raise ValueError(
            f"support: bins={bins!r} must be at least {1 + 2 * _REACH * ratio:g} with "
            f"sigma_ratio={ratio!r}, whose Gaussian reaches {_REACH * ratio:g} bins beyond the range"
        )
    width = (high - low) / inner
    first, last = low - _REACH * ratio * width, high + _REACH * ratio * width
    return jnp.linspace(first, last, bins + 1, dtype=dtype), width


def _behind(x: jax.Array, of_z: jax.Array) -> jax.Array:
    """A vector laid along the last of as many axes as an array has."""
    return of_z.reshape((1,) * (x.ndim - 1) + of_z.shape)


def _check_bins(logits_z: jax.Array, support: ValueSupport) -> None:
    if logits_z.shape[-1:] != (support.bins,):
        raise ValueError(
            f"logits of shape {logits_z.shape}: the last axis must be the {support.bins} bins of the "
            "support"
        )
