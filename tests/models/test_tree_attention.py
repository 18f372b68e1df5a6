"""Attention in a tree, block by block: what a mask over the whole row says, at the cost of a path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steprl.models import DecoderConfig, make_policy
from steprl.models.attention import attend
from steprl.models.tree_attention import attend_tree, related, tree_reads

LENGTH, HEADS, KEY_HEADS, SIZE = 37, 4, 2, 6


def random_tree(seed, tokens, deepest=12):
    """Positions, ids and ends of a random tree in preorder, padded to LENGTH; several roots."""
    rng = np.random.default_rng(seed)
    depth = [0]
    while len(depth) < tokens:
        deeper, back = depth[-1] + 1, int(rng.integers(depth[-1] + 1))
        depth.append(min(deeper if rng.random() < 0.8 else back, deepest - 1))
    ends = [
        next((j for j in range(i + 1, tokens) if depth[j] <= depth[i]), tokens) + 1
        for i in range(tokens)
    ]
    pad = lambda x: np.pad(np.array(x, np.int32), (0, LENGTH - tokens))  # noqa: E731
    return pad(depth), pad(range(1, tokens + 1)), pad(ends)


@pytest.fixture(scope="module")
def trees():
    """Two rows, one full and one with padding: [3][2, LENGTH]."""
    return [np.stack(x) for x in zip(random_tree(0, LENGTH), random_tree(1, 29), strict=True)]


@pytest.fixture(scope="module")
def drawn():
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return [jax.random.normal(k, (2, LENGTH, h, SIZE)) for k, h in zip(keys, heads, strict=True)]


def over_the_whole_row(q, k, v, positions, ids, ends):
    mask = related(ids, ids, ends) & (positions[:, :, None] >= positions[:, None, :])
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")


@pytest.mark.parametrize("block, longest",
    [pytest.param(5, 12, marks=pytest.mark.slow), pytest.param(16, 12, marks=pytest.mark.slow),
     (8, 25), pytest.param(1, 12, marks=pytest.mark.slow)],
)  # fmt: skip
def test_blocks_find_what_the_whole_row_finds(trees, drawn, block, longest):
    real = jnp.asarray(trees[1] > 0)[..., None, None]

    def total(attend, *arrays):
        out = jnp.where(real, attend(*arrays), 0.0)
        return jnp.sum(jnp.sin(out)), out

    def in_blocks(q, k, v):
        reads = tree_reads(*map(jnp.asarray, trees), block, longest)
        first = (x[:, : reads.first_BTS.shape[1]] for x in (q, k, v))
        first = attend(*first, reads.first_BTS, block)
        return jnp.concatenate([first, attend_tree(q, k, v, reads)], axis=1)

    whole = functools.partial(over_the_whole_row, positions=trees[0], ids=trees[1], ends=trees[2])
    results = [
        jax.jit(jax.value_and_grad(functools.partial(total, f), (0, 1, 2), has_aux=True))(*drawn)
        for f in (in_blocks, whole)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_a_block_reads_the_path_above_it_and_itself():
    """Three contexts of 2 tokens that share the first: preorder 0 1 1 1, blocks of 1 behind two."""
    positions, ids, ends = (
        jnp.array([x], jnp.int32) for x in ([0, 1, 1, 1], [1, 2, 3, 4], [5, 3, 4, 5])
    )
    first, above, mask = tree_reads(positions, ids, ends, 1, 2)
    np.testing.assert_array_equal(first, [[[1, 0], [1, 1]]])
    np.testing.assert_array_equal(above, [[[0, 0], [0, 0]]])
    np.testing.assert_array_equal(mask, [[[[1, 0, 1]], [[1, 0, 1]]]])


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.full), True])
@pytest.mark.slow
def test_the_decoder_reads_a_tree_in_blocks_as_at_once(trees, remat):
    shape = dict(
        vocab_size=11, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8,
        value_head="none", remat=remat,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 11, (2, LENGTH))
    found = []
    for block in (8, 0):
        policy = make_policy(DecoderConfig(**shape, attention_block=block))

        @jax.jit
        def gradient(params, policy=policy):
            def total(params):
                named = dict(segment_ends_BT=trees[2], longest=12)
                hidden, _ = policy.apply(params, tokens, trees[0], trees[1], **named)
                return jnp.sum(jnp.where((trees[1] > 0)[..., None], jnp.sin(hidden), 0.0))

            return jax.value_and_grad(total)(params)

        found.append(gradient(policy.init(jax.random.key(1))))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        # Of sums of a hundred.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=5e-5)


def test_no_array_of_the_row_by_the_row_is_made():
    """So a tree may be long: queries times (path + block), a block at a time, forward and back."""
    length, longest, block = 1024, 64, 32
    positions = np.arange(length, dtype=np.int32)[None] % longest
    ids = np.arange(1, length + 1, dtype=np.int32)[None]
    ends = (ids - 1) // longest * longest + longest + 1

    def total(q, k, v):
        reads = tree_reads(*map(jnp.asarray, (positions, ids, ends)), block, longest)
        return jnp.sum(attend_tree(q, k, v, reads))

    x = jnp.ones((1, length, 1, 4))
    text = str(jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(x, x, x))
    assert f"f32[1,1,{block},{longest + block}]" in text  # scores of a block
    assert f"{length},{length}]" not in text
