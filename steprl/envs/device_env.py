"""Environments on token arrays: their protocol, what a step shows, and a check that both are kept.

One episode in pure JAX: it runs under `jit` and `vmap`, inside the program that trains on it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from steprl.models.contract import check_array, check_same_tree

_SPECIAL = 3  # <pad>, <end>, <unk>
_TYPES = {"tokens": jnp.int32, "reward": jnp.float32}  # of an observation; the rest are bool


class DeviceObservation(NamedTuple):
    """What a step shows, and what it was worth."""

    tokens: jax.Array  # [observation_width] int32, right-padded with 0
    reward: jax.Array  # [] float32
    terminated: jax.Array  # [] bool, as all that follow
    truncated: jax.Array
    valid: jax.Array  # the action was understood
    success: jax.Array  # the task is solved


class DeviceEnv(Protocol):
    """An environment on token arrays, one episode; `action_width` tokens are an action.

    The shared settings of `env.game` that reward progress or make mistakes fatal need one method more:

        distance(state) -> [] int32: steps that an optimal player of an open episode still needs, at
            least 1
    """

    @property
    def prompt_width(self) -> int: ...
    @property
    def action_width(self) -> int: ...
    @property
    def observation_width(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    def reset(self, task: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        """State and prompt, [prompt_width] tokens, padded with 0; the task fixes both."""
        ...

    def step(self, state: Any, action: jax.Array) -> tuple[Any, DeviceObservation]:
        """A new state and what was seen; `state` stays as it was."""
        ...


def check_device_env(
    env: DeviceEnv, phrases: Sequence[str], privileged: Callable[[Any], Any] | None = None
) -> None:
    """An environment keeps to the contract of `DeviceEnv`: shapes, types, and the number of its words.

    Args:
        env: to be played; nothing is computed.
        phrases: its vocabulary.
        privileged: what its critic is told of a state, see `steprl.envs.games.Game`.

    Raises:
        ValueError: names what differs from what.
    """
    if env.vocab_size != len(phrases) + _SPECIAL:
        raise ValueError(
            f"game.vocab_size={env.vocab_size}: its vocabulary has {len(phrases)} phrases, which with "
            f"<pad>, <end>, <unk> makes {len(phrases) + _SPECIAL}"
        )
    task, key = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    state, prompt = jax.eval_shape(env.reset, task, key)
    check_array("game.reset: the prompt", prompt, (env.prompt_width,), jnp.int32)
    if privileged is not None:
        told = jax.eval_shape(privileged, state)
        check_array("game.privileged", told, told.shape[:1], jnp.int32)
    action = jax.ShapeDtypeStruct((env.action_width,), jnp.int32)
    after, seen = jax.eval_shape(env.step, state, action)
    check_same_tree("game.step: the state", after, state, "that of game.reset")
    if not isinstance(seen, DeviceObservation):
        raise ValueError(
            f"game.step gives {type(seen).__name__} beside the state: give "
            "steprl.envs.device_env.DeviceObservation"
        )
    for name, value in seen._asdict().items():
        shape = (env.observation_width,) if name == "tokens" else ()
        check_array(f"game.step: {name}", value, shape, _TYPES.get(name, jnp.bool_))
