"""Second part of an update: the loss of a sample under new scores."""

import jax
import jax.numpy as jnp

from steprl.algorithms import Algorithm
from steprl.config import Config
from steprl.models.scoring import Scores
from steprl.ops import aggregation_weights, kl_penalty, masked_mean
from steprl.update.critic import critic_loss
from steprl.update.prepare import Metrics, Sample


def with_weights(sample: Sample, method: Algorithm, config: Config) -> Sample:
    """The sample with the weight of each token in the sums of its loss.

    The sample is a mini-batch; its parts then have losses whose sum is that of the whole.
    """
    actor = config.actor
    reduction = actor.loss_agg_mode or method.reduction
    ids_NT = sample.batch.step_ids_NT
    kept_NT = jnp.where(sample.keep_N[:, None], ids_NT, -1)
    counted_NT = ids_NT if config.algorithm.filter_groups_denominator == "all" else kept_NT
    # The same number in every batch, whatever length its rows were padded to.
    most = sample.batch.reward_NS.shape[1] * config.rollout.response_length
    factor = actor.loss_scale_factor or most
    weight_NT = aggregation_weights(counted_NT, reduction, loss_scale_factor=factor)
    weight_NT = jnp.where(kept_NT >= 0, weight_NT, 0.0)
    critic_mask_NT = sample.credit.critic_mask_NT
    return sample._replace(
        policy_weight_NT=weight_NT,
        value_weight_NT=critic_mask_NT / jnp.maximum(jnp.sum(critic_mask_NT), 1),
    )


def sample_loss(
    new: Scores, sample: Sample, method: Algorithm, config: Config
) -> tuple[jax.Array, Metrics]:
    """Loss of the policy, less entropy, plus that of the critic and the distance to the reference.

    Args:
        new: of the sample's batch under the parameters that are trained.
        sample: with the weights of `with_weights`.
        method: row of the table of algorithms.
        config: settings of the run.

    Returns:
        [] the loss, and metrics.
    """
    actor, critic = config.actor, config.critic
    batch, credit = sample.batch, sample.credit
    pg_loss, pg = method.loss(
        new.logprob_NT,
        sample.old_logprob_NT,
        credit.advantage_NT,
        batch.step_ids_NT,
        config=config.algorithm,
        level=method.ratio_level,
        clip_low=actor.clip_ratio_low,
        clip_high=actor.clip_ratio_high,
        dual_clip=actor.clip_ratio_c or None,
        weights_t=sample.policy_weight_NT,
        rollout_weights_t=sample.rollout_weight_NT,
    )
    entropy = jnp.sum(sample.policy_weight_NT * new.entropy_NT)
    vf_loss, vf = critic_loss(new, sample, critic)
    total = pg_loss - actor.entropy_coeff * entropy + critic.vf_coef * vf_loss
    metrics = {
        "actor/pg_loss": pg_loss,
        "critic/vf_loss": vf_loss,
        "actor/entropy_loss": entropy,
    }
    if actor.use_kl_loss and sample.ref_logprob_NT is not None:
        kl_NT = kl_penalty(
            new.logprob_NT, sample.ref_logprob_NT, actor.kl_loss_type, batch.step_ids_NT
        )
        kl_loss = jnp.sum(sample.policy_weight_NT * kl_NT)
        total = total + actor.kl_loss_coef * kl_loss
        metrics["actor/kl_loss"] = kl_loss
    if actor.target_kl is not None:
        moved_NT = jax.lax.stop_gradient(
            kl_penalty(new.logprob_NT, sample.old_logprob_NT, "k3", batch.step_ids_NT)
        )
        metrics["actor/approx_kl"] = masked_mean(moved_NT, batch.step_ids_NT >= 0)
    metrics |= {f"actor/{name}": value for name, value in pg.items()}
    metrics |= {f"critic/{name}": value for name, value in vf.items()}
    return total, metrics
