"""Flax modules of the user's own, NNX and Linen, as a `Policy` of pure functions.

A module has the methods of the contract under their own names:

    __call__(tokens_BT, positions_BT, segment_ids_BT, cache=None) -> (hidden_BTD, cache)
    unembed(hidden_..D) -> logits_..V
    value(tokens_BT, positions_BT, segment_ids_BT, hidden_BTD) -> value_BT     where it has a critic
    init_cache(batch, length) -> cache, rows first in all its arrays

See `steprl.types.Policy` for what these must do. A module that can attend along a tree of shared
prefixes takes `segment_ends_BT` and `longest` as well; `takes_trees` finds that out.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from steprl.models.contract import TREE_ARGUMENTS
from steprl.types import Params, Policy

_METHODS = ("unembed", "init_cache")


def as_policy(given: Any) -> Policy:
    """A policy from what a user may pass for one.

    Args:
        given: a `Policy`; a Linen module; an NNX module, which begins with the parameters that it
            has; or a function that makes an NNX module from `rngs=nnx.Rngs(...)`, such as
            `functools.partial(MyModel, vocab_size=64)`, whose parameters follow from the seed.

    Raises:
        TypeError: it is none of these.
        ValueError: a method of the contract is missing, or the module keeps something other than
            parameters, such as statistics of batches.
    """
    if isinstance(given, Policy):
        return given
    if isinstance(given, linen.Module):
        return linen_policy(given)
    if isinstance(given, nnx.Module):
        return _nnx_policy(lambda rngs: given, given)
    if callable(given):
        return nnx_policy(given)
    raise TypeError(
        f"policy is {type(given).__name__}: give a steprl.types.Policy, a Flax Linen module, a Flax "
        "NNX module, or a function of rngs that makes one"
    )


def nnx_policy(make: Callable[..., nnx.Module]) -> Policy:
    """A policy of an NNX module that `make(rngs=...)` makes; parameters are nested dicts.

    Raises:
        TypeError: `make` makes something else.
        ValueError: as of `as_policy`.
    """
    abstract = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise TypeError(f"policy: {make} makes something else than an nnx.Module: {abstract}")
    return _nnx_policy(make, abstract)


def _nnx_policy(make: Callable[..., nnx.Module], example: nnx.Module) -> Policy:
    kind = type(example)
    _check_methods(example, kind.__name__)
    parts: Any = nnx.split(example, nnx.Param, ...)
    graph, abstract, rest = parts
    extra = [path for path, leaf in nnx.to_flat_state(rest) if not isinstance(leaf, nnx.RngState)]
    if extra:
        raise ValueError(
            f"policy: {kind.__name__} keeps {'/'.join(map(str, extra[0]))}, which is no nnx.Param; "
            "a policy is a pure function of its parameters"
        )

    def build(params: Params) -> Any:
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the template stays as it is
        nnx.replace_by_pure_dict(state, _as_in(nnx.to_pure_dict(abstract), params))
        return nnx.merge(graph, state, rest)

    def init(key: jax.Array) -> Params:
        return _string_keys(nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(key)), nnx.Param)))

    def method(name: str) -> Callable[..., Any]:
        return lambda params, *arrays, **named: getattr(build(params), name)(*arrays, **named)

    return _policy(init, method, example)


def linen_policy(module: linen.Module) -> Policy:
    """A policy of a Linen module; its parameters are the collection "params".

    Raises:
        ValueError: as of `as_policy`.
    """
    _check_methods(module, type(module).__name__)

    def init(key: jax.Array) -> Params:
        ids = jnp.zeros((1, 2), jnp.int32)

        def call_all(bound: Any) -> Any:
            """Calls each method once, so that all parameters are made."""
            hidden, _ = bound(ids, ids, ids + 1)
            outputs = [bound.unembed(hidden)]
            if hasattr(bound, "value"):
                outputs.append(bound.value(ids, ids, ids + 1, hidden))
            return outputs

        variables = module.init(key, method=call_all)
        others = [name for name in variables if name != "params"]
        if others:
            raise ValueError(
                f"policy: {type(module).__name__} has the collection {others[0]!r} beside params; a "
                "policy is a pure function of its parameters"
            )
        return dict(variables["params"])

    def method(name: str) -> Callable[..., Any]:
        chosen = getattr(type(module), name)
        return lambda params, *arrays, **named: module.apply(
            {"params": params}, *arrays, **named, method=chosen
        )

    return _policy(init, method, module)


def _policy(
    init: Callable[[jax.Array], Params], method: Callable[[str], Callable[..., Any]], module: Any
) -> Policy:
    call, unembed, value = method("__call__"), method("unembed"), method("value")
    has_value = callable(getattr(module, "value", None))
    trees = TREE_ARGUMENTS <= set(inspect.signature(type(module).__call__).parameters)

    def apply(
        params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array,
        cache: Any = None,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        return call(params, tokens, positions, segments, cache)

    def apply_tree(
        params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array,
        cache: Any = None, segment_ends_BT: jax.Array | None = None, longest: int | None = None,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        tree = dict(segment_ends_BT=segment_ends_BT, longest=longest)
        return call(params, tokens, positions, segments, cache, **tree)

    def critic(params: Params, *arrays: jax.Array, **tree: Any) -> jax.Array:
        return value(params, *arrays, **tree).astype(jnp.float32)

    return Policy(
        init=init,
        apply=apply_tree if trees else apply,
        unembed=lambda params, hidden: unembed(params, hidden).astype(jnp.float32),
        value=critic if has_value else None,
        # Its arrays are empty, so no parameter is needed for them.
        init_cache=lambda batch, length: type(module).init_cache(module, batch, length),
    )


def _check_methods(module: Any, name: str) -> None:
    for method in _METHODS:
        if not callable(getattr(module, method, None)):
            raise ValueError(
                f"policy: {name} has no method {method}; see steprl.models.modules for the contract"
            )


def _string_keys(tree: Any) -> Any:
    """Numbers of layers as strings, so that names of parameters are plain paths."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _string_keys(value) for key, value in tree.items()}


def _as_in(template: Any, params: Any) -> Any:
    """The parameters under the keys of the template, which may be numbers."""
    if not isinstance(template, dict):
        return params
    return {key: _as_in(value, params[str(key)]) for key, value in template.items()}
