"""Decoders as a `Policy`: NNX modules inside, pure functions of parameters outside."""

from functools import lru_cache
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from steprl.models.decoder import Decoder, KVCache, ValueHead, init_cache
from steprl.models.presets import DecoderConfig
from steprl.types import Params, Policy


class _Parts(nnx.Module):
    """What a policy is made of; never seen outside this file."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.decoder = Decoder(config, rngs)
        if config.value_head != "none":
            self.value = ValueHead(config, rngs)
        if config.value_head == "separate":
            self.critic = Decoder(config, rngs)


class _Keys(nnx.Rngs):
    """The keys that `nnx.Rngs(params=key)` draws, counted in Python.

    The counter of `nnx.Rngs` is an array, and to trace it takes time quadratic in the parameters.
    """

    def __init__(self, key: jax.Array):
        super().__init__()
        counter = count()
        self.params = lambda: jax.random.fold_in(key, next(counter))


@lru_cache(maxsize=32)
def _abstract(config: DecoderConfig) -> tuple[Any, Any]:
    """The modules of a policy without their numbers: what they are, and shapes."""
    return nnx.split(nnx.eval_shape(lambda: _Parts(config, _Keys(jax.random.key(0)))))


def abstract_params(config: DecoderConfig) -> Params:
    """Shapes and types of `make_policy(config).init(key)`, without tracing how they are drawn."""
    return _int_keys_to_str(nnx.to_pure_dict(_abstract(config)[1]))


@lru_cache(maxsize=32)
def make_policy(config: DecoderConfig) -> Policy:
    """A decoder of the given shape as pure functions (see `steprl.types.Policy`).

    Parameters are nested dicts with string keys: "decoder", and with a value head "value", and with
    a separate critic its trunk "critic". The same config gives the same functions, so that what JAX
    has compiled for them is found again.
    """
    if config.value_head not in ("shared", "separate", "none"):
        raise ValueError(f"value_head={config.value_head!r}: allowed are shared, separate, none")
    graph, abstract = _abstract(config)

    def build(params: Params) -> _Parts:
        state = jax.tree.map(
            lambda leaf: leaf, abstract
        )  # a copy, so that the template stays clean
        nnx.replace_by_pure_dict(state, _digit_keys_to_int(params))
        return nnx.merge(graph, state)

    def init(key: jax.Array) -> Params:
        _, state = nnx.split(_Parts(config, _Keys(key)))
        return _int_keys_to_str(nnx.to_pure_dict(state))

    def apply(
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        cache: KVCache | None = None,
        segment_ends_BT: jax.Array | None = None,
        longest: int | None = None,
        trunk_BTD: jax.Array | None = None,
        trunk_layers: int = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        contexts = tokens_BT, positions_BT, segment_ids_BT, cache, segment_ends_BT, longest
        return build(params).decoder(*contexts, trunk_BTD, trunk_layers)

    def trunk(
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        layers: int,
        segment_ends_BT: jax.Array | None = None,
        longest: int | None = None,
    ) -> jax.Array:
        contexts = tokens_BT, positions_BT, segment_ids_BT, segment_ends_BT, longest
        return build(params).decoder.trunk(*contexts, layers)

    def unembed(params: Params, hidden_D: jax.Array) -> jax.Array:
        return build(params).decoder.unembed(hidden_D)

    def value(
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        hidden_BTD: jax.Array,
        segment_ends_BT: jax.Array | None = None,
        longest: int | None = None,
    ) -> jax.Array:
        parts = build(params)
        if config.value_head == "separate":
            hidden_BTD, _ = parts.critic(
                tokens_BT, positions_BT, segment_ids_BT, None, segment_ends_BT, longest
            )
        return parts.value(hidden_BTD).astype(jnp.float32)

    return Policy(
        init=init,
        apply=apply,
        unembed=unembed,
        value=None if config.value_head == "none" else value,
        init_cache=lambda batch, length: init_cache(config, batch, length),
        support=None if config.value_head == "none" else config.value_support,
        trunk=trunk,
    )


def with_detached_value(policy: Policy) -> Policy:
    """The policy whose critic takes the hidden states as numbers: its loss does not reach what made them."""
    value = policy.value
    if value is None:
        return policy

    def detached(
        params: Params,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        hidden_BTD: jax.Array,
        **more: Any,
    ) -> jax.Array:
        hidden_BTD = jax.lax.stop_gradient(hidden_BTD)
        return value(params, tokens_BT, positions_BT, segment_ids_BT, hidden_BTD, **more)

    return policy._replace(value=detached)


def _int_keys_to_str(tree: Any) -> Any:
    """Layer numbers as strings, so that names of parameters are plain paths."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _int_keys_to_str(value) for key, value in tree.items()}


def _digit_keys_to_int(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _digit_keys_to_int(v) for k, v in tree.items()}
