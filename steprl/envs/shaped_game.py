"""One variation for all games on the device: thoughts, rewards on the way, mistakes that end them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import GameConfig
from steprl.envs.device_env import DeviceEnv, DeviceObservation

THOUGHTS = ("hm", "so", "now", "well", "maybe", "then", "right", "next")
"""Words of free thought, behind the words of a game; they mean nothing to it."""
_FATAL, _THOUGHT = 2**31 - 2, 2**31 - 3  # streams apart from those of tokens and environments


def asks_for_distance(config: GameConfig) -> bool:
    """Whether settings need a game that knows how far from its end it is."""
    return config.progress_reward > 0 or config.fatal_errors > 0


class ShapedState(NamedTuple):
    """The state of a game, and what is owed for the progress made in it."""

    game: Any
    first: jax.Array  # [] int32: steps of an optimal player from the beginning
    owed_S: jax.Array  # float32: progress that is paid with each step
    turn: jax.Array
    key: jax.Array  # decides which mistakes are fatal


@dataclasses.dataclass(frozen=True)
class ShapedGame:
    """A game with thoughts before its commands, rewards on the way, and mistakes that end it.

    A step that brings an optimal player no nearer to the end is a mistake. Progress is the share of
    the optimal steps that is left behind; it telescopes, so going to and fro earns nothing
    (potential-based shaping, Ng et al. 1999).
    """

    game: DeviceEnv
    config: GameConfig = GameConfig()

    @property
    def prompt_width(self) -> int:
        return int(self.game.prompt_width)

    @property
    def action_width(self) -> int:
        """Thoughts and then the command."""
        return int(self.config.thought_tokens + self.game.action_width)

    @property
    def observation_width(self) -> int:
        return int(self.game.observation_width)

    @property
    def max_steps(self) -> int:
        return int(self.game.max_steps)

    @property
    def vocab_size(self) -> int:
        return int(self.game.vocab_size) + len(THOUGHTS) * (self.config.thought_tokens > 0)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(self.game.stop_ids)

    def reset(self, task: Any, key: jax.Array) -> tuple[ShapedState, jax.Array]:
        """As of the game."""
        state, prompt = self.game.reset(task, key)
        zero = jnp.zeros((), jnp.int32)
        owed_S = jnp.zeros(self.max_steps, jnp.float32)
        first = self._distance(state)
        return ShapedState(state, first, owed_S, zero, jax.random.fold_in(key, _FATAL)), prompt

    def step(self, state: ShapedState, action: jax.Array) -> tuple[ShapedState, DeviceObservation]:
        """Plays the command behind the thoughts."""
        config, last = self.config, self.max_steps - 1
        before = self._distance(state.game)
        new, seen = self.game.step(state.game, action[config.thought_tokens :])
        after = jnp.where(seen.terminated, before, self._distance(new))
        after = jnp.where(seen.success, 0, after)
        gain = (before - after) / jnp.maximum(state.first, 1)
        chance = jax.random.uniform(jax.random.fold_in(state.key, state.turn))
        fatal = (after >= before) & ~seen.success & (chance < config.fatal_errors)
        terminated, truncated = seen.terminated | fatal, seen.truncated & ~fatal

        owed_S = state.owed_S.at[jnp.minimum(state.turn + config.reward_delay, last)].add(gain)
        due_S = jnp.arange(last + 1) <= jnp.where(terminated | truncated, last, state.turn)
        paid = jnp.sum(jnp.where(due_S, owed_S, 0.0))
        reward = (1 - config.progress_reward) * seen.reward + config.progress_reward * paid
        state = state._replace(game=new, owed_S=jnp.where(due_S, 0.0, owed_S), turn=state.turn + 1)
        return state, seen._replace(reward=reward, terminated=terminated, truncated=truncated)

    def _distance(self, state: Any) -> jax.Array:
        """[] int32 of the game; a constant where no setting needs it, so that it may have none."""
        if not asks_for_distance(self.config):
            return jnp.ones((), jnp.int32)
        return jnp.asarray(self.game.distance(state))  # type: ignore[attr-defined]

    def think(self, state: ShapedState, command: jax.Array, key: jax.Array) -> jax.Array:
        """The command behind words of thought, which are drawn evenly; `key` is of the trajectory."""
        draw = jax.random.fold_in(jax.random.fold_in(key, _THOUGHT), state.turn)
        number = self.config.thought_tokens
        words = jax.random.randint(draw, (number,), 0, len(THOUGHTS), jnp.int32)
        return jnp.concatenate([self.game.vocab_size + words, command])
