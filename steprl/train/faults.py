"""Faults of the environment in a run: a warning where they are many, the end where all attempts failed."""

from collections.abc import Mapping
from typing import Any

from steprl.envs.answers import EnvironmentFailed
from steprl.rollout.faults import check_faults, first_fault
from steprl.rollout.rollouts import Experience


class Faults:
    """Warns once where the environment failed in many attempts, and tells where it failed in all."""

    def __init__(self) -> None:
        self._many = False

    def check(
        self, iteration: int, experience: Experience, metrics: Mapping[str, Any]
    ) -> EnvironmentFailed | None:
        failed, share = int(metrics["env/faults"]), float(metrics["env/fault_frac"])
        if not failed:
            return None
        what, first = f"iteration {iteration}", first_fault(experience.faults, [experience.batch])
        try:
            attempts, warn = round(failed / share), not self._many
            self._many |= check_faults(what, failed, attempts, first, warn)
        except EnvironmentFailed as error:
            return EnvironmentFailed(
                f"{error}. Mend the environment and continue with --resume auto: the state behind "
                f"iteration {iteration - 1} is saved"
            )
        return None
