"""One task of an environment, step by step: what a policy read and did, and what was answered."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from steprl.envs import Env
from steprl.envs.answers import checked_reset, checked_step, describe
from steprl.rollout.contexts import Context, Observation, next_context

Answered = TypeVar("Answered")


class PlayedStep(NamedTuple):
    """One step; the first of a task has no action."""

    action: str | None
    observation: Observation
    info: dict[str, Any]
    over: bool
    reward: float = 0.0


def play(
    env: Env,
    context: Context,
    task: int,
    reply: Callable[[Sequence[int]], Sequence[int]],
    max_steps: int | None = None,
) -> Iterator[PlayedStep]:
    """Plays a task with the tokens that a rollout would have.

    Args:
        env: see `steprl.envs.Env`.
        context: how observations are read, see `steprl.rollout.contexts`.
        task: its number.
        reply: ids of an action, from the ids of its context.
        max_steps: where it ends at the latest; None leaves that to the environment.

    Returns:
        The first observation, then one a step, until the environment says that it is over.

    Raises:
        ValueError: the environment failed, or did not give what the protocol says; names task and step.
    """
    place = f"{type(env).__name__}, task {task}: "
    state, observation = _called(place + "reset", checked_reset, env.reset, task)
    yield PlayedStep(None, observation, {}, False)
    ids, number = context.begin(observation), 0
    while True:
        action_ids = list(reply(ids))
        action, number = context.decode(action_ids), number + 1
        answer = _called(f"{place}step {number}", checked_step, env.step, state, action)
        state, observation, reward, terminated, truncated, info = answer
        over = terminated or truncated or number == max_steps
        yield PlayedStep(action, observation, info, over, reward)
        if over:
            return
        ids, _ = next_context(context, [*ids, *action_ids], observation)


def _called(
    place: str, check: Callable[[Any], Answered], call: Callable[..., Any], *arguments: Any
) -> Answered:
    """What a call of the environment gives, checked; any error of it names the place."""
    try:
        return check(call(*arguments))
    except Exception as error:  # of the user's environment: any
        raise ValueError(f"{place}: {describe(error)}") from error
