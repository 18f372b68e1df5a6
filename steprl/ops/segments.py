"""Tokens point at steps: masks, reductions and statistics derived from one integer a token.

Every token row carries `step_ids_t`, an int32 a token: the index, in a table of steps, of the
agent step whose action sampled the token, and -1 for a token that no policy sampled (prompt,
observation, tool output, padding). A token with an id is *active*, one with -1 is *masked*.

Three rules hold in all of `ops`:

* A masked token is never read. It may hold NaN: values are selected before they are used, so that
  neither results nor gradients see it (selecting afterwards would leave 0 * NaN in the gradient).
* The result at a masked token is exactly 0.
* The tokens of one step are not interleaved with the tokens of another one; masked tokens may lie
  between them. Steps may be numbered from any number, so row-local and flat ids both work where
  no table size is given.

A loss mask of 0 and 1 is not step ids: read as such, its 0s are the tokens of step 0, and the prompt
is trained. `step_ids_from_mask` makes ids of it. Wherever ids are taken, a bool array is refused, and
so are ids that break the third rule, as a mask with 0s on both sides of its 1s does. Ids that are
only 0 and 1, without any -1, bring a warning. Values can be seen outside of `jit`, `vmap` and the
like only: inside, an integer mask goes through.

Functions here work on one row [T] and are lifted by `jax.vmap`; the `masked_*` ones take arrays of
any rank. Results are float32 (float64 for float64 input).
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from steprl.ops.checks import check_one_of, check_row_step_ids

Axis = int | Sequence[int] | None
AxisName = str | Sequence[str] | None


def step_ids_from_mask(action_mask_t: jax.Array, starts_t: jax.Array | None = None) -> jax.Array:
    """Number the steps of a row: every contiguous run of action tokens is a step.

    Args:
        action_mask_t: [T] non-zero at tokens the policy sampled.
        starts_t: [T] optional, non-zero at the first token of each step; separates steps that
            touch. A run starts a step whether marked or not; marks at masked tokens are ignored.

    Returns:
        [T] int32: 0, 1, 2, ... in order of appearance, -1 at masked tokens.

    Raises:
        AssertionError: an input is not of rank 1, or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> print(step_ids_from_mask(jnp.array([0, 1, 1, 0, 1])))
        [-1  0  0 -1  1]
        >>> print(step_ids_from_mask(jnp.array([1, 1, 1]), jnp.array([0, 0, 1])))
        [0 0 1]
    """
    chex.assert_rank(action_mask_t, 1)
    active_t = jnp.asarray(action_mask_t).astype(bool)
    begins_t = active_t & ~_shift_right(active_t, False)
    if starts_t is not None:
        chex.assert_equal_shape([action_mask_t, starts_t])
        begins_t |= active_t & jnp.asarray(starts_t).astype(bool)
    return jnp.where(active_t, jnp.cumsum(begins_t, dtype=jnp.int32) - 1, -1)


def step_starts(step_ids_t: jax.Array) -> jax.Array:
    """Mark the first token of each step, the place where the critic is read.

    A token starts a step when its id differs from that of the active token before it; masked tokens
    inside a step do not start it anew.

    Args:
        step_ids_t: [T] step of each token, -1 where masked.

    Returns:
        [T] bool.

    Raises:
        ValueError: the array cannot be step ids, see the head of this module.
        AssertionError: the input is not of rank 1.

    Example:
        >>> import jax.numpy as jnp
        >>> print(step_starts(jnp.array([-1, 0, -1, 0, 1])).astype(int))
        [0 1 0 0 1]
    """
    check_row_step_ids(step_ids_t)
    active_t = step_ids_t >= 0
    position_t = jnp.where(active_t, jnp.arange(step_ids_t.shape[0], dtype=jnp.int32), -1)
    before_t = _shift_right(jax.lax.cummax(position_t), -1)  # the last active token before t
    id_before_t = jnp.where(before_t >= 0, step_ids_t[jnp.maximum(before_t, 0)], -1)
    return active_t & (step_ids_t != id_before_t)


def reduce_steps(
    x_t: jax.Array, step_ids_t: jax.Array, num_steps: int, how: str = "sum"
) -> jax.Array:
    """Reduce the tokens of each step to one number.

        y_s = reduce over {t : step_ids_t = s} of x_t

    Args:
        x_t: [T] numbers; masked ones are never read.
        step_ids_t: [T] step of each token in 0 .. num_steps - 1, -1 where masked. Tokens of steps
            outside the table are dropped.
        num_steps: static size S of the table.
        how: "sum", "mean" (over the tokens of the step), "first" or "last".

    Returns:
        [S] float; 0 for a step without tokens.

    Raises:
        ValueError: `how` is unknown, or the ids cannot be step ids.
        AssertionError: an input is not of rank 1, or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> x, ids = jnp.array([1.0, 9.0, 2.0, 3.0]), jnp.array([0, -1, 0, 2])
        >>> print(reduce_steps(x, ids, 3), reduce_steps(x, ids, 3, "mean"))
        [3. 0. 3.] [1.5 0.  3. ]
    """
    check_one_of("how", how, ("sum", "mean", "first", "last"))
    check_row_step_ids(step_ids_t)
    chex.assert_equal_shape([x_t, step_ids_t])
    num_tokens = x_t.shape[0]
    # Row S collects what belongs to no step; negative indices would otherwise wrap around.
    slot_t = jnp.where((step_ids_t >= 0) & (step_ids_t < num_steps), step_ids_t, num_steps)
    x_t = jnp.where(slot_t < num_steps, as_float(x_t), 0)

    if how in ("sum", "mean"):
        sum_s = jax.ops.segment_sum(x_t, slot_t, num_steps + 1)[:num_steps]
        if how == "sum":
            return sum_s
        ones_t = jnp.ones((num_tokens,), jnp.int32)
        count_s = jax.ops.segment_sum(ones_t, slot_t, num_steps + 1)[:num_steps]
        return sum_s / jnp.maximum(count_s, 1).astype(x_t.dtype)

    if num_tokens == 0:
        return jnp.zeros((num_steps,), x_t.dtype)
    pick = jax.ops.segment_min if how == "first" else jax.ops.segment_max
    # An empty segment yields the identity of min or max, which lies outside the row.
    position_s = pick(jnp.arange(num_tokens, dtype=jnp.int32), slot_t, num_steps + 1)[:num_steps]
    occupied_s = (position_s >= 0) & (position_s < num_tokens)
    return jnp.where(occupied_s, x_t[jnp.clip(position_s, 0, num_tokens - 1)], 0)


def broadcast_steps(x_s: jax.Array, step_ids_t: jax.Array, fill: float = 0.0) -> jax.Array:
    """Give every token the number of its step.

        y_t = x_{step_ids_t} at active tokens, `fill` elsewhere

    Args:
        x_s: [S] one number a step.
        step_ids_t: [T] step of each token in 0 .. S - 1, -1 where masked.
        fill: value of masked tokens, and of tokens whose step is outside the table.

    Returns:
        [T] float.

    Raises:
        ValueError: the ids cannot be step ids.
        AssertionError: an input is not of rank 1.

    Example:
        >>> import jax.numpy as jnp
        >>> print(broadcast_steps(jnp.array([5.0, 7.0]), jnp.array([-1, 0, 0, 1])))
        [0. 5. 5. 7.]
    """
    chex.assert_rank(x_s, 1)
    check_row_step_ids(step_ids_t)
    x_s = as_float(x_s)
    num_steps = x_s.shape[0]
    if num_steps == 0:
        return jnp.full(step_ids_t.shape, fill, x_s.dtype)
    inside_t = (step_ids_t >= 0) & (step_ids_t < num_steps)
    return jnp.where(inside_t, x_s[jnp.clip(step_ids_t, 0, num_steps - 1)], fill)


def masked_sum(
    x: jax.Array, where: jax.Array, axis: Axis = None, axis_name: AxisName = None
) -> jax.Array:
    """Sum of the selected elements; 0 where none is selected.

        sum_i m_i x_i

    Args:
        x: [...] numbers; elements that are not selected are never read.
        where: [...] same shape, non-zero where selected.
        axis: axes to reduce; all by default.
        axis_name: mapped axis (pmap, vmap, shard_map) to sum over as well.

    Returns:
        The reduced float array.

    Raises:
        AssertionError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> print(masked_sum(jnp.array([1.0, jnp.nan, 2.0]), jnp.array([1, 0, 1])))
        3.0
    """
    chex.assert_equal_shape([x, where])
    selected = jnp.where(jnp.asarray(where).astype(bool), as_float(x), 0)
    return _psum(jnp.sum(selected, axis=axis), axis_name)


def masked_mean(
    x: jax.Array, where: jax.Array, axis: Axis = None, axis_name: AxisName = None
) -> jax.Array:
    """Mean of the selected elements; the denominator is their number, over all devices.

        sum_i m_i x_i / max(1, sum_i m_i)

    Args:
        x: [...] numbers; elements that are not selected are never read.
        where: [...] same shape, non-zero where selected.
        axis: axes to reduce; all by default.
        axis_name: mapped axis to average over as well.

    Returns:
        The reduced float array; 0 where nothing is selected.

    Raises:
        AssertionError: the shapes differ.

    Note:
        verl divides by `n + 1e-8`; the two agree to a relative 1e-8.

    Example:
        >>> import jax.numpy as jnp
        >>> print(masked_mean(jnp.array([1.0, 9.0, 2.0]), jnp.array([1, 0, 1])))
        1.5
    """
    total = masked_sum(x, where, axis, axis_name)
    count = _count(where, axis, axis_name, keepdims=False)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def masked_variance(
    x: jax.Array,
    where: jax.Array,
    axis: Axis = None,
    axis_name: AxisName = None,
    *,
    ddof: int = 0,
) -> jax.Array:
    """Variance of the selected elements, in two passes.

        sum_i m_i (x_i - mean)^2 / (n - ddof),   n = sum_i m_i

    Args:
        x: [...] numbers; elements that are not selected are never read.
        where: [...] same shape, non-zero where selected.
        axis: axes to reduce; all by default.
        axis_name: mapped axis to reduce over as well.
        ddof: 0 for the population variance, 1 for Bessel's correction.

    Returns:
        The reduced float array; 0 where n <= ddof.

    Raises:
        AssertionError: the shapes differ.

    Note:
        verl's `masked_var` raises for n in {0, 1}; ours is 0 there, so that it can be compiled.

    Example:
        >>> import jax.numpy as jnp
        >>> print(masked_variance(jnp.array([1.0, 9.0, 3.0]), jnp.array([1, 0, 1]), ddof=1))
        2.0
    """
    chex.assert_equal_shape([x, where])
    selected = jnp.asarray(where).astype(bool)
    deviation, _, _ = _center(as_float(x), selected, axis, axis_name)
    count = _count(selected, axis, axis_name, keepdims=False)
    total = _psum(jnp.sum(jnp.square(deviation), axis=axis), axis_name)
    return total / jnp.maximum(count - ddof, 1).astype(total.dtype)


def masked_whiten(
    x: jax.Array,
    where: jax.Array,
    axis: Axis = None,
    axis_name: AxisName = None,
    *,
    ddof: int = 1,
    epsilon: float = 1e-8,
    epsilon_at: str = "variance",
    shift_mean: bool = True,
) -> jax.Array:
    """Scale the selected elements to mean 0 and standard deviation 1.

        (x - mean) / sqrt(variance + epsilon)      epsilon_at="variance": verl's masked_whiten
        (x - mean) / (sqrt(variance) + epsilon)    epsilon_at="std": StepPO over steps, GRPO

    Args:
        x: [...] numbers; elements that are not selected are never read.
        where: [...] same shape, non-zero where selected.
        axis: axes whose elements share statistics; all by default.
        axis_name: mapped axis that shares statistics as well.
        ddof: 1 for the sample variance (both references), 0 for the population variance.
        epsilon: added to the variance or to the standard deviation.
        epsilon_at: "variance" or "std".
        shift_mean: False adds the mean back.

    Returns:
        [...] float, 0 where not selected.

    Raises:
        ValueError: `epsilon_at` is unknown.
        AssertionError: the shapes differ.

    Note:
        Differs from both references in three places. Elements that are not selected become 0
        (verl transforms them too). One element gives 0 (NaN in StepPO's step form, an error in
        verl's). Equal elements give exactly 0: elements whose range is within 8 roundings of the
        largest magnitude count as equal, where the references divide that rounding residue by
        epsilon and return numbers of order one.

    Example:
        >>> import jax.numpy as jnp
        >>> print(masked_whiten(jnp.array([1.0, 3.0, 5.0, jnp.nan]), jnp.array([1, 1, 1, 0])))
        [-1.  0.  1.  0.]
        >>> print(masked_whiten(jnp.full((3,), 0.1), jnp.ones((3,)), epsilon_at="std"))
        [0. 0. 0.]
    """
    check_one_of("epsilon_at", epsilon_at, ("variance", "std"))
    chex.assert_equal_shape([x, where])
    selected = jnp.asarray(where).astype(bool)
    deviation, mean, constant = _center(as_float(x), selected, axis, axis_name)
    count = _count(selected, axis, axis_name, keepdims=True)
    total = _psum(jnp.sum(jnp.square(deviation), axis=axis, keepdims=True), axis_name)
    variance = total / jnp.maximum(count - ddof, 1).astype(total.dtype)

    # The root of zero has an infinite gradient: where it would be taken, take that of one.
    variance = jnp.where(constant, 1, variance)
    if epsilon_at == "variance":
        scale = jax.lax.rsqrt(variance + epsilon)
    else:
        scale = 1 / (jnp.sqrt(variance) + epsilon)
    scale, mean = jnp.broadcast_arrays(jnp.where(constant, 0, scale), mean)
    whitened = deviation * jnp.broadcast_to(scale, deviation.shape)
    if not shift_mean:
        whitened = whitened + jnp.broadcast_to(mean, deviation.shape)
    return jnp.where(selected, whitened, 0)


def as_float(x: jax.Array) -> jax.Array:
    """Widen to float32 (bfloat16, integers, bools); float64 stays."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _center(
    x: jax.Array, selected: jax.Array, axis: Axis, axis_name: AxisName
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Deviation from the mean (0 where not selected), the mean, and whether all are equal."""
    # Everything is measured from the smallest element, so equal elements leave no residue at all,
    # however many there are and in whatever order they are added.
    origin_x = jax.lax.stop_gradient(x)
    low = jnp.min(jnp.where(selected, origin_x, jnp.inf), axis, keepdims=True, initial=jnp.inf)
    high = jnp.max(jnp.where(selected, origin_x, -jnp.inf), axis, keepdims=True, initial=-jnp.inf)
    if axis_name is not None:
        low, high = jax.lax.pmin(low, axis_name), jax.lax.pmax(high, axis_name)
    occupied = low <= high
    low, high = jnp.where(occupied, low, 0), jnp.where(occupied, high, 0)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))

    count = _count(selected, axis, axis_name, keepdims=True)
    above = jnp.where(selected, x, low) - low
    total = _psum(jnp.sum(above, axis=axis, keepdims=True), axis_name)
    mean_above = total / jnp.maximum(count, 1).astype(x.dtype)
    deviation = jnp.where(selected, above - mean_above, 0)
    return deviation, low + mean_above, high - low <= rounding


def _count(where: jax.Array, axis: Axis, axis_name: AxisName, keepdims: bool) -> jax.Array:
    """Number of selected elements, in integers: float32 stops counting at 2**24."""
    selected = jnp.asarray(where).astype(bool)
    return _psum(jnp.sum(selected, axis=axis, dtype=jnp.int32, keepdims=keepdims), axis_name)


def _psum(x: jax.Array, axis_name: AxisName) -> jax.Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _shift_right(x_t: jax.Array, first: bool | int) -> jax.Array:
    head = jnp.full((min(1, x_t.shape[0]),), first, x_t.dtype)
    return jnp.concatenate([head, x_t[:-1]])
