"""The executor of environments that live on the device: rollouts are compiled programs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from steprl.rollout.device import DeviceEnv, demonstrations, remembered_rollout, rollout
from steprl.rollout.device_branches import branch, starts, usage_of
from steprl.rollout.device_branches import records as branch_records
from steprl.rollout.records import collate, trajectories
from steprl.rollout.rollouts import BranchPoint, Rollouts
from steprl.rollout.text_player import Player
from steprl.rollout.trees import collate_trees
from steprl.sampling import Sampling
from steprl.sharding import shard_rows
from steprl.types import Params, Policy, StepBatch, Trajectory


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
        env = make(heldout)
        return rollout(policy, env, params, key, task, sample, sampling)

    @jax.jit
    def compiled_exploration(params, key, task, sample, heldout, sampling):  # type: ignore[no-untyped-def]
        env = make(heldout)
        return remembered_rollout(policy, env, params, key, task, sample, sampling)

    @jax.jit
    def compiled_branches(params, key, memory, begin, heldout, sampling):  # type: ignore[no-untyped-def]
        env = make(heldout)
        return branch(policy, env, params, key, memory, begin, sampling)

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
        return compiled(params, key, task, sample, heldout, _traced(sampling))

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
        batch, memory = compiled_exploration(params, key, task, sample, heldout, _traced(sampling))
        found = trajectories(batch, tokenizer)
        return Rollouts(found, usage_of(found), memory if remember else None)

    def branches(
        params: Params, key: jax.Array, rollouts: Rollouts, points: Sequence[BranchPoint],
        sampling: Sampling = Sampling(), split: str = "train",
    ) -> Rollouts:  # fmt: skip
        found: list[Trajectory] = []
        most = len(rollouts.trajectories)
        few = -(-most // (4 * mesh.size)) * mesh.size
        for first in range(0, len(points), most):
            part = points[first : first + most]
            # One of two sizes, so that few branches do not pay for many rows.
            rows = few if len(part) <= few else most
            begin = starts(rollouts.trajectories, part, rows, env.action_width)
            turns = compiled_branches(
                params, key, rollouts.memory, shard_rows(begin, mesh), np.bool_(split != "train"),
                _traced(sampling),
            )  # fmt: skip
            found += branch_records(rollouts.trajectories, part, jax.device_get(turns), tokenizer)
        return Rollouts(found, usage_of(found, points))

    env = make(False)
    length = env.prompt_width + env.max_steps * (env.action_width + env.observation_width)

    def batch_of(played: Sequence[Trajectory]) -> StepBatch:
        return shard_rows(collate(played, env.max_steps, [length], env.action_width), mesh)

    def batch_of_groups(groups: Sequence[Sequence[Trajectory]], rows: int) -> StepBatch:
        widths = [length * part for part in (1, 2, 3, 4, 6, 8, 12, 16) if part <= rows]
        return shard_rows(
            collate_trees(groups, env.max_steps, [length], env.action_width, rows, widths), mesh
        )

    return Player(
        play, demonstrated if expert else None, tokenizer, ("train", "heldout"), {}, explore,
        branches, batch_of, batch_of_groups, on_device=True,
    )  # fmt: skip


def _traced(sampling: Sampling) -> Sampling:
    """The temperature as an array, so that all temperatures are one program."""
    temperature: Any = np.float32(sampling.temperature)
    return dataclasses.replace(sampling, temperature=temperature)
