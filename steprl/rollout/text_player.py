"""The player of any text environment: host episodes, and rows of its demonstrator's contexts."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from steprl.config import RolloutConfig
from steprl.envs import Env
from steprl.envs.answers import describe
from steprl.models.contract import takes_trees
from steprl.rollout.contexts import Context
from steprl.rollout.host import HostPlayer
from steprl.rollout.records import collate, pack
from steprl.rollout.rollouts import BranchPoint, Experience, Rollouts
from steprl.rollout.trees import collate_trees
from steprl.sampling import Sampling
from steprl.sharding import shard_rows
from steprl.types import Params, Policy, Step, StepBatch, Trajectory

_LOG = logging.getLogger("steprl")

MAX_PACKED = 8
"""Demonstrated tasks of one row at most, where several short ones share it."""


class Player(NamedTuple):
    """Functions of one environment.

    play(params, key, task_N, sample_N, sampling, split=...) -> StepBatch
    demonstrate(key, task_N) -> StepBatch of the warm start's demonstrator, on training tasks;
        None where there is no demonstrator
    explore(params, key, task_N, sample_N, sampling, split=..., remember=True) -> Rollouts;
        without `remember` it is `play` before its rows are collated
    branch(params, key, rollouts, points, sampling, split=...) -> Rollouts that
        continue from steps of those of `explore`
    collate(trajectories) -> StepBatch, a row each
    collate_groups(groups of trajectories, rows) -> StepBatch with a tree: `rows` rows a group, empty
        ones where it has fewer; what rows of a group share is computed once
    gather(plan, sampling) -> the function (params, key, task_N, sample_N, before) -> Experience where
        rollouts and their branches are one program; None: `branching.host_gather` does it by the others
    """

    play: Callable[..., StepBatch]
    demonstrate: Callable[[jax.Array, np.ndarray], StepBatch] | None
    tokenizer: Any
    splits: tuple[str, ...]  # training first, then those to evaluate on, the main one first
    sizes: Mapping[str, int] = MappingProxyType(
        {}
    )  # tasks of a split, where there are finitely many
    # Of environments on the host, `play` in two halves; of all, how to branch:
    explore: Callable[..., Rollouts] | None = None
    branch: Callable[..., Rollouts] | None = None
    collate: Callable[[Sequence[Trajectory]], StepBatch] | None = None
    collate_groups: Callable[[Sequence[Sequence[Trajectory]], int], StepBatch] | None = None
    gather: Callable[..., Callable[..., Experience]] | None = None


def text_player(
    envs: Mapping[str, Env],
    context: Context,
    tokenizer: Any,
    policy: Policy,
    mesh: Mesh,
    rollout: RolloutConfig,
    max_steps: int,
    demonstrate: Callable[[int, int], Trajectory] | None = None,
    sizes: Mapping[str, int] = MappingProxyType({}),
    workers: int = 0,
) -> Player:
    """Plays text environments, one for each split, the training split first.

    Args:
        envs: by split.
        context: how the policy reads them.
        tokenizer: for views of the tokens.
        max_steps: steps of a trajectory at most.
        demonstrate: task, seed -> a demonstration of the training split, for the warm start.
        sizes: tasks of a split, where there are finitely many.
        workers: environments stepped at the same time, unless rollout.env_workers sets it.
    """
    length, response = rollout.context_length, rollout.response_length
    lengths = sorted({length // 4, length // 2, 3 * length // 4, length})
    # Few, as each is a program of its own.
    widths = [length // 2, length, 3 * length // 2, 2 * length, 4 * length]
    host = HostPlayer(
        policy, context, max_steps, response, length, rollout.slots,
        workers if rollout.env_workers is None else rollout.env_workers,
        rollout.env_timeout or None, rollout.env_isolate, rollout.observation_limit,
    )  # fmt: skip
    first, *others = envs

    def explore(
        params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray,
        sampling: Sampling = Sampling(), split: str = first, remember: bool = True,
    ) -> Rollouts:  # fmt: skip
        tasks, samples = [int(t) for t in task_N], [int(s) for s in sample_N]
        return host.explore(envs[split], params, key, tasks, samples, sampling, remember)

    def branch(
        params: Params, key: jax.Array, rollouts: Rollouts, points: Sequence[BranchPoint],
        sampling: Sampling = Sampling(), split: str = first,
    ) -> Rollouts:  # fmt: skip
        return host.branch(envs[split], params, key, rollouts, points, sampling)

    def batch_of(played: Sequence[Trajectory]) -> StepBatch:
        return shard_rows(collate(played, max_steps, lengths, response), mesh)

    def batch_of_groups(groups: Sequence[Sequence[Trajectory]], rows: int) -> StepBatch:
        return shard_rows(
            collate_trees(
                groups, max_steps, lengths, response, rows, widths, share=takes_trees(policy)
            ),
            mesh,
        )

    def play(*arguments: Any, **settings: Any) -> StepBatch:
        return batch_of(explore(*arguments, **(settings | {"remember": False})).trajectories)

    def demonstrated(key: jax.Array, task_N: np.ndarray) -> StepBatch:
        # The seeds of a row follow from the key and its task; drawn on the host, without a wait.
        entropy = np.asarray(jax.random.key_data(key)).tolist()
        rows = []
        for task in task_N:
            seed = int(np.random.default_rng([*entropy, int(task)]).integers(2**31))
            rows.append(row_of(int(task) * stride, seed))
        return shard_rows(pack(rows, length, sampled_room), mesh)

    # Rows share no task where there are always more; of finitely many each has its turn to be first.
    stride = 1 if first in sizes else MAX_PACKED
    # A context that is written anew holds one action; one that grows may be half actions.
    sampled_room = max(response, length // 8) if context.rebuild else length // 2
    failures: list[str] = []  # of the demonstrator; the first is told

    def row_of(first_task: int, seed: int) -> list[Trajectory]:
        """The contexts of a run of tasks, as many as a row has room for."""
        assert demonstrate is not None
        row: list[Trajectory] = []
        room, sampled_left = length, sampled_room
        failure = ""
        for task in range(first_task, first_task + MAX_PACKED):
            try:
                pieces = apart(demonstrate(task, seed))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # of a demonstrator or an environment of the user
                failure = f"task {task}: {describe(error)}"
                if not failures:
                    _LOG.warning("Demonstrations that fail are left out. The first: %s", failure)
                failures.append(failure)
                continue
            begin = seed % max(len(pieces), 1)  # so that rows which hold one context show them all
            for piece in [*pieces[begin:], *pieces[:begin]]:
                sampled = sum(len(step.action_ids) for step in piece.steps)
                tokens = sampled + sum(len(step.observation_ids) for step in piece.steps)
                if tokens > length or sampled > sampled_room:
                    continue  # it fits into no row
                if tokens > room or sampled > sampled_left:
                    return row
                row.append(piece)
                room, sampled_left = room - tokens, sampled_left - sampled
        if failure and not row:
            raise ValueError(
                f"none of tasks {first_task} to {first_task + MAX_PACKED - 1} has a demonstration; the last "
                f"failed, {failure}"
            )
        if not row:
            raise ValueError(
                f"rollout.context_length={length}, rollout.response_length={response}: the "
                f"demonstrations of tasks {first_task} to {first_task + MAX_PACKED - 1} do not fit"
            )
        return row

    shown = demonstrated if demonstrate else None
    return Player(
        play, shown, tokenizer, (first, *others), sizes, explore, branch, batch_of, batch_of_groups
    )


def apart(trajectory: Trajectory) -> list[Trajectory]:
    """The contexts of a trajectory as trajectories of their own."""
    pieces: list[list[Step]] = []
    for step in trajectory.steps:
        if step.fresh or not pieces:
            pieces.append([])
        pieces[-1].append(dataclasses.replace(step, fresh=False))
    return [dataclasses.replace(trajectory, steps=tuple(steps)) for steps in pieces]
