"""What every op promises, checked on all that compare the rows of a batch at once.

The battery of `batch_ops` applies each op to one batch. It runs eagerly, under jit, and over many
batches under vmap and on 8 devices, with NaN wherever nothing may be read, with rows, tokens and
branches added that are nobody's, with its rows in another order, and at the edges.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops import batch_ops
from tests.ops.batch_ops import FLOATS, NAMES, N, T, battery, example
from tests.ops.battery import CLOSE, NAN, assert_same, floating, sharded, total

ORDER = np.array([5, 0, 7, 2, 1, 6, 4, 3])

in_one = jax.jit(battery)  # one compilation for all that needs it


def by_name(test):
    return pytest.mark.parametrize("name", NAMES)(test)


def eight():
    """As many batches as devices."""
    return jax.tree.map(lambda *x: np.stack(x), *map(example, range(8)))


# --- The same numbers however they are run --------------------------------------------------------


@pytest.fixture(scope="module")
def jitted():
    return in_one(example())


@pytest.fixture(scope="module")
def eager():
    return battery(example())


@pytest.fixture(scope="module")
def loop():
    """Batch by batch: what all at once is compared with."""
    return jax.tree.map(lambda *x: np.stack(x), *(in_one(example(i)) for i in range(8)))


@pytest.fixture(scope="module")
def vmapped():
    return jax.jit(jax.vmap(battery))(eight())


@pytest.fixture(scope="module")
def pmapped():
    return jax.pmap(battery)(eight())


@pytest.fixture(scope="module")
def on_shards():
    return sharded(battery)(eight())


@by_name
def test_there_is_something_to_compare(name, loop):
    for x in jax.tree.leaves(loop[name]):
        if x.ndim > 1:
            assert (x != x[:1]).any()  # not the same for every batch


def test_branches_have_a_say(loop):
    batches = eight()
    active = batches.step_ids_nt >= 0
    factors = loop["appo_reward_scale"][active] / batches.x_nt[active]
    assert np.mean(factors > 1.01) > 0.05
    # The tokens of a row differ by the branches that share them.
    advantage = np.ma.array(loop["appo_advantages"], mask=~active)
    assert np.mean(advantage.max(axis=-1) > advantage.min(axis=-1)) > 0.05


@pytest.mark.full  # the examples of the documentation run eagerly in any case
@by_name
def test_jit_equals_eager(name, eager, jitted):
    assert_same(jitted[name], eager[name], **CLOSE)


@by_name
def test_vmap_equals_a_loop(name, loop, vmapped):
    assert_same(vmapped[name], loop[name], **CLOSE)


@pytest.mark.full
@by_name
def test_pmap_equals_vmap(name, vmapped, pmapped):
    assert_same(pmapped[name], vmapped[name], **CLOSE)


@pytest.mark.slow
@by_name
def test_shard_map_equals_vmap(name, vmapped, on_shards):
    assert_same(on_shards[name], vmapped[name], **CLOSE)


# --- Types ----------------------------------------------------------------------------------------


@by_name
def test_float32_stays_float32(name, jitted):
    assert {x.dtype for x in floating(jitted[name])} <= {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def half():
    batch = example()
    floats = {n: jnp.asarray(getattr(batch, n), jnp.bfloat16) for n in FLOATS}
    widened = {n: x.astype(jnp.float32) for n, x in floats.items()}
    return in_one(batch._replace(**floats)), in_one(batch._replace(**widened))


@pytest.mark.slow
@by_name
def test_bfloat16_is_taken_and_widened_before_use(name, half):
    ours, widened = half
    assert {x.dtype for x in floating(ours[name])} <= {jnp.dtype("float32")}
    assert_same(ours[name], widened[name], **CLOSE)


# --- What is nobody's -----------------------------------------------------------------------------


@jax.jit
def values_and_gradients(batch):
    """Results, and the gradient of one number of each op's results."""
    results, gradients = {}, {}
    for name, op in batch_ops.OPS.items():

        def one(floats, op=op):
            result = op(batch._replace(**floats))
            return total(result), result

        floats = {field: jnp.asarray(getattr(batch, field)) for field in FLOATS}
        gradients[name], results[name] = jax.grad(one, has_aux=True)(floats)
    return results, gradients


@pytest.fixture(scope="module")
def poisoned():
    batch = example()
    clean = values_and_gradients(batch_ops.filled(batch, 0.0))
    return batch, clean, values_and_gradients(batch_ops.filled(batch, NAN))


