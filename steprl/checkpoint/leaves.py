"""The leaves of a state: their names, shapes, dtypes and layouts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

_MAX_LINES = 20  # of an error message; a wrong model differs in every leaf


def named_leaves(tree: Any) -> dict[str, Any]:
    """Each leaf by its name, such as `params/layer_0/w`."""
    return {
        jax.tree_util.keystr(key_path, simple=True, separator="/"): leaf
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def leaf_table(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name of each leaf, with its shape and dtype."""
    table = {}
    for name, leaf in named_leaves(tree).items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"Leaf {name!r} is a {type(leaf).__name__}, not an array.")
        table[name] = (tuple(leaf.shape), str(leaf.dtype))
    return table


def check_same_leaves(
    stored: Mapping[str, Any],
    expected: Mapping[str, tuple[tuple[int, ...], str]],
    path: epath.Path,
    partial: bool,
) -> None:
    """Raises a ValueError that lists the leaves that differ."""

    def describe(entry: Any) -> str:
        shape, dtype = entry
        return f"{dtype}[{', '.join(map(str, shape))}]"

    lines = []
    for name in sorted(stored.keys() | expected.keys()):
        if name not in expected:
            if not partial:
                lines.append(f"{name}: stored {describe(stored[name])}, not expected")
        elif name not in stored:
            lines.append(f"{name}: not stored, expected {describe(expected[name])}")
        elif describe(stored[name]) != describe(expected[name]):
            lines.append(
                f"{name}: stored {describe(stored[name])}, expected {describe(expected[name])}"
            )
    if lines:
        count = len(lines)
        if count > _MAX_LINES:
            lines = [*lines[:_MAX_LINES], f"... and {count - _MAX_LINES} more"]
        raise ValueError(
            f"{path} holds another state than the one expected; {count} of "
            f"{len(stored.keys() | expected.keys())} leaves differ:\n  " + "\n  ".join(lines)
        )


def sharding_of(leaf: Any) -> jax.sharding.Sharding | None:
    """The layout that a leaf asks for. An uncommitted array asks for none."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def restore_target(leaf: Any) -> Any:
    """What orbax is to read for a leaf of the abstract state."""
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = sharding_of(leaf)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError("With several processes each leaf must say its sharding.")
        # Else orbax takes the devices of the run that saved, which this machine may lack.
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def uncommitted(x: jax.Array) -> jax.Array:
    """The same bits, not tied to a device: as if `x` had just been made."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        bits = jnp.asarray(np.asarray(jax.random.key_data(x)))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))
    return jnp.asarray(np.asarray(x))
