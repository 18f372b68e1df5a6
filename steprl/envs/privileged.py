"""Environments that tell the critic of training more than they show, and never the policy.

What is told belongs to a state, so it is asked for when the state is new: of a text environment by
`PrivilegedEnv`, which passes text beside the state, of a game by the rollout (`steprl.rollout.device`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from steprl.envs import Env
from steprl.envs.answers import checked_privileged, describe
from steprl.envs.device_env import DeviceEnv, DeviceObservation
from steprl.envs.games import Game


class PrivilegedState(NamedTuple):
    """A state of a text environment, and what the critic is told of it."""

    state: Any
    text: str  # "" where that is nothing


class PrivilegedFailed(RuntimeError):
    """The method `privileged` of an environment raised."""


class PrivilegedEnv:
    """A text environment with a method `privileged`, which is called on each new state.

    A state that the environment itself has ended has nothing to tell, so it is not asked for there.

    Args:
        env: what is shown and played; its attributes that a rollout reads are there as well.
    """

    def __init__(self, env: Env):
        self.env = env
        for name in ("metrics", "close"):
            if (method := getattr(env, name, None)) is not None:
                setattr(self, name, method)

    def reset(self, task: int, key: Any = None) -> Any:
        """As of the environment."""
        given = self.env.reset(task) if key is None else self.env.reset(task, key)
        return self._with_privileged(given, ended=False)

    def step(self, state: PrivilegedState, action: str) -> Any:
        """As of the environment."""
        given: Any = self.env.step(state.state, action)
        # What has another form is refused where answers are checked.
        ended = isinstance(given, tuple | list) and len(given) == 6 and bool(given[3])
        return self._with_privileged(given, ended)

    def _with_privileged(self, given: Any, ended: bool) -> Any:
        if not isinstance(given, tuple | list) or not len(given):
            return given
        state, *rest = given
        text = "" if ended else told(self.env, state)
        return (PrivilegedState(state, text), *rest)


def told(env: Any, state: Any) -> str:
    """What an environment with a method `privileged` says of a state.

    Raises:
        BadAnswer: it is no text.
        PrivilegedFailed: the method raised.
    """
    try:
        text = env.privileged(state)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PrivilegedFailed(f"`privileged` failed: {describe(error)}") from error
    return checked_privileged(text)


def name_of_env(env: Any) -> str:
    """How faults call an environment."""
    return type(env.env if isinstance(env, PrivilegedEnv) else env).__name__


@dataclasses.dataclass(frozen=True)
class PrivilegedGame:
    """A game on the device whose rollouts record what the critic is told."""

    game: DeviceEnv
    privileged: Callable[[Any], jax.Array]  # see `Game`

    @property
    def prompt_width(self) -> int:
        return int(self.game.prompt_width)

    @property
    def action_width(self) -> int:
        return int(self.game.action_width)

    @property
    def observation_width(self) -> int:
        return int(self.game.observation_width)

    @property
    def max_steps(self) -> int:
        return int(self.game.max_steps)

    @property
    def vocab_size(self) -> int:
        return int(self.game.vocab_size)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(self.game.stop_ids)

    def reset(self, task: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        """As of the game."""
        return self.game.reset(task, key)

    def step(self, state: Any, action: jax.Array) -> tuple[Any, DeviceObservation]:
        """As of the game."""
        return self.game.step(state, action)


def privileged_env(env: Any, source: str) -> PrivilegedEnv:
    """The environment with what it tells the critic.

    Raises:
        ValueError: it has no method `privileged`.
    """
    if not callable(getattr(env, "privileged", None)):
        raise ValueError(_untold(source, type(env).__name__, "privileged(state) -> str"))
    return PrivilegedEnv(env)


def privileged_game(game: Game, source: str) -> Game:
    """The game, whose rollouts record what it tells the critic; demonstrations do not.

    Raises:
        ValueError: it has no `privileged`.
    """
    tell = game.privileged
    if tell is None:
        raise ValueError(_untold(source, "a Game", "privileged=..."))
    return dataclasses.replace(
        game,
        make=lambda heldout: PrivilegedGame(game.make(heldout), tell),
        demonstration_env=game.shown(),
    )


def _untold(source: str, name: str, needed: str) -> str:
    return (
        f"critic.privileged: {source} ({name}) tells the critic nothing; give it {needed}, see "
        "docs/environments.md, or turn the setting off"
    )
