"""One task of an environment, step by step: what a policy read and did, and what was answered."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from steprl.envs import Env
from steprl.envs.answers import checked_reset, checked_step
from steprl.rollout.contexts import Context, Observation, next_context


class PlayedStep(NamedTuple):
    """One step; the first of a task has no action."""

    action: str | None
    observation: Observation
    info: dict[str, Any]
    over: bool


def play(
    env: Env, context: Context, task: int, reply: Callable[[Sequence[int]], Sequence[int]]
) -> Iterator[PlayedStep]:
    """Plays a task with the tokens that a rollout would have.

    Args:
        env: see `steprl.envs.Env`.
        context: how observations are read, see `steprl.rollout.contexts`.
        task: its number.
        reply: ids of an action, from the ids of its context.

    Returns:
        The first observation, then one a step, until the environment says that it is over.

    Raises:
        BadAnswer: the environment gave what is no answer, see `steprl.envs.answers`.
    """
    state, observation = checked_reset(env.reset(task))
    yield PlayedStep(None, observation, {}, False)
    ids = context.begin(observation)
    while True:
        action_ids = list(reply(ids))
        action = context.decode(action_ids)
        answer = checked_step(env.step(state, action))
        state, observation, _, terminated, truncated, info = answer
        yield PlayedStep(action, observation, info, terminated or truncated)
        if terminated or truncated:
            return
        ids, _ = next_context(context, [*ids, *action_ids], observation)
