"""Games on the device: what one brings, its shared settings, and how it is played as text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steprl.config import GameConfig
from steprl.envs.device_env import DeviceEnv
from steprl.envs.shaped_game import THOUGHTS, ShapedGame, asks_for_distance
from steprl.models.tokenizer import detokenize, phrase_tokenizer

_NOUGHT = 3  # the first phrase; before it are <pad>, <end>, <unk>

ScriptedPlayer = Callable[[Any, jax.Array], jax.Array]
"""From the state, and the key of the trajectory, to an action, [action_width] tokens."""


class Enumerable(NamedTuple):
    """What an exact enumeration of a game's outcomes has to know; a return is at least 0, at most 1.

    The first two are functions of one state, in JAX. The less a state can still bring, the less has to be
    enumerated, and the closer the bounds are.

    Attributes:
        largest_return: state -> []: no play from there returns more; 0 where no reward can be reached.
        last_action: state -> [action_width]: tokens of the only action that is rewarded, where the next
            step is the last that can be taken; all 0 where it is not.
        chance: what is left to chance, and by which setting; None where nothing is.
    """

    largest_return: Callable[[Any], jax.Array]
    last_action: Callable[[Any], jax.Array]
    chance: str | None = None


@dataclasses.dataclass(frozen=True)
class Game:
    """A game whose episodes run inside the compiled program, with its language and its players.

    Attributes:
        make: the environment of a split, from "is it held out?", which may be traced, so that one
            program serves both splits.
        vocabulary: phrases, in the order of the ids from 3 on.
        demonstrate: the demonstrator of the warm start; None where nothing is shown.
        optimal: a player who makes no mistake; None where none is known.
        demonstration_env: in which demonstrations are played; None: the training split.
        enumerable: for exact values in an audit; None where they cannot be found.
        privileged: what only the critic reads, with `critic.privileged`: from the state of an open
            episode to words of the vocabulary, [W] int32 for some W, padded with 0 on the right. Nothing
            stands for no change. None where there is nothing to tell.

    Example:
        >>> from steprl.envs.multihop import Multihop, vocabulary
        >>> game = Game(lambda heldout: Multihop(heldout=heldout), vocabulary())
        >>> text_game(game).reset(0)[1]
        'who is the teacher of the doctor of Wilma?'
    """

    make: Callable[[Any], DeviceEnv]
    vocabulary: tuple[str, ...]
    demonstrate: ScriptedPlayer | None = None
    optimal: ScriptedPlayer | None = None
    demonstration_env: DeviceEnv | None = None
    enumerable: Enumerable | None = None
    privileged: Callable[[Any], jax.Array] | None = None

    def shown(self) -> DeviceEnv:
        """The environment that demonstrations are played in."""
        return self.make(False) if self.demonstration_env is None else self.demonstration_env


def shape_game(game: Game, config: GameConfig) -> Game:
    """The game with the shared settings of `env.game`; itself where they are all off.

    Raises:
        ValueError: a setting needs a game that knows how many steps are left.
    """
    if config == GameConfig():
        return game
    plain = game.make(False)
    if asks_for_distance(config) and not callable(getattr(plain, "distance", None)):
        raise ValueError(
            "env.game.progress_reward and env.game.fatal_errors ask how many steps an optimal player "
            f"still needs: {type(plain).__name__} has no method `distance`"
        )
    shaped = ShapedGame(plain, config)

    def thinking(player: ScriptedPlayer | None) -> ScriptedPlayer | None:
        if player is None:
            return None
        return lambda state, key: shaped.think(state, player(state.game, key), key)

    env, told = game.demonstration_env, game.privileged
    return Game(
        make=lambda heldout: ShapedGame(game.make(heldout), config),
        vocabulary=game.vocabulary + THOUGHTS * (config.thought_tokens > 0),
        demonstrate=thinking(game.demonstrate),
        optimal=thinking(game.optimal),
        demonstration_env=None if env is None else ShapedGame(env, config),
        privileged=None if told is None else lambda state: told(state.game),
    )


def text_game(game: Game, heldout: bool = False) -> "GameText":
    """A game as a text environment on the host."""
    env = game.make(heldout)
    end = env.stop_ids[0] if env.stop_ids else 0
    return GameText(env, game.vocabulary, end, game.privileged)


def count_as_token(number: jax.Array, vocab_size: int) -> jax.Array:
    """A number from 0 on as a token, for `Game.privileged`: the critic learns ids, not what they mean.

    Args:
        number: of any shape; what is beyond the vocabulary becomes its last token.

    Returns:
        int32: the first phrase for 0, and from there on.
    """
    return jnp.minimum(number + _NOUGHT, vocab_size - 1).astype(jnp.int32)


class GameText:
    """The value protocol of `steprl.envs.Env` around one on token arrays: words are looked up both ways.

    Args:
        game: the rules.
        phrases: its vocabulary, in the order of the ids behind the special tokens. Those that begin
            with "invalid" say why an action was not understood.
        end: id that ends an action which is shorter than the widest.
        privileged: see `Game`.
    """

    def __init__(
        self, game: DeviceEnv, phrases: Sequence[str], end: int = 0,
        privileged: Callable[[Any], jax.Array] | None = None,
    ):  # fmt: skip
        self.game, self._end = game, end
        self.tokenizer = phrase_tokenizer(phrases)
        self._reset, self._step = jax.jit(game.reset), jax.jit(game.step)
        if privileged is not None:
            self._told = jax.jit(privileged)
            self.privileged = self._privileged  # absent where there is nothing to tell

    @property
    def max_steps(self) -> int:
        """Steps of the longest episode."""
        return int(self.game.max_steps)

    def reset(self, task: int, key: Any = None) -> tuple[Any, str]:
        """State and prompt of a task; `key` decides what is left to chance (default: by task)."""
        state, tokens = self._reset(task, jax.random.key(task) if key is None else key)
        return state, self._text(tokens)

    def step(self, state: Any, action: str) -> tuple[Any, str, float, bool, bool, dict[str, Any]]:
        """Plays an action; one that is not understood costs a step, and the answer says why."""
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

    def _privileged(self, state: Any) -> str:
        return self._text(self._told(state))

    def _text(self, tokens: jax.Array) -> str:
        ids = np.asarray(tokens)
        return detokenize(self.tokenizer, ids[ids != 0])
