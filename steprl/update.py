"""One optimisation of the policy on one batch: a pure function, for every method of the table."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.algorithms import Algorithm, Credit, group_ids, scores
from steprl.branching import Branching, rows_per_attempt
from steprl.config import Config
from steprl.models.scoring import Scores, score
from steprl.ops import (
    RunningMoments,
    adaptive_kl_coefficient,
    aggregation_weights,
    informative_groups,
    kl_penalty,
    masked_mean,
    masked_variance,
    rollout_correction_weights,
    value_loss,
)
from steprl.optimizer import combine, split_trainable
from steprl.rewards import bootstrap_truncated, penalise_kl, scale_rewards
from steprl.sharding import BATCH
from steprl.types import Params, Policy, StepBatch

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run carries on: keys and the place in the data follow from `iteration`."""

    params: Params
    opt_state: Any  # of what is trained
    iteration: jax.Array  # int32, finished iterations
    # Only of reinforcement learning:
    kl_coef: jax.Array | None = None  # of the KL penalty in the reward
    moments: RunningMoments | None = None  # of the returns, for the scale of the rewards
    # What is trained as it was when training began, where a KL term asks for it; the rest is frozen.
    reference: Params | None = None
    # What is trained as it was before the last update, for methods that ask what the update changed.
    previous: Params | None = None


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    """The state in which training begins."""
    algorithm = config.algorithm
    needed = algorithm.use_kl_in_reward or config.actor.use_kl_loss
    moments = RunningMoments()
    trainable, _ = split_trainable(params, config.model.freeze)
    return TrainState(
        params,
        optimizer.init(trainable),
        jnp.zeros((), jnp.int32),
        jnp.asarray(algorithm.kl_ctrl.kl_coef, jnp.float32),
        RunningMoments(*(jnp.asarray(x, jnp.float32) for x in moments)),
        # A copy: the update is given the buffers of the parameters to write into.
        jax.tree.map(jnp.copy, trainable) if needed else None,
        jax.tree.map(jnp.copy, trainable) if _asks_what_changed(config) else None,
    )


def _asks_what_changed(config: Config) -> bool:
    algorithm = config.algorithm
    return algorithm.name == "appo" and algorithm.branch.future_value == "previous"


class Sample(NamedTuple):
    """Rows of a mini-batch with all that their loss needs."""

    batch: StepBatch
    credit: Credit
    value_NT: jax.Array  # of the critic when the batch came in
    old_logprob_NT: jax.Array
    rollout_weight_NT: jax.Array | None
    ref_logprob_NT: jax.Array | None
    keep_N: jax.Array  # bool, the row is learnt from
    policy_weight_NT: jax.Array  # of each token in the loss of its mini-batch
    value_weight_NT: jax.Array


