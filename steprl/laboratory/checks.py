"""What is wrong with a game of one's own, found from shapes alone, before it is compiled."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from steprl.envs.device_game import DeviceGame, Observation
from steprl.models.contract import check_same, check_same_tree

_SPECIAL = 3  # <pad>, <end>, <unk>
_KINDS = {"tokens": jnp.int32, "reward": jnp.float32}  # of an observation; the rest are bool


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
    check_same("game.reset: the prompt", prompt, (game.prompt_width,), jnp.int32)
    action = jax.ShapeDtypeStruct((game.action_width,), jnp.int32)
    after, seen = jax.eval_shape(game.step, state, action)
    check_same_tree("game.step: the state", after, state, "that of game.reset")
    if not isinstance(seen, Observation):
        raise ValueError(
            f"game.step gives {type(seen).__name__} beside the state: give "
            "steprl.envs.device_game.Observation"
        )
    for name, value in seen._asdict().items():
        shape = (game.observation_width,) if name == "tokens" else ()
        check_same(f"game.step: {name}", value, shape, _KINDS.get(name, jnp.bool_))
