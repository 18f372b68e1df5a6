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
from steprl.models.policy import with_detached_value
from steprl.models.scoring import Scores, Trunk, score
from steprl.models.values import value_support
from steprl.optimizer import (
    ACTOR,
    CRITIC,
    combine,
    critic_passes,
    frozen_layers,
    has_own_passes,
    split_owner,
    split_trainable,
)
from steprl.rewards import KL_COEFFICIENT
from steprl.rollout.packing import Packing
from steprl.types import Params, Policy, StepBatch
from steprl.update.critic import scaled_last_layer, unit_of, with_last_layer
from steprl.update.loss import sample_loss, with_weights
from steprl.update.optimise import (
    Step,
    Still,
    Trained,
    check_parts,
    groups,
    micro_batch_gradient,
    of_owner,
    optimiser_step,
    passes,
    within_kl,
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

    A critic with passes of its own (`critic.ppo_epochs`, `critic.ppo_mini_batch_size`) takes them
    before those of the policy, each with a gradient of its own parameters alone. In the first
    `trainer.critic_warmup` iterations the policy stays as it is.
    """
    if policy.value is not None and policy.support != value_support(config.critic):
        raise ValueError(
            f"critic.head={config.critic.head}: policy.support is {policy.support}, and should be "
            f"{value_support(config.critic)}"
        )
    actor, warmup = config.actor, config.trainer.critic_warmup
    mini, micro = actor.ppo_mini_batch_size, actor.ppo_micro_batch_size
    critic_epochs, critic_mini = critic_passes(config)
    has_critic = "critic" in method.needs
    apart = has_critic and has_own_passes(config.critic)
    policy = with_detached_value(policy) if config.critic.detach_trunk else policy

    def update(
        state: TrainState,
        batch: StepBatch,
        key: jax.Array,
        sampled: jax.Array | float | None = None,
        packing: Packing | None = None,
    ) -> tuple[TrainState, Metrics] | tuple[TrainState, Metrics, TokenRecord]:
        config_now = with_carried_clip(config, state.carried)
        check_parts(batch, mini, micro)
        if apart:
            check_parts(batch, critic_mini, micro, "critic")
        warms_up = has_critic and (isinstance(warmup, jax.Array) or warmup > 0)
        warming = {ACTOR: state.iteration < warmup} if warms_up else {}
        trainable, frozen = split_trainable(
            state.params, config.model.freeze, config.model.train_layers
        )
        before = Trained(trainable, state.opt_state)

        trunk = None
        lowest = frozen_layers(trainable, frozen)
        if packing is not None and lowest and policy.trunk is not None:
            trunk = packed_trunk(policy, state.params, lowest, packing, batch)

        def scored(part: Params, batch: StepBatch, trunk: Trunk | None = None) -> Scores:
            params = combine(part, frozen)
            chunk = config.model.logprob_chunk
            return score(policy, params, batch, config.rollout.temperature, chunk, trunk)

        def scored_batch(part: Params) -> Scores:
            if packing is None:
                return scored(part, batch)
            return packed_scores(scored, part, batch, packing, trunk, mesh)

        def in_reward_units(part: Params) -> Params:
            return part if unit is None else scaled_last_layer(part, unit)

        def loss(new: Scores, sample: Sample) -> tuple[jax.Array, Metrics]:
            return sample_loss(new, sample, method, config_now)

        reference = state.carried.get("reference")
        reference_NT = None if reference is None else scored_batch(reference).logprob_NT
        rows = batch.tokens_NT.shape[0]
        one_step = actor.ppo_epochs == 1 and mini == rows and micro in (0, rows)
        if packing is not None:  # the activations of one micro-batch are kept, not those of several
            one_step = one_step and packing.place.shape[2] == 1
        if one_step:
            part, rest = split_owner(trainable, ACTOR if apart else None)
            old, pull_back = jax.vjp(lambda part: scored_batch(combine(part, rest)), part)
        else:
            old = scored_batch(trainable)
        sample, reward_states, report, moments = prepare(
            batch, old, reference_NT, state.carried, method, config
        )
        # What an optimiser step is made in; None: the units of rewards.
        unit = None
        if sample.return_scale_N is not None:
            unit = unit_of(sample.return_scale_N[0])
            before = with_last_layer(before, 1 / unit)

        def through_first_pass(own: Params, rest: Params, sample: Sample) -> tuple[Params, Metrics]:
            slopes, metrics = jax.grad(loss, has_aux=True)(old, sample)
            # The slope in a smaller unit is larger by as much.
            return in_reward_units(pull_back(slopes)[0]), metrics

        def through_own_pass(
            own: Params, rest: Params, sample: Sample, mini: Packing | None = None
        ) -> tuple[Params, Metrics]:
            def of_part(
                part: Params, sample: Sample, below: Trunk | None = None
            ) -> tuple[jax.Array, Metrics]:
                in_units = in_reward_units(combine(part, rest))
                return loss(scored(in_units, sample.batch, below), sample)

            if mini is not None:
                return packed_gradient(of_part, own, sample, mini, trunk, mesh)
            return micro_batch_gradient(of_part, own, sample, micro)

        def step_of(owner: str | None, still: Still, first_pass: bool = False) -> Step:
            def step(
                trained: Trained, sample: Sample, mini: Packing | None = None
            ) -> tuple[Trained, Metrics]:
                own_pass = partial(through_own_pass, mini=mini)
                gradient_of = of_owner(owner, through_first_pass if first_pass else own_pass)
                weighted = with_weights(sample, method, config)
                return optimiser_step(gradient_of, optimizer, trained, weighted, still)

            return step

        of_critic: Metrics = {}
        after, actor_key = before, key
        if apart:
            actor_key, critic_key = jax.random.split(key)
            after, of_critic = passes(
                step_of(CRITIC, {ACTOR: True}), before, sample, critic_key,
                epochs=critic_epochs, mini_rows=critic_mini, mesh=mesh,
            )  # fmt: skip
        still = warming | {CRITIC: True} if apart else warming
        step = step_of(ACTOR if apart else None, still, first_pass=one_step)
        taken = step if actor.target_kl is None else within_kl(step, actor.target_kl, still)
        if one_step:
            after, metrics = step(after, sample)
        elif packing is not None:
            after, metrics = packed_passes(taken, after, sample, packing)
        else:
            after, metrics = passes(
                taken, after, sample, actor_key, epochs=actor.ppo_epochs, mini_rows=mini, mesh=mesh
            )
        if unit is not None:
            after = with_last_layer(after, unit)
        broken = [jnp.sum(found["train/nonfinite"]) for found in (metrics, of_critic) if found]
        metrics = of_critic | metrics
        report |= {name: jnp.mean(value) for name, value in metrics.items()}
        report["train/nonfinite"] = sum(broken[1:], broken[0])
        if not has_critic:
            report.pop("critic/grad_norm", None)
        if sampled is None:
            sampled = jnp.sum(batch.step_ids_NT >= 0)
        seen = Seen(trainable, report, jnp.asarray(sampled, jnp.float32), moments)
        following = {
            one.name: one.update(state.carried[one.name], seen, config)
            for one in carries(method, config)
        }
        following = reward_states | following
        if warms_up:  # what a policy that stands still would shift stays as well
            for name in (CLIP.name, KL_COEFFICIENT):
                if name in following:
                    kept = state.carried[name]
                    following[name] = jnp.where(warming[ACTOR], kept, following[name])
        params = combine(after.params, frozen)
        carried = state.carried | following
        report["token/total"] = carried[TOKENS.name]
        if CLIP.name in carried:
            report["actor/clip_ratio"] = state.carried[CLIP.name]  # that of this update
        new = TrainState(params, after.opt_state, state.iteration + 1, carried)
        if recorded:
            record = token_record(with_weights(sample, method, config), old)
            if warms_up:
                record = record._replace(learnt_NT=record.learnt_NT & ~warming[ACTOR])
            return new, report, record
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
    actor, critic = dataclasses.replace(config.actor, **in_rows), config.critic
    if critic.ppo_mini_batch_size is not None:
        critic = dataclasses.replace(critic, ppo_mini_batch_size=rows * critic.ppo_mini_batch_size)
    return dataclasses.replace(config, actor=actor, critic=critic)
