"""What the functions refuse at their head: step ids that are none, unknown names, other shapes."""

import warnings
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_step_ids(step_ids: jax.Array, argument: str = "step_ids_t") -> None:
    """Refuse what cannot be step ids, a mask above all.

    Args:
        step_ids: [T] or [N, T]; the values of a tracer are not seen.
        argument: its name in the caller.

    Raises:
        ValueError: the array is not of signed integers, or the tokens of its steps are interleaved.
    """
    remedy = "use step_ids_from_mask(mask)" + (" under jax.vmap" if step_ids.ndim == 2 else "")
    if step_ids.dtype == jnp.bool_:
        raise ValueError(f"{argument} is a bool mask, which does not tell steps apart; {remedy}")
    if not jnp.issubdtype(step_ids.dtype, jnp.signedinteger):
        raise ValueError(
            f"{argument} must be signed integers, -1 where a token was not sampled, "
            f"got {step_ids.dtype}; if it is a mask, {remedy}"
        )
    if isinstance(step_ids, jax.core.Tracer):
        return
    if isinstance(step_ids, jax.Array) and not step_ids.is_fully_addressable:
        return  # parts of it lie on other hosts
    ids_nt = np.atleast_2d(np.asarray(step_ids))
    row_a, _ = np.nonzero(ids_nt >= 0)
    id_a = ids_nt[ids_nt >= 0]  # of the active tokens, row by row, as row_a
    begins_a = np.ones(id_a.shape, bool)
    begins_a[1:] = (id_a[1:] != id_a[:-1]) | (row_a[1:] != row_a[:-1])
    runs = np.stack([row_a[begins_a], id_a[begins_a]])
    if len(np.unique(runs, axis=1).T) < len(runs.T):
        raise ValueError(
            f"{argument} interleaves the tokens of its steps: an id comes back after that of another "
            f"step in the same row, as in a mask of 0 and 1; if it is one, {remedy}"
        )
    if id_a.size == ids_nt.size and np.array_equal(np.unique(id_a), [0, 1]):
        warnings.warn(
            f"{argument} holds only 0 and 1, and no -1: every token counts as sampled, in step 0 or "
            f"step 1. If it is a mask, {remedy}",
            stacklevel=1,  # of this line, so that it is shown once a process
        )


def check_row_step_ids(step_ids_t: jax.Array) -> None:
    """`check_step_ids` of a function on one row, which is lifted by `jax.vmap`.

    Raises:
        AssertionError: the array is not of rank 1.
    """
    chex.assert_rank(step_ids_t, 1)
    check_step_ids(step_ids_t)


def check_one_of(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        ValueError: with the argument, its value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{argument}={value!r} is unknown; allowed: {', '.join(allowed)}")


def check_same_shape(**arrays: jax.Array | None) -> None:
    """Refuse arrays that are not of one shape; None is skipped.

    Raises:
        ValueError: with the shapes by name.
    """
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")
