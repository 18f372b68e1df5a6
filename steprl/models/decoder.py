"""One decoder for the Llama / Qwen2 / Qwen3 / SmolLM families, as Flax NNX modules.

RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU. The modules are used
only behind the pure functions of `steprl.models.policy`.

The KV cache needs no lengths and no pointers: **slot s of a row holds the token at position s**. A
padding token has segment 0 and is written nowhere; a query at position p sees slots 0..p.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from steprl.models.attention import attend, attend_to_cache, write_cache
from steprl.models.presets import DecoderConfig, Llama3Scaling
from steprl.models.tree_attention import TreeReads, attend_tree, first_tokens, related, tree_reads


class KVCache(NamedTuple):
    """Keys and values of each layer, [B, K, length, head_dim] each: in the order attention reads."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def init_cache(config: DecoderConfig, batch: int, length: int) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens."""
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    layers = lambda: tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))  # noqa: E731
    return KVCache(layers(), layers())  # no buffer twice, so that a cache may be donated


def rotary_frequencies(half: int, theta: float, scaling: Llama3Scaling | None) -> jax.Array:
    """Radians a token by which each of the `half` pairs turns: theta^(-i/half), or slower."""
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return frequency
    factor, low, high, context = scaling
    turns = context * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * frequency / factor + kept * frequency


class Turns(NamedTuple):
    """Cosine and sine of the angle by which each pair of each token turns, [B, T, 1, K/2] float32."""

    cos: jax.Array
    sin: jax.Array


def rotary_turns(
    positions_BT: jax.Array, size: int, theta: float, scaling: Llama3Scaling | None = None
) -> Turns:
    """Pair i turns by position * theta^(-2i/K) (RoFormer, arXiv 2104.09864); the same in all layers."""
    frequency = rotary_frequencies(size // 2, theta, scaling)
    angle = (positions_BT.astype(jnp.float32)[:, :, None] * frequency[None, None, :])[:, :, None, :]
    of_angle = lambda x: Turns(jnp.cos(x), jnp.sin(x))  # noqa: E731
    if angle.size <= 1 << 12:
        return of_angle(angle)
    # What a loop makes is kept; else XLA for CPUs computes it again wherever it is read, for each head.
    by_row = functools.partial(jax.lax.map, of_angle)
    return jax.lax.platform_dependent(angle, cpu=by_row, default=of_angle)


def rotate(x_BTHK: jax.Array, turns: Turns) -> jax.Array:
    """Turns each pair (i, i + K/2) of each head."""
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = turns
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHK.dtype)


