"""From one loss a token to one number: aggregation as explicit weights, loss = sum(weights * x).

Writing the aggregation as weights makes it independent of how a mini-batch is cut: compute the
weights once for the whole mini-batch, then the sum over micro-batches (or devices) of the weighted
sums, and of their gradients, is exactly the aggregate of the mini-batch.

| reduction | weight of an active token | verl |
|---|---|---|
| token-mean | 1 / active tokens | yes |
| seq-mean-token-sum | 1 / non-empty rows | yes |
| seq-mean-token-mean | 1 / (active tokens of the row * non-empty rows) | yes |
| seq-mean-token-sum-norm | 1 / row length | yes |
| step-mean-token-sum | 1 / steps | |
| step-mean-token-mean | 1 / (active tokens of the step * steps) | |

The two `step-` reductions weigh every agent step the same in any layout; a reference that stores
one row a step gets the same from its `seq-` reductions.
"""

import jax
import jax.numpy as jnp

from steprl.ops.segments import AxisName, _check_one_of, _psum, as_float, masked_sum, step_starts

REDUCTIONS = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
    "step-mean-token-sum",
    "step-mean-token-mean",
)


def aggregation_weights(
    step_ids: jax.Array,
    reduction: str = "token-mean",
    *,
    dp_size: float | jax.Array = 1,
    batch_num_tokens: float | jax.Array | None = None,
    global_batch_size: float | jax.Array | None = None,
    global_num_steps: float | jax.Array | None = None,
    loss_scale_factor: float | jax.Array | None = None,
    axis_name: AxisName = None,
    dtype: jnp.dtype | type = jnp.float32,
) -> jax.Array:
    """Weight of each token in the loss, such that loss = sum(weights * x).

    Args:
        step_ids: [T] or [N, T] step of each token, -1 where dark; ids need only differ between
            steps of one row. Or a bool array, True where active (an integer array is always step
            ids: in it, 0 is a step).
        reduction: see the table at the head of this module.
        dp_size: factor on the weights, for a caller that averages gradients over this many
            replicas (ignored by seq-mean-token-sum-norm, as in verl).
        batch_num_tokens: replaces the counted active tokens in token-mean.
        global_batch_size: replaces the counted non-empty rows in the two `seq-mean-` reductions.
        global_num_steps: replaces the counted steps in the two `step-mean-` reductions.
        loss_scale_factor: replaces the row length in seq-mean-token-sum-norm.
        axis_name: mapped axis over whose devices tokens, rows and steps are counted.
        dtype: of the result.

    Returns:
        [T] or [N, T] weights, 0 at dark tokens.

    Raises:
        ValueError: `reduction` is unknown, or needs step ids and got a bool array; the array is of
            another rank or type.

    Note:
        Where everything is dark all weights are 0, so the loss is 0; verl's first three
        reductions give NaN. verl adds 1e-8 to the token count of a row, which is a relative 1e-8.

    Example:
        >>> import jax.numpy as jnp
        >>> ids = jnp.array([0, 0, -1, 1])
        >>> print(aggregation_weights(ids, "step-mean-token-mean"))
        [0.25 0.25 0.   0.5 ]
    """
    _check_one_of("reduction", reduction, REDUCTIONS)
    active = active_tokens(step_ids)
    by_step = reduction.startswith("step-")
    if by_step and step_ids.dtype == jnp.bool_:
        raise ValueError(f"reduction={reduction!r} needs integer step ids, got a bool mask")
    active_nt = active if active.ndim == 2 else active[None]
    weight_nt = active_nt.astype(dtype)

    def count(given: float | jax.Array | None, counted: jax.Array) -> jax.Array:
        number = jnp.maximum(_psum(counted, axis_name), 1) if given is None else given
        return jnp.asarray(number, dtype) / dp_size

    tokens_n = jnp.sum(active_nt, axis=-1, dtype=jnp.int32)
    if reduction == "token-mean":
        weight_nt = weight_nt / count(batch_num_tokens, jnp.sum(tokens_n))
    elif reduction == "seq-mean-token-sum-norm":
        length = active_nt.shape[-1] if loss_scale_factor is None else loss_scale_factor
        weight_nt = weight_nt / jnp.maximum(jnp.asarray(length, dtype), 1)
    elif by_step:
        ids_nt = step_ids if step_ids.ndim == 2 else step_ids[None]
        starts_nt = jax.vmap(step_starts)(ids_nt)
        if reduction == "step-mean-token-mean":
            tokens_of_step_nt = jax.vmap(_tokens_of_step)(local_step_ids(ids_nt))
            weight_nt = weight_nt / jnp.maximum(tokens_of_step_nt, 1).astype(dtype)
        weight_nt = weight_nt / count(global_num_steps, jnp.sum(starts_nt, dtype=jnp.int32))
    else:
        if reduction == "seq-mean-token-mean":
            weight_nt = weight_nt / jnp.maximum(tokens_n, 1).astype(dtype)[:, None]
        rows = jnp.sum(tokens_n > 0, dtype=jnp.int32)
        weight_nt = weight_nt / count(global_batch_size, rows)
    return weight_nt.reshape(active.shape)


