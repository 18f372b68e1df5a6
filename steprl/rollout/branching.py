"""Rollouts with their branches, on the host: a player's episodes, continued where a plan says.

BranPO (arXiv 2602.03719) tries the last steps of finished trajectories again until a continuation
contrasts with the original ending. APPO (arXiv 2606.12384) and ARPO (arXiv 2507.19849) spend part of
the attempts at a task on branches from the tokens that score highest. What is decided is decided by
`steprl.branching`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from steprl.branching import (
    Contrast,
    Plan,
    Points,
    begin_waves,
    contrast_report,
    due_points,
    is_over,
    record_wave,
    score_points,
)
from steprl.rollout.rollouts import (
    BranchPoint,
    Experience,
    Rollouts,
    Usage,
    add_usage,
    token_report,
)
from steprl.rollout.text_player import Player
from steprl.sampling import Sampling
from steprl.types import Params, Parent, Trajectory

_begin_waves, _due_points = jax.jit(begin_waves), jax.jit(due_points)
_record_wave, _score_points = jax.jit(record_wave), jax.jit(score_points)


class Grown(NamedTuple):
    """Groups of trajectories that share beginnings, originals first."""

    groups: list[list[Trajectory]]
    rows: int  # room of a group
    usage: Usage  # of all: what a branch samples counts
    report: dict[str, float]
    faults: tuple[str, ...]  # of all, also of continuations that were not kept


def host_gather(player: Player, plan: Plan | None, sampling: Sampling) -> Callable[..., Experience]:
    """`gather(params, key, task_N, sample_N, before) -> Experience`, see `grow` and `Player.gather`."""

    def gather(
        params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray,
        before: Params | None = None,
    ) -> Experience:  # fmt: skip
        if plan is not None:
            grown = grow(player, plan, params, key, task_N, sample_N, sampling, before)
            assert player.collate_groups is not None
            batch = player.collate_groups(grown.groups, grown.rows)
            records = [one for group in grown.groups for one in group]
            return Experience(batch, grown.report, lambda: records, grown.faults)
        assert player.explore is not None and player.collate is not None
        played = player.explore(params, key, task_N, sample_N, sampling, remember=False)
        batch = player.collate(played.trajectories)
        records = played.trajectories
        return Experience(batch, token_report(played.usage), lambda: records, _faults(records))

    return gather


def grow(
    player: Player,
    plan: Plan,
    params: Params,
    key: jax.Array,
    task_N: np.ndarray,
    sample_N: np.ndarray,
    sampling: Sampling = Sampling(),
    before: Params | None = None,
) -> Grown:
    """The rollouts of a plan.

    Args:
        player: plays and continues them, and collates groups.
        task_N, sample_N: attempts, all of a task one after the other.
        sampling: of all that is sampled.
        before: what was trained, before the last update, for the future value.

    Raises:
        ValueError: the plan leaves no attempt for branches.
    """
    by_contrast = isinstance(plan.branching, Contrast)
    grow_kind = _grow_by_contrast if by_contrast else _grow_by_score
    return grow_kind(player, plan, params, key, task_N, sample_N, sampling, before)


def _grow_by_contrast(
    player: Player, plan: Plan, params: Params, key: jax.Array, task_N: np.ndarray,
    sample_N: np.ndarray, sampling: Sampling, before: Params | None,
) -> Grown:  # fmt: skip
    """Every rollout, and the continuation that contrasts with its ending where one was found.

    A rollout that the environment or a full context cut off is not resampled.
    """
    assert player.explore is not None and player.branch is not None
    first: Rollouts = player.explore(params, key, task_N, sample_N, sampling)
    sample_N = np.asarray(sample_N, np.int32)
    originals, wave = _begin_waves(plan, *_outcomes(first.trajectories), sample_N)
    contrasts: dict[int, Trajectory] = {}
    faults = _faults(first.trajectories)
    usage, played = first.usage, 0
    while not is_over(originals, wave):
        points = jax.device_get(_due_points(originals, wave))
        rows = np.flatnonzero(points.there_K)
        new = player.branch(params, key, first, _as_list(points), sampling)
        faults += _faults(new.trajectories)
        usage, played = add_usage(usage, new.usage), played + len(rows)
        outcomes = [np.zeros(len(sample_N), x.dtype) for x in _outcomes(new.trajectories)]
        for all_N, some in zip(outcomes, _outcomes(new.trajectories), strict=True):
            all_N[rows] = some
        wave, hit_N = _record_wave(plan, originals, wave, *outcomes)
        hits = np.asarray(hit_N)[rows]
        contrasts |= {
            int(row): trajectory
            for row, trajectory, hit in zip(rows, new.trajectories, hits, strict=True)
            if hit
        }
    groups = []
    split_N, preference_N = np.maximum(wave.split_N, 0), np.asarray(wave.preference_N)
    for row, original in enumerate(first.trajectories):
        original_parent = Parent(
            original.sample, int(split_N[row]), preference=-int(preference_N[row])
        )
        group = [dataclasses.replace(original, parent=original_parent)]
        if row in contrasts:
            parent = original_parent._replace(preference=-original_parent.preference)
            group.append(dataclasses.replace(contrasts[row], parent=parent))
        groups.append(group)
    report = _plain(contrast_report(originals, wave, played)) | token_report(usage, first.usage)
    return Grown(groups, 2, usage, report, faults)


def _outcomes(trajectories: list[Trajectory]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return and number of steps of each, and whether it ended normally: by the environment, or
    because it ran out of steps. One in which the environment failed has no steps: it is neither
    right nor wrong."""
    cut_off = ("context_full", "env_timeout", "env_crash")
    last = [one.steps[-1].stop_reason if one.steps else "env_crash" for one in trajectories]
    return (
        np.array([one.total_reward for one in trajectories], np.float32),
        np.array([0 if one.fault else len(one.steps) for one in trajectories], np.int32),
        np.array([reason not in cut_off for reason in last], bool),
    )


