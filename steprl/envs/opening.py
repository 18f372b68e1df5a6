"""From settings to what an environment brings: the one place that opens environments by name."""

import importlib

from steprl.config import EnvConfig
from steprl.config.environments import ENVIRONMENTS, NO_ENVIRONMENT
from steprl.envs.custom import load_suite
from steprl.envs.games import Game
from steprl.envs.nothing import open_nothing
from steprl.envs.suite import Suite, shaped


def open_suite(config: EnvConfig) -> Suite:
    """The configured environment: of `ENVIRONMENTS`, of another package, or of the user.

    Raises:
        ValueError: settings do not fit each other, or a user's function fails or returns what is none.
        ImportError: an optional package is missing.
    """
    if config.name == NO_ENVIRONMENT:
        return open_nothing()
    if config.name not in ENVIRONMENTS:
        return shaped(load_suite(config.name, config.options), config.game)
    package = importlib.import_module(f"steprl.envs.{config.name}")
    suite: Suite = package.open(getattr(config, config.name))
    return shaped(suite, config.game)


def open_game(config: EnvConfig) -> Game:
    """The configured game.

    Raises:
        ValueError: the environment runs on the host, not on the device.
    """
    return game_of(open_suite(config), f"env.name={config.name}")


def game_of(suite: Suite, source: str = "env") -> Game:
    """The game of a suite.

    Raises:
        ValueError: it runs on the host, not on the device.
    """
    if suite.game is None:
        raise ValueError(
            f"{source} runs on the host; inside one program there are games on the device only, such as "
            "multihop, errand and shop"
        )
    return suite.game
