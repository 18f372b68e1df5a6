"""Rollouts that branch: which steps are tried again, and what a batch learns of it.

BranPO (arXiv 2602.03719) tries the last steps of finished trajectories again until a continuation
contrasts with the original ending. APPO (arXiv 2606.12384) and ARPO (arXiv 2507.19849) spend part of
the attempts at a task on branches from the tokens that score highest.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from steprl.config import BranchConfig
from steprl.ops import (
    appo_branching_scores,
    appo_future_value,
    arpo_candidates,
    branch_attempts,
    branch_preference,
    masked_variance,
    select_branch_points,
)
from steprl.rollout.rollouts import BranchPoint, Rollouts, Usage
from steprl.rollout.text_player import Player
from steprl.sampling import Sampling
from steprl.sharding import shard_rows
from steprl.types import Branches, Params, StepBatch, Trajectory


class Descent(NamedTuple):
    """How a trajectory of a group came about, see `steprl.types.Branches`."""

    origin: int  # its place in the group, or that of the trajectory whose prefix it shares
    step: int = 0  # the first step of its own
    token: int = 0  # tokens of that step's action that are shared
    score: float = 0.0
    preference: int = 0


class Grown(NamedTuple):
    """Groups of trajectories that share beginnings, originals first."""

    groups: list[list[Trajectory]]
    descents: list[list[Descent]]
    rows: int  # room of a group
    usage: Usage  # of all: what a branch samples counts
    report: dict[str, float]


def grown_batch(player: Player, grown: Grown, mesh: Mesh) -> StepBatch:
    """The batch of the groups, with its tree and its branches, placed on the mesh."""
    assert player.collate_groups is not None
    batch = player.collate_groups(grown.groups, grown.rows)
    step_ids_NT = np.asarray(batch.step_ids_NT)
    count = len(step_ids_NT)
    own_N = np.arange(count, dtype=np.int32)
    origin_N, step_N, token_N = own_N.copy(), np.zeros_like(own_N), np.full_like(own_N, -1)
    score_N, preference_N = np.zeros(count, np.float32), np.zeros_like(own_N)
    for number, descents in enumerate(grown.descents):
        for place, one in enumerate(descents):
            row = number * grown.rows + place
            origin_N[row] = number * grown.rows + one.origin
            step_N[row], score_N[row], preference_N[row] = one.step, one.score, one.preference
            if one.origin != place:
                token_N[row] = _last_shared(step_ids_NT[row], one)
    branches = Branches(*shard_rows((origin_N, step_N, token_N, score_N, preference_N), mesh))
    return dataclasses.replace(batch, branches=branches)


def _last_shared(step_ids_T: np.ndarray, one: Descent) -> int:
    """Place of the last sampled token that a branch shares; -1 where it shares none."""
    before = np.flatnonzero((step_ids_T >= 0) & (step_ids_T < one.step))
    begun = np.flatnonzero(step_ids_T == one.step)[: one.token]
    return int(max([*before[-1:], *begun[-1:]], default=-1))


# --- BranPO -----------------------------------------------------------------------------------------


def grow_branpo(
    player: Player,
    params: Params,
    key: jax.Array,
    task_N: np.ndarray,
    sample_N: np.ndarray,
    sampling: Sampling,
    settings: BranchConfig,
) -> Grown:
    """Every rollout, and the continuation that contrasts with its ending where one was found.

    From where and how often a rollout is gone on with follows from how often its task is solved
    (`ops.branch_attempts`). The k-th continuations of all rollouts are played at the same time, and a
    rollout that has found its contrast takes no further part. A rollout that the environment or a
    full context cut off is not resampled.

    Args:
        task_N, sample_N: attempts, all of a task one after the other.
        settings: `threshold` says which return is correct.
        sampling: of all that is sampled.
    """
    assert player.explore is not None and player.branch is not None
    first: Rollouts = player.explore(params, key, task_N, sample_N, sampling)
    originals, count = first.trajectories, len(first.trajectories)
    reward_N = np.array([one.total_reward for one in originals], np.float32)
    steps_N = np.array([len(one.steps) for one in originals])
    normal_N = np.array([_ended_normally(one) for one in originals])
    accuracy_N, mean_steps_N = _difficulty(
        np.asarray(task_N), reward_N, steps_N, settings.threshold
    )
    number_NC, from_end_NC = jax.device_get(
        _attempts(accuracy_N, mean_steps_N, reward_N, steps_N, normal_N, settings.threshold)
    )
    number_NC = np.where((steps_N > 0)[:, None], number_NC, 0)

    found: dict[int, tuple[Trajectory, int]] = {}
    split_N = steps_N - from_end_NC[:, 0]
    usage, played, stride = first.usage, 0, int(np.max(sample_N)) + 1
    for call in range(number_NC.shape[1]):
        asked = [row for row in range(count) if number_NC[row, call] > 0 and row not in found]
        split_N[asked] = (steps_N - from_end_NC[:, call])[asked]
        for wave in range(int(number_NC[:, call].max()) - 1):
            open_rows = [r for r in asked if number_NC[r, call] > wave + 1 and r not in found]
            points = [
                BranchPoint(
                    row, int(split_N[row]), 0,
                    stride * (1 + call * CALL + wave) + int(sample_N[row]),
                )
                for row in open_rows
            ]  # fmt: skip
            new = player.branch(params, key, first, points, sampling)
            usage, played = _add(usage, new.usage), played + len(points)
            for row, one in zip(open_rows, new.trajectories, strict=True):
                preference = _contrast(originals[row], one, accuracy_N[row], settings.threshold)
                if preference and _ended_normally(one):
                    found[row] = (one, preference)
    groups, descents = [], []
    for row, original in enumerate(originals):
        pair = found.get(row)
        split = max(int(split_N[row]), 0)
        groups.append([original, *([pair[0]] if pair else [])])
        own = Descent(0, split, preference=-pair[1] if pair else 0)
        descents.append([own, *([Descent(0, split, preference=pair[1])] if pair else [])])
    resampled = int((number_NC[:, 0] > 1).sum())
    report = {
        "branch/count": float(played),
        "branch/kept": float(len(found)),
        "branch/contrast_frac": len(found) / max(resampled, 1),
        "branch/resampled_frac": resampled / count,
    }
    return Grown(groups, descents, 2, usage, report | _tokens(first.usage, usage))


CALL = 8  # continuations of one call have sample numbers of their own, at most 5 of them


@functools.partial(jax.jit, static_argnames="threshold")
def _attempts(accuracy, mean_steps, reward, steps, normal, threshold):  # type: ignore[no-untyped-def]
    return branch_attempts(accuracy, mean_steps, reward, steps, normal, threshold=threshold)


def _difficulty(
    task_N: np.ndarray, reward_N: np.ndarray, steps_N: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each rollout's task: share of correct rollouts, and their mean number of steps."""
    accuracy_N, mean_N = np.zeros(len(task_N), np.float32), np.zeros(len(task_N), np.float32)
    for task in np.unique(task_N):
        mine = task_N == task
        correct = mine & (reward_N >= threshold)
        accuracy_N[mine] = correct.sum() / mine.sum()
        mean_N[mine] = steps_N[correct].mean() if correct.any() else 0.0
    return accuracy_N, mean_N


