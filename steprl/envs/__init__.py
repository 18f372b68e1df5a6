"""Environments: one small protocol, and the environments that ship with the project.

State is a value: keeping it is a snapshot, calling `step` on it again is a branch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Observation = str | Sequence[Mapping[str, Any]]
"""Text, or the messages of a whole conversation, which always replace all that was before."""

CONTEXTS = ("rebuild", "extend")
"""Whether an observation is all that the next step sees, or is added to what was before."""


class Env(Protocol):
    """A text environment: Gymnasium's five results, with the state made explicit.

    `info` holds "success" (the task is solved) and "valid" (the action was understood); where it
    was not, "reason" says why. A malformed action costs a step and never raises. What is not of this
    form (see `steprl.envs.answers`) is a fault: it ends the trajectory, and no other.

    An environment may say more of itself by further attributes:
        system: the system message for chat models.
        tools: schemas for the chat template.
        control_tags: names such as "<tool_call>" that observations hold on purpose, see `Suite`.
        context: one of `CONTEXTS`, "extend" where it is absent.
        max_steps: steps of an episode at most.
        num_tasks: how many tasks there are, where they are finitely many; an evaluation plays each once.
        metrics(infos): numbers of an episode beside reward and success, from the `info` of its steps;
            the same names always, NaN for what an episode has not.
        privileged(state): text that only the critic reads, with `critic.privileged`: what is wanted,
            what is still to be done. Short, for it is read before each action that finds it changed;
            "" where there is nothing to tell. The policy never sees it.
    """

    def reset(self, task: int, key: Any = None) -> tuple[Any, Observation]:
        """State and first observation of a task; the same task and key give the same state."""
        ...

    def step(
        self, state: Any, action: str
    ) -> tuple[Any, Observation, float, bool, bool, dict[str, Any]]:
        """New state, observation, reward, terminated, truncated, info. `state` stays as it was."""
        ...
