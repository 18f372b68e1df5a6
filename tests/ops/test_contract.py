"""What every op promises, checked on all of them at once.

`battery` applies each op to one row of tokens. It runs eagerly, under jit, under vmap and on 8
devices, with padding, with NaN wherever no token was sampled, and at the edges; the tests compare.
"""

import doctest
import importlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from steprl import ops

T, S, ROWS = 7, 4, 8
NAN = float("nan")

# Each takes three float rows and the step ids; MASKED ops also promise never to read dark tokens.
MASKED = {
    "broadcast_steps": lambda x, y, z, ids: ops.broadcast_steps(
        ops.reduce_steps(x, ids, S, "mean"), ids
    ),
    "masked_sum": lambda x, y, z, ids: ops.masked_sum(x, ids >= 0),
    "masked_mean": lambda x, y, z, ids: ops.masked_mean(x, ids >= 0),
    "masked_variance": lambda x, y, z, ids: ops.masked_variance(x, ids >= 0, ddof=1),
    "masked_whiten variance": lambda x, y, z, ids: ops.masked_whiten(x, ids >= 0),
    "masked_whiten std": lambda x, y, z, ids: ops.masked_whiten(x, ids >= 0, epsilon_at="std"),
    "token_gae": lambda x, y, z, ids: ops.token_gae(x, y, z, 0.9, ids, 0.5),
    "update_running_moments": lambda x, y, z, ids: ops.update_running_moments(
        ops.RunningMoments(), x, ids >= 0
    ),
    "aggregation_weights": lambda x, y, z, ids: ops.aggregation_weights(
        ids, "step-mean-token-mean"
    ),
    "value_loss": lambda x, y, z, ids: ops.value_loss(x, y, z, ids, clip=0.2),
}
for how in ("sum", "mean", "first", "last"):
    MASKED[f"reduce_steps {how}"] = lambda x, y, z, ids, h=how: ops.reduce_steps(x, ids, S, h)
for how in ops.REDUCTIONS:
    MASKED[f"aggregate {how}"] = lambda x, y, z, ids, h=how: ops.aggregate(x, ids, h)
for how in ("k1", "abs", "k2", "k3", "k3+"):
    MASKED[f"kl_penalty {how}"] = lambda x, y, z, ids, h=how: ops.kl_penalty(x, y, h, ids)
for how in ops.LEVELS:
    MASKED[f"log_ratio {how}"] = lambda x, y, z, ids, h=how: ops.log_ratio(x, y, ids, h)
    MASKED[f"policy_loss {how}"] = lambda x, y, z, ids, h=how: ops.policy_loss(
        x, y, z, ids, level=h, dual_clip=3.0, rollout_weights=y
    )
PLAIN = {
    "step_ids_from_mask": lambda x, y, z, ids: ops.step_ids_from_mask(ids >= 0),
    "step_starts": lambda x, y, z, ids: ops.step_starts(ids),
    "reverse_recurrence": lambda x, y, z, ids: ops.reverse_recurrence(x, y, 0.5),
    "discounted_returns": lambda x, y, z, ids: ops.discounted_returns(x, y, 0.5),
    "step_gae": lambda x, y, z, ids: ops.step_gae(x, y, z, 0.9, 0.5),
    "entropy_from_logits": lambda x, y, z, ids: ops.entropy_from_logits(x),
    "adaptive_kl_coefficient": lambda x, y, z, ids: ops.adaptive_kl_coefficient(
        x[0], y[0], T, target=0.1, horizon=100
    ),
}
NAMES = sorted(MASKED | PLAIN)


def battery(x, y, z, ids, which=None):
    """Each op on one row: {name: its results}."""
    return {name: op(x, y, z, ids) for name, op in (which or MASKED | PLAIN).items()}


