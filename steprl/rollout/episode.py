"""One episode of a text environment while it is played, as a value: keeping it is a snapshot."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from steprl.envs import Env, Observation
from steprl.rollout.contexts import Context, as_text, common_prefix, next_context
from steprl.rollout.workers import Fault
from steprl.types import STOP_REASONS, Parent, Step, Trajectory


class Sampled(NamedTuple):
    """Tokens of one action with what sampling recorded of them."""

    ids: np.ndarray  # [A] int32
    logprobs: np.ndarray
    entropies: np.ndarray
    supports: np.ndarray | None = None  # [A, W]
    stop_reason: str = "running"


NOTHING = Sampled(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))


class Limits(NamedTuple):
    """Where a trajectory is cut off."""

    max_steps: int
    response_length: int
    context_length: int


@dataclasses.dataclass(frozen=True)
class Episode:
    """What has happened, and what the next step begins with."""

    task: int
    sample: int
    state: Any  # of the environment
    ids: tuple[int, ...]  # the whole context, what was sampled included
    text: str  # of the last observation
    new_ids: tuple[int, ...]  # what the next step adds to the context
    cached: tuple[int, ...] = ()  # the tokens that the slot's cache holds
    start: int = 0  # how many of them begin `ids`: these need not be read again
    fresh: bool = False  # the context was written anew
    begun: Sampled = NOTHING  # tokens that the next action has already; they end `ids`
    steps: tuple[Step, ...] = ()
    states: tuple[Any, ...] = ()  # of the environment before each step
    infos: tuple[dict[str, Any], ...] = ()
    over: bool = False
    success: bool = False
    final_ids: tuple[int, ...] = ()
    parent: Parent | None = None


def begin(
    context: Context, task: int, sample: int, state: Any, observation: Observation, limits: Limits
) -> Episode:
    """The episode before its first step.

    Raises:
        ValueError: the observation is empty, or does not fit into the context.
    """
    ids = tuple(context.begin(observation))
    if not ids:
        raise ValueError(f"task {task} begins with an observation of no tokens")
    if len(ids) + limits.response_length > limits.context_length:
        raise ValueError(
            f"rollout.context_length={limits.context_length}: task {task} begins with {len(ids)} "
            f"tokens and an action may need {limits.response_length} more"
        )
    return Episode(task, sample, state, ids, as_text(observation), ids)


def never_begun(task: int, sample: int) -> Episode:
    """An episode whose environment failed to begin: no steps, and no success."""
    return Episode(task, sample, None, (), "", (), over=True)


def advance(
    episode: Episode, sampled: Sampled, result: Any, context: Context, limits: Limits
) -> Episode:
    """The episode after one more step.

    Args:
        sampled: the whole action.
        result: what `Env.step` returned, or the `Fault` that came instead. A fault ends the trajectory
            as truncated; state and context stay as they were.
    """
    so_far = (*episode.ids, *sampled.ids[len(episode.begun.ids) :].tolist())
    step = Step(
        observation=episode.text,
        action=context.decode(sampled.ids.tolist()),
        observation_ids=np.asarray(episode.new_ids, np.int32),
        action_ids=sampled.ids,
        logprobs=sampled.logprobs,
        entropies=sampled.entropies,
        reward=0.0,
        terminated=False,
        truncated=True,
        stop_reason=sampled.stop_reason,
        supports=sampled.supports,
        fresh=episode.fresh,
    )
    states = (*episode.states, episode.state)
    if isinstance(result, Fault):
        info = {"success": False, "valid": True, "fault": result.message}
        step = dataclasses.replace(step, stop_reason=f"env_{result.kind}", info=info)
        return dataclasses.replace(
            episode, ids=so_far, new_ids=(), cached=so_far[:-1], begun=NOTHING,
            steps=(*episode.steps, step), states=states, infos=(*episode.infos, info), over=True,
        )  # fmt: skip

    state, observation, reward, terminated, truncated, info = result
    over = bool(terminated or truncated or len(episode.steps) + 1 >= limits.max_steps)
    ids, fresh = so_far, False
    if not terminated:
        listed, fresh = next_context(context, so_far, observation)
        ids = tuple(listed)
    full = len(ids) + limits.response_length > limits.context_length
    reason = STOP_REASONS[3] if full and not over else sampled.stop_reason
    step = dataclasses.replace(
        step,
        reward=float(reward),
        terminated=bool(terminated),
        truncated=bool(truncated or (not terminated and (over or full))),
        stop_reason=reason,
        valid=bool(info["valid"]),
        info={k: v for k, v in info.items() if isinstance(v, str | int | float | bool)},
    )
    new_ids = ids if fresh else ids[len(so_far) :]
    ended = over or full
    # The last observation of a trajectory that a limit cut off, whole or not there: the critic is
    # to read the state as it was.
    final = ended and not terminated and not fresh and len(ids) <= limits.context_length
    return dataclasses.replace(
        episode,
        state=state,
        ids=ids,
        text=as_text(observation),
        new_ids=new_ids,
        cached=so_far[:-1],  # all but the last sampled token
        start=min(common_prefix(so_far[:-1], ids), len(ids) - 1),
        fresh=fresh,
        begun=NOTHING,
        steps=(*episode.steps, step),
        states=states,
        infos=(*episode.infos, info),
        over=ended,
        success=episode.success or bool(info["success"]),
        final_ids=new_ids if final else (),
    )


def check_point(steps: Sequence[Step], step: int, token: int) -> None:
    """Whether a trajectory can be continued from a step of its own, some tokens of its action kept.

    Raises:
        ValueError: there is no such step, or it has no more than `token` tokens.
    """
    if not 0 <= step < len(steps):
        raise ValueError(
            f"step={step}: the trajectory has steps 0 to {len(steps) - 1} to branch from"
        )
    size = len(steps[step].action_ids)
    if not 0 <= token < size:
        raise ValueError(
            f"token={token}: at least one of the {size} tokens of step {step} must be sampled anew"
        )


def rewind(episode: Episode, step: int, token: int, sample: int) -> Episode:
    """A finished or running episode as it was before a step, the first tokens of its action taken.

    What the cache of its slot holds stays there: tokens up to where the contexts part are not read
    again, but for the last, whose hidden state the next token is drawn from.

    Args:
        step: the first step that is played anew.
        token: tokens of that step's action to keep.
        sample: the random stream of what comes.

    Raises:
        ValueError: there is no such step, or it has no more than `token` tokens.
    """
    check_point(episode.steps, step, token)
    old = episode.steps[step]
    first = max(number for number in range(step + 1) if number == 0 or episode.steps[number].fresh)
    parts: list[int] = []
    for before in episode.steps[first:step]:
        parts += before.observation_ids.tolist() + before.action_ids.tolist()
    parts += old.observation_ids.tolist() + old.action_ids[:token].tolist()
    return dataclasses.replace(
        episode,
        sample=sample,
        state=episode.states[step],
        ids=tuple(parts),
        text=old.observation,
        new_ids=tuple(old.observation_ids.tolist()),
        start=min(common_prefix(episode.cached, parts), len(parts) - 1),
        fresh=old.fresh,
        begun=Sampled(
            old.action_ids[:token],
            old.logprobs[:token],
            old.entropies[:token],
            None if old.supports is None else old.supports[:token],
        ),
        steps=episode.steps[:step],
        states=episode.states[:step],
        infos=episode.infos[:step],
        over=False,
        success=any(bool(info["success"]) for info in episode.infos[:step]),
        final_ids=(),
        parent=Parent(episode.sample, step, token),
    )


def record(env: Env, episode: Episode) -> Trajectory:
    """All that happened; an environment may have a method `metrics(infos of the steps)`."""
    measure = getattr(env, "metrics", None)
    return Trajectory(
        episode.task,
        episode.sample,
        episode.steps,
        episode.success,
        parent=episode.parent,
        final_observation_ids=np.asarray(episode.final_ids, np.int32),
        metrics={} if measure is None or not episode.steps else measure(list(episode.infos)),
    )


def whole(episode: Episode, rest: Sampled) -> Sampled:
    """The next action: what it had begun with, and the rest that was sampled now."""
    if not len(episode.begun.ids):
        return rest
    join = lambda name: np.concatenate([getattr(episode.begun, name), getattr(rest, name)])  # noqa: E731
    return Sampled(
        join("ids"),
        join("logprobs"),
        join("entropies"),
        None if rest.supports is None else join("supports"),
        rest.stop_reason,
    )
