"""What an iteration leaves to the next beside parameters and the state of the optimiser.

Each value is a pair of pure functions in the manner of optax: `init` makes the first one, `update`
the next one from the last one and from what the update of the policy has seen. They lie by their
names in `TrainState.carried`, so that they are saved, restored and placed with everything else.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import Config
from steprl.ops import RunningMoments
from steprl.types import Params


class Seen(NamedTuple):
    """What there is to see at the end of an update."""

    trainable: Params  # what is trained, as it was before the update
    metrics: dict[str, jax.Array]  # of the update
    sampled: jax.Array  # [] float32, tokens that were sampled for its batch
    value_moments: RunningMoments | None = None  # of the returns, with those of its batch


def _always(config: Config) -> bool:
    return True


class Carry(NamedTuple):
    """A value that each iteration leaves to the next.

    `init(trainable, config)` and `update(value, seen, config)` return arrays, alone or in a pytree of
    dicts and tuples; shapes and types stay the same. Arrays that are laid out like parameters must
    keep their paths, by which `steprl.sharding` places them.
    """

    name: str  # of its place in `TrainState.carried`
    init: Callable[[Params, Config], Any]
    update: Callable[[Any, Seen, Config], Any]
    needed: Callable[[Config], bool] = _always  # whether the settings need it


def _copy(trainable: Params, config: Config) -> Params:
    # The update is given the buffers of the parameters to write into.
    return jax.tree.map(jnp.copy, trainable)


REFERENCE = Carry(
    "reference",
    init=_copy,
    update=lambda value, seen, config: value,
    needed=lambda config: config.algorithm.use_kl_in_reward or config.actor.use_kl_loss,
)
"""What is trained as it was when training began, for penalties on the distance from there."""

PREVIOUS = Carry(
    "previous",
    init=_copy,
    update=lambda value, seen, config: seen.trainable,
    needed=lambda config: config.algorithm.branch.future_value == "previous",
)
"""What is trained as it was before the last update, for rollouts that depend on what the update changed."""


def next_clip(clip: jax.Array, fraction: jax.Array, wanted: float | jax.Array) -> jax.Array:
    """The clip of the next iteration: wider where more was clipped than wanted, by a factor of 1.5
    at most, between 1e-4 and 1."""
    factor = jnp.sqrt((fraction + 1e-4) / (wanted + 1e-4))
    return jnp.clip(clip * jnp.clip(factor, 1 / 1.5, 1.5), 1e-4, 1.0)


def _moved_clip(clip: jax.Array, seen: Seen, config: Config) -> jax.Array:
    assert config.actor.clip_fraction is not None
    fraction = seen.metrics["actor/pg_clipfrac"].astype(jnp.float32)
    moved = next_clip(clip, fraction, config.actor.clip_fraction)
    return jnp.where(jnp.isfinite(moved), moved, clip)


CLIP = Carry(
    "clip",
    init=lambda trainable, config: jnp.asarray(config.actor.clip_ratio_high, jnp.float32),
    update=_moved_clip,
    needed=lambda config: config.actor.clip_fraction is not None,
)
"""The clip of the ratio on both sides, which moves until `actor.clip_fraction` of tokens is clipped."""

TOKENS = Carry(
    "tokens",
    init=lambda trainable, config: jnp.zeros((), jnp.float32),
    update=lambda tokens, seen, config: tokens + seen.sampled,
)
"""Tokens sampled so far, for `trainer.token_budget`."""


VALUE_MOMENTS = Carry(
    "value_moments",
    init=lambda trainable, config: RunningMoments(*(jnp.zeros((), jnp.float32) for _ in range(3))),
    update=lambda moments, seen, config: seen.value_moments or moments,
    needed=lambda config: config.critic.norm_returns,
)
"""Running moments of the returns that the critic learns, for `critic.norm_returns`."""


def with_carried_clip(config: Config, carried: Mapping[str, Any]) -> Config:
    """The configuration with the current clip of the ratio, where it is one that moves."""
    if CLIP.name not in carried:
        return config
    clip = carried[CLIP.name]
    actor = dataclasses.replace(config.actor, clip_ratio_low=clip, clip_ratio_high=clip)
    return dataclasses.replace(config, actor=actor)


def share_spent(config: Config, carried: Mapping[str, Any]) -> jax.Array | None:
    """[] float32, the share of `trainer.token_budget` that is spent; None where there is no budget."""
    budget = config.trainer.token_budget
    return None if budget is None else carried[TOKENS.name] / jnp.maximum(budget, 1.0)


OF_EVERY_METHOD = (REFERENCE, CLIP, TOKENS, VALUE_MOMENTS)
"""Those that settings need, whatever the method; a method names its own in `Algorithm.carries`."""
