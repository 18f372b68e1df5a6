"""What is wrong with a game or a policy of one's own, found from shapes alone, before it is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from steprl.envs.device_game import DeviceGame, Observation
from steprl.types import Policy

_SPECIAL = 3  # <pad>, <end>, <unk>
_KINDS = {"tokens": jnp.int32, "reward": jnp.float32}  # of an observation; the rest are bool
_ROWS, _LENGTH = 2, 5


def check_game(game: DeviceGame, phrases: Sequence[str]) -> None:
    """A game keeps to the contract of `DeviceGame`: shapes, types, and the number of its words.

    Args:
        game: to be played; nothing is computed.
        phrases: its vocabulary.

    Raises:
        ValueError: names what differs from what.
    """
    if game.vocab_size != len(phrases) + _SPECIAL:
        raise ValueError(
            f"game.vocab_size={game.vocab_size}: its vocabulary has {len(phrases)} phrases, which with "
            f"<pad>, <end>, <unk> makes {len(phrases) + _SPECIAL}"
        )
    task, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    state, prompt = jax.eval_shape(game.reset, task, key)
    _same("game.reset: the prompt", prompt, (game.prompt_width,), jnp.int32)
    action = jax.ShapeDtypeStruct((game.action_width,), jnp.int32)
    after, seen = jax.eval_shape(game.step, state, action)
    _same_tree("game.step: the state", after, state, "that of game.reset")
    if not isinstance(seen, Observation):
        raise ValueError(
            f"game.step gives {type(seen).__name__} beside the state: give "
            "steprl.envs.device_game.Observation"
        )
    for name, value in seen._asdict().items():
        shape = (game.observation_width,) if name == "tokens" else ()
        _same(f"game.step: {name}", value, shape, _KINDS.get(name, jnp.bool_))


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
    _same("policy.unembed", logits, (*ids.shape, vocab_size), jnp.float32)
    if policy.value is not None:
        value = jax.eval_shape(policy.value, params, ids, ids, ids, hidden)
        _same("policy.value", value, ids.shape, jnp.float32)
    cache = jax.eval_shape(lambda: policy.init_cache(_ROWS, 2 * _LENGTH))
    read, after = jax.eval_shape(policy.apply, params, ids, ids, ids, cache)
    _same("policy.apply with a cache: the hidden states", read, hidden.shape, hidden.dtype)
    _same_tree("policy.apply: the cache", after, cache, "that of policy.init_cache")
    for leaf in jax.tree.leaves(cache):
        if leaf.ndim == 0 or leaf.shape[0] != _ROWS:
            raise ValueError(
                f"policy.init_cache({_ROWS}, {2 * _LENGTH}) has an array of shape {leaf.shape}: rows "
                "come first in all of them"
            )


def _same(what: str, found: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(
            f"{what} is {found.dtype} of shape {found.shape}, and should be {jnp.dtype(dtype)} of "
            f"shape {shape}"
        )


def _same_tree(what: str, found: Any, wanted: Any, which: str) -> None:
    structure, other = str(jax.tree.structure(found)), str(jax.tree.structure(wanted))
    if structure != other:
        raise ValueError(
            f"{what} has the structure {structure}, and {which} {other}: they must be the same"
        )
    paths = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), model in zip(paths, jax.tree.leaves(wanted), strict=True):
        if (leaf.shape, leaf.dtype) != (model.shape, model.dtype):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"{what}{name} is {leaf.dtype} of shape {leaf.shape}, and {which} {model.dtype} of "
                f"shape {model.shape}: they must be the same"
            )
