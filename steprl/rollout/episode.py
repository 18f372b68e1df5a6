"""One episode of a text environment while it is played, as a value: keeping it is a snapshot."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from steprl.envs import Env, Observation
from steprl.envs.answers import Answer, BadAnswer, checked_metrics, describe
from steprl.envs.privileged import PrivilegedState
from steprl.rollout.contexts import Context, as_text, common_prefix, next_context
from steprl.rollout.workers import Fault
from steprl.sampling import Generation
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
    privileged: tuple[int, ...] = ()  # what the critic is told of the state
    final_privileged: tuple[int, ...] = ()
    parent: Parent | None = None
    fault: str = ""  # of the environment, which ended the episode


class Job(NamedTuple):
    """An episode to play: from its beginning, or from a step of another whose cache is in a row."""

    task: int
    sample: int
    episode: Episode | None = None
    row: int = -1


def begin(
    context: Context, task: int, sample: int, state: Any, observation: Observation, limits: Limits,
    name: str = "the environment",
) -> Episode:  # fmt: skip
    """The episode before its first step; over where the observation cannot be read or does not fit.

    Args:
        name: of the environment, for the description of a fault.
    """
    try:
        ids, privileged = tuple(context.begin(observation)), _privileged(context, state)
    except Exception as error:
        why = f"its first observation cannot be read: {describe(error)}"
        return never_begun(name, task, sample, why)
    if not ids:
        return never_begun(name, task, sample, "it begins with an observation of no tokens")
    if len(ids) + limits.response_length > limits.context_length:
        why = (
            f"it begins with {len(ids)} tokens and an action may need {limits.response_length} more, "
            f"beyond rollout.context_length={limits.context_length}"
        )
        return never_begun(name, task, sample, why)
    return Episode(task, sample, state, ids, as_text(observation), ids, privileged=privileged)


def _privileged(context: Context, state: Any) -> tuple[int, ...]:
    """Tokens of what only the critic is told of a state; none where nobody asked for it."""
    is_told = isinstance(state, PrivilegedState) and state.text
    return tuple(context.tell(state.text)) if is_told else ()


def never_begun(name: str, task: int, sample: int, why: str) -> Episode:
    """An episode whose environment failed to begin: no steps, and no success."""
    fault = f"{name}, task {task}, reset: {why}"
    return Episode(task, sample, None, (), "", (), over=True, fault=fault)


def advance(
    episode: Episode, sampled: Sampled, result: Answer | Fault, context: Context, limits: Limits,
    name: str = "the environment",
) -> Episode:  # fmt: skip
    """The episode after one more step.

    Args:
        sampled: the whole action.
        result: the answer of the environment, or the `Fault` that came instead. A fault ends the
            trajectory as truncated; state and context stay as they were.
        name: of the environment, for the description of a fault.
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
        privileged_ids=np.asarray(episode.privileged, np.int32),
    )
    states = (*episode.states, episode.state)
    ids, fresh = so_far, False
    privileged: tuple[int, ...] = ()
    if not isinstance(result, Fault) and not result.terminated:
        try:
            listed, fresh = next_context(context, so_far, result.observation)
            ids, privileged = tuple(listed), _privileged(context, result.state)
        except Exception as error:
            result = Fault("crash", f"its observation cannot be read: {describe(error)}")
    if not isinstance(result, Fault) and not ids:
        result = Fault("crash", "its observation has no tokens, and replaces all that was before")
    if isinstance(result, Fault):
        fault = f"{name}, task {episode.task}, step {len(episode.steps)}: {result.message}"
        info: dict[str, Any] = {"success": False, "valid": True, "fault": fault}
        step = dataclasses.replace(step, stop_reason=f"env_{result.kind}", info=info)
        return dataclasses.replace(
            episode, ids=so_far, new_ids=(), cached=so_far[:-1], begun=NOTHING,
            steps=(*episode.steps, step), states=states, infos=(*episode.infos, info), over=True,
            success=False, fault=fault,
        )  # fmt: skip

    state, observation, reward, terminated, truncated, info = result
    over = terminated or truncated or len(episode.steps) + 1 >= limits.max_steps
    full = len(ids) + limits.response_length > limits.context_length
    reason = STOP_REASONS[3] if full and not over else sampled.stop_reason
    step = dataclasses.replace(
        step,
        reward=reward,
        terminated=terminated,
        truncated=truncated or (not terminated and (over or full)),
        stop_reason=reason,
        valid=info["valid"],
        info={k: v for k, v in info.items() if isinstance(k, str) and _is_plain(v)},
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
        success=episode.success or info["success"],
        final_ids=new_ids if final else (),
        privileged=privileged,
        final_privileged=privileged if final else (),
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
        privileged=tuple(old.privileged_ids.tolist()),
        final_privileged=(),
        fault="",
        parent=Parent(episode.sample, step, token),
    )


def record(env: Env, episodes: Sequence[Episode], name: str) -> list[Trajectory]:
    """All that happened; an environment may have a method `metrics(infos of the steps)`.

    One that fails for an episode, or gives other names than for most, is a fault of that trajectory.

    Args:
        name: of the environment, for the description of a fault.
    """
    measure = getattr(env, "metrics", None)
    if measure is None:
        return [_trajectory(one) for one in episodes]
    found: list[dict[str, float] | str] = []  # or what went wrong
    for one in episodes:
        try:
            whole = bool(one.steps) and not one.fault
            found.append(checked_metrics(measure(list(one.infos))) if whole else "")
        except KeyboardInterrupt:
            raise
        except BadAnswer as error:
            found.append(str(error))
        except BaseException as error:
            found.append(f"`metrics` failed: {describe(error)}")
    names = Counter(tuple(sorted(each)) for each in found if isinstance(each, dict))
    usual = max(names, key=names.__getitem__, default=())
    records = []
    for one, metrics in zip(episodes, found, strict=True):
        if isinstance(metrics, dict) and tuple(sorted(metrics)) != usual:
            metrics = (
                f"`metrics` gave {', '.join(sorted(metrics)) or 'nothing'}; for others it gave "
                f"{', '.join(usual) or 'nothing'}"
            )
        if isinstance(metrics, str) and metrics and not one.fault:
            fault = f"{name}, task {one.task}, after {len(one.steps)} steps: {metrics}"
            one = dataclasses.replace(one, fault=fault)
        records.append(_trajectory(one, metrics if isinstance(metrics, dict) else {}))
    return records


def _trajectory(
    episode: Episode, metrics: Mapping[str, float] = MappingProxyType({})
) -> Trajectory:
    return Trajectory(
        episode.task,
        episode.sample,
        episode.steps,
        episode.success and not episode.fault,
        parent=episode.parent,
        final_observation_ids=np.asarray(episode.final_ids, np.int32),
        final_privileged_ids=np.asarray(episode.final_privileged, np.int32),
        metrics=dict(metrics),
        fault=episode.fault,
    )


def _is_plain(value: Any) -> bool:
    """Whether the record of a step keeps it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, str | float | bool)


def sampled_row(out: Generation, row: int) -> Sampled:
    """The action of one row, as far as it was sampled."""
    size = int(out.mask_BA[row].sum())
    return Sampled(
        np.asarray(out.tokens_BA[row, :size], np.int32),
        np.asarray(out.logprob_BA[row, :size]),
        np.asarray(out.entropy_BA[row, :size]),
        None if out.support_BAW is None else np.array(out.support_BAW[row, :size]),
        STOP_REASONS[int(out.stop_reason_B[row])],
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
