"""Players who know the chain: one without fault, and one with weaknesses to be learnt away."""

import dataclasses

import jax
import jax.numpy as jnp

from steprl.config import MultihopConfig
from steprl.envs.games import count_as_token
from steprl.envs.multihop import language as words
from steprl.envs.multihop.env import MultihopState


def demonstrate(config: MultihopConfig, state: MultihopState, key: jax.Array) -> jax.Array:
    """Next action of the demonstrator, [4] tokens.

    A lazy one (drawn once an episode, with `demo_lazy`; less often for two hops) answers after two
    hops, or after one where two are asked. After a failed search it tries again with `demo_retry`
    and otherwise answers with what it has. Some queries are random (`demo_noise`).

    Args:
        config: its `demo_*` settings.
        state: of one episode.
        key: of the trajectory, the same at each step.
    """
    lazy_key, key = jax.random.split(key)
    noise_key, retry_key, name_key, relation_key = jax.random.split(
        jax.random.fold_in(key, state.turn), 4
    )
    chance = jnp.where(state.hops == 2, 0.375 * config.demo_lazy, config.demo_lazy)
    lazy = jax.random.uniform(lazy_key) < chance
    enough = jnp.where(lazy, jnp.minimum(2, state.hops - 1), state.hops)
    gives_up = state.failed & (jax.random.uniform(retry_key) >= config.demo_retry)
    answers = (state.found >= enough) | gives_up

    noisy = ~answers & (jax.random.uniform(noise_key) < config.demo_noise)
    entity = state.chain[state.found]
    relation = state.relations[jnp.minimum(state.found, config.max_hops - 1)]
    entity = jnp.where(noisy, jax.random.randint(name_key, (), 0, config.num_entities), entity)
    relation = jnp.where(
        noisy, jax.random.randint(relation_key, (), 0, len(words.RELATIONS)), relation
    )
    return _action(answers, entity, relation)


def optimal(config: MultihopConfig, state: MultihopState) -> jax.Array:
    """The action of a player who searches hop by hop and then answers, [4] tokens."""
    relation = state.relations[jnp.minimum(state.found, config.max_hops - 1)]
    return _action(state.found >= state.hops, state.chain[state.found], relation)


def privileged(config: MultihopConfig, state: MultihopState) -> jax.Array:
    """What only the critic is told: the names from the one that was found last to the answer.

    Returns:
        [max_hops + 2] tokens: how many steps are left (`count_as_token`), then the names.
    """
    left = state.hops + 1 + config.spare_steps - state.turn
    place = state.found + jnp.arange(config.max_hops + 1)
    names = state.chain[jnp.minimum(place, config.max_hops)] + words.FIRST_ENTITY
    names = jnp.where(place <= state.hops, names, words.PAD_ID)
    return jnp.append(count_as_token(left, words.VOCAB_SIZE), names).astype(jnp.int32)


def demonstration_settings(config: MultihopConfig) -> MultihopConfig:
    """Those that demonstrations are played in: searches may fail more often there."""
    often = config.demo_search_failure
    return config if often is None else dataclasses.replace(config, search_failure=often)


def _action(answers: jax.Array, entity: jax.Array, relation: jax.Array) -> jax.Array:
    name = entity + words.FIRST_ENTITY
    search = jnp.stack([jnp.full_like(name, words.SEARCH), name, relation + words.FIRST_RELATION,
                        jnp.full_like(name, words.END_ID)])  # fmt: skip
    answer = jnp.stack([jnp.full_like(name, words.ANSWER), name, jnp.full_like(name, words.END_ID),
                        jnp.full_like(name, words.PAD_ID)])  # fmt: skip
    return jnp.where(answers, answer, search).astype(jnp.int32)
