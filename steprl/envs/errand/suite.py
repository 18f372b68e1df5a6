"""What the game brings to a run."""

import functools

from steprl.config import ErrandConfig
from steprl.envs.errand.env import Errand
from steprl.envs.errand.expert import demonstrate, optimal, privileged
from steprl.envs.errand.language import vocabulary
from steprl.envs.games import Game
from steprl.envs.suite import Suite


def open(settings: ErrandConfig) -> Suite:
    """The game with a demonstrator who leaves out part of his errands."""
    game = Game(
        make=functools.partial(Errand, settings),
        vocabulary=vocabulary(),
        demonstrate=functools.partial(demonstrate, settings),
        optimal=lambda state, key: optimal(settings, state),
        privileged=functools.partial(privileged, settings),
    )
    return Suite(game=game)