def _grow_by_score(
    player: Player, plan: Plan, params: Params, key: jax.Array, task_N: np.ndarray,
    sample_N: np.ndarray, sampling: Sampling, before: Params | None,
) -> Grown:  # fmt: skip
    """Some attempts at each task from its beginning, the others branched off from these."""
    assert player.explore is not None and player.branch is not None and player.collate is not None
    n, initial = plan.attempts, plan.initial
    tasks_TR, samples_TR = np.reshape(task_N, (-1, n)), np.reshape(sample_N, (-1, n))
    first: Rollouts = player.explore(
        params, key, tasks_TR[:, :initial].ravel(), samples_TR[:, :initial].ravel(), sampling
    )
    originals = [
        dataclasses.replace(one, parent=Parent(one.sample, 0)) for one in first.trajectories
    ]
    groups = [originals[begin : begin + initial] for begin in range(0, len(originals), initial)]
    ratio_NT = None
    if plan.log_ratio is not None and before is not None:
        assert player.collate_groups is not None
        # The rows of `collate`, with a tree: attempts at a task share at least the first observation.
        ratio_NT = plan.log_ratio(params, before, player.collate_groups(groups, initial))
    new_samples = samples_TR[:, initial:].ravel().astype(np.int32)
    batch = player.collate(first.trajectories)
    points, report = jax.device_get(_score_points(plan, batch, ratio_NT, new_samples))
    listed, score_K = _as_list(points), points.score_K[points.there_K]
    new = player.branch(params, key, first, listed, sampling)
    for point, place_score, trajectory in zip(listed, score_K, new.trajectories, strict=True):
        assert trajectory.parent is not None
        parent = trajectory.parent._replace(score=float(place_score))
        groups[point.origin // initial].append(dataclasses.replace(trajectory, parent=parent))
    usage = add_usage(first.usage, new.usage)
    faults = _faults(first.trajectories) + _faults(new.trajectories)
    return Grown(groups, n, usage, _plain(report) | token_report(usage, first.usage), faults)


def _faults(trajectories: Sequence[Trajectory]) -> tuple[str, ...]:
    return tuple(one.fault for one in trajectories if one.fault)


def _as_list(points: Points) -> list[BranchPoint]:
    """Those that there are."""
    columns = (points.origin_K, points.step_K, points.token_K, points.sample_K)
    rows = zip(points.there_K, *columns, strict=True)
    return [BranchPoint(*map(int, point)) for there, *point in rows if there]


def _plain(report: dict[str, Any]) -> dict[str, float]:
    return {name: float(x) for name, x in report.items()}
