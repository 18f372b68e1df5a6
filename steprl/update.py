"""One optimisation of the policy on one batch: a pure function, for every method of the table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.algorithms import Algorithm, Credit
from steprl.config import Config
from steprl.models.scoring import Scores, score
from steprl.ops import aggregation_weights, masked_mean, masked_variance, policy_loss, value_loss
from steprl.sharding import BATCH
from steprl.types import Params, Policy, StepBatch

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run carries on: keys and the place in the data follow from `iteration`."""

    params: Params
    opt_state: Any
    iteration: jax.Array  # int32, finished iterations


class Sample(NamedTuple):
    """Rows of a mini-batch with all that their loss needs."""

    batch: StepBatch
    credit: Credit
    old: Scores
    policy_weight_NT: jax.Array  # of each token in the loss of its mini-batch
    value_weight_NT: jax.Array


def make_update(
    policy: Policy,
    method: Algorithm,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
) -> Callable[[TrainState, StepBatch, jax.Array], tuple[TrainState, Metrics]]:
    """`update(state, batch, key) -> (state, metrics)`; not compiled yet.

    A pass over the batch gives values (and checks that training agrees with decoding); the method
    turns them into credit; then `ppo_epochs` passes of mini-batches, each one optimiser step summed
    over micro-batches. A step whose loss or gradient is not finite changes nothing and is counted
    in `train/nonfinite`.
    """
    actor, critic = config.actor, config.critic
    temperature, chunk = config.rollout.temperature, config.model.logprob_chunk

    def loss(params: Params, sample: Sample) -> tuple[jax.Array, Metrics]:
        batch, credit = sample.batch, sample.credit
        new = score(policy, params, batch, temperature, chunk)
        pg_loss, pg = policy_loss(
            new.logprob_NT,
            batch.logprob_NT,
            credit.advantage_NT,
            batch.step_ids_NT,
            level=method.ratio_level,
            clip_low=actor.clip_ratio_low,
            clip_high=actor.clip_ratio_high,
            dual_clip=actor.clip_ratio_c or None,
            weights=sample.policy_weight_NT,
        )
        entropy = jnp.sum(sample.policy_weight_NT * new.entropy_NT)
        asked_NT = jnp.where(credit.critic_mask_NT, batch.step_ids_NT, -1)
        vf_loss, vf = value_loss(
            new.value_NT,
            credit.return_NT,
            sample.old.value_NT,
            asked_NT,
            clip=critic.cliprange_value,
            weights=sample.value_weight_NT,
        )
        total = pg_loss - actor.entropy_coeff * entropy + critic.vf_coef * vf_loss
        metrics = {
            "actor/pg_loss": pg_loss,
            "critic/vf_loss": vf_loss,
            "actor/entropy_loss": entropy,
        }
        metrics |= {f"actor/{name}": value for name, value in pg.items()}
        metrics |= {f"critic/{name}": value for name, value in vf.items()}
        return total, metrics

    def optimise(state: tuple[Params, Any], sample: Sample) -> tuple[tuple[Params, Any], Metrics]:
        params, opt_state = state
        weights = aggregation_weights(sample.batch.step_ids_NT, actor.loss_agg_mode)
        asked_NT = sample.credit.critic_mask_NT
        sample = sample._replace(
            policy_weight_NT=weights, value_weight_NT=asked_NT / jnp.maximum(jnp.sum(asked_NT), 1)
        )
        gradient, metrics = _gradient(loss, params, sample, actor.ppo_micro_batch_size)
        norm = optax.tree.norm(gradient)
        updates, new_opt_state = optimizer.update(gradient, opt_state, params)
        fine = jnp.isfinite(norm) & jnp.isfinite(
            metrics["actor/pg_loss"] + metrics["critic/vf_loss"]
        )
        keep = lambda new, old: jnp.where(fine, new, old)  # noqa: E731
        params = jax.tree.map(keep, optax.apply_updates(params, updates), params)
        opt_state = jax.tree.map(keep, new_opt_state, opt_state)
        metrics |= {"actor/grad_norm": norm, "train/nonfinite": (~fine).astype(jnp.float32)}
        return (params, opt_state), metrics

    def update(state: TrainState, batch: StepBatch, key: jax.Array) -> tuple[TrainState, Metrics]:
        old = score(policy, state.params, batch, temperature, chunk)
        credit = method.credit(batch, old.value_NT, config.algorithm)
        blank = jnp.zeros_like(old.value_NT)
        whole = Sample(batch, credit, old, blank, blank)
        rows, size = batch.tokens_NT.shape[0], actor.ppo_mini_batch_size

        def epoch(state: tuple[Params, Any], key: jax.Array) -> tuple[tuple[Params, Any], Metrics]:
            order = jax.random.permutation(key, rows)
            parts = jax.tree.map(lambda x: x[order].reshape(-1, size, *x.shape[1:]), whole)
            parts = jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, P(None, *BATCH)))
            return jax.lax.scan(optimise, state, parts)

        epoch_keys = jax.random.split(key, actor.ppo_epochs)
        (params, opt_state), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state), epoch_keys
        )
        report = {name: jnp.mean(value) for name, value in metrics.items()}
        report["train/nonfinite"] = jnp.sum(metrics["train/nonfinite"])
        report |= _batch_metrics(batch, credit, old)
        return TrainState(params, opt_state, state.iteration + 1), report

    return update


def _gradient(
    loss: Callable[..., Any], params: Params, sample: Sample, micro_rows: int
) -> tuple[Params, Metrics]:
    """Gradient of a mini-batch, summed over its micro-batches; the weights make the sum exact."""
    rows = sample.batch.tokens_NT.shape[0]
    if micro_rows in (0, rows):
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, sample)
        return gradient, metrics
    parts = jax.tree.map(lambda x: x.reshape(-1, micro_rows, *x.shape[1:]), sample)

    def add(total: Params, part: Sample) -> tuple[Params, Metrics]:
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, part)
        return jax.tree.map(jnp.add, total, gradient), metrics

    gradient, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    # Losses are sums over micro-batches, the rest are fractions of each.
    return gradient, {
        name: jnp.sum(value) if name.endswith("loss") else jnp.mean(value)
        for name, value in metrics.items()
    }


def _batch_metrics(batch: StepBatch, credit: Credit, old: Scores) -> Metrics:
    """Of the whole batch, before the first optimiser step."""
    active_NT, asked_NT = batch.step_ids_NT >= 0, credit.critic_mask_NT
    gap_NT = jnp.where(active_NT, old.logprob_NT - batch.logprob_NT, 0.0)
    error = masked_variance(credit.return_NT - old.value_NT, asked_NT)
    spread = masked_variance(credit.return_NT, asked_NT)
    return {
        "critic/vf_explained_var": 1.0 - error / jnp.maximum(spread, 1e-8),
        "critic/values/mean": masked_mean(old.value_NT, asked_NT),
        "critic/returns/mean": masked_mean(credit.return_NT, asked_NT),
        "critic/advantages/mean": masked_mean(credit.advantage_NT, active_NT),
        "critic/advantages/max": jnp.max(jnp.where(active_NT, credit.advantage_NT, -jnp.inf)),
        "critic/advantages/min": jnp.min(jnp.where(active_NT, credit.advantage_NT, jnp.inf)),
        # Training and decoding are one forward pass: 0 and 1 up to rounding.
        "agree/logp_absmax": jnp.max(jnp.abs(gap_NT)),
        "agree/ratio_mean": masked_mean(jnp.exp(gap_NT), active_NT),
    }
