"""ALFWorld's household text game in plain Python: same texts, same rules, endless games.

    from steprl.envs.household import Household

    env = Household(split="train", max_steps=30)
    state, text = env.reset(0)
    state, text, reward, terminated, truncated, info = env.step(state, "go to desk 1")

`expert` plays it well for demonstrations; `vocabulary` lists the phrases its texts are made of.
"""

from typing import TYPE_CHECKING

from steprl.envs.household.catalogue import ROOM_KINDS, TASK_TYPES
from steprl.envs.household.environment import Household
from steprl.envs.household.game import HouseholdGame, State
from steprl.envs.household.rooms import SPLITS

if TYPE_CHECKING:
    from steprl.config import HouseholdConfig
    from steprl.envs.suite import Suite


__all__ = [
    "ROOM_KINDS",
    "SPLITS",
    "TASK_TYPES",
    "Household",
    "HouseholdGame",
    "State",
    "open",
]


def open(settings: "HouseholdConfig") -> "Suite":
    """What the environment brings to a run, see `steprl.envs.household.suite`."""
    from steprl.envs.household.suite import open as open_household  # the game itself needs no JAX

    return open_household(settings)
