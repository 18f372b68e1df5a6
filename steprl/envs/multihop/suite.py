"""What the game brings to a run."""

import functools

import numpy as np

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
    def is_last(states: MultihopState) -> np.ndarray:
        return np.asarray(states.turn >= states.hops + settings.spare_steps)

    def right_answer(state: MultihopState) -> tuple[int, ...]:
        right = int(state.chain[int(state.hops)])
        return (words.ANSWER, right + words.FIRST_ENTITY, words.END_ID)

    fails = "searches fail by chance (env.multihop.search_failure)"
    return Enumerable(is_last, right_answer, fails if settings.search_failure > 0 else None)
