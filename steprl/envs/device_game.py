"""What games on token arrays share: an observation, their text face, and the same knobs for all.

A game is played by one episode in pure JAX, so it runs under `jit` and `vmap` inside the program that
trains on it (`steprl.rollout.device.DeviceEnv`). It also knows how far from its end it is.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import GameConfig
from steprl.models.tokenizer import detokenize, phrase_tokenizer

THOUGHTS = ("hm", "so", "now", "well", "maybe", "then", "right", "next")
"""Words of free thought, behind the words of a game; they mean nothing to it."""
_FATAL, _THOUGHT = 2**31 - 2, 2**31 - 3  # streams apart from those of tokens and environments


class Observation(NamedTuple):
    """Tokens, right-padded with 0, and what the step was worth."""

    tokens: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    valid: jax.Array
    success: jax.Array


class DeviceGame(Protocol):
    """An environment on token arrays, one episode; `action_width` tokens are an action."""

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

    def step(self, state: Any, action: jax.Array) -> tuple[Any, Observation]:
        """A new state and what was seen; `state` stays as it was."""
        ...

    def distance(self, state: Any) -> jax.Array:
        """[] int32: steps that an optimal player of an open episode still needs, at least 1."""
        ...


class KnobState(NamedTuple):
    """The state of a game, and what is owed for the progress made in it."""

    game: Any
    first: jax.Array  # [] int32: steps of an optimal player from the beginning
    owed_S: jax.Array  # float32: progress that is paid with each step
    turn: jax.Array
    key: jax.Array  # decides which mistakes are fatal


@dataclasses.dataclass(frozen=True)
class Knobs:
    """A game with thoughts before its commands, rewards on the way, and mistakes that end it.

    A step that brings an optimal player no nearer to the end is a mistake. Progress is the share of
    the optimal steps that is left behind; it telescopes, so going to and fro earns nothing
    (potential-based shaping, Ng et al. 1999).
    """

    game: Any  # a DeviceGame
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

    def reset(self, task: Any, key: jax.Array) -> tuple[KnobState, jax.Array]:
        """As of the game."""
        state, prompt = self.game.reset(task, key)
        zero = jnp.zeros((), jnp.int32)
        owed_S = jnp.zeros(self.max_steps, jnp.float32)
        first = self.game.distance(state)
        return KnobState(state, first, owed_S, zero, jax.random.fold_in(key, _FATAL)), prompt

    def step(self, state: KnobState, action: jax.Array) -> tuple[KnobState, Observation]:
        """Plays the command behind the thoughts."""
        config, last = self.config, self.max_steps - 1
        before = self.game.distance(state.game)
        new, seen = self.game.step(state.game, action[config.thought_tokens :])
        after = jnp.where(seen.terminated, before, self.game.distance(new))
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

    def distance(self, state: KnobState) -> jax.Array:
        """As of the game."""
        return jnp.asarray(self.game.distance(state.game))

    def think(self, state: KnobState, command: jax.Array, key: jax.Array) -> jax.Array:
        """The command behind words of thought, which are drawn evenly; `key` is of the trajectory."""
        draw = jax.random.fold_in(jax.random.fold_in(key, _THOUGHT), state.turn)
        number = self.config.thought_tokens
        words = jax.random.randint(draw, (number,), 0, len(THOUGHTS), jnp.int32)
        return jnp.concatenate([self.game.vocab_size + words, command])


class GameText:
    """The value protocol of `steprl.envs.Env` around a game: words are looked up both ways.

    Args:
        game: the rules.
        phrases: its vocabulary, in the order of the ids behind the special tokens. Those that begin
            with "invalid" say why an action was not understood.
        end: id that ends an action which is shorter than the widest.
    """

    def __init__(self, game: Any, phrases: Sequence[str], end: int = 0):
        self.game, self._end = game, end
        self.tokenizer = phrase_tokenizer(phrases)
        self._reset, self._step = jax.jit(game.reset), jax.jit(game.step)

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        return int(self.game.max_steps)

    def reset(self, task: int, key: Any = None) -> tuple[Any, str]:
        """State and prompt of a task; `key` decides what is left to chance (default: by task)."""
        state, tokens = self._reset(task, jax.random.key(task) if key is None else key)
        return state, self._text(tokens)

    def step(self, state: Any, action: str) -> tuple[Any, str, float, bool, bool, dict[str, Any]]:
        """Plays an action; one that is not understood costs a step and is told why."""
        ids = self.tokenizer.encode(action)[: self.game.action_width]
        if len(ids) < self.game.action_width:
            ids.append(self._end)
        padded = np.zeros(self.game.action_width, np.int32)
        padded[: len(ids)] = ids
        state, seen = self._step(state, padded)
        text = self._text(seen.tokens)
        info: dict[str, Any] = {"success": bool(seen.success), "valid": bool(seen.valid)}
        if not seen.valid:
            info["reason"] = text
        return state, text, float(seen.reward), bool(seen.terminated), bool(seen.truncated), info

    def _text(self, tokens: jax.Array) -> str:
        ids = np.asarray(tokens)
        return detokenize(self.tokenizer, ids[ids != 0])