def _contrast(original: Trajectory, new: Trajectory, accuracy: float, threshold: float) -> int:
    """Prefixes are the same, so whole trajectories compare as their suffixes do."""
    both = (original.total_reward, len(original.steps), new.total_reward, len(new.steps))
    return int(branch_preference(*both, accuracy, threshold=threshold))


def _ended_normally(one: Trajectory) -> bool:
    """By the environment, or because it ran out of steps."""
    stop = one.steps[-1].stop_reason if one.steps else "env_crash"
    return stop not in ("context_full", "env_timeout", "env_crash")


# --- APPO and ARPO ----------------------------------------------------------------------------------

LogRatio = Callable[[StepBatch], jax.Array]
"""[N, T] log-prob of each token now, less that under the policy before the last update."""


def grow_by_score(
    player: Player,
    params: Params,
    key: jax.Array,
    task_N: np.ndarray,
    sample_N: np.ndarray,
    sampling: Sampling,
    settings: BranchConfig,
    method: str,
    nonblank_V: np.ndarray,
    gamma: float,
    log_ratio: LogRatio | None,
) -> Grown:
    """Some attempts at each task from its beginning, the others branched off from these.

    Args:
        task_N, sample_N: attempts, all of a task one after the other, the same number of each;
            `settings.initial` of them begin anew (None: half).
        method: "appo" or "arpo", which looks at the first tokens after what a tool said, by entropy
            alone.
        nonblank_V: tokens whose text is not blank, from `ops.nonblank_tokens`.
        gamma: discount a token of the future value.
        log_ratio: for the future value of APPO; None scores by entropy alone.
        sampling: of all that is sampled.

    Raises:
        ValueError: `settings.initial` leaves no attempt for branches.
    """
    assert player.explore is not None and player.branch is not None and player.collate is not None
    tasks = len(np.unique(task_N))
    n = len(task_N) // tasks
    initial = begin_anew(settings, n)
    begin = np.asarray(sample_N).reshape(tasks, n)[:, :initial]
    attempt_N = np.asarray(task_N).reshape(tasks, n)[:, :initial]
    first: Rollouts = player.explore(params, key, attempt_N.ravel(), begin.ravel(), sampling)
    batch = player.collate(first.trajectories)
    ratio_NT = None
    if log_ratio is not None and method == "appo":
        ratio_NT = log_ratio(batch if player.on_device else _shared(player, first, initial))
    chosen = jax.device_get(
        select_places(
            batch, jnp.asarray(nonblank_V), ratio_NT, gamma,
            method=method, tasks=tasks, budget=n - initial, settings=settings,
        )
    )  # fmt: skip
    step_ids_NT = np.asarray(batch.step_ids_NT)
    points, scores, groups = (
        [],
        [],
        [first.trajectories[t * initial :][:initial] for t in range(tasks)],
    )
    for task in range(tasks):
        for number in range(n - initial):
            row, token = int(chosen.row_b[task, number]), int(chosen.token_b[task, number])
            if row < 0:
                continue
            origin = task * initial + row
            step, taken = _cut(step_ids_NT[origin], token, after=method == "appo")
            sample = int(np.asarray(sample_N).reshape(tasks, n)[task, initial + number])
            points.append(BranchPoint(origin, step, taken, sample))
            scores.append(float(chosen.score_b[task, number]))
    new = player.branch(params, key, first, points, sampling)
    descents = [[Descent(place) for place in range(len(group))] for group in groups]
    for point, score, one in zip(points, scores, new.trajectories, strict=True):
        task, row = divmod(point.origin, initial)
        groups[task].append(one)
        descents[task].append(Descent(row, point.step, point.token, score))
    usage = _add(first.usage, new.usage)
    number = max(len(points), 1)
    report = {
        "branch/count": float(len(points)),
        "branch/strict_frac": float(chosen.num_strict.sum()) / number,
        "branch/fallback_frac": float(chosen.num_fallback.sum()) / number,
        "branch/score_mean": float(np.mean(scores or [0.0])),
        "branch/step_mean": float(np.mean([point.step for point in points] or [0])),
    }
    return Grown(groups, descents, n, usage, report | _tokens(first.usage, usage))