@by_name
def test_nan_where_nothing_is_counted_reaches_no_result(name, poisoned):
    _, (clean, _), (ours, _) = poisoned
    assert all(np.isfinite(x).all() for x in floating(ours[name]))
    assert_same(ours[name], clean[name], rtol=0, atol=0)


@by_name
def test_nan_where_nothing_is_counted_reaches_no_gradient(name, poisoned):
    batch, (_, clean), (_, ours) = poisoned
    assert_same(ours[name], clean[name], rtol=0, atol=0)
    for field, counted in batch_ops.counted(batch).items():
        np.testing.assert_array_equal(np.where(counted, 0, ours[name][field]), 0)


@by_name
def test_results_of_rows_without_a_group_and_at_masked_tokens_are_exactly_zero(name, poisoned):
    batch, _, (ours, _) = poisoned
    counted = {(N,): batch.group_ids_n >= 0, (N, T): batch.step_ids_nt >= 0}
    for x in jax.tree.leaves(ours[name]):
        if x.shape in counted:
            np.testing.assert_array_equal(np.where(counted[x.shape], 0, x), 0)


@pytest.fixture(scope="module")
def padded():
    return jax.tree.map(batch_ops.unpadded, in_one(batch_ops.padded(example())))


@by_name
def test_rows_tokens_and_branches_of_nobody_do_not_leak(name, jitted, padded):
    assert_same(padded[name], jitted[name], **CLOSE)


@pytest.fixture(scope="module")
def reordered():
    return in_one(batch_ops.in_order(example(), ORDER))


@by_name
def test_rows_in_another_order_get_the_same_in_that_order(name, jitted, reordered):
    def expected(x):
        return x[ORDER] if x.ndim and x.shape[0] == N else x

    ours = jax.tree.map(expected, jitted[name])
    if name.startswith("select_branch_points"):
        ours = ours._replace(row_b=batch_ops.renamed(ours.row_b, ORDER))
    assert_same(reordered[name], ours, **CLOSE)


# --- Edges ----------------------------------------------------------------------------------------


def nothing():
    """No row has a group, no token is active, no branch was placed."""
    batch = example()
    gone = ("group_ids_n", "step_ids_nt", "anchor_ids_nt", "origin_b", "branch_b", "token_b")
    empty = {name: np.full_like(getattr(batch, name), -1) for name in gone}
    return batch._replace(**empty, placed_b=np.zeros_like(batch.placed_b))


def one_of_each():
    """Groups and clusters of one, rows of one token."""
    batch = example()
    alone = np.array([0, 1, 2] + [-1] * (N - 3), np.int32)
    first = np.arange(T) == 0
    return batch._replace(
        group_ids_n=alone,
        step_ids_nt=np.where(first, 0, -1).repeat(N).reshape(T, N).T.astype(np.int32),
        anchor_ids_nt=np.where(first & (alone >= 0)[:, None], alone[:, None], -1),
    )


def alike(value):
    """All numbers are `value` times 1, in groups of two and more."""
    batch = example()._replace(group_ids_n=np.array([0, 0, 0, 1, 1, 1, 2, 2], np.int32))
    return batch._replace(**{n: np.full_like(getattr(batch, n), value) for n in FLOATS})


def tiny():
    """Scores that differ, and whose squares underflow."""
    batch = alike(0.1)
    score_n = np.float32(1e-30) * np.arange(N, dtype=np.float32)
    return batch._replace(score_n=score_n, other_n=score_n)


EDGES = {
    "nothing": nothing,
    "one of each": one_of_each,
    "all equal": lambda: alike(0.1),
    "all zero": lambda: alike(0.0),
    "tiny": tiny,
}


@pytest.fixture(scope="module")
def at_edges():
    return {
        edge: values_and_gradients(batch_ops.filled(batch(), NAN)) for edge, batch in EDGES.items()
    }


@by_name
def test_results_and_gradients_are_finite_at_the_edges(name, at_edges):
    for edge, (results, gradients) in at_edges.items():
        for x in floating((results[name], gradients[name])):
            assert np.isfinite(x).all(), edge


GROUP_RELATIVE = [n for n in NAMES if n.startswith(("group_", "gigpo", "appo_adv"))]


@pytest.mark.parametrize("name", [*GROUP_RELATIVE, "reinforce_pp_baseline_advantages"])
@pytest.mark.parametrize("edge", ["all equal", "all zero"])
def test_equal_scores_teach_exactly_nothing(name, edge, at_edges):
    np.testing.assert_array_equal(at_edges[edge][0][name], 0)


def test_equal_scores_are_not_informative(at_edges):
    assert not at_edges["all equal"][0]["informative_groups"].any()
    assert at_edges["tiny"][0]["informative_groups"].all()
