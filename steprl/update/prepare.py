"""First part of an update: from a batch and what models say of it to what the loss needs."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.algorithms import Algorithm, Credit, group_ids, scores
from steprl.carried import VALUE_MOMENTS
from steprl.config import AlgorithmConfig, Config
from steprl.models.scoring import Scores
from steprl.ops import (
    RunningMoments,
    all_equal,
    explained_variance,
    informative_groups,
    masked_mean,
    masked_variance,
    recent_moments,
    return_scale,
    rollout_correction_weights,
)
from steprl.rewards import ModelScores, transform_rewards
from steprl.rollout.faults import rows_left_out, without_rows
from steprl.types import StepBatch

Metrics = dict[str, jax.Array]


class Sample(NamedTuple):
    """Rows of a batch or of a part of it, with all that their loss needs."""

    batch: StepBatch
    credit: Credit
    value_NT: jax.Array  # of the critic when the batch came in
    old_logprob_NT: jax.Array
    rollout_weight_NT: jax.Array | None
    ref_logprob_NT: jax.Array | None
    keep_N: jax.Array  # bool, the row is learnt from
    # Of each token in the loss of its mini-batch; 0 until an optimiser step fills them in.
    policy_weight_NT: jax.Array
    value_weight_NT: jax.Array
    return_scale_N: jax.Array | None = None  # the same for all rows; what the critic learns in


class Prepared(NamedTuple):
    """A batch that is ready for the loss."""

    sample: Sample
    reward_states: dict[str, Any]  # the next ones, by the names of `REWARD_TRANSFORMS`
    metrics: Metrics
    # Of the returns, these among them, where the critic learns in units of their deviation.
    value_moments: RunningMoments | None = None


def prepare(
    batch: StepBatch,
    old: Scores,
    reference_NT: jax.Array | None,
    carried: dict[str, Any],
    method: Algorithm,
    config: Config,
) -> Prepared:
    """Rewards are transformed, the method turns them into credit, and rows and tokens are weighed.

    Rows that are no learning signal (`rows_left_out`) are left out before: from here on they are
    rows without steps.

    Args:
        batch: N trajectories, as rollouts gave them.
        old: of the batch under the current parameters.
        reference_NT: log-probs under the policy that training began with, if something needs it.
        carried: of the train state; the states of the reward transforms are read, and the moments of
            the returns.
        method: row of the table of algorithms.
        config: settings of the run.
    """
    settings = config.algorithm
    metrics = _batch_metrics(batch, old)
    out_N = rows_left_out(batch, settings)
    batch = without_rows(batch, out_N)
    metrics["rollout/left_out"] = jnp.sum(out_N)
    ids_N = group_ids(batch, settings.singleton)
    informative_N = informative_groups(scores(batch), ids_N, batch.task_N.shape[0])
    model_scores = ModelScores(reference_NT, old.final_value_N)
    batch, reward_states, report = transform_rewards(batch, carried, model_scores, settings)
    credit = method.credit(batch, old.value_NT, settings)
    if "group" in method.needs:  # a method of one's own may not know of rows without a group
        alone_N1 = (ids_N < 0)[:, None]
        credit = credit._replace(advantage_NT=jnp.where(alone_N1, 0.0, credit.advantage_NT))
    metrics |= report | _advantage_metrics(credit, batch)
    moments, scale_N = carried.get(VALUE_MOMENTS.name), None
    if "critic" in method.needs:
        reward_return_NT = _returns_of_rewards(method, batch, settings)
        metrics |= _critic_metrics(credit, old.value_NT, reward_return_NT)
        if moments is not None and config.critic.head == "scalar":
            moments = _next_moments(moments, reward_return_NT, credit.critic_mask_NT)
            scale = return_scale(moments)
            metrics["critic/return_scale"] = scale
            scale_N = jnp.full(batch.task_N.shape, scale)
    old_logprob_NT, weight_NT = batch.logprob_NT, None
    if settings.rollout_is != "off":
        old_logprob_NT = old.logprob_NT
        weight_NT, correction = rollout_correction_weights(
            old.logprob_NT,
            batch.logprob_NT,
            batch.step_ids_NT,
            level=settings.rollout_is,
            bound=settings.rollout_is_threshold,
            how=settings.rollout_is_mode,
        )
        metrics |= {f"rollout_corr/{name}": value for name, value in correction.items()}
    keep_N = jnp.ones(batch.task_N.shape, bool)
    if "group" in method.needs:
        metrics["rollout/informative_frac"] = masked_mean(
            informative_N.astype(jnp.float32), jnp.any(batch.mask_NS, axis=1)
        )
        if settings.filter_groups:
            keep_N = informative_N
    blank_NT = jnp.zeros_like(old.value_NT)
    sample = Sample(
        batch,
        credit,
        old.value_NT,
        old_logprob_NT,
        weight_NT,
        reference_NT,
        keep_N,
        policy_weight_NT=blank_NT,
        value_weight_NT=blank_NT,
        return_scale_N=scale_N,
    )
    return Prepared(sample, reward_states, metrics, moments)


def _batch_metrics(batch: StepBatch, old: Scores) -> Metrics:
    """Training and decoding are one forward pass: 0 and 1 up to rounding."""
    active_NT = batch.step_ids_NT >= 0
    gap_NT = jnp.where(active_NT, old.logprob_NT - batch.logprob_NT, 0.0)
    return {
        "agree/logp_absmax": jnp.max(jnp.abs(gap_NT)),
        "agree/ratio_mean": masked_mean(jnp.exp(gap_NT), active_NT),
    }


def _advantage_metrics(credit: Credit, batch: StepBatch) -> Metrics:
    """Of the whole batch, before the first optimiser step."""
    active_NT = batch.step_ids_NT >= 0
    highest = jnp.max(jnp.where(active_NT, credit.advantage_NT, -jnp.inf))
    lowest = jnp.min(jnp.where(active_NT, credit.advantage_NT, jnp.inf))
    some = jnp.any(active_NT)
    return {
        "critic/advantages/mean": masked_mean(credit.advantage_NT, active_NT),
        "critic/advantages/max": jnp.where(some, highest, 0.0),
        "critic/advantages/min": jnp.where(some, lowest, 0.0),
    }


def _returns_of_rewards(
    method: Algorithm, batch: StepBatch, settings: AlgorithmConfig
) -> jax.Array:
    """[N, T] what the targets of the critic would be without its own values: sums of rewards.

    Targets mix both where `lam` is below 1, and so differ even if all attempts end the same.
    """
    no_value_NT = jnp.zeros_like(batch.logprob_NT)
    return method.credit(batch, no_value_NT, dataclasses.replace(settings, lam=1.0)).return_NT


def _next_moments(
    moments: RunningMoments, return_NT: jax.Array, mask_NT: jax.Array
) -> RunningMoments:
    """With this batch, unless it has a number that is none."""
    following = recent_moments(moments, return_NT, mask_NT)
    fine = jnp.isfinite(following.mean) & jnp.isfinite(following.variance)
    return jax.tree.map(lambda new, old: jnp.where(fine, new, old), following, moments)


def _critic_metrics(credit: Credit, value_NT: jax.Array, reward_return_NT: jax.Array) -> Metrics:
    """Of the critic as it was when the batch came in."""
    mask_NT, return_NT = credit.critic_mask_NT, credit.return_NT
    equal = all_equal(return_NT, mask_NT) | all_equal(reward_return_NT, mask_NT)
    explained = explained_variance(value_NT, return_NT, mask_NT)
    return {
        "critic/vf_explained_var": jnp.where(equal, 0.0, explained),
        "critic/values/mean": masked_mean(value_NT, mask_NT),
        "critic/returns/mean": masked_mean(return_NT, mask_NT),
        "critic/returns/var": masked_variance(return_NT, mask_NT),
        # 1 where rewards made no difference, so that there was nothing to explain.
        "critic/returns/equal": equal.astype(jnp.float32),
    }
