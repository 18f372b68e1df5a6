"""What the game brings to a run."""

import functools

import jax
import jax.numpy as jnp

from steprl.config import ErrandConfig
from steprl.envs.errand import language as words
from steprl.envs.errand.env import HAND, Errand, ErrandState
from steprl.envs.errand.expert import demonstrate, optimal, privileged
from steprl.envs.errand.language import vocabulary
from steprl.envs.games import Enumerable, Game
from steprl.envs.suite import Suite


def open(settings: ErrandConfig) -> Suite:
    """The game with a demonstrator who leaves out part of his errands."""
    game = Game(
        make=functools.partial(Errand, settings),
        vocabulary=vocabulary(),
        demonstrate=functools.partial(demonstrate, settings),
        optimal=lambda state, key: optimal(settings, state),
        privileged=functools.partial(privileged, settings),
        enumerable=_enumerable(settings),
    )
    return Suite(game=game)


def _enumerable(settings: ErrandConfig) -> Enumerable:
    """The reward is out of reach where an optimal player needs more steps than are left."""
    env = Errand(settings)

    def largest_return(state: ErrandState) -> jax.Array:
        return (env.distance(state) <= env.max_steps - state.turn).astype(jnp.float32)

    def last_put(state: ErrandState) -> jax.Array:
        thing = state.kind[jnp.argmax(state.where == HAND)]
        put = jnp.stack([jnp.asarray(words.FIRST_VERB + words.PUT), thing + words.FIRST_KIND])
        return jnp.where(state.turn + 1 >= env.max_steps, put, 0)

    return Enumerable(largest_return, last_put)
