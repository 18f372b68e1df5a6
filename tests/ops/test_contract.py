"""What every op promises, checked on all that work on one row of tokens at once.

The battery of `token_ops` applies each op to one row. It runs eagerly, under jit, under vmap and on
8 devices, with padding, with NaN wherever no token was sampled, and at the edges; the tests compare.
Ops that compare rows are in `test_contract_groups`, statistics over devices in `test_over_devices`.
"""

import doctest
import importlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl import ops
from tests.ops import batch_ops
from tests.ops.battery import CLOSE, HOST, NAN, assert_same, floating, sharded, total
from tests.ops.token_ops import MASKED, NAMES, ROWS, T, battery, example


def three_rows():
    """One row of each layout of `example`."""
    return [tuple(x[row] for x in example()) for row in range(3)]


def by_name(test):
    return pytest.mark.parametrize("name", NAMES)(test)


def masked(test):
    return pytest.mark.parametrize("name", sorted(MASKED))(test)


def test_every_public_function_is_in_a_battery():
    tested = {name.split()[0] for name in (*NAMES, *batch_ops.NAMES)}
    public = {name for name in ops.__all__ if callable(getattr(ops, name)) and name[0].islower()}
    assert tested | HOST == public
    assert not tested & HOST


# --- The same numbers however they are run --------------------------------------------------------


in_rows = jax.jit(jax.vmap(battery))  # one compilation for all that needs it


@pytest.fixture(scope="module")
def eager():
    """Row by row, op by op."""
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
def on_shards():
    return sharded(battery)(*example())


@pytest.mark.full  # the examples of the documentation run eagerly in any case
@by_name
def test_jit_equals_eager(name, eager, jitted):
    for ours, expected in zip(jitted, eager, strict=True):
        assert_same(ours[name], expected[name], **CLOSE)


@by_name
def test_vmap_equals_a_loop(name, jitted, vmapped):
    loop = jax.tree.map(lambda *rows: np.stack(rows), *[row[name] for row in jitted])
    assert_same(jax.tree.map(lambda x: x[:3], vmapped[name]), loop, **CLOSE)


@pytest.mark.full
@by_name
def test_pmap_equals_vmap(name, vmapped, pmapped):
    assert_same(pmapped[name], vmapped[name], **CLOSE)


@by_name
@pytest.mark.slow
def test_shard_map_equals_vmap(name, vmapped, on_shards):
    assert_same(on_shards[name], vmapped[name], **CLOSE)


class Variants(chex.TestCase):
    @chex.all_variants(with_pmap=True)
    @pytest.mark.slow
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


# --- Masked tokens ---------------------------------------------------------------------------------


def poison(floats, ids, value=NAN):
    return [np.where(ids >= 0, x, np.float32(value)) for x in floats]


@jax.jit
@jax.vmap
def values_and_gradients(x, y, z, ids):
    """Results, and the gradient of one number of each op's results, of the masked ops."""
    pairs = {}
    for name, op in MASKED.items():

        def one(x, y, z, op=op):
            result = op(x, y, z, ids)
            return total(result), result

        pairs[name] = jax.grad(one, argnums=(0, 1, 2), has_aux=True)(x, y, z)
    gradients, results = zip(*pairs.values(), strict=True)
    return dict(zip(pairs, results, strict=True)), dict(zip(pairs, gradients, strict=True))


@pytest.fixture(scope="module")
def poisoned():
    *floats, ids = example()
    clean = values_and_gradients(*poison(floats, ids, 0.0), ids)
    return ids, clean, values_and_gradients(*poison(floats, ids), ids)


@masked
def test_nan_at_masked_tokens_reaches_no_result(name, poisoned):
    _, (clean, _), (ours, _) = poisoned
    assert all(np.isfinite(x).all() for x in floating(ours[name]))
    assert_same(ours[name], clean[name], rtol=0, atol=0)


@masked
def test_nan_at_masked_tokens_reaches_no_gradient(name, poisoned):
    ids, (_, clean), (_, ours) = poisoned
    assert_same(ours[name], clean[name], rtol=0, atol=0)
    for gradient in ours[name]:
        np.testing.assert_array_equal(np.where(ids < 0, gradient, 0), 0)


@masked
def test_masked_results_are_exactly_zero(name, poisoned):
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


CHANGED_BY_PADDING = {
    "aggregate seq-mean-token-sum-norm": "divides by the row length, as verl's does",
    "pair_branches": "an invalid continuation spends its attempt",
}


@masked
def test_padding_does_not_leak(name, vmapped, padded):
    if name in CHANGED_BY_PADDING:
        pytest.skip(CHANGED_BY_PADDING[name])

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


# --- Documentation --------------------------------------------------------------------------------


# The other rooms run theirs in files of their own.
@pytest.mark.parametrize(
    "room", ["segments", "returns", "aggregation", "losses", "groups", "correction"]
)
@pytest.mark.slow
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
