"""What the game brings to a run."""

import functools

import jax
import jax.numpy as jnp

from steprl.config import ShopConfig
from steprl.envs.games import Enumerable, Game
from steprl.envs.shop import language as words
from steprl.envs.shop.env import Shop, ShopState
from steprl.envs.shop.expert import demonstrate, optimal, privileged
from steprl.envs.shop.language import vocabulary
from steprl.envs.suite import Suite


def open(settings: ShopConfig) -> Suite:
    """The game with a demonstrator who takes short cuts."""
    game = Game(
        make=functools.partial(Shop, settings),
        vocabulary=vocabulary(),
        demonstrate=functools.partial(demonstrate, settings),
        optimal=lambda state, key: optimal(settings, state),
        privileged=functools.partial(privileged, settings),
        enumerable=_enumerable(settings),
    )
    return Suite(game=game)


def _enumerable(settings: ShopConfig) -> Enumerable:
    """Success is out of reach after a wrong purchase, or where an optimal player needs more steps than
    are left; a score needs only that all can be bought, and misses what earlier purchases missed."""
    env, each = Shop(settings), settings.options + 1

    def largest_return(state: ShopState) -> jax.Array:
        steps_left = env.max_steps - state.turn
        if settings.reward == "success":
            return ((state.lost == 0) & (env.distance(state) <= steps_left)).astype(jnp.float32)
        to_buy = settings.purchases - state.bought
        begun = jnp.where(state.place >= 0, 2, jnp.where(state.listed >= 0, 1, 0))
        needed = 3 * to_buy - begun  # search, open, buy
        most = (state.fits + each * to_buy) / (settings.purchases * each)
        return jnp.where(needed <= steps_left, most, 0.0)

    def last_purchase(state: ShopState) -> jax.Array:
        buy_now = jnp.array([words.BUY, words.NOW])
        return jnp.where(state.turn + 1 >= env.max_steps, buy_now, 0)

    return Enumerable(largest_return, last_purchase)