def begin_anew(settings: BranchConfig, n: int) -> int:
    """How many of the n attempts at a task are no branch.

    Raises:
        ValueError: `settings.initial` leaves no attempt for branches.
    """
    initial = (n + 1) // 2 if settings.initial is None else settings.initial
    if not 0 < initial < n:
        raise ValueError(
            f"algorithm.branch.initial={initial}: of rollout.n={n} attempts, at least one begins anew "
            "and at least one is a branch"
        )
    return initial


def _shared(player: Player, first: Rollouts, initial: int) -> StepBatch:
    """The rows of `collate`, with a tree: attempts at a task share at least the first observation."""
    assert player.collate_groups is not None
    one = first.trajectories
    groups = [one[number : number + initial] for number in range(0, len(one), initial)]
    return player.collate_groups(groups, initial)


@functools.partial(jax.jit, static_argnames=("method", "tasks", "budget", "settings"))
def select_places(batch, nonblank_V, ratio_NT, gamma, *, method, tasks, budget, settings):  # type: ignore[no-untyped-def]
    """The places of each task's branches, from `ops.select_branch_points`, [tasks, budget]."""
    ids_NT = batch.step_ids_NT
    length = ids_NT.shape[1]
    last_N1 = jnp.max(jnp.where(ids_NT >= 0, jnp.arange(length)[None], -1), axis=1, keepdims=True)
    scored = functools.partial(appo_branching_scores, negative_pairs=settings.negative_pairs)
    score_NT, strict_NT = jax.vmap(scored)(batch.entropy_NT, ids_NT)
    if method == "arpo":
        candidate_NT = jax.vmap(arpo_candidates)(ids_NT)
    else:
        candidate_NT = (ids_NT >= 0) & nonblank_V[batch.tokens_NT]
        # Behind the last token of all there is nothing to sample.
        candidate_NT &= jnp.arange(length)[None] != last_N1
    if ratio_NT is not None:
        value = functools.partial(appo_future_value, gamma=gamma, clip=settings.future_clip)
        value_NT = jax.vmap(value)(ratio_NT, ids_NT)
        by_value_NT, by_both_NT = jax.vmap(scored)(batch.entropy_NT, ids_NT, value_NT)
        # Where the policies agree there is no future to tell: entropy alone decides.
        spread_N = jax.vmap(masked_variance)(value_NT, ids_NT >= 0)
        told_N1 = (spread_N > 1e-10)[:, None]
        score_NT = jnp.where(told_N1, by_value_NT, score_NT)
        strict_NT = jnp.where(told_N1, by_both_NT, strict_NT)
    split = lambda x: x.reshape(tasks, -1, length)  # noqa: E731
    choose = functools.partial(select_branch_points, budget=budget, refill=settings.refill)
    return jax.vmap(choose)(split(score_NT), split(strict_NT), split(candidate_NT))


def _cut(step_ids_T: np.ndarray, token: int, after: bool) -> tuple[int, int]:
    """Step, and tokens of its action, with which a branch at a place of a row begins.

    Args:
        after: the branch keeps the token (APPO), or samples it anew (ARPO).
    """
    step = int(step_ids_T[token])
    places = np.flatnonzero(step_ids_T == step)
    taken = int(np.searchsorted(places, token)) + after
    return (step + 1, 0) if taken == len(places) else (step, taken)


def _add(one: Usage, other: Usage) -> Usage:
    return jax.tree.map(lambda a, b: a + b, one, other)


def _tokens(first: Usage, both: Usage) -> dict[str, float]:
    return {
        "branch/decoded_frac": (both.decoded - first.decoded) / max(both.decoded, 1),
        "branch/prefill_tokens_saved": float(both.reused - first.reused),
        **token_metrics(both),
    }


def token_metrics(usage: Usage) -> dict[str, float]:
    """Tokens of a rollout by the names of metrics: read, sampled, and found in the cache."""
    return {
        "token/prefilled": float(usage.prefilled),
        "token/decoded": float(usage.decoded),
        "token/reused": float(usage.reused),
    }
