"""What the environment brings to a run."""

from collections.abc import Iterable

from steprl.config import HouseholdConfig
from steprl.envs import Env
from steprl.envs.household.catalogue import TASK_TYPES
from steprl.envs.household.environment import Household
from steprl.envs.household.expert import demonstrate
from steprl.envs.household.reminder import Reminded
from steprl.envs.household.vocabulary import vocabulary
from steprl.envs.suite import Suite

SYSTEM = (
    "You act in a house. Reply with one command, such as: go to fridge 1; open fridge 1; take apple 1 "
    "from fridge 1; move apple 1 to table 1; heat apple 1 with microwave 1; use desklamp 1; look."
)


def open(settings: HouseholdConfig) -> Suite:
    """Games to train on, other games in the same rooms, and games in other rooms."""
    plain = {
        split: Household(
            split=split,
            task_types=TASK_TYPES if settings.task_types == ["all"] else tuple(settings.task_types),
            max_steps=settings.max_steps,
            rooms=settings.rooms,
            max_receptacles=settings.max_receptacles,
            max_object_types=settings.max_object_types,
            admissible=False,
        )
        for split in ("train", "valid_seen", "valid_unseen")
    }
    splits: dict[str, Env] = {
        split: Reminded(env) if settings.remind else env for split, env in plain.items()
    }

    def demonstrated(task: int, seed: int) -> Iterable[str]:
        return demonstrate(
            plain["train"], task, seed, wander=settings.demo_wander, slip=settings.demo_slip,
            give_up=settings.demo_give_up,
        ).actions  # fmt: skip

    return Suite(
        splits=splits,
        system=SYSTEM,
        max_steps=settings.max_steps,
        vocabulary=tuple(vocabulary()),
        demonstrate=demonstrated,
    )