@jax.custom_vjp
def _product(x_BTD: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """x @ kernel, whose derivative leaves the cotangent as it lies.

    JAX writes the gradient of the kernel as the transpose of cotangent @ x. On a CPU the cotangent
    of an activation is then computed a second time, column by column: twice the time of a layer.
    """
    return jnp.einsum("btd,df->btf", x_BTD, kernel_DF)


def _product_backward(
    saved: tuple[jax.Array, jax.Array], slope_BTF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, kernel_DF = saved
    of_x_BTD = jax.lax.dot_general(slope_BTF, kernel_DF, (((2,), (1,)), ((), ())))
    return of_x_BTD, jax.lax.dot_general(x_BTD, slope_BTF, (((0, 1), (0, 1)), ((), ())))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


def _dot_general(x: jax.Array, kernel: jax.Array, *_: object, **__: object) -> jax.Array:
    """What `nnx.Linear` asks for: the last axis of x with the first of the kernel."""
    return _product(x, kernel)


class Attention(nnx.Module):
    """Grouped-query attention; softmax in float32."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim

        def linear(inputs: int, outputs: int, bias: bool) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                use_bias=bias,
                dtype=config.dtype,
                param_dtype=config.param_dtype,
                dot_general=_dot_general,
                rngs=rngs,
            )

        self.query = linear(config.d_model, heads * size, config.attention_bias)
        self.key = linear(config.d_model, kv_heads * size, config.attention_bias)
        self.value = linear(config.d_model, kv_heads * size, config.attention_bias)
        self.out = linear(heads * size, config.d_model, False)
        if config.qk_norm:
            self.query_norm = _norm(config, size, rngs)
            self.key_norm = _norm(config, size, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        turns: Turns,
        mask_BTS: jax.Array | TreeReads,
        layer_cache: tuple[jax.Array, jax.Array] | None,
        slots_BT: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        config = self.config
        batch, length, _ = x_BTD.shape
        q = self.query(x_BTD).reshape(batch, length, config.num_heads, config.head_dim)
        k = self.key(x_BTD).reshape(batch, length, config.num_kv_heads, config.head_dim)
        v = self.value(x_BTD).reshape(batch, length, config.num_kv_heads, config.head_dim)
        if config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, turns), rotate(k, turns)
        if isinstance(mask_BTS, TreeReads):
            first = mask_BTS.first_BTS.shape[1]
            arrays = q[:, :first], k[:, :first], v[:, :first], mask_BTS.first_BTS
            out = attend(*arrays, config.attention_block)
            out = jnp.concatenate([out, attend_tree(q, k, v, mask_BTS)], axis=1)
        elif layer_cache is not None and slots_BT is not None:
            k = write_cache(layer_cache[0], k, slots_BT)
            v = write_cache(layer_cache[1], v, slots_BT)
            layer_cache = (k, v)
            out = attend_to_cache(q, k.astype(q.dtype), v.astype(q.dtype), mask_BTS)
        else:
            out = attend(q, k, v, mask_BTS, config.attention_block)
        return self.out(out.reshape(batch, length, -1)), layer_cache


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                use_bias=False,
                dtype=config.dtype,
                param_dtype=config.param_dtype,
                dot_general=_dot_general,
                rngs=rngs,
            )

        self.gate = linear(config.d_model, config.d_ff)
        self.up = linear(config.d_model, config.d_ff)
        self.down = linear(config.d_ff, config.d_model)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, config.d_model, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = _norm(config, config.d_model, rngs)
        self.mlp = SwiGLU(config, rngs)

    def __call__(self, x_BTD, turns, mask_BTS, layer_cache, slots_BT):  # type: ignore[no-untyped-def]
        attended, layer_cache = self.attention(
            self.attention_norm(x_BTD), turns, mask_BTS, layer_cache, slots_BT
        )
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), layer_cache


class Decoder(nnx.Module):
    """Tokens to hidden states (after the final norm) and hidden states to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.d_model,
            embedding_init=nnx.initializers.normal(0.02),
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            rngs=rngs,
        )
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.final_norm = _norm(config, config.d_model, rngs)
        if not config.tie_embeddings:
            self.head = nnx.Param(
                nnx.initializers.lecun_normal()(
                    rngs.params(), (config.d_model, config.vocab_size), config.param_dtype
                )
            )

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        cache: KVCache | None = None,
        segment_ends_BT: jax.Array | None = None,
        longest: int | None = None,
        trunk_BTD: jax.Array | None = None,
        trunk_layers: int = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        real_BT = segment_ids_BT > 0
        # Whatever id stands at a padding place, even one out of range, must not matter.
        x_BTD = self.embedding(jnp.where(real_BT, tokens_BT, 0)) if trunk_BTD is None else trunk_BTD
        positions_BT = jnp.where(real_BT, positions_BT, 0)
        config = self.config
        turns = rotary_turns(positions_BT, config.head_dim, config.rope_theta, config.rope_scaling)
        if cache is None:
            slots_BT = None
            mask_BTS = self._mask(positions_BT, segment_ids_BT, segment_ends_BT, longest)
        else:
            length = cache.keys[0].shape[2]
            slots_BT = jnp.where(real_BT, positions_BT, length)
            mask_BTS = jnp.arange(length)[None, None, :] <= positions_BT[:, :, None]
        keys, values = [], []
        for index, block in enumerate(self.layers):
            if index < trunk_layers:
                continue
            layer_cache = None if cache is None else (cache.keys[index], cache.values[index])
            run = jax.checkpoint(block) if self.config.remat and cache is None else block
            x_BTD, layer_cache = run(x_BTD, turns, mask_BTS, layer_cache, slots_BT)
            if layer_cache is not None:
                keys.append(layer_cache[0])
                values.append(layer_cache[1])
        new_cache = None if cache is None else KVCache(tuple(keys), tuple(values))
        return self.final_norm(x_BTD), new_cache

    def trunk(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        segment_ends_BT: jax.Array | None,
        longest: int | None,
        layers: int,
    ) -> jax.Array:
        """Hidden states behind the lowest layers, which a call without a cache can go on from."""
        real_BT = segment_ids_BT > 0
        x_BTD = self.embedding(jnp.where(real_BT, tokens_BT, 0))
        positions_BT = jnp.where(real_BT, positions_BT, 0)
        config = self.config
        turns = rotary_turns(positions_BT, config.head_dim, config.rope_theta, config.rope_scaling)
        mask_BTS = self._mask(positions_BT, segment_ids_BT, segment_ends_BT, longest)
        for index, block in enumerate(self.layers):
            if index < layers:
                x_BTD, _ = block(x_BTD, turns, mask_BTS, None, None)
        return x_BTD

    def _mask(
        self,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        segment_ends_BT: jax.Array | None,
        longest: int | None,
    ) -> jax.Array | TreeReads:
        """What each token sees without a cache; of a tree, by blocks of queries."""
        behind_BTS = positions_BT[:, :, None] >= positions_BT[:, None, :]
        if segment_ends_BT is None:
            same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
            return behind_BTS & same_BTS & (segment_ids_BT > 0)[:, None, :]
        length, block = positions_BT.shape[1], self.config.attention_block
        if block and longest is not None and first_tokens(block, longest) < length:
            return tree_reads(positions_BT, segment_ids_BT, segment_ends_BT, block, longest)
        return behind_BTS & related(segment_ids_BT, segment_ids_BT, segment_ends_BT)

    def unembed(self, hidden_D: jax.Array) -> jax.Array:
        """Logits in float32, [..., V]."""
        if self.config.tie_embeddings:
            weight_VD = self.embedding.embedding[...].astype(hidden_D.dtype)
            return jnp.einsum(
                "...d,vd->...v", hidden_D, weight_VD, preferred_element_type=jnp.float32
            )
        weight_DV = self.head[...].astype(hidden_D.dtype)
        return jnp.einsum("...d,dv->...v", hidden_D, weight_DV, preferred_element_type=jnp.float32)


class ValueHead(nnx.Module):
    """tanh layer and a linear output that starts at zero, so that a new critic claims nothing.

    It gives [B, T] values, or with `value_support` [B, T, Z] logits of the bins.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(
            config.d_model, config.d_model, param_dtype=config.param_dtype, rngs=rngs
        )
        self.categorical = config.value_support is not None
        self.out = nnx.Linear(
            config.d_model,
            config.value_support.bins if config.value_support else 1,
            kernel_init=nnx.initializers.zeros,
            param_dtype=config.param_dtype,
            rngs=rngs,
        )

    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        out = self.out(jnp.tanh(self.hidden(hidden_BTD.astype(jnp.float32))))
        return out if self.categorical else out[..., 0]


def _norm(config: DecoderConfig, size: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        size, epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.param_dtype, rngs=rngs
    )
