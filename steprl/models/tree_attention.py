"""Attention where a row holds a tree of contexts: each block of queries reads the path above it only.

Tokens stand in preorder. What a token sees is then among the tokens that the first one of its block
sees, and the block itself: as many keys as a context has, however many contexts the row holds.

Axes beside those of `steprl.types`: J block of queries, Q query of a block, P token of the path above.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.models.attention import attend_plainly


class TreeReads(NamedTuple):
    """What each block of queries reads: the path above it, then the block itself (S = P + Q).

    The first blocks have no more tokens before them than a path may have: they read all of them.
    """

    first_BTS: jax.Array  # bool, what each token of the first blocks sees of them
    above_BJP: jax.Array  # int32, places of the tokens above the first query, in order
    mask_BJQS: jax.Array  # bool


def related(ids_BQ: jax.Array, ids_BK: jax.Array, ends_BK: jax.Array) -> jax.Array:
    """[..., Q, K] the query descends from the key, or is it; see `steprl.types.TreeLayout`."""
    of_query, of_key = ids_BQ[..., :, None], ids_BK[..., None, :]
    return (of_key > 0) & (of_key <= of_query) & (of_query < ends_BK[..., None, :])


def first_tokens(block: int, longest: int) -> int:
    """Tokens of the blocks that have at most `longest` tokens before their end."""
    return -(-longest // block) * block


def tree_reads(
    positions_BT: jax.Array, ids_BT: jax.Array, ends_BT: jax.Array, block: int, longest: int
) -> TreeReads:
    """The same for all layers.

    Args:
        positions_BT, ids_BT, ends_BT: see `steprl.types.TreeLayout`; ids 0 at padding, which is
            behind all tokens.
        block: queries of a block.
        longest: no context has more tokens; the row has more than `first_tokens` of it.
    """
    length, first = ids_BT.shape[1], first_tokens(block, longest)
    first_BTS = related(*(x[:, :first] for x in (ids_BT, ids_BT, ends_BT)))
    first_BTS &= positions_BT[:, :first, None] >= positions_BT[:, None, :first]
    positions_BJQ, ids_BJQ, ends_BJQ = (
        _in_blocks(x[:, first:], block) for x in (positions_BT, ids_BT, ends_BT)
    )
    begin_J = first + jnp.arange(ids_BJQ.shape[1]) * block
    above_BJT = related(ids_BJQ[:, :, 0], ids_BT, ends_BT)
    index_T = jnp.arange(length)
    above_BJT &= (index_T[None] < begin_J[:, None])[None]
    place_BJT = jnp.where(above_BJT, index_T[None, None], length)
    place_BJP = jnp.sort(place_BJT, axis=2)[:, :, : min(longest, length)]
    real_BJP = place_BJP < length
    above_BJP = jnp.where(real_BJP, place_BJP, 0)
    of_path = [jnp.take_along_axis(x[:, None], above_BJP, axis=2) for x in (ids_BT, ends_BT)]
    path_BJQP = related(ids_BJQ, *of_path) & real_BJP[:, :, None]
    own_BJQQ = related(ids_BJQ, ids_BJQ, ends_BJQ)
    own_BJQQ &= positions_BJQ[..., :, None] >= positions_BJQ[..., None, :]
    return TreeReads(first_BTS, above_BJP, jnp.concatenate([path_BJQP, own_BJQQ], axis=3))


def attend_tree(
    q_BTHk: jax.Array, k_BTKk: jax.Array, v_BTKk: jax.Array, reads: TreeReads
) -> jax.Array:
    """Attention of all tokens behind the first blocks, a block of queries at a time.

    The backward pass reads and computes a block again: memory is that of one block.
    """
    first, block = reads.first_BTS.shape[1], reads.mask_BJQS.shape[2]
    length = q_BTHk.shape[1] - first
    take = jax.vmap(lambda x_TKk, place_P: x_TKk[place_P])

    @jax.checkpoint
    def part(
        k: jax.Array,
        v: jax.Array,
        block_qkv: tuple[jax.Array, ...],
        above_BP: jax.Array,
        mask: jax.Array,
    ) -> jax.Array:
        q, block_k, block_v = block_qkv
        k = jnp.concatenate([take(k, above_BP), block_k], axis=1)
        v = jnp.concatenate([take(v, above_BP), block_v], axis=1)
        return attend_plainly(q, k, v, mask)

    qkv_blocks = tuple(_in_blocks(x[:, first:], block) for x in (q_BTHk, k_BTKk, v_BTKk))
    by_block = jax.tree.map(
        lambda x: jnp.moveaxis(x, 1, 0), (qkv_blocks, reads.above_BJP, reads.mask_BJQS)
    )
    out_JBQHk = jax.lax.map(lambda arrays: part(k_BTKk, v_BTKk, *arrays), by_block)
    out_BJQHk = jnp.moveaxis(out_JBQHk, 0, 1)
    return out_BJQHk.reshape(len(q_BTHk), -1, *q_BTHk.shape[2:])[:, :length]


def _in_blocks(x_BT: jax.Array, block: int) -> jax.Array:
    """[B, J, Q, ...], filled up with zeros."""
    batch, length, *rest = x_BT.shape
    x_BT = jnp.pad(x_BT, [(0, 0), (0, -length % block)] + [(0, 0)] * len(rest))
    return x_BT.reshape(batch, -1, block, *rest)
