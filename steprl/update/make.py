"""The whole update, from its three parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from steprl.algorithms import Algorithm
from steprl.branching import Branching, rows_per_attempt
from steprl.carried import CLIP, TOKENS, Seen, with_carried_clip
from steprl.config import Config
from steprl.models.scoring import Scores, score
from steprl.optimizer import combine, split_trainable
from steprl.types import Params, Policy, StepBatch
from steprl.update.loss import sample_loss, with_weights
from steprl.update.optimise import (
    Trained,
    check_parts,
    micro_batch_gradient,
    optimiser_step,
    passes,
    within_kl,
)
from steprl.update.prepare import Metrics, Sample, prepare
from steprl.update.record import TokenRecord, token_record
from steprl.update.state import TrainState, carries


def make_update(
    policy: Policy,
    method: Algorithm,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh | None = None,
    recorded: bool = False,
) -> Callable[..., Any]:
    """`update(state, batch, key, sampled=None) -> (state, metrics)`; not compiled yet.

    `sampled` is the number of tokens that were sampled for the batch; by default all that it holds,
    so give it where rows share some. With a mesh, the rows of each mini-batch are laid over its
    devices. If `recorded`, a `TokenRecord` of the batch is returned as well, behind the metrics.

    A pass over the batch gives values (and checks that training agrees with decoding); the method
    turns them into credit; then `ppo_epochs` passes of mini-batches, each one optimiser step summed
    over micro-batches. A step whose loss or gradient is not finite changes nothing and is counted
    in `train/nonfinite`. Where the whole batch is one step, its gradient is taken through the first
    pass, and there is no second.
    """
    actor = config.actor
    mini, micro = actor.ppo_mini_batch_size, actor.ppo_micro_batch_size

    def update(
        state: TrainState,
        batch: StepBatch,
        key: jax.Array,
        sampled: jax.Array | float | None = None,
    ) -> tuple[TrainState, Metrics] | tuple[TrainState, Metrics, TokenRecord]:
        config_now = with_carried_clip(config, state.carried)
        check_parts(batch, mini, micro)
        trainable, frozen = split_trainable(state.params, config.model.freeze)
        before = Trained(trainable, state.opt_state)

        def scored(part: Params, batch: StepBatch) -> Scores:
            params = combine(part, frozen)
            return score(
                policy, params, batch, config.rollout.temperature, config.model.logprob_chunk
            )

        def loss(new: Scores, sample: Sample) -> tuple[jax.Array, Metrics]:
            return sample_loss(new, sample, method, config_now)

        reference = state.carried.get("reference")
        reference_NT = None if reference is None else scored(reference, batch).logprob_NT
        rows = batch.tokens_NT.shape[0]
        one_step = actor.ppo_epochs == 1 and mini == rows and micro in (0, rows)
        if one_step:
            old, pull_back = jax.vjp(lambda part: scored(part, batch), trainable)
        else:
            old = scored(trainable, batch)
        sample, reward_states, report = prepare(
            batch, old, reference_NT, state.carried, method, config
        )

        def through_first_pass(part: Params, sample: Sample) -> tuple[Params, Metrics]:
            slopes, metrics = jax.grad(loss, has_aux=True)(old, sample)
            return pull_back(slopes)[0], metrics

        def through_own_pass(part: Params, sample: Sample) -> tuple[Params, Metrics]:
            def of_part(part: Params, sample: Sample) -> tuple[jax.Array, Metrics]:
                return loss(scored(part, sample.batch), sample)

            return micro_batch_gradient(of_part, part, sample, micro)

        gradient_of = through_first_pass if one_step else through_own_pass

        def step(trained: Trained, sample: Sample) -> tuple[Trained, Metrics]:
            weighted = with_weights(sample, method, config)
            return optimiser_step(gradient_of, optimizer, trained, weighted)

        if one_step:
            after, metrics = step(before, sample)
        else:
            taken = step if actor.target_kl is None else within_kl(step, actor.target_kl)
            after, metrics = passes(
                taken, before, sample, key, epochs=actor.ppo_epochs, mini_rows=mini, mesh=mesh
            )
        report |= {name: jnp.mean(value) for name, value in metrics.items()}
        report["train/nonfinite"] = jnp.sum(metrics["train/nonfinite"])
        if sampled is None:
            sampled = jnp.sum(batch.step_ids_NT >= 0)
        seen = Seen(trainable, report, jnp.asarray(sampled, jnp.float32))
        following = {
            one.name: one.update(state.carried[one.name], seen, config)
            for one in carries(method, config)
        }
        params = combine(after.params, frozen)
        carried = state.carried | reward_states | following
        report["token/total"] = carried[TOKENS.name]
        if CLIP.name in carried:
            report["actor/clip_ratio"] = state.carried[CLIP.name]  # that of this update
        new = TrainState(params, after.opt_state, state.iteration + 1, carried)
        if recorded:
            return new, report, token_record(with_weights(sample, method, config), old)
        return new, report

    return update


def sizes_in_rows(config: Config, branching: Branching | None) -> Config:
    """Sizes of mini-batches count attempts at tasks; where each has further rows for its branches,
    the update counts rows."""
    rows = rows_per_attempt(branching)
    sizes = ("ppo_mini_batch_size", "ppo_micro_batch_size")
    in_rows = {name: rows * getattr(config.actor, name) for name in sizes}
    return dataclasses.replace(config, actor=dataclasses.replace(config.actor, **in_rows))