def example(rows=ROWS):
    """Three float arrays and step ids [rows, T], with dark tokens in, before and after steps."""
    rng = np.random.default_rng(0)
    floats = (rng.normal(size=(rows, T)).astype(np.float32) for _ in range(3))
    layouts = np.array([[-1, 0, 0, -1, 1, 1, -1], [0, 1, -1, 2, 2, 3, 3], [-1, -1, 0, -1, 0, 0, 1]])
    return *floats, layouts[np.arange(rows) % 3].astype(np.int32)


def three_rows():
    """One row of each layout of `example`."""
    return [tuple(x[row] for x in example()) for row in range(3)]


def floating(result):
    return [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]


def assert_same(ours, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, expected)


CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def by_name(test):
    return pytest.mark.parametrize("name", NAMES)(test)


def masked(test):
    return pytest.mark.parametrize("name", sorted(MASKED))(test)


def test_every_public_function_is_in_the_battery():
    tested = {name.split()[0] for name in NAMES}
    public = {name for name in ops.__all__ if name[0].islower()}
    # Other rooms of ops have batteries of their own.
    rooms = ("segments", "returns", "aggregation", "losses")
    ours = {n for n in public if getattr(ops, n).__module__.split(".")[-1] in rooms}
    assert ours == tested


# --- The same numbers however they are run --------------------------------------------------------


in_rows = jax.jit(jax.vmap(battery))  # one compilation for all that needs it


@pytest.fixture(scope="module")
def eager():
    """Row by row, op by op: what the others are compared with."""
    return [battery(*row) for row in three_rows()]


@pytest.fixture(scope="module")
def jitted():
    one_row = jax.jit(battery)
    return [one_row(*row) for row in three_rows()]


@pytest.fixture(scope="module")
def vmapped():
    return in_rows(*example())


@pytest.fixture(scope="module")
def pmapped():
    return jax.pmap(battery)(*example())


@pytest.fixture(scope="module")
def sharded():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shard = jax.shard_map(
        jax.vmap(battery), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )  # with the default check of how values vary over the mesh
    return jax.jit(shard)(*example())


@by_name
def test_jit_equals_eager(name, eager, jitted):
    for ours, expected in zip(jitted, eager, strict=True):
        assert_same(ours[name], expected[name], **CLOSE)


@by_name
def test_vmap_equals_a_loop(name, eager, vmapped):
    loop = jax.tree.map(lambda *rows: np.stack(rows), *[row[name] for row in eager])
    assert_same(jax.tree.map(lambda x: x[:3], vmapped[name]), loop, **CLOSE)


@by_name
def test_pmap_equals_vmap(name, vmapped, pmapped):
    assert_same(pmapped[name], vmapped[name], **CLOSE)


@by_name
def test_shard_map_equals_vmap(name, vmapped, sharded):
    assert_same(sharded[name], vmapped[name], **CLOSE)


class Variants(chex.TestCase):
    @chex.all_variants(with_pmap=True)
    def test_the_core_of_steppo_in_all_variants(self):
        x, y, z, ids = (row[1] for row in example())

        def step(x, y, z, ids):
            advantage = ops.token_gae(x, y, z, 0.9, ids)
            return ops.policy_loss(x, y, ops.masked_whiten(advantage, ids >= 0), ids)

        assert_same(self.variant(step)(x, y, z, ids), step(x, y, z, ids), **CLOSE)


# --- Types ----------------------------------------------------------------------------------------


