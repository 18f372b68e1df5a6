"""What the game brings to a run."""

import functools

import jax
import jax.numpy as jnp

from steprl.config import MultihopConfig
from steprl.envs.games import Enumerable, Game
from steprl.envs.multihop import language as words
from steprl.envs.multihop.env import Multihop, MultihopState
from steprl.envs.multihop.expert import (
    demonstrate,
    demonstration_settings,
    optimal,
    privileged,
)
from steprl.envs.suite import Suite


def open(settings: MultihopConfig) -> Suite:
    """The game with a demonstrator who answers too early."""
    game = Game(
        make=functools.partial(Multihop, settings),
        vocabulary=words.vocabulary(),
        demonstrate=functools.partial(demonstrate, settings),
        optimal=lambda state, key: optimal(settings, state),
        privileged=functools.partial(privileged, settings),
        demonstration_env=Multihop(demonstration_settings(settings)),
        enumerable=_enumerable(settings),
    )
    return Suite(game=game)


def _enumerable(settings: MultihopConfig) -> Enumerable:
    """The answer can be guessed at any time, so any state may still bring the reward."""

    def largest_return(state: MultihopState) -> jax.Array:
        return jnp.ones(())

    def right_answer(state: MultihopState) -> jax.Array:
        right = state.chain[state.hops] + words.FIRST_ENTITY
        action = jnp.array([words.ANSWER, 0, words.END_ID, 0]).at[1].set(right)
        return jnp.where(state.turn >= state.hops + settings.spare_steps, action, 0)

    fails = "searches fail by chance (env.multihop.search_failure)"
    return Enumerable(largest_return, right_answer, fails if settings.search_failure > 0 else None)
