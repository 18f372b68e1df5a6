"""Trajectories of demonstrators, as records like those of a policy."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from steprl.envs import Env
from steprl.envs.answers import checked_reset, checked_step, shown
from steprl.rollout.contexts import Context, as_text, next_context
from steprl.types import Step, Trajectory

Demonstrator = Callable[[Any, Any], str]
"""From an environment and its state to the next action."""


def scripted(
    env: Env, context: Context, task: int, actions: Iterable[str] | Demonstrator, max_steps: int,
    context_length: int,
) -> Trajectory:  # fmt: skip
    """The trajectory of a demonstrator's actions, as many as fit into the context.

    Args:
        actions: all of them, or a function from the environment and its state to the next one.

    Raises:
        BadAnswer: the environment gave what is no answer, see `steprl.envs.answers`.
        ValueError: the actions are one text, an action is none, or has unknown words.
    """
    if isinstance(actions, str):
        raise ValueError(
            f"the demonstration of task {task} is the text {shown(actions)}: give a list of actions, or a "
            "function of environment and state"
        )
    state, observation = checked_reset(env.reset(task))
    planned = None if callable(actions) else iter(actions)
    ids: list[int] = list(context.begin(observation))
    new_ids, fresh, success = ids, False, False
    steps: list[Step] = []
    while len(steps) < max_steps:
        action = actions(env, state) if callable(actions) else next(planned or iter(()), None)
        if action is None:
            break
        if not isinstance(action, str):
            raise ValueError(
                f"the demonstration of task {task} has the action {shown(action)}; expected text"
            )
        action_ids = context.encode(action)
        so_far = [*ids, *action_ids]
        if len(so_far) > context_length:
            break
        answer = checked_step(env.step(state, action))
        unknown = np.zeros(len(action_ids), np.float32)
        success |= answer.info["success"]
        steps.append(
            Step(
                observation=as_text(observation),
                action=action,
                observation_ids=np.asarray(new_ids, np.int32),
                action_ids=np.asarray(action_ids, np.int32),
                logprobs=unknown,
                entropies=unknown,
                reward=answer.reward,
                terminated=answer.terminated,
                truncated=answer.truncated,
                stop_reason="stop_token",
                valid=answer.info["valid"],
                fresh=fresh,
            )
        )
        if answer.terminated or answer.truncated:
            break
        state, observation = answer.state, answer.observation
        ids, fresh = next_context(context, so_far, observation)
        new_ids = ids if fresh else ids[len(so_far) :]
    return Trajectory(task, 0, tuple(steps), success)