def make_update(
    policy: Policy,
    method: Algorithm,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, StepBatch, jax.Array], tuple[TrainState, Metrics]]:
    """`update(state, batch, key) -> (state, metrics)`; not compiled yet.

    With a mesh, the rows of each mini-batch are laid over its devices.

    A pass over the batch gives values (and checks that training agrees with decoding); the method
    turns them into credit; then `ppo_epochs` passes of mini-batches, each one optimiser step summed
    over micro-batches. A step whose loss or gradient is not finite changes nothing and is counted
    in `train/nonfinite`. Where the whole batch is one step, its gradient is taken through the first
    pass, and there is no second.
    """
    actor, critic, settings = config.actor, config.critic, config.algorithm
    reduction = actor.loss_agg_mode or method.reduction
    temperature, chunk = config.rollout.temperature, config.model.logprob_chunk

    def scored(params: Params, batch: StepBatch) -> Scores:
        return score(policy, params, batch, temperature, chunk)

    def loss(new: Scores, sample: Sample) -> tuple[jax.Array, Metrics]:
        batch, credit = sample.batch, sample.credit
        pg_loss, pg = method.loss(
            new.logprob_NT,
            sample.old_logprob_NT,
            credit.advantage_NT,
            batch.step_ids_NT,
            config=settings,
            level=method.ratio_level,
            clip_low=actor.clip_ratio_low,
            clip_high=actor.clip_ratio_high,
            dual_clip=actor.clip_ratio_c or None,
            weights=sample.policy_weight_NT,
            rollout_weights=sample.rollout_weight_NT,
        )
        entropy = jnp.sum(sample.policy_weight_NT * new.entropy_NT)
        asked_NT = jnp.where(credit.critic_mask_NT, batch.step_ids_NT, -1)
        vf_loss, vf = value_loss(
            new.value_NT,
            credit.return_NT,
            sample.value_NT,
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
        if actor.use_kl_loss and sample.ref_logprob_NT is not None:
            kl_NT = kl_penalty(
                new.logprob_NT, sample.ref_logprob_NT, actor.kl_loss_type, batch.step_ids_NT
            )
            kl_loss = jnp.sum(sample.policy_weight_NT * kl_NT)
            total = total + actor.kl_loss_coef * kl_loss
            metrics["actor/kl_loss"] = kl_loss
        metrics |= {f"actor/{name}": value for name, value in pg.items()}
        metrics |= {f"critic/{name}": value for name, value in vf.items()}
        return total, metrics

    def optimise(
        gradient_of: Callable[..., Any], state: tuple[Params, Any], sample: Sample
    ) -> tuple[tuple[Params, Any], Metrics]:
        trainable, opt_state = state
        ids_NT = sample.batch.step_ids_NT
        kept_NT = jnp.where(sample.keep_N[:, None], ids_NT, -1)
        counted_NT = ids_NT if settings.filter_groups_denominator == "all" else kept_NT
        # The same number in every batch, whatever length its rows were padded to.
        most = sample.batch.reward_NS.shape[1] * config.rollout.response_length
        factor = actor.loss_scale_factor or most
        weights = aggregation_weights(counted_NT, reduction, loss_scale_factor=factor)
        weights = jnp.where(kept_NT >= 0, weights, 0.0)
        asked_NT = sample.credit.critic_mask_NT
        sample = sample._replace(
            policy_weight_NT=weights, value_weight_NT=asked_NT / jnp.maximum(jnp.sum(asked_NT), 1)
        )
        gradient, metrics = gradient_of(trainable, sample)
        norm = optax.tree.norm(gradient)
        updates, new_opt_state = optimizer.update(gradient, opt_state, trainable)
        fine = jnp.isfinite(norm) & jnp.isfinite(
            metrics["actor/pg_loss"] + metrics["critic/vf_loss"]
        )
        keep = lambda new, old: jnp.where(fine, new, old)  # noqa: E731
        trainable = jax.tree.map(keep, optax.apply_updates(trainable, updates), trainable)
        opt_state = jax.tree.map(keep, new_opt_state, opt_state)
        metrics |= {"actor/grad_norm": norm, "train/nonfinite": (~fine).astype(jnp.float32)}
        return (trainable, opt_state), metrics

    def reshape_rewards(
        state: TrainState, batch: StepBatch, old: Scores, reference: jax.Array | None
    ) -> tuple[StepBatch, jax.Array, RunningMoments, Metrics]:
        assert state.kl_coef is not None and state.moments is not None
        kl_coef, moments = state.kl_coef, state.moments
        report: Metrics = {}
        if settings.use_kl_in_reward and reference is not None:
            batch, kl = penalise_kl(
                batch, batch.logprob_NT, reference, kl_coef, settings.kl_penalty
            )
            report |= {"actor/reward_kl_penalty": kl, "actor/reward_kl_penalty_coeff": kl_coef}
            control = settings.kl_ctrl
            if control.type == "adaptive":
                rows = jnp.sum(jnp.any(batch.mask_NS, axis=1))
                new_coef = adaptive_kl_coefficient(
                    kl_coef, kl, rows, target=control.target_kl, horizon=control.horizon
                )
                kl_coef = jnp.where(jnp.isfinite(new_coef), new_coef, kl_coef)
        if settings.scale_rewards:
            batch, new, factor = scale_rewards(batch, moments, settings.gamma)
            fine = jnp.isfinite(factor)
            moments = jax.tree.map(lambda new, old: jnp.where(fine, new, old), new, moments)
            report["critic/reward_scale"] = factor
        if settings.bootstrap_truncated:
            batch = bootstrap_truncated(batch, old.final_value_N, settings.gamma)
        return batch, kl_coef, moments, report

    def update(state: TrainState, batch: StepBatch, key: jax.Array) -> tuple[TrainState, Metrics]:
        trainable, frozen = split_trainable(state.params, config.model.freeze)
        rows, size = batch.tokens_NT.shape[0], actor.ppo_mini_batch_size
        micro = actor.ppo_micro_batch_size
        _check_parts(batch, size, micro)
        reference = None
        if state.reference is not None:
            reference = scored(combine(state.reference, frozen), batch).logprob_NT
        one_step = actor.ppo_epochs == 1 and size == rows and micro in (0, rows)
        if one_step:
            old, pull_back = jax.vjp(lambda part: scored(combine(part, frozen), batch), trainable)
        else:
            old = scored(state.params, batch)
        informative_N = informative_groups(scores(batch), group_ids(batch), batch.task_N.shape[0])
        report = _batch_metrics(batch, old)
        batch, kl_coef, moments, done = reshape_rewards(state, batch, old, reference)
        credit = method.credit(batch, old.value_NT, settings)
        report |= done | _advantage_metrics(credit, batch)
        if "critic" in method.needs:
            report |= _critic_metrics(credit, old.value_NT)
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
            report |= {f"rollout_corr/{name}": value for name, value in correction.items()}
        keep_N = jnp.ones(batch.task_N.shape, bool)
        if "group" in method.needs:
            report["rollout/informative_frac"] = masked_mean(
                informative_N.astype(jnp.float32), jnp.any(batch.mask_NS, axis=1)
            )
            if settings.filter_groups:
                keep_N = informative_N
        blank = jnp.zeros_like(old.value_NT)
        whole = Sample(
            batch, credit, old.value_NT, old_logprob_NT, weight_NT, reference, keep_N, blank, blank
        )

        def through_first_pass(trainable: Params, sample: Sample) -> tuple[Params, Metrics]:
            slopes, metrics = jax.grad(loss, has_aux=True)(old, sample)
            return pull_back(slopes)[0], metrics

        def through_own_pass(trainable: Params, sample: Sample) -> tuple[Params, Metrics]:
            def of_part(part: Params, sample: Sample) -> tuple[jax.Array, Metrics]:
                return loss(scored(combine(part, frozen), sample.batch), sample)

            return _gradient(of_part, trainable, sample, micro)

        def epoch(state: tuple[Params, Any], key: jax.Array) -> tuple[tuple[Params, Any], Metrics]:
            order = jax.random.permutation(key, _groups(batch))
            parts = _cut(whole, rows // size, order)
            if mesh is not None:
                placed = NamedSharding(mesh, P(None, *BATCH))
                parts = jax.lax.with_sharding_constraint(parts, placed)
            return jax.lax.scan(functools.partial(optimise, through_own_pass), state, parts)

        before, start = trainable, (trainable, state.opt_state)
        if one_step:
            (trainable, opt_state), metrics = optimise(through_first_pass, start, whole)
        else:
            epoch_keys = jax.random.split(key, actor.ppo_epochs)
            (trainable, opt_state), metrics = jax.lax.scan(epoch, start, epoch_keys)
        report |= {name: jnp.mean(value) for name, value in metrics.items()}
        report["train/nonfinite"] = jnp.sum(metrics["train/nonfinite"])
        iteration = state.iteration + 1
        params = combine(trainable, frozen)
        previous = None if state.previous is None else before
        state = TrainState(
            params, opt_state, iteration, kl_coef, moments, state.reference, previous
        )
        return state, report

    return update


def with_branches(config: Config, branching: Branching | None) -> Config:
    """Mini-batches count attempts at tasks; where each has further rows for its branches, rows."""
    rows = rows_per_attempt(branching)
    sizes = ("ppo_mini_batch_size", "ppo_micro_batch_size")
    in_rows = {name: rows * getattr(config.actor, name) for name in sizes}
    return dataclasses.replace(config, actor=dataclasses.replace(config.actor, **in_rows))


def _groups(batch: StepBatch) -> int:
    """How many parts a batch can be cut into: rows that share tokens stay together."""
    return (batch.tokens_NT if batch.tree is None else batch.tree.tokens_MGU).shape[0]


def _check_parts(batch: StepBatch, mini: int, micro: int) -> None:
    rows = batch.tokens_NT.shape[0] // _groups(batch)
    for name, size in (("ppo_mini_batch_size", mini), ("ppo_micro_batch_size", micro)):
        if size % rows:
            raise ValueError(
                f"actor.{name}={size} would part rows that share tokens: use a multiple of {rows}"
            )


def _cut(sample: Sample, parts: int, order: jax.Array | None = None) -> Sample:
    """Arrays [parts, ...] of what a sample holds, its groups of rows in the given order."""
    groups = _groups(sample.batch)

    def cut(x: jax.Array) -> jax.Array:
        """Of the rows, R to a group, or of the groups themselves."""
        own = x.shape[1:]
        if order is not None:
            x = x.reshape(groups, -1, *own)[order]
        return x.reshape(parts, -1, *own)

    return jax.tree.map(cut, sample)


def _gradient(
    loss: Callable[..., Any], params: Params, sample: Sample, micro_rows: int
) -> tuple[Params, Metrics]:
    """Gradient of a mini-batch, summed over its micro-batches; the weights make the sum exact."""
    rows = sample.batch.tokens_NT.shape[0]
    if micro_rows in (0, rows):
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, sample)
        return gradient, metrics
    parts = _cut(sample, rows // micro_rows)

    def add(total: Params, part: Sample) -> tuple[Params, Metrics]:
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, part)
        return jax.tree.map(jnp.add, total, gradient), metrics

    gradient, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    # Losses are sums over micro-batches, the rest are fractions of each.
    return gradient, {
        name: jnp.sum(value) if name.endswith("loss") else jnp.mean(value)
        for name, value in metrics.items()
    }


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
    return {
        "critic/advantages/mean": masked_mean(credit.advantage_NT, active_NT),
        "critic/advantages/max": jnp.max(jnp.where(active_NT, credit.advantage_NT, -jnp.inf)),
        "critic/advantages/min": jnp.min(jnp.where(active_NT, credit.advantage_NT, jnp.inf)),
    }


def _critic_metrics(credit: Credit, value_NT: jax.Array) -> Metrics:
    """Of the critic that the batch met."""
    asked_NT = credit.critic_mask_NT
    error = masked_variance(credit.return_NT - value_NT, asked_NT)
    spread = masked_variance(credit.return_NT, asked_NT)
    return {
        "critic/vf_explained_var": 1.0 - error / jnp.maximum(spread, 1e-8),
        "critic/values/mean": masked_mean(value_NT, asked_NT),
        "critic/returns/mean": masked_mean(credit.return_NT, asked_NT),
    }
