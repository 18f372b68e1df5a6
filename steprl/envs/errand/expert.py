"""Players who know the room: one without fault, and one with weaknesses to be learnt away."""

import jax
import jax.numpy as jnp

from steprl.config import ErrandConfig
from steprl.envs.errand import language as words
from steprl.envs.errand.env import DOOR, HAND, STATION, ErrandState, closed_here, delivered, route
from steprl.envs.games import count_as_token


def demonstrate(config: ErrandConfig, state: ErrandState, key: jax.Array) -> jax.Array:
    """Next command of the demonstrator, [2] tokens.

    He runs the errands in the order given. A lazy one (drawn once an episode, with `demo_lazy`) shirks
    every errand, any other forgets to take pains over one now and then (`demo_forget`, drawn for each
    errand). What is shirked is brought without being made hot, clean or cold, or, where nothing is
    to be transformed, put down again where it was taken. When he thinks that all is done, he waits at
    the door. Some commands are random (`demo_noise`).

    Args:
        config: its `demo_*` settings.
        state: of one episode.
        key: of the trajectory, the same at each step.
    """
    errands = config.errands
    once = jax.random.uniform(jax.random.fold_in(key, 0), (1 + errands,))
    shirks = (once[0] < config.demo_lazy) | (once[1:] < config.demo_forget)

    held = state.where[:errands] == HAND
    believed = ~held & jnp.where(shirks, state.moved, delivered(state))
    errand = jnp.where(jnp.any(held), jnp.argmax(held), jnp.argmin(believed))
    drops = shirks[errand] & (state.here < config.places) & (not config.transform)
    action = jnp.where(
        jnp.all(believed),
        _command(words.GO, words.FIRST_LOCATION + DOOR),
        _pursue(state, errand, jnp.where(drops, state.here, state.target[errand]), shirks[errand]),
    )
    noise = jax.random.uniform(jax.random.fold_in(key, 1 + state.turn), (4,))
    return jnp.where(noise[0] < config.demo_noise, _any_command(config, state, noise[1:]), action)


def optimal(config: ErrandConfig, state: ErrandState) -> jax.Array:
    """The command of a player who needs the fewest steps, [2] tokens."""
    _, errand = route(state)
    return _pursue(state, errand, state.target[errand], jnp.zeros((), bool))


def privileged(config: ErrandConfig, state: ErrandState) -> jax.Array:
    """What only the critic is told: the best command, how many steps it needs, and how many are left.

    Returns:
        [4] tokens: verb and noun, and two counts (`count_as_token`).
    """
    left = config.horizon + config.spare_steps - state.turn
    counts = count_as_token(jnp.stack([route(state)[0], left]), words.VOCAB_SIZE)
    return jnp.concatenate([optimal(config, state), counts])


def _pursue(
    state: ErrandState, errand: jax.Array, destination: jax.Array, raw: jax.Array
) -> jax.Array:
    """Next command of one errand: fetch, transform unless it may stay raw, bring."""
    held, wanted = state.where[errand] == HAND, state.wanted[errand]
    transform = held & ~raw & (state.form[errand] != wanted)
    aim = jnp.where(transform, STATION + wanted - 1, destination)
    aim = jnp.where(held, aim, state.where[errand])

    carried = state.where == HAND
    thing = jnp.where(jnp.any(carried), jnp.argmax(carried), errand)  # a wrong one is put down
    verb = jnp.where(jnp.any(carried), words.PUT, words.TAKE)
    verb = jnp.where(transform, words.HEAT + wanted - 1, verb)

    away = state.here != aim
    verb = jnp.where(closed_here(state), words.OPEN, verb)
    verb = jnp.where(away, words.GO, verb)
    noun = jnp.where(
        away | closed_here(state), words.FIRST_LOCATION + aim, words.FIRST_KIND + state.kind[thing]
    )
    return _command(verb, noun)


def _any_command(config: ErrandConfig, state: ErrandState, chance: jax.Array) -> jax.Array:
    """One of a verb and a place or thing of the room, by three numbers of [0, 1)."""
    size = jnp.array([len(words.VERBS), config.places, config.objects])
    verb, place, thing = (chance * size).astype(jnp.int32)
    thing = state.kind[thing]
    noun = jnp.where(verb <= words.OPEN, words.FIRST_LOCATION + place, words.FIRST_KIND + thing)
    return _command(verb, noun)


def _command(verb: jax.Array | int, noun: jax.Array | int) -> jax.Array:
    return jnp.stack([jnp.asarray(words.FIRST_VERB + verb), jnp.asarray(noun)]).astype(jnp.int32)
