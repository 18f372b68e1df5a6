"""What is wrong with a policy of one's own, found from shapes alone, before it is compiled."""

import jax
import jax.numpy as jnp

from steprl.envs.device_env import check_array, check_same_tree
from steprl.types import Policy

_ROWS, _LENGTH = 2, 5


def check_policy(policy: Policy, vocab_size: int) -> None:
    """A policy keeps to the contract of `steprl.types.Policy`, and speaks a language of this size.

    Raises:
        ValueError: names what differs from what.
    """
    params = jax.eval_shape(policy.init, jax.random.key(0))
    if not isinstance(params, dict):
        raise ValueError(f"policy.init gives {type(params).__name__}: give nested dicts of arrays")
    params = jax.eval_shape(policy.prepare, params)
    ids = jax.ShapeDtypeStruct((_ROWS, _LENGTH), jnp.int32)
    hidden, _ = jax.eval_shape(policy.apply, params, ids, ids, ids)
    if hidden.ndim != 3 or hidden.shape[:2] != ids.shape:
        raise ValueError(
            f"policy.apply gives hidden states of shape {hidden.shape} for tokens of shape {ids.shape}: "
            "give one vector a token"
        )
    logits = jax.eval_shape(policy.unembed, params, hidden)
    check_array("policy.unembed", logits, (*ids.shape, vocab_size), jnp.float32)
    if policy.value is not None:
        value = jax.eval_shape(policy.value, params, ids, ids, ids, hidden)
        check_array("policy.value", value, ids.shape, jnp.float32)
    cache = jax.eval_shape(lambda: policy.init_cache(_ROWS, 2 * _LENGTH))
    read, after = jax.eval_shape(policy.apply, params, ids, ids, ids, cache)
    check_array("policy.apply with a cache: the hidden states", read, hidden.shape, hidden.dtype)
    check_same_tree("policy.apply: the cache", after, cache, "that of policy.init_cache")
    for leaf in jax.tree.leaves(cache):
        if leaf.ndim == 0 or leaf.shape[0] != _ROWS:
            raise ValueError(
                f"policy.init_cache({_ROWS}, {2 * _LENGTH}) has an array of shape {leaf.shape}: rows "
                "come first in all of them"
            )