@by_name
def test_float32_stays_float32(name, vmapped):
    assert {x.dtype for x in floating(vmapped[name])} <= {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def half():
    *floats, ids = example()
    floats = [jnp.asarray(x, jnp.bfloat16) for x in floats]
    widened = [x.astype(jnp.float32) for x in floats]
    return in_rows(*floats, ids), in_rows(*widened, ids)


@by_name
def test_bfloat16_is_taken_and_widened_before_use(name, half):
    ours, widened = half
    assert {x.dtype for x in floating(ours[name])} <= {jnp.dtype("float32")}
    assert_same(ours[name], widened[name], **CLOSE)


# --- Dark tokens ----------------------------------------------------------------------------------


def poison(floats, ids, value=NAN):
    return [np.where(ids >= 0, x, np.float32(value)) for x in floats]


@jax.jit
@jax.vmap
def values_and_gradients(*arguments):
    """Results, and the gradient of the sum of each op's results, of the masked ops."""

    def sums(x, y, z, ids):
        results = battery(x, y, z, ids, MASKED)
        return {name: sum(jnp.sum(leaf) for leaf in floating(r)) for name, r in results.items()}

    return battery(*arguments, MASKED), jax.jacrev(sums, argnums=(0, 1, 2))(*arguments)


@pytest.fixture(scope="module")
def poisoned():
    *floats, ids = example()
    clean = values_and_gradients(*poison(floats, ids, 0.0), ids)
    return ids, clean, values_and_gradients(*poison(floats, ids), ids)


@masked
def test_nan_at_dark_tokens_reaches_no_result(name, poisoned):
    _, (clean, _), (ours, _) = poisoned
    assert all(np.isfinite(x).all() for x in floating(ours[name]))
    assert_same(ours[name], clean[name], rtol=0, atol=0)


@masked
def test_nan_at_dark_tokens_reaches_no_gradient(name, poisoned):
    ids, (_, clean), (_, ours) = poisoned
    assert_same(ours[name], clean[name], rtol=0, atol=0)
    for gradient in ours[name]:
        np.testing.assert_array_equal(np.where(ids < 0, gradient, 0), 0)


@masked
def test_dark_results_are_exactly_zero(name, poisoned):
    ids, _, (ours, _) = poisoned
    for x in floating(ours[name]):
        if x.shape == ids.shape:
            np.testing.assert_array_equal(np.where(ids < 0, x, 0), 0)


@pytest.fixture(scope="module")
def padded():
    *floats, ids = example()
    wider = [np.pad(x, ((0, 0), (2, 3)), constant_values=NAN) for x in floats]
    wider_ids = np.pad(ids, ((0, 0), (2, 3)), constant_values=-1)
    return jax.jit(jax.vmap(partial(battery, which=MASKED)))(*wider, wider_ids)


@masked
def test_padding_does_not_leak(name, vmapped, padded):
    if name == "aggregate seq-mean-token-sum-norm":
        pytest.skip("divides by the row length, as verl's does")

    def unpad(x):
        return x[:, 2:-3] if x.ndim == 2 and x.shape[1] == T + 5 else x

    assert_same(jax.tree.map(unpad, padded[name]), vmapped[name], **CLOSE)


# --- Edges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edges():
    """Nothing active; one token active; two steps of equal numbers."""
    ids = np.full((ROWS, T), -1, np.int32)
    ids[1, 3], ids[2] = 0, [0, 0, 0, -1, 1, 1, 1]
    return values_and_gradients(*poison([np.full((ROWS, T), 0.1, np.float32)] * 3, ids), ids)


@masked
def test_results_and_gradients_are_finite_at_the_edges(name, edges):
    results, gradients = edges
    for x in floating((results[name], gradients[name])):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("name", ["masked_whiten variance", "masked_whiten std"])
def test_whitening_is_zero_at_the_edges(name, edges):
    np.testing.assert_array_equal(edges[0][name], 0)


# --- Batches of rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ops.LEVELS)
@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_the_order_of_rows_does_not_matter(level, reduction):
    batch = example(5)
    order = np.array([3, 1, 4, 0, 2])
    shuffled = [x[order] for x in batch]
    options = {"level": level, "reduction": reduction}
    loss = jax.jit(partial(ops.policy_loss, **options))
    assert_same(loss(*shuffled), loss(*batch), **CLOSE)
    assert_same(
        ops.aggregation_weights(shuffled[3], reduction),
        np.asarray(ops.aggregation_weights(batch[3], reduction))[order],
        **CLOSE,
    )


@pytest.mark.parametrize("level", ops.LEVELS)
def test_a_batch_is_its_rows(level):
    x, y, _, ids = example()
    rows = jax.vmap(partial(ops.log_ratio, level=level))(x, y, ids)
    assert_same(ops.log_ratio(x, y, ids, level), rows, **CLOSE)


# --- Statistics over devices ----------------------------------------------------------------------


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
    }, ops.masked_whiten(x, mask, axis_name=axis_name)


