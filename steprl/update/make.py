"""The whole update, from its three parts."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from steprl.algorithms import Algorithm
from steprl.branching import Branching, rows_per_attempt
from steprl.carried import CLIP, TOKENS, Seen, with_carried_clip
from steprl.config import Config
from steprl.models.scoring import Scores, Trunk, score
from steprl.optimizer import combine, frozen_layers, split_trainable
from steprl.rollout.packing import Packing
from steprl.types import Params, Policy, StepBatch
from steprl.update.loss import sample_loss, with_weights
from steprl.update.optimise import (
    Trained,
    check_parts,
    groups,
    micro_batch_gradient,
    optimiser_step,
    passes,
)
from steprl.update.packed import packed_gradient, packed_passes, packed_scores, packed_trunk
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
    """`update(state, batch, key, sampled=None, packing=None) -> (state, metrics)`; not compiled yet.

    `sampled` is the number of tokens that were sampled for the batch; by default all that it holds,
    so give it where rows share some. With a mesh, the rows of each mini-batch are laid over its
    devices. A `packing` of the batch says what the model is run on, with the `mini_batches` of the
    same key; without, it is run on the rows. If `recorded`, a `TokenRecord` of the batch is returned
    as well, behind the metrics.

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
        packing: Packing | None = None,
    ) -> tuple[TrainState, Metrics] | tuple[TrainState, Metrics, TokenRecord]:
        config_now = with_carried_clip(config, state.carried)
        check_parts(batch, mini, micro)
        trainable, frozen = split_trainable(
            state.params, config.model.freeze, config.model.train_layers
        )
        before = Trained(trainable, state.opt_state)

        trunk = None
        below = frozen_layers(trainable, frozen)
        if packing is not None and below and policy.trunk is not None:
            trunk = packed_trunk(policy, state.params, below, packing, batch)

        def scored(part: Params, batch: StepBatch, trunk: Trunk | None = None) -> Scores:
            params = combine(part, frozen)
            chunk = config.model.logprob_chunk
            return score(policy, params, batch, config.rollout.temperature, chunk, trunk)

        def scored_batch(part: Params) -> Scores:
            if packing is None:
                return scored(part, batch)
            return packed_scores(scored, part, batch, packing, trunk, mesh)

        def loss(new: Scores, sample: Sample) -> tuple[jax.Array, Metrics]:
            return sample_loss(new, sample, method, config_now)

        reference = state.carried.get("reference")
        reference_NT = None if reference is None else scored_batch(reference).logprob_NT
        rows = batch.tokens_NT.shape[0]
        one_step = actor.ppo_epochs == 1 and mini == rows and micro in (0, rows)
        if packing is not None:  # the activations of one micro-batch are kept, not those of several
            one_step = one_step and packing.place.shape[2] == 1
        if one_step:
            old, pull_back = jax.vjp(scored_batch, trainable)
        else:
            old = scored_batch(trainable)
        sample, reward_states, report = prepare(
            batch, old, reference_NT, state.carried, method, config
        )

        def through_first_pass(part: Params, sample: Sample) -> tuple[Params, Metrics]:
            slopes, metrics = jax.grad(loss, has_aux=True)(old, sample)
            return pull_back(slopes)[0], metrics

        def of_part(
            part: Params, sample: Sample, trunk: Trunk | None = None
        ) -> tuple[jax.Array, Metrics]:
            return loss(scored(part, sample.batch, trunk), sample)

        def through_own_pass(part: Params, sample: Sample) -> tuple[Params, Metrics]:
            return micro_batch_gradient(of_part, part, sample, micro)

        gradient_of = through_first_pass if one_step else through_own_pass

        def step(
            trained: Trained, sample: Sample, mini: Packing | None = None
        ) -> tuple[Trained, Metrics]:
            weighted = with_weights(sample, method, config)
            take = gradient_of
            if mini is not None:
                take = partial(packed_gradient, of_part, mini=mini, trunk=trunk, mesh=mesh)
            return optimiser_step(take, optimizer, trained, weighted)

        if one_step:
            after, metrics = step(before, sample)
        elif packing is not None:
            after, metrics = packed_passes(step, before, sample, packing)
        else:
            after, metrics = passes(
                step, before, sample, key, epochs=actor.ppo_epochs, mini_rows=mini, mesh=mesh
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


def mini_batches(batch: StepBatch, key: jax.Array, config: Config) -> np.ndarray:
    """[epochs, mini-batches, rows] of the batch, as an update with this key takes them.

    Args:
        batch: rows that share tokens stay together.
        key: of the update.
        config: with sizes in rows, see `sizes_in_rows`.
    """
    actor, number = config.actor, groups(batch)
    check_parts(batch, actor.ppo_mini_batch_size, actor.ppo_micro_batch_size)
    row_gR = np.arange(batch.tokens_NT.shape[0]).reshape(number, -1)
    if actor.ppo_epochs == 1 and actor.ppo_mini_batch_size == row_gR.size:
        return row_gR.reshape(1, 1, -1)  # their order is of no account
    orders = jax.vmap(lambda key: jax.random.permutation(key, number))(
        jax.random.split(key, actor.ppo_epochs)
    )
    rows = row_gR[np.asarray(orders)]
    return rows.reshape(actor.ppo_epochs, -1, actor.ppo_mini_batch_size)


def sizes_in_rows(config: Config, branching: Branching | None) -> Config:
    """Sizes of mini-batches count attempts at tasks; where each has further rows for its branches,
    the update counts rows."""
    rows = rows_per_attempt(branching)
    sizes = ("ppo_mini_batch_size", "ppo_micro_batch_size")
    in_rows = {name: rows * getattr(config.actor, name) for name in sizes}
    return dataclasses.replace(config, actor=dataclasses.replace(config.actor, **in_rows))
