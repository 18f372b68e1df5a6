"""Rollouts with their branches, grown inside one compiled program.

The same tasks, samples and keys give the same trajectories as on the host
(`steprl.rollout.branching`), row for row; only the order of the rows is another: all originals
first, then a place for each branch that could be.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.branching import (
    Contrast,
    Plan,
    Points,
    Wave,
    begin_waves,
    contrast_report,
    descend,
    due_points,
    is_over,
    record_wave,
    score_points,
)
from steprl.rollout.device import (
    DeviceEnv,
    DeviceStep,
    batch_of_steps,
    first_told,
    remembered_rollout,
)
from steprl.rollout.device_branches import branch, branch_rows, usage_of
from steprl.rollout.rollouts import Usage, add_usage
from steprl.sampling import Sampling
from steprl.types import Params, Policy, StepBatch


class GrownBatch(NamedTuple):
    """Rollouts and what they cost, in scalars on the device."""

    batch: StepBatch
    first: Usage  # of those that began anew
    usage: Usage  # of all, those of branches that were thrown away as well
    report: dict[str, jax.Array]  # what is measured of the branches


def grow(
    policy: Policy,
    env: DeviceEnv,
    plan: Plan | None,
    params: Params,
    key: jax.Array,
    task_N: jax.Array,
    sample_N: jax.Array,
    sampling: Sampling = Sampling(),
    before: Params | None = None,
) -> GrownBatch:
    """The rollouts of a plan; without a plan, none of them branches.

    Args:
        task_N, sample_N: attempts, all of a task one after the other.
        before: what was trained, before the last update, for the future value.

    Raises:
        ValueError: the plan leaves no attempt for branches.
    """
    if plan is None:
        batch, _ = remembered_rollout(policy, env, params, key, task_N, sample_N, sampling)
        usage = usage_of(env, batch)
        return GrownBatch(batch, usage, usage, {})
    by_contrast = isinstance(plan.branching, Contrast)
    grow_kind = _grow_by_contrast if by_contrast else _grow_by_score
    return grow_kind(policy, env, plan, params, key, task_N, sample_N, sampling, before)


def _grow_by_score(
    policy: Policy, env: DeviceEnv, plan: Plan, params: Params, key: jax.Array, task_N: jax.Array,
    sample_N: jax.Array, sampling: Sampling, before: Params | None,
) -> GrownBatch:  # fmt: skip
    initial = plan.initial
    part = lambda x, places: x.reshape(-1, plan.attempts)[:, places].ravel()  # noqa: E731
    begin_anew = slice(initial)
    first, memory = remembered_rollout(
        policy, env, params, key, part(task_N, begin_anew), part(sample_N, begin_anew), sampling
    )
    packed = _packed(first)
    ratio_NT = None
    if plan.log_ratio is not None and before is not None:
        ratio_NT = plan.log_ratio(params, before, packed)
    points, report = score_points(plan, packed, ratio_NT, part(sample_N, slice(initial, None)))
    steps = branch(policy, env, params, key, memory, points, sampling)
    new = branch_rows(env, memory, steps, points)
    no_step_N = jnp.zeros_like(first.task_N)
    batch = _with_branches(
        _packed(_both(first, new)), points, no_step_N, jnp.zeros(task_N.shape, jnp.int32)
    )
    usage = usage_of(env, first)
    both = add_usage(usage, usage_of(env, new, points))
    return GrownBatch(batch, usage, both, report)


class _Loop(NamedTuple):
    """All that one wave passes to the next."""

    wave: Wave
    kept: DeviceStep  # [S, N, ...] of the continuations that contrast
    sample_N: jax.Array  # their random streams
    usage: Usage
    played: jax.Array


def _grow_by_contrast(
    policy: Policy, env: DeviceEnv, plan: Plan, params: Params, key: jax.Array, task_N: jax.Array,
    sample_N: jax.Array, sampling: Sampling, before: Params | None,
) -> GrownBatch:  # fmt: skip
    """The contrast of each rollout, or an empty row."""
    first, memory = remembered_rollout(policy, env, params, key, task_N, sample_N, sampling)
    # Episodes on the device end by their environment.
    normal_N = jnp.ones(task_N.shape, bool)
    steps_N = jnp.sum(first.mask_NS, axis=1, dtype=jnp.int32)
    originals, wave = begin_waves(
        plan, jnp.sum(first.reward_NS, axis=1), steps_N, normal_N, sample_N
    )

    def play(loop: _Loop) -> _Loop:
        points = due_points(originals, loop.wave)
        steps = branch(policy, env, params, key, memory, points, sampling)
        reward_N, steps_N = jnp.sum(steps.reward, axis=0), jnp.sum(steps.alive, axis=0)
        wave, hit_N = record_wave(plan, originals, loop.wave, reward_N, steps_N, normal_N)
        keep = lambda a, b: jnp.where(hit_N.reshape(1, -1, *[1] * (a.ndim - 2)), a, b)  # noqa: E731
        new = usage_of(env, branch_rows(env, memory, steps, points), points)
        return _Loop(
            wave,
            jax.tree.map(keep, steps, loop.kept),
            jnp.where(hit_N, points.sample_K, loop.sample_N),
            add_usage(loop.usage, new),
            loop.played + jnp.sum(points.there_K, dtype=jnp.int32),
        )

    usage = usage_of(env, first)
    nothing = jax.tree.map(jnp.zeros_like, memory.steps)
    loop = _Loop(wave, nothing, originals.sample_N, usage, jnp.zeros((), jnp.int32))
    loop = jax.lax.while_loop(lambda loop: ~is_over(originals, loop.wave), play, loop)

    wave = loop.wave
    prompt_NP = first.tokens_NT[:, : env.prompt_width]
    told_NW = first_told(first, memory.steps)
    contrasts = batch_of_steps(env, prompt_NP, loop.kept, task_N, loop.sample_N, told_NW)
    zero_N, split_N = jnp.zeros_like(steps_N), jnp.maximum(wave.split_N, 0)
    points = Points(
        wave.found_N, jnp.arange(len(steps_N), dtype=jnp.int32), split_N, zero_N, loop.sample_N,
        zero_N.astype(jnp.float32),
    )  # fmt: skip
    preference_N = jnp.concatenate([-wave.preference_N, wave.preference_N])
    batch = _with_branches(_both(first, contrasts), points, split_N, preference_N)
    report = contrast_report(originals, wave, loop.played)
    return GrownBatch(batch, usage, loop.usage, report)


# --- Rows ------------------------------------------------------------------------------------------


def _both(first: StepBatch, second: StepBatch) -> StepBatch:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _with_branches(
    batch: StepBatch, points: Points, first_step_N: jax.Array, preference_N: jax.Array
) -> StepBatch:
    """Of originals and then branches, with how they descend from each other.

    Args:
        points: of the branches.
        first_step_N: of the originals, the first step of their own suffix.
        preference_N: of all.
    """
    rows = first_step_N.shape[0]
    row_N = jnp.arange(batch.task_N.shape[0], dtype=jnp.int32)
    zero_N = jnp.zeros(rows, jnp.int32)
    join = lambda a, b: jnp.concatenate([a, b.astype(a.dtype)])  # noqa: E731
    branches = descend(
        batch.step_ids_NT,
        join(row_N[:rows], jnp.where(points.there_K, points.origin_K, row_N[rows:])),
        join(first_step_N, points.step_K),
        join(zero_N, points.token_K),
        join(zero_N.astype(jnp.float32), points.score_K),
        preference_N,
    )
    return dataclasses.replace(batch, branches=branches)


def _packed(batch: StepBatch) -> StepBatch:
    """The batch without holes in its rows: APPO discounts by the distance of tokens in a row."""
    order_NT = jnp.argsort(batch.segment_ids_NT == 0, axis=1, stable=True)
    pack = lambda x_NT: jnp.take_along_axis(x_NT, order_NT, axis=1)  # noqa: E731
    return dataclasses.replace(
        batch,
        tokens_NT=pack(batch.tokens_NT),
        positions_NT=pack(batch.positions_NT),
        segment_ids_NT=pack(batch.segment_ids_NT),
        step_ids_NT=pack(batch.step_ids_NT),
        logprob_NT=pack(batch.logprob_NT),
        entropy_NT=pack(batch.entropy_NT),
    )
