"""Players who know the shelves: one without fault, and one with weaknesses to be learnt away."""

import jax
import jax.numpy as jnp

from steprl.config import ShopConfig
from steprl.envs.games import count_as_token
from steprl.envs.shop import language as words
from steprl.envs.shop.env import Shop, ShopState


def demonstrate(config: ShopConfig, state: ShopState, key: jax.Array) -> jax.Array:
    """Next command of the demonstrator, [2] tokens.

    In some episodes it opens the first result whatever it is (`demo_first`), in some it buys without
    the last option (`demo_lazy`, the mode of the data as configured), at every purchase of the
    episode. Some searches, places and choices are random (`demo_noise`).

    Args:
        config: its `demo_*` settings.
        state: of one episode.
        key: of the trajectory, the same at each step.
    """
    first_draw, last_draw = jax.random.uniform(jax.random.fold_in(key, 0), (2,))
    action = _play(config, state, first_draw < config.demo_first, last_draw < config.demo_lazy)

    noise_draw, word_draw = jax.random.uniform(jax.random.fold_in(key, 1 + state.turn), (2,))
    noisy = noise_draw < config.demo_noise
    begin, number = action[1], jnp.ones((), jnp.int32)  # nothing else to say after buy and back
    for verb, word, count in (
        (words.SEARCH, words.FIRST_KIND, config.goods),
        (words.OPEN, words.FIRST_PLACE, config.results),
        (words.CHOOSE, words.FIRST_OPTION, words.VALUES * config.options),
    ):
        begin = jnp.where(action[0] == verb, word, begin)
        number = jnp.where(action[0] == verb, count, number)
    word = begin + (word_draw * number).astype(jnp.int32)
    return action.at[1].set(jnp.where(noisy, word, action[1]))


def optimal(config: ShopConfig, state: ShopState) -> jax.Array:
    """The command of a player who makes no mistake and mends those made before, [2] tokens."""
    return _play(config, state, jnp.zeros((), bool), jnp.zeros((), bool))


def privileged(config: ShopConfig, state: ShopState) -> jax.Array:
    """What only the critic is told: the best command, and what has become of the wishes.

    Returns:
        [5] tokens: verb and word, and three counts (`count_as_token`): steps that an optimal player
            needs, steps that are left, wanted properties that were missed in what was bought.
    """
    shop = Shop(config)
    missed = state.bought * (config.options + 1) - state.fits
    numbers = jnp.stack([shop.distance(state), shop.max_steps - state.turn, missed])
    return jnp.concatenate([optimal(config, state), count_as_token(numbers, words.VOCAB_SIZE)])


def _play(config: ShopConfig, state: ShopState, first: jax.Array, last: jax.Array) -> jax.Array:
    """Opens the right result, or the `first`; makes all choices, or not the `last`; buys."""
    now = jnp.minimum(state.bought, config.purchases - 1)
    fits = state.shelf[state.listed] == state.colours[now]
    place = jnp.where(first, 0, jnp.argmax(fits))
    group = jnp.arange(config.options)
    done = (state.chosen == state.values[now]) | (last & (group == config.options - 1))
    # The groups from the front that need nothing more; the next one is chosen.
    ready = jnp.sum(jnp.cumprod(done.astype(jnp.int32)))
    value = jnp.sum(jnp.where(group == ready, state.values[now], 0))

    verb = jnp.where(ready < config.options, words.CHOOSE, words.BUY)
    word = jnp.where(ready < config.options, words.FIRST_OPTION + value, words.NOW)
    wrong_page = state.place != place
    verb = jnp.where(wrong_page, words.BACK, verb)
    word = jnp.where(wrong_page, words.TO_LIST, word)
    on_list = state.place < 0
    verb = jnp.where(on_list, words.OPEN, verb)
    word = jnp.where(on_list, words.FIRST_PLACE + place, word)
    elsewhere = state.listed != state.kinds[now]
    verb = jnp.where(elsewhere, words.SEARCH, verb)
    word = jnp.where(elsewhere, words.FIRST_KIND + state.kinds[now], word)
    return jnp.stack([verb, word]).astype(jnp.int32)
