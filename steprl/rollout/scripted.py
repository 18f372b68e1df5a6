"""Trajectories of demonstrators, as records like those of a policy."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from steprl.envs import Env
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
    """
    if isinstance(actions, str):
        raise ValueError(
            f"the demonstration of task {task} is the text {actions!r}: give a list of actions, or a "
            "function of environment and state"
        )
    state, observation = env.reset(task)
    planned = None if callable(actions) else iter(actions)
    ids: list[int] = list(context.begin(observation))
    new_ids, fresh, success = ids, False, False
    steps: list[Step] = []
    while len(steps) < max_steps:
        action = actions(env, state) if callable(actions) else next(planned or iter(()), None)
        if action is None:
            break
        action_ids = context.encode(action)
        so_far = [*ids, *action_ids]
        if len(so_far) > context_length:
            break
        state, next_observation, reward, terminated, truncated, info = env.step(state, action)
        unknown = np.zeros(len(action_ids), np.float32)
        success |= bool(info["success"])
        steps.append(
            Step(
                observation=as_text(observation),
                action=action,
                observation_ids=np.asarray(new_ids, np.int32),
                action_ids=np.asarray(action_ids, np.int32),
                logprobs=unknown,
                entropies=unknown,
                reward=float(reward),
                terminated=bool(terminated),
                truncated=bool(truncated),
                stop_reason="stop_token",
                valid=bool(info["valid"]),
                fresh=fresh,
            )
        )
        if terminated or truncated:
            break
        observation = next_observation
        ids, fresh = next_context(context, so_far, observation)
        new_ids = ids if fresh else ids[len(so_far) :]
    return Trajectory(task, 0, tuple(steps), success)