def aggregate(
    x: jax.Array,
    step_ids: jax.Array,
    reduction: str = "token-mean",
    *,
    weights: jax.Array | None = None,
    dp_size: float | jax.Array = 1,
    batch_num_tokens: float | jax.Array | None = None,
    global_batch_size: float | jax.Array | None = None,
    global_num_steps: float | jax.Array | None = None,
    loss_scale_factor: float | jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Aggregate one number a token to one number: sum(weights * x).

    Args:
        x: [T] or [N, T]; dark tokens are never read.
        step_ids: same shape: step ids, or a bool mask; see `aggregation_weights`.
        reduction: see the table at the head of this module; not used when `weights` is given.
        weights: same shape, from `aggregation_weights` of the whole mini-batch.
        dp_size, batch_num_tokens, global_batch_size, global_num_steps, loss_scale_factor: see
            `aggregation_weights`.
        axis_name: mapped axis to sum over as well.

    Returns:
        [] float.

    Raises:
        ValueError: see `aggregation_weights`.
        AssertionError: the shapes differ.

    Note:
        NaN at a dark token is harmless in every reduction; in verl only in token-mean.
        With `axis_name` this is a number to report. To train over devices, take `weights` made
        with `axis_name`, differentiate the local sum and add the gradients once: differentiating
        through the sum over devices counts each device's gradient many times under pmap.

    Example:
        >>> import jax.numpy as jnp
        >>> x, ids = jnp.array([1.0, 3.0, jnp.nan, 8.0]), jnp.array([0, 0, -1, 1])
        >>> print(aggregate(x, ids, "token-mean"), aggregate(x, ids, "step-mean-token-mean"))
        4.0 5.0
    """
    x = as_float(x)
    active = active_tokens(step_ids)
    if weights is None:
        weights = aggregation_weights(
            step_ids,
            reduction,
            dp_size=dp_size,
            batch_num_tokens=batch_num_tokens,
            global_batch_size=global_batch_size,
            global_num_steps=global_num_steps,
            loss_scale_factor=loss_scale_factor,
            axis_name=axis_name,
            dtype=x.dtype,
        )
    return masked_sum(jnp.where(active, x, 0) * weights, active, axis_name=axis_name)


def active_tokens(step_ids: jax.Array) -> jax.Array:
    """[T] or [N, T] step ids or bool mask -> bool, True at active tokens."""
    if step_ids.ndim not in (1, 2):
        raise ValueError(f"step_ids must be of shape [T] or [N, T], got {step_ids.shape}")
    if step_ids.dtype == jnp.bool_:
        return jnp.asarray(step_ids)
    if not jnp.issubdtype(step_ids.dtype, jnp.signedinteger):
        raise ValueError(f"step_ids must be signed integers or bool, got {step_ids.dtype}")
    return jnp.asarray(step_ids) >= 0


def local_step_ids(step_ids: jax.Array) -> jax.Array:
    """Renumber the steps of each row 0, 1, ... so that a table of T entries holds them."""

    def row(step_ids_t: jax.Array) -> jax.Array:
        number_t = jnp.cumsum(step_starts(step_ids_t), dtype=jnp.int32) - 1
        return jnp.where(step_ids_t >= 0, number_t, -1)

    return row(step_ids) if step_ids.ndim == 1 else jax.vmap(row)(step_ids)


def _tokens_of_step(local_t: jax.Array) -> jax.Array:
    """Number of tokens of each token's step, 0 at dark tokens."""
    slot_t = jnp.where(local_t >= 0, local_t, local_t.shape[0])
    size_s = jax.ops.segment_sum(jnp.ones_like(slot_t), slot_t, local_t.shape[0] + 1)
    return jnp.where(local_t >= 0, size_s[slot_t], 0)
