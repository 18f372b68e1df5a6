"""What may be done to rewards before they become credit: each a pure function, each off by default.

The order in an update is that of `REWARD_TRANSFORMS`: penalty for leaving the reference policy,
running scale, value of what a truncation cut off. The last is in the units that the critic learns,
so it comes after the scale.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import AlgorithmConfig
from steprl.ops import (
    RunningMoments,
    adaptive_kl_coefficient,
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


# --- As steps of the update ------------------------------------------------------------------------


class ModelScores(NamedTuple):
    """What models say of the batch whose rewards are transformed."""

    reference_NT: (
        jax.Array | None
    )  # log-probs of the policy that training began with, where carried
    final_value_N: jax.Array  # of the critic behind all that a row holds


class RewardTransform(NamedTuple):
    """One step of what is done to rewards, in the manner of optax: a state goes in and comes out.

    `update(batch, state, scored, settings)` returns the batch with new rewards, the next state and
    metrics. The state is carried from one iteration to the next in `TrainState.carried`, under the
    name; a transform without `init` has none, and its state is None.
    """

    name: str
    needed: Callable[[AlgorithmConfig], bool]  # whether the settings turn it on
    update: Callable[
        [StepBatch, Any, ModelScores, AlgorithmConfig], tuple[StepBatch, Any, dict[str, jax.Array]]
    ]
    init: Callable[[AlgorithmConfig], Any] | None = None


def _first_kl_coefficient(settings: AlgorithmConfig) -> jax.Array:
    return jnp.asarray(settings.kl_ctrl.kl_coef, jnp.float32)


def _with_kl_penalty(
    batch: StepBatch, coefficient: jax.Array, scored: ModelScores, settings: AlgorithmConfig
) -> tuple[StepBatch, jax.Array, dict[str, jax.Array]]:
    assert scored.reference_NT is not None
    batch, kl = penalise_kl(
        batch, batch.logprob_NT, scored.reference_NT, coefficient, settings.kl_penalty
    )
    report = {
        "actor/reward_kl_penalty": kl,
        "actor/reward_kl_penalty_coeff": coefficient,
    }
    control = settings.kl_ctrl
    if control.type == "adaptive":
        rows = jnp.sum(jnp.any(batch.mask_NS, axis=1))
        following = adaptive_kl_coefficient(
            coefficient, kl, rows, target=control.target_kl, horizon=control.horizon
        )
        coefficient = jnp.where(jnp.isfinite(following), following, coefficient)
    return batch, coefficient, report


def _first_moments(settings: AlgorithmConfig) -> RunningMoments:
    return RunningMoments(*(jnp.asarray(x, jnp.float32) for x in RunningMoments()))


def _with_scale(
    batch: StepBatch, moments: RunningMoments, scored: ModelScores, settings: AlgorithmConfig
) -> tuple[StepBatch, RunningMoments, dict[str, jax.Array]]:
    batch, following, factor = scale_rewards(batch, moments, settings.gamma)
    fine = jnp.isfinite(factor)
    moments = jax.tree.map(lambda new, old: jnp.where(fine, new, old), following, moments)
    return batch, moments, {"critic/reward_scale": factor}


def _with_bootstrap(
    batch: StepBatch, state: None, scored: ModelScores, settings: AlgorithmConfig
) -> tuple[StepBatch, None, dict[str, jax.Array]]:
    return bootstrap_truncated(batch, scored.final_value_N, settings.gamma), None, {}


KL_COEFFICIENT = "kl_coefficient"
REWARD_TRANSFORMS = (
    RewardTransform(
        KL_COEFFICIENT, lambda s: s.use_kl_in_reward, _with_kl_penalty, _first_kl_coefficient
    ),
    RewardTransform("return_moments", lambda s: s.scale_rewards, _with_scale, _first_moments),
    RewardTransform("bootstrap", lambda s: s.bootstrap_truncated, _with_bootstrap),
)


def initial_reward_states(settings: AlgorithmConfig) -> dict[str, Any]:
    """The states of the transforms that the settings turn on, by their names."""
    return {
        transform.name: transform.init(settings)
        for transform in REWARD_TRANSFORMS
        if transform.needed(settings) and transform.init is not None
    }


def transform_rewards(
    batch: StepBatch, states: dict[str, Any], scored: ModelScores, settings: AlgorithmConfig
) -> tuple[StepBatch, dict[str, Any], dict[str, jax.Array]]:
    """All that the settings turn on, one after the other.

    Args:
        batch: N trajectories.
        states: of the transforms by their names; other names are ignored.
        scored: what models say of the batch.
        settings: of the method.

    Returns:
        The batch with the new rewards, the next states by their names, and metrics.
    """
    following: dict[str, Any] = {}
    metrics: dict[str, jax.Array] = {}
    for transform in REWARD_TRANSFORMS:
        if transform.needed(settings):
            state = states.get(transform.name)
            batch, state, report = transform.update(batch, state, scored, settings)
            metrics |= report
            if transform.init is not None:
                following[transform.name] = state
    return batch, following, metrics
