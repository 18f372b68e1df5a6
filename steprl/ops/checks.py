"""Checks at the head of a function: step ids that are something else, unknown names, shapes."""

import warnings
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_step_ids(step_ids: jax.Array, argument: str = "step_ids_t") -> None:
    """Refuse what cannot be step ids, a mask above all, and warn of what may be one.

    Args:
        step_ids: [T] or [N, T]; of a tracer the type is checked, and not the values.
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
    # Row and id of each active token; then of each run of active tokens with the same id.
    tokens = np.stack([np.nonzero(ids_nt >= 0)[0], ids_nt[ids_nt >= 0]])
    runs = tokens[:, _differs_from_before(tokens)]
    runs = runs[:, np.lexsort(runs[::-1])]
    if not _differs_from_before(runs).all():
        raise ValueError(
            f"{argument} interleaves the tokens of its steps: an id comes back after that of another "
            f"step in the same row, as in a mask of 0 and 1; if it is one, {remedy}"
        )
    if ids_nt.size and ids_nt.min() == 0 and ids_nt.max() == 1:
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


def _differs_from_before(pairs: np.ndarray) -> np.ndarray:
    """[2, A] -> [A] bool, True at the first pair and where a pair is not the one before it."""
    differs = np.ones(pairs.shape[1], bool)
    differs[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return differs
