"""Environments: one small protocol, and the environments that ship with the project.

State is a value: keeping it is a snapshot, calling `step` on it again is a branch.
"""

from typing import Any, Protocol


class Env(Protocol):
    """A text environment: Gymnasium's five results, with the state made explicit.

    `info` holds "success" (the task is solved) and "valid" (the action was understood); where it
    was not, "reason" says why. A malformed action costs a step and never raises.
    """

    def reset(self, task: int, key: Any = None) -> tuple[Any, str]:
        """State and first observation of a task; the same task and key give the same state."""
        ...

    def step(self, state: Any, action: str) -> tuple[Any, str, float, bool, bool, dict[str, Any]]:
        """New state, observation, reward, terminated, truncated, info. `state` stays as it was."""
        ...
