"""The executor of environments that live on the device: rollouts are compiled programs."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from steprl.branching import Plan, Points
from steprl.envs.device_env import DeviceEnv
from steprl.rollout.device import demonstrations, remembered_rollout
from steprl.rollout.device_branches import branch, branch_rows, usage_of
from steprl.rollout.device_growth import grow
from steprl.rollout.episode import check_point
from steprl.rollout.records import collate, each_trajectory, trajectories
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
from steprl.sharding import BATCH, shard_rows
from steprl.types import Params, Parent, Policy, StepBatch, Trajectory


def device_player(
    make: Callable[[Any], DeviceEnv],
    policy: Policy,
    mesh: Mesh,
    tokenizer: Any,
    shown: DeviceEnv | None = None,
    expert: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> Player:
    """Plays an environment on token arrays; batches come back placed on the mesh.

    Args:
        make: the environment of a split, from "is it held out?", which may be traced, so that one
            program serves both splits.
        tokenizer: for views of the tokens.
        shown: the environment that demonstrations are played in.
        expert: (state, key of the trajectory) -> action of the demonstrator, None where there is none.
    """

    @jax.jit
    def compiled(params, key, task, sample, heldout, sampling):  # type: ignore[no-untyped-def]
        grown = grow(policy, make(heldout), None, params, key, task, sample, sampling)
        return grown.batch, grown.usage

    @jax.jit
    def compiled_exploration(params, key, task, sample, heldout, sampling):  # type: ignore[no-untyped-def]
        env = make(heldout)
        batch, memory = remembered_rollout(policy, env, params, key, task, sample, sampling)
        return batch, memory, usage_of(env, batch)

    @jax.jit
    def compiled_branches(params, key, memory, points, heldout, sampling):  # type: ignore[no-untyped-def]
        env = make(heldout)
        steps = branch(policy, env, params, key, memory, points, sampling)
        batch = branch_rows(env, memory, steps, points)
        return batch, usage_of(env, batch, points)

    @jax.jit
    def compiled_growth(plan, params, key, task, sample, sampling, before):  # type: ignore[no-untyped-def]
        env = make(False)
        grown = grow(policy, env, plan, params, key, task, sample, sampling, before)
        rows = jax.lax.with_sharding_constraint(grown.batch, NamedSharding(mesh, BATCH))
        return grown._replace(batch=rows)

    @jax.jit
    def compiled_demonstrations(key: jax.Array, task: jax.Array) -> StepBatch:
        assert shown is not None and expert is not None
        return demonstrations(shown, expert, key, task)

    def play(
        params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray,
        sampling: Sampling = Sampling(), split: str = "train",
    ) -> StepBatch:  # fmt: skip
        task, sample = shard_rows(
            (np.asarray(task_N, np.int32), np.asarray(sample_N, np.int32)), mesh
        )
        heldout = np.bool_(split != "train")
        return compiled(params, key, task, sample, heldout, _traced(sampling))[0]

    def demonstrated(key: jax.Array, task_N: np.ndarray) -> StepBatch:
        return compiled_demonstrations(key, shard_rows(np.asarray(task_N, np.int32), mesh))

    def explore(
        params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray,
        sampling: Sampling = Sampling(), split: str = "train", remember: bool = True,
    ) -> Rollouts:  # fmt: skip
        task, sample = shard_rows(
            (np.asarray(task_N, np.int32), np.asarray(sample_N, np.int32)), mesh
        )
        heldout = np.bool_(split != "train")
        batch, memory, usage = compiled_exploration(
            params, key, task, sample, heldout, _traced(sampling)
        )
        played = trajectories(batch, tokenizer)
        return Rollouts(played, _counted(usage), memory if remember else None)

    def branches(
        params: Params, key: jax.Array, rollouts: Rollouts, points: Sequence[BranchPoint],
        sampling: Sampling = Sampling(), split: str = "train",
    ) -> Rollouts:  # fmt: skip
        played: list[Trajectory] = []
        usage = Usage()
        most = len(rollouts.trajectories)
        few = -(-most // (4 * mesh.size)) * mesh.size
        for first in range(0, len(points), most):
            part = points[first : first + most]
            # One of two sizes, so that few branches do not pay for many rows.
            rows = few if len(part) <= few else most
            arrays = shard_rows(_as_points(rollouts.trajectories, part, rows), mesh)
            batch, cost = compiled_branches(
                params, key, rollouts.memory, arrays, np.bool_(split != "train"), _traced(sampling)
            )
            for point, trajectory in zip(part, trajectories(batch, tokenizer), strict=False):
                origin = rollouts.trajectories[point.origin]
                steps = (*origin.steps[: point.step], *trajectory.steps[point.step :])
                parent = Parent(origin.sample, point.step, point.token)
                played.append(dataclasses.replace(trajectory, steps=steps, parent=parent))
            usage = add_usage(usage, _counted(cost))
        return Rollouts(played, usage)

    def gather(plan: Plan | None, sampling: Sampling) -> Callable[..., Experience]:
        def grown(
            params: Params, key: jax.Array, task_N: np.ndarray, sample_N: np.ndarray,
            before: Params | None = None,
        ) -> Experience:  # fmt: skip
            task, sample = shard_rows(
                (np.asarray(task_N, np.int32), np.asarray(sample_N, np.int32)), mesh
            )
            if plan is None:
                batch, usage = compiled(
                    params, key, task, sample, np.bool_(False), _traced(sampling)
                )
                report = token_report(_counted(usage))
            else:
                grown_batch = compiled_growth(
                    plan, params, key, task, sample, _traced(sampling), before
                )
                batch = grown_batch.batch
                report = token_report(_counted(grown_batch.usage), _counted(grown_batch.first))
                report |= {name: float(x) for name, x in grown_batch.report.items()}

            def records() -> Iterator[Trajectory]:
                return (one for one in each_trajectory(batch, tokenizer) if one.steps)

            return Experience(batch, report, records)

        return grown

    env = make(False)
    length = env.prompt_width + env.max_steps * (env.action_width + env.observation_width)

    def batch_of(played: Sequence[Trajectory]) -> StepBatch:
        return shard_rows(collate(played, env.max_steps, [length], env.action_width), mesh)

    return Player(
        play, demonstrated if expert else None, tokenizer, ("train", "heldout"), {}, explore,
        branches, batch_of, gather=gather,
    )  # fmt: skip


def _as_points(
    trajectories: Sequence[Trajectory], points: Sequence[BranchPoint], rows: int
) -> Points:
    """The arrays of some branch points, filled up to `rows`.

    Raises:
        ValueError: a point lies outside its trajectory.
    """
    for point in points:
        check_point(trajectories[point.origin].steps, point.step, point.token)
    columns = np.zeros((4, rows), np.int32)
    for row, point in enumerate(points):
        columns[:, row] = point
    origin, step, token, sample = columns
    there, no_score = np.arange(rows) < len(points), np.zeros(rows, np.float32)
    return Points(there, origin, step, token, sample, no_score)


def _counted(usage: Usage) -> Usage:
    """The numbers on the host."""
    return Usage(*(int(x) for x in jax.device_get(usage)))


def _traced(sampling: Sampling) -> Sampling:
    """The temperature as an array, so that all temperatures are one program."""
    temperature: Any = np.float32(sampling.temperature)
    return dataclasses.replace(sampling, temperature=temperature)
