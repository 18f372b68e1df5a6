"""Attention with float32 softmax: over what a row holds, and over its cache."""

import math

import jax
import jax.numpy as jnp


def write_cache(cache_BKSh: jax.Array, new_BTKh: jax.Array, slots_BT: jax.Array) -> jax.Array:
    """Puts token t of row b into slot slots[b, t]; a slot out of range is dropped."""
    rows_B1 = jnp.arange(cache_BKSh.shape[0])[:, None]
    new_BTKh = new_BTKh.astype(cache_BKSh.dtype)
    return cache_BKSh.at[rows_B1, :, slots_BT].set(new_BTKh, mode="drop")


def attend_to_cache(
    q_BTHh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Attention, G = H/K queries a key, over keys and values as a cache holds them: none is moved.

    The queries of a key stand in one axis, Q = G * T: with an axis each, XLA for CPUs takes twice
    the time for the derivative (as in `jax.nn.dot_product_attention`).
    """
    batch, length, heads, size = q_BTHh.shape
    kv_heads = k_BKSh.shape[1]
    group = heads // kv_heads
    q_BTKGh = q_BTHh.reshape(batch, length, kv_heads, group, size)
    q_BKQh = jnp.moveaxis(q_BTKGh, 1, 3).reshape(batch, kv_heads, group * length, size)
    score_BKQS = jnp.einsum("bkqh,bksh->bkqs", q_BKQh, k_BKSh, preferred_element_type=jnp.float32)
    mask_BQS = mask_BTS if group == 1 else jnp.tile(mask_BTS, (1, group, 1))
    # A finite number: a token of padding sees nothing, and must not become NaN.
    score_BKQS = jnp.where(mask_BQS[:, None], score_BKQS / math.sqrt(size), -1e30)
    weight_BKQS = jax.nn.softmax(score_BKQS).astype(v_BKSh.dtype)
    out_BKQh = jnp.einsum("bkqs,bksh->bkqh", weight_BKQS, v_BKSh)
    out_BKGTh = out_BKQh.reshape(batch, kv_heads, group, length, size)
    return jnp.moveaxis(out_BKGTh, 3, 1).reshape(batch, length, heads, size)


def attend_plainly(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Attention over keys and values as they come from the layer below."""
    k_BKSh, v_BKSh = jnp.swapaxes(k_BSKh, 1, 2), jnp.swapaxes(v_BSKh, 1, 2)
    return attend_to_cache(q_BTHh, k_BKSh, v_BKSh, mask_BTS)


def attend(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, mask_BTS: jax.Array, block: int
) -> jax.Array:
    """Attention without a cache, block by block of queries.

    Tokens stand in a row in causal order, so a block of queries needs the keys up to its own end
    only. The backward pass computes a block again: memory is that of one block, and on a CPU the
    scores stay in its cache (half the time at 512 tokens).
    """
    length, keys = q_BTHh.shape[1], k_BSKh.shape[1]
    if block == 0 or length != keys or length <= block:
        return attend_plainly(q_BTHh, k_BSKh, v_BSKh, mask_BTS)
    parts = []
    for begin in range(0, length, block):
        end = min(begin + block, length)
        queries, mask = q_BTHh[:, begin:end], mask_BTS[:, begin:end, :end]
        part = jax.checkpoint(attend_plainly)
        parts.append(part(queries, k_BSKh[:, :end], v_BSKh[:, :end], mask))
    return jnp.concatenate(parts, axis=1)
