"""The contract of a policy: what it must give, checked from shapes alone before it is compiled."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from steprl.types import Policy

TREE_ARGUMENTS = frozenset({"segment_ends_BT", "longest"})
"""Further arguments of `apply` and `value` where rows share a prefix."""
_ROWS, _LENGTH = 2, 5


def takes_trees(policy: Policy) -> bool:
    """Whether rows that share a prefix may be run as one (`StepBatch.tree`)."""
    parameters = inspect.signature(policy.apply).parameters
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return any_keyword or set(parameters) >= TREE_ARGUMENTS


def check_policy(policy: Policy, vocab_size: int) -> None:
    """Checks a policy against the contract of `steprl.types.Policy` and against a vocabulary size.

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
        bins = () if policy.support is None else (policy.support.bins,)
        what = "policy.value" + (f" with {bins[0]} bins (critic.head=hl_gauss)" if bins else "")
        check_array(what, value, (*ids.shape, *bins), jnp.float32)
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


def check_array(what: str, found: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Raises ValueError unless an array, which may be abstract, has this shape and type."""
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(
            f"{what} is {found.dtype} of shape {found.shape}, and should be {jnp.dtype(dtype)} of "
            f"shape {shape}"
        )


def check_same_tree(what: str, found: Any, wanted: Any, which: str) -> None:
    """Raises ValueError unless two trees of arrays have the same structure, shapes and types."""
    structure, expected = str(jax.tree.structure(found)), str(jax.tree.structure(wanted))
    if structure != expected:
        raise ValueError(
            f"{what} has the structure {structure}, and {which} {expected}: they must be the same"
        )
    paths = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), other in zip(paths, jax.tree.leaves(wanted), strict=True):
        if (leaf.shape, leaf.dtype) != (other.shape, other.dtype):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"{what}{name} is {leaf.dtype} of shape {leaf.shape}, and {which} {other.dtype} of "
                f"shape {other.shape}: they must be the same"
            )
