"""`Household`: endless ALFWorld games behind the protocol of `steprl.envs`."""

import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

from steprl.envs.household.catalogue import ROOM_KINDS, TASK_TYPES, Room, catalogue
from steprl.envs.household.expert import plan
from steprl.envs.household.game import HouseholdGame, State, start
from steprl.envs.household.rooms import SPLITS, generate_room, rooms_of
from steprl.envs.household.rules import act, admissible_commands, won
from steprl.envs.household.tasks import make_game
from steprl.envs.household.texts import welcome
from steprl.envs.household.vocabulary import LARGEST_NUMBER

# A game belongs to the split that its checksum modulo 8 says, whatever the settings: so games of
# two splits differ even where they share rooms.
_CHECKSUMS = {
    "train": (3, 4, 5, 6, 7),
    "valid_seen": (0,),
    "valid_unseen": (1,),
    "test_unseen": (2,),
}
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Household:
    """ALFWorld's text game. A task is a non-negative integer; the same one is the same game.

    Attributes:
        split: "train", "valid_seen" (rooms of train, other games), "valid_unseen" or "test_unseen"
            (rooms of their own, as in ALFRED).
        task_types: task number i is of type `task_types[i % len(task_types)]`.
        max_steps: an episode is truncated after so many commands (ALFWorld uses 50).
        rooms: "real" for the 120 rooms of ALFRED, "generated" for new ones in their likeness.
        room_kinds: kinds of room to use.
        copies: how many instances of an object type there are: one of these numbers.
        max_receptacles, max_object_types: limits on generated rooms.
        admissible: list the admissible commands in `info["admissible_commands"]`.

    Raises:
        ValueError: a setting names something that does not exist.

    Example:
        >>> env = Household(split="train")
        >>> state, text = env.reset(7)
        >>> state, text, reward, terminated, truncated, info = env.step(state, "look")
    """

    split: str = "train"
    task_types: tuple[str, ...] = TASK_TYPES
    max_steps: int = 30
    rooms: str = "real"
    room_kinds: tuple[str, ...] = ROOM_KINDS
    copies: tuple[int, ...] = (1, 1, 2, 3)
    max_receptacles: int | None = None
    max_object_types: int | None = None
    admissible: bool = True

    def __post_init__(self) -> None:
        for name in ("task_types", "room_kinds", "copies"):  # lists come from configuration files
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, values, allowed in (
            ("split", (self.split,), SPLITS),
            ("task_types", self.task_types, TASK_TYPES),
            ("rooms", (self.rooms,), ("real", "generated")),
            ("room_kinds", self.room_kinds, ROOM_KINDS),
        ):
            unknown = [value for value in values if value not in allowed]
            if unknown or not values:
                raise ValueError(f"{name}: {unknown or 'empty'}; choose from {', '.join(allowed)}")
        if self.max_steps < 1 or not self.copies or min(self.copies) < 0:
            raise ValueError("max_steps starts at 1, and copies holds numbers from 0 on")

    def reset(self, task: int, key: Any = None) -> tuple[State, str]:
        """The first state and observation of a task.

        Args:
            task: a non-negative integer.
            key: unused, the game has no chance.

        Raises:
            ValueError: the task is negative, or no room of the settings allows its type.
        """
        game = self.game(task)
        return start(game), welcome(game)

    def step(
        self, state: State, action: str
    ) -> tuple[State, str, float, bool, bool, dict[str, Any]]:
        """Obey one command; any text is allowed and costs a step.

        Returns:
            State, observation, reward (1 when the goal is reached, else 0), terminated (the goal is
            reached), truncated (`max_steps` are spent without it), and info: `success` and `won`
            (the goal is reached), `valid` (the command was understood), `reason` (why not, or ""),
            `task_type`, and `admissible_commands` unless switched off.
        """
        state, text, reason = act(state, action)
        success = won(state)
        info: dict[str, Any] = {
            "success": success,
            "won": success,
            "valid": not reason,
            "reason": reason,
            "task_type": state.game.goal.task_type,
        }
        if self.admissible:
            info["admissible_commands"] = admissible_commands(state)
        truncated = not success and state.steps >= self.max_steps
        return state, text, float(success), success, truncated, info

    def admissible_commands(self, state: State) -> tuple[str, ...]:
        """All commands that the game would understand in this state, sorted."""
        return admissible_commands(state)

    def privileged(self, state: State) -> str:
        """What only the critic is told: the best command, and how many it takes to win from here.

        That is of a player who knows where everything is. Both are words of the game: "take apple 1
        from fridge 1. 7".
        """
        left = max(self.max_steps - state.steps, 1)
        commands = plan(state, min(left, LARGEST_NUMBER))
        return f"{commands[0]}. {len(commands)}" if commands else ""

    def game(self, task: int) -> HouseholdGame:
        """The game of a task number."""
        if index(task) < 0:
            raise ValueError(f"tasks are non-negative integers, got {task}")
        return _game(self, index(task))


@lru_cache(maxsize=256)
def _game(env: Household, task: int) -> HouseholdGame:
    """Draw games from the task's own stream until one belongs to the split."""
    rng = random.Random(f"household {env.split} {task}")
    task_type = env.task_types[task % len(env.task_types)]
    kinds = [kind for kind in env.room_kinds if kind in catalogue().room_kinds[task_type]]
    for _ in range(_ATTEMPTS if kinds else 0):
        game = make_game(_room(env, rng.choice(kinds), rng), task_type, rng, env.copies)
        if game is not None and checksum(game) in _CHECKSUMS[env.split]:
            return game
    raise ValueError(f"no game of type {task_type} with these settings: {env}")


def _room(env: Household, kind: str, rng: random.Random) -> Room:
    if env.rooms == "generated":
        return generate_room(kind, rng, env.max_receptacles, env.max_object_types)
    return rng.choice(rooms_of(env.split, kind))


def checksum(game: HouseholdGame) -> int:
    """A number from 0 to 7 that decides to which split a game belongs."""
    return zlib.crc32(repr((game.receptacles, game.objects, game.places, game.goal)).encode()) % 8
