"""What may be done to rewards before they become credit: each a pure function, each off by default.

The order in an update is: penalty for leaving the reference policy, running scale, value of what a
truncation cut off. The last is in the units that the critic learns, so it comes after the scale.
"""

import dataclasses

import jax
import jax.numpy as jnp

from steprl.ops import (
    RunningMoments,
    kl_penalty,
    masked_mean,
    reduce_steps,
    reverse_recurrence,
    update_running_moments,
)
from steprl.types import StepBatch


def penalise_kl(
    batch: StepBatch,
    logprob_NT: jax.Array,
    ref_logprob_NT: jax.Array,
    coefficient: jax.Array,
    kind: str,
) -> tuple[StepBatch, jax.Array]:
    """Subtract coefficient * KL(policy, reference) of its tokens from the reward of each step.

    The penalty of a token is part of the reward of its step, as in the reference, which stores it
    with the token (https://arxiv.org/abs/1909.08593, eq. 2).

    Args:
        batch: N trajectories.
        logprob_NT, ref_logprob_NT: log-probs of the sampled tokens under the policy that sampled
            and under the reference.
        coefficient: [] β.
        kind: estimator, see `ops.kl_penalty`.

    Returns:
        The batch with the new rewards, and the mean over rows with a step of the mean KL of a row's
        tokens, which is what an adaptive coefficient looks at.
    """  # fmt: skip
    penalty_NT = kl_penalty(logprob_NT, ref_logprob_NT, kind, batch.step_ids_NT)
    steps = batch.reward_NS.shape[1]
    of_step = jax.vmap(lambda x_t, ids_t: reduce_steps(x_t, ids_t, steps, "sum"))
    reward_NS = batch.reward_NS - coefficient * of_step(penalty_NT, batch.step_ids_NT)
    kl_N = masked_mean(penalty_NT, batch.step_ids_NT >= 0, axis=-1)
    mean_kl = masked_mean(kl_N, jnp.any(batch.mask_NS, axis=1))
    return dataclasses.replace(batch, reward_NS=reward_NS), mean_kl


def scale_rewards(
    batch: StepBatch, moments: RunningMoments, gamma: float
) -> tuple[StepBatch, RunningMoments, jax.Array]:
    """Divide rewards by the running standard deviation of their discounted forward sums.

        D_s = γ D_{s-1} + R_s,   R_s <- R_s (σ² + 1e-8)^(-1/2),   σ² the running variance of D

    The reward scaling of PPO implementations (https://arxiv.org/abs/2005.12729, section 3) as
    StepPO has it: this batch enters the moments first, the mean is not subtracted, and the sums
    start anew with each batch.

    Returns:
        The batch with the new rewards, the new moments, and the factor.
    """
    reward_SN = jnp.where(batch.mask_NS, batch.reward_NS, 0.0).T
    # The recurrence runs backwards: a forward sum is that of the reversed steps.
    sum_NS = reverse_recurrence(reward_SN[::-1], gamma)[::-1].T
    moments = update_running_moments(moments, sum_NS, batch.mask_NS)
    factor = jax.lax.rsqrt(jnp.asarray(moments.variance) + 1e-8)
    return dataclasses.replace(batch, reward_NS=batch.reward_NS * factor), moments, factor


def bootstrap_truncated(batch: StepBatch, final_value_N: jax.Array, gamma: float) -> StepBatch:
    """Add what the critic expects behind a limit that cut the trajectory off.

        R_last <- R_last + γ V(state behind the last step)   where truncated, not terminated

    The papers count a truncation as an end, which teaches the critic that time is short wherever
    it cannot see the clock (https://arxiv.org/abs/1712.00378).
    """
    cut_NS = batch.mask_NS & batch.truncated_NS & ~batch.terminated_NS
    reward_NS = batch.reward_NS + gamma * jnp.where(cut_NS, final_value_N[:, None], 0.0)
    return dataclasses.replace(batch, reward_NS=reward_NS)
