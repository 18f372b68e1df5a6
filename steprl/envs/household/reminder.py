"""The task at the end of every observation, as in the prompts of StepPO's agents."""

from dataclasses import dataclass
from typing import Any

from steprl.envs.household.environment import Household
from steprl.envs.household.game import State


@dataclass(frozen=True)
class Reminded:
    """`Household` whose every observation ends with the task.

    StepPO renders task, history and observation anew for each step; where the context only grows,
    this keeps the task as near to the action. Rules, rewards and states are those of `env`.
    """

    env: Household

    def reset(self, task: int, key: Any = None) -> tuple[State, str]:
        """As `Household.reset`, whose first observation ends with the task anyway."""
        return self.env.reset(task, key)

    def step(
        self, state: State, action: str
    ) -> tuple[State, str, float, bool, bool, dict[str, Any]]:
        """As `Household.step`."""
        state, text, reward, terminated, truncated, info = self.env.step(state, action)
        text = f"{text}\n\nYour task is to: {state.game.goal.sentence}."
        return state, text, reward, terminated, truncated, info

    def privileged(self, state: State) -> str:
        """As `Household.privileged`."""
        return self.env.privileged(state)
