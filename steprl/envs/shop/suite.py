"""What the game brings to a run."""

import functools

from steprl.config import ShopConfig
from steprl.envs.games import Game
from steprl.envs.shop.env import Shop
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
    )
    return Suite(game=game)
