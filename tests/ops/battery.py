"""What the batteries of ops share: how results are compared, and mapped over devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

NAN = float("nan")
CLOSE = {"rtol": 2e-5, "atol": 2e-6}

# They run on the host, once a batch or less, on texts and sizes instead of arrays.
HOST = {"anchor_ids", "nonblank_tokens", "support_words"}


def floating(result):
    return [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]


def assert_same(ours, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, expected)


def total(result):
    """One number that depends on every float of a result, and on no two of them alike."""
    zero = jnp.zeros((), jnp.float32)
    return sum((jnp.sum(jnp.sin(leaf)) for leaf in floating(result)), zero)


def eight_devices():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def sharded(function):
    """A function of rows or batches side by side, an eighth of them on each of 8 devices."""
    # With the default check of how values vary over the mesh.
    over = jax.shard_map(
        jax.vmap(function), mesh=eight_devices(), in_specs=P("data"), out_specs=P("data")
    )
    return jax.jit(over)
