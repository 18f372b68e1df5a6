"""No environment, `env.name=none`: for runs that only learn from conversations."""

from typing import Any

from steprl.config.environments import NO_ENVIRONMENT
from steprl.envs.suite import Suite

REFUSAL = (
    f"env.name={NO_ENVIRONMENT}: there is nothing to play; name an environment, such as "
    "env.name=wiki_search, or your own as package.module:function"
)


class Nothing:
    """Has no tasks."""

    def reset(self, task: int, key: Any = None) -> Any:
        """Raises; there is nothing to begin."""
        raise ValueError(REFUSAL)

    def step(self, state: Any, action: str) -> Any:
        """Raises; there is nothing to do."""
        raise ValueError(REFUSAL)


def open_nothing() -> Suite:
    """What a run has in place of an environment."""
    return Suite(splits={"train": Nothing()}, max_steps=1)
