"""A batch spread over devices: statistics, gradients and groups are those of the whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from steprl import ops
from tests.ops import batch_ops
from tests.ops.batch_ops import ANCHORS, G
from tests.ops.battery import CLOSE, NAN, assert_same, eight_devices
from tests.ops.token_ops import T, example

# --- Statistics -----------------------------------------------------------------------------------


def statistics(x, ids, axis_name=None):
    mask = ids >= 0
    return {
        "sum": ops.masked_sum(x, mask, axis_name=axis_name),
        "mean": ops.masked_mean(x, mask, axis_name=axis_name),
        "variance": ops.masked_variance(x, mask, axis_name=axis_name, ddof=1),
        "loss": {r: ops.aggregate(x, ids, r, axis_name=axis_name) for r in ops.REDUCTIONS},
        "moments": tuple(
            ops.update_running_moments(ops.RunningMoments(), x, mask, axis_name=axis_name)
        ),
        "recent": tuple(
            ops.recent_moments(ops.RunningMoments(), x, mask, 4.0, axis_name=axis_name)
        ),
        "explained": ops.explained_variance(jnp.sin(x), x, mask, axis_name=axis_name),
    }, ops.masked_whiten(x, mask, axis_name=axis_name)


def over_devices(how, function):
    """Map `function(*arrays, axis_name="data")` over arrays of shape [8, rows of a device, ...]."""
    function = partial(function, axis_name="data")
    if how == "pmap":
        return jax.pmap(function, "data")
    if how == "vmap":
        return jax.jit(jax.vmap(function, axis_name="data"))

    def block(*arrays):
        result = function(*(x[0] for x in arrays))
        return jax.tree.map(lambda leaf: leaf[None], result)

    shard = jax.shard_map(block, mesh=eight_devices(), in_specs=P("data"), out_specs=P("data"))
    return jax.jit(shard)


def split(arrays):
    return [x.reshape(8, -1, *x.shape[1:]) for x in arrays]


def joined(result):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)


by_pmap = pytest.param("pmap", marks=pytest.mark.full)
by_shard_map = pytest.param("shard_map", marks=pytest.mark.slow)
three_ways = pytest.mark.parametrize("how", ["vmap", by_pmap, by_shard_map])


@three_ways
def test_statistics_over_devices_are_those_of_the_whole_batch(how):
    x, _, _, ids = example(16)
    ids[4:6] = -1  # a device without any token
    numbers, whitened = jax.jit(statistics)(x, ids)
    ours, ours_whitened = over_devices(how, statistics)(*split((x, ids)))
    assert_same(ours, jax.tree.map(lambda n: np.broadcast_to(n, (8,)), numbers), **CLOSE)
    assert_same(ours_whitened.reshape(16, T), whitened, **CLOSE)


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [by_pmap, "shard_map", pytest.param("shard_map unchecked", marks=pytest.mark.slow)]
)
def test_gradients_over_devices_are_those_of_the_whole_batch(how):
    """Weights are counted over devices, losses stay local, gradients are added: once, not 8 times.

    Under shard_map with its check of varying values, the gradient of a replicated parameter comes
    out added already, and adding it again would give 8 times as much.
    """
    x, y, z, ids = example(16)

    def gradient(scale, x, y, z, ids, axis_name=None, add=False):
        def loss(scale):
            weights = ops.aggregation_weights(ids, "step-mean-token-mean", axis_name=axis_name)
            return ops.policy_loss(scale * x, y, z, ids, weights_t=weights)[0]

        grad = jax.grad(loss)(scale)
        return jax.lax.psum(grad, axis_name) if add else grad

    expected = gradient(jnp.float32(0.5), x, y, z, ids)
    if how == "pmap":
        run = jax.pmap(
            partial(gradient, axis_name="data", add=True), "data", in_axes=(None, 0, 0, 0, 0)
        )
        ours = run(jnp.float32(0.5), *split((x, y, z, ids)))
    else:
        checked = how == "shard_map"
        run = jax.shard_map(
            partial(gradient, axis_name="data", add=not checked),
            mesh=eight_devices(),
            in_specs=(P(), P("data"), P("data"), P("data"), P("data")),
            out_specs=P(),
            check_vma=checked,
        )
        ours = jax.jit(run)(jnp.float32(0.5), x, y, z, ids)
    np.testing.assert_allclose(ours, np.broadcast_to(expected, np.shape(ours)), rtol=1e-5)


# --- Groups ---------------------------------------------------------------------------------------


def group_ops(score_n, group_ids_n, x_nt, step_ids_nt, anchor_ids_nt, axis_name=None):
    """Everything that compares rows and knows of devices: {name: result}."""
    group = (score_n, group_ids_n, G)
    table = {kind: ops.group_advantages(*group, kind, axis_name=axis_name) for kind in ops.KINDS}
    table["gigpo"] = ops.gigpo_advantages(*group, x_nt, anchor_ids_nt, ANCHORS, axis_name=axis_name)
    table["rfpp"] = ops.reinforce_pp_advantages(x_nt, step_ids_nt, 0.9, axis_name=axis_name)
    table["baseline"] = ops.reinforce_pp_baseline_advantages(
        *group, step_ids_nt, axis_name=axis_name
    )
    table["informative"] = ops.informative_groups(*group, axis_name=axis_name)
    row = np.arange(score_n.shape[0]) % 2 == 0
    masks = ops.branpo_masks(step_ids_nt, jnp.where(row, 1, 2), row)
    table["branpo"] = ops.branpo_advantages(
        score_n, -score_n, score_n, group_ids_n, G, *masks, axis_name=axis_name
    )
    return table


@three_ways
def test_groups_over_devices_are_those_of_the_whole_batch(how):
    batches = [batch_ops.filled(batch_ops.example(seed), NAN) for seed in (0, 1)]
    names = ("score_n", "group_ids_n", "x_nt", "step_ids_nt", "anchor_ids_nt")
    arrays = [np.concatenate([getattr(batch, name) for batch in batches]) for name in names]
    ours = joined(over_devices(how, group_ops)(*split(arrays)))
    assert_same(ours, jax.jit(group_ops)(*arrays), **CLOSE)
    equal = arrays[1] == 1  # a group of equal scores
    for kind in ops.KINDS:
        np.testing.assert_array_equal(ours[kind][equal], 0)