def over_devices(how, function):
    """Map `function(x, ids, "data")` over [8, n, T] on 8 devices; arguments after are copies."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    if how == "pmap":
        return jax.pmap(partial(function, axis_name="data"), "data")
    if how == "vmap":
        return jax.vmap(partial(function, axis_name="data"), axis_name="data")

    def block(x, ids):
        result = function(x[0], ids[0], axis_name="data")
        return jax.tree.map(lambda leaf: leaf[None], result)

    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("data"), out_specs=P("data")))


@pytest.mark.parametrize("how", ["vmap", "pmap", "shard_map"])
def test_statistics_over_devices_are_those_of_the_whole_batch(how):
    x, _, _, ids = example(16)
    ids[4:6] = -1  # a device without any token
    numbers, whitened = statistics(x, ids)
    split = (x.reshape(8, 2, T), ids.reshape(8, 2, T))
    ours, ours_whitened = over_devices(how, statistics)(*split)
    assert_same(ours, jax.tree.map(lambda n: np.broadcast_to(n, (8,)), numbers), **CLOSE)
    assert_same(ours_whitened.reshape(16, T), whitened, **CLOSE)


@pytest.mark.parametrize("how", ["pmap", "shard_map", "shard_map unchecked"])
def test_gradients_over_devices_are_those_of_the_whole_batch(how):
    """Weights are counted over devices, losses stay local, gradients are added: once, not 8 times.

    Under shard_map with its check of varying values, the gradient of a replicated parameter comes
    out added already, and adding it again would give 8 times as much.
    """
    x, y, z, ids = example(16)

    def gradient(scale, x, y, z, ids, axis_name=None, add=False):
        def loss(scale):
            weights = ops.aggregation_weights(ids, "step-mean-token-mean", axis_name=axis_name)
            return ops.policy_loss(scale * x, y, z, ids, weights=weights)[0]

        grad = jax.grad(loss)(scale)
        return jax.lax.psum(grad, axis_name) if add else grad

    expected = gradient(jnp.float32(0.5), x, y, z, ids)
    if how == "pmap":
        split = [a.reshape(8, 2, T) for a in (x, y, z, ids)]
        run = jax.pmap(partial(gradient, axis_name="d", add=True), "d", in_axes=(None, 0, 0, 0, 0))
        ours = run(jnp.float32(0.5), *split)
    else:
        checked = how == "shard_map"
        run = jax.shard_map(
            partial(gradient, axis_name="d", add=not checked),
            mesh=jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,)),
            in_specs=(P(), P("d"), P("d"), P("d"), P("d")),
            out_specs=P(),
            check_vma=checked,
        )
        ours = jax.jit(run)(jnp.float32(0.5), x, y, z, ids)
    np.testing.assert_allclose(ours, np.broadcast_to(expected, np.shape(ours)), rtol=1e-5)


# --- Documentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ["segments", "returns", "aggregation", "losses"])
def test_examples_in_docstrings_run(room):
    failed, tried = doctest.testmod(importlib.import_module(f"steprl.ops.{room}"))
    assert tried > 0
    assert failed == 0


def test_every_function_documents_itself():
    for name in ops.__all__:
        function = getattr(ops, name)
        if not callable(function) or isinstance(function, type):
            continue
        for part in ("Args:", "Returns:", "Example:"):
            assert part in function.__doc__, f"{name} lacks {part}"
