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

from steprl.ops.checks import check_one_of, check_step_ids
from steprl.ops.segments import AxisName, _psum, as_float, masked_sum, step_starts

REDUCTIONS = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
    "step-mean-token-sum",
    "step-mean-token-mean",
)


def aggregation_weights(
    step_ids_t: jax.Array,
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
        step_ids_t: [T] or [N, T] step of each token, -1 where masked; ids need only differ between
            steps of one row.
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
        [T] or [N, T] weights, 0 at masked tokens.

    Raises:
        ValueError: `reduction` is unknown, or the array is of another rank or cannot be step ids.

    Note:
        Where everything is masked all weights are 0, so the loss is 0; verl's first three
        reductions give NaN. verl adds 1e-8 to the token count of a row, which is a relative 1e-8.

    Example:
        >>> import jax.numpy as jnp
        >>> ids = jnp.array([0, 0, -1, 1])
        >>> print(aggregation_weights(ids, "step-mean-token-mean"))
        [0.25 0.25 0.   0.5 ]
    """
    check_one_of("reduction", reduction, REDUCTIONS)
    active_t = active_tokens(step_ids_t)
    active_nt = active_t if active_t.ndim == 2 else active_t[None]
    weight_nt = active_nt.astype(dtype)

    def count(override: float | jax.Array | None, counted: jax.Array) -> jax.Array:
        number = jnp.maximum(_psum(counted, axis_name), 1) if override is None else override
        return jnp.asarray(number, dtype) / dp_size

    tokens_n = jnp.sum(active_nt, axis=-1, dtype=jnp.int32)
    if reduction == "token-mean":
        weight_nt = weight_nt / count(batch_num_tokens, jnp.sum(tokens_n))
    elif reduction == "seq-mean-token-sum-norm":
        length = active_nt.shape[-1] if loss_scale_factor is None else loss_scale_factor
        weight_nt = weight_nt / jnp.maximum(jnp.asarray(length, dtype), 1)
    elif reduction.startswith("step-"):
        step_ids_nt = step_ids_t if step_ids_t.ndim == 2 else step_ids_t[None]
        starts_nt = jax.vmap(step_starts)(step_ids_nt)
        if reduction == "step-mean-token-mean":
            tokens_of_step_nt = jax.vmap(_tokens_of_step)(local_step_ids(step_ids_nt))
            weight_nt = weight_nt / jnp.maximum(tokens_of_step_nt, 1).astype(dtype)
        weight_nt = weight_nt / count(global_num_steps, jnp.sum(starts_nt, dtype=jnp.int32))
    else:
        if reduction == "seq-mean-token-mean":
            weight_nt = weight_nt / jnp.maximum(tokens_n, 1).astype(dtype)[:, None]
        rows = jnp.sum(tokens_n > 0, dtype=jnp.int32)
        weight_nt = weight_nt / count(global_batch_size, rows)
    return weight_nt.reshape(active_t.shape)


def aggregate(
    x_t: jax.Array,
    step_ids_t: jax.Array,
    reduction: str = "token-mean",
    *,
    weights_t: jax.Array | None = None,
    dp_size: float | jax.Array = 1,
    batch_num_tokens: float | jax.Array | None = None,
    global_batch_size: float | jax.Array | None = None,
    global_num_steps: float | jax.Array | None = None,
    loss_scale_factor: float | jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Aggregate one number a token to one number: sum(weights * x).

    Args:
        x_t: [T] or [N, T] numbers; masked ones are never read.
        step_ids_t: same shape, step of each token, -1 where masked.
        reduction: see the table at the head of this module; not used when `weights_t` is given.
        weights_t: same shape, from `aggregation_weights` of the whole mini-batch.
        dp_size, batch_num_tokens, global_batch_size, global_num_steps, loss_scale_factor: see
            `aggregation_weights`.
        axis_name: mapped axis to sum over as well.

    Returns:
        [] float.

    Raises:
        ValueError: see `aggregation_weights`.
        AssertionError: the shapes differ.

    Note:
        NaN at a masked token is harmless in every reduction; in verl only in token-mean.
        With `axis_name` this is a number to report. To train over devices, take `weights_t` made
        with `axis_name`, differentiate the local sum and add the gradients once: differentiating
        through the sum over devices counts each device's gradient many times under pmap.

    Example:
        >>> import jax.numpy as jnp
        >>> x, ids = jnp.array([1.0, 3.0, jnp.nan, 8.0]), jnp.array([0, 0, -1, 1])
        >>> print(aggregate(x, ids, "token-mean"), aggregate(x, ids, "step-mean-token-mean"))
        4.0 5.0
    """
    x_t = as_float(x_t)
    active_t = active_tokens(step_ids_t)
    if weights_t is None:
        weights_t = aggregation_weights(
            step_ids_t,
            reduction,
            dp_size=dp_size,
            batch_num_tokens=batch_num_tokens,
            global_batch_size=global_batch_size,
            global_num_steps=global_num_steps,
            loss_scale_factor=loss_scale_factor,
            axis_name=axis_name,
            dtype=x_t.dtype,
        )
    return masked_sum(jnp.where(active_t, x_t, 0) * weights_t, active_t, axis_name=axis_name)


def active_tokens(step_ids_t: jax.Array) -> jax.Array:
    """[T] or [N, T] step ids -> bool, True at active tokens; what cannot be step ids is refused."""
    if step_ids_t.ndim not in (1, 2):
        raise ValueError(f"step_ids_t must be of shape [T] or [N, T], got {step_ids_t.shape}")
    check_step_ids(step_ids_t)
    return jnp.asarray(step_ids_t) >= 0


def local_step_ids(step_ids_t: jax.Array) -> jax.Array:
    """Renumber the steps of each row 0, 1, ... so that a table of T entries holds them."""
    if step_ids_t.ndim == 2:
        return jax.vmap(local_step_ids)(step_ids_t)
    number_t = jnp.cumsum(step_starts(step_ids_t), dtype=jnp.int32) - 1
    return jnp.where(step_ids_t >= 0, number_t, -1)


def _tokens_of_step(local_t: jax.Array) -> jax.Array:
    """Number of tokens of each token's step, 0 at masked tokens."""
    slot_t = jnp.where(local_t >= 0, local_t, local_t.shape[0])
    size_s = jax.ops.segment_sum(jnp.ones_like(slot_t), slot_t, local_t.shape[0] + 1)
    return jnp.where(local_t >= 0, size_s[slot_t], 0)
