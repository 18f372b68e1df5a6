"""Methods as data: a name, which credit, which ratio, and what a run must offer.

To add a method, write its credit as a function of a batch and the critic's values, and add a line
to `ALGORITHMS`.
"""

import difflib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steprl.config import AlgorithmConfig
from steprl.ops import (
    broadcast_steps,
    masked_whiten,
    reduce_steps,
    step_gae,
    step_starts,
    token_gae,
)
from steprl.types import StepBatch


class Credit(NamedTuple):
    """What the update learns from, by token; 0 and False where there is nothing to learn."""

    advantage_NT: jax.Array
    return_NT: jax.Array  # target of the critic
    critic_mask_NT: jax.Array  # tokens before which the critic is asked


class Algorithm(NamedTuple):
    """One row of the table."""

    credit: Callable[[StepBatch, jax.Array, AlgorithmConfig], Credit]
    ratio_level: str  # "token", "step" or "sequence"
    needs: tuple[str, ...]  # what a run must offer: "critic", ...


def step_discounts(batch: StepBatch, gamma: float) -> jax.Array:
    """[N, S] gamma where a step follows, 0 at the last one: truncation counts as an end."""
    follows = jnp.pad(batch.mask_NS[:, 1:], ((0, 0), (0, 1)))
    return gamma * follows.astype(jnp.float32)


def step_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """StepPO (arXiv 2604.18401): GAE over steps; all tokens of a step share its advantage.

    The critic is asked once a step, before its first token.
    """
    steps = batch.reward_NS.shape[1]
    first = jax.vmap(lambda value_t, ids_t: reduce_steps(value_t, ids_t, steps, "first"))
    value_NS = first(value_NT, batch.step_ids_NT)
    gae = jax.vmap(step_gae, in_axes=(0, 0, 0, None))
    advantage_NS = gae(batch.reward_NS, step_discounts(batch, config.gamma), value_NS, config.lam)
    return_NS = advantage_NS + value_NS
    if config.norm_adv:
        advantage_NS = masked_whiten(advantage_NS, batch.mask_NS, epsilon_at="std")
    to_tokens = jax.vmap(broadcast_steps)
    return Credit(
        advantage_NT=to_tokens(advantage_NS, batch.step_ids_NT),
        return_NT=to_tokens(return_NS, batch.step_ids_NT),
        critic_mask_NT=jax.vmap(step_starts)(batch.step_ids_NT),
    )


def token_credit(batch: StepBatch, value_NT: jax.Array, config: AlgorithmConfig) -> Credit:
    """PPO for language models (arXiv 1707.06347): GAE over the sampled tokens of a trajectory.

    The reward of a step arrives with its last token; the critic is asked before every token.
    """
    active_NT = batch.step_ids_NT >= 0
    last_NT = jax.vmap(lambda ids_t: step_starts(ids_t[::-1])[::-1])(batch.step_ids_NT)
    to_tokens = jax.vmap(broadcast_steps)
    reward_NT = jnp.where(last_NT, to_tokens(batch.reward_NS, batch.step_ids_NT), 0.0)
    follows_NT = to_tokens(step_discounts(batch, 1.0), batch.step_ids_NT)
    discount_NT = config.gamma * jnp.where(last_NT, follows_NT, 1.0)
    gae = jax.vmap(token_gae, in_axes=(0, 0, 0, None, 0))
    advantage_NT = gae(reward_NT, discount_NT, value_NT, config.lam, batch.step_ids_NT)
    return_NT = jnp.where(active_NT, advantage_NT + value_NT, 0.0)
    if config.norm_adv:
        advantage_NT = masked_whiten(advantage_NT, active_NT)
    return Credit(advantage_NT, return_NT, active_NT)


ALGORITHMS: dict[str, Algorithm] = {
    "steppo": Algorithm(step_credit, "step", ("critic",)),
    "ppo": Algorithm(token_credit, "token", ("critic",)),
}


def algorithm(name: str, offers: tuple[str, ...] = ("critic",)) -> Algorithm:
    """The method of that name.

    Args:
        name: key of `ALGORITHMS`.
        offers: what the run has; "critic" when the model has a value head.

    Raises:
        ValueError: no such method, or the run lacks what it needs.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(ALGORITHMS)}"
        raise ValueError(f"algorithm.name={name!r} is unknown: {hint}")
    missing = [need for need in ALGORITHMS[name].needs if need not in offers]
    if "critic" in missing:
        raise ValueError(
            f"algorithm.name={name} learns from a critic, and model.value_head=none has none: "
            "set model.value_head=shared or separate"
        )
    return ALGORITHMS[name]
