"""The games that live on the device: how each is made, shown and solved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from steprl.config import EnvConfig, GameConfig
from steprl.envs import errand, multihop, shop
from steprl.envs.device_game import THOUGHTS, DeviceGame, GameText, Knobs


class Game(NamedTuple):
    """One row of the table; settings are the game's section of `env`."""

    make: Callable[..., Any]  # (settings, heldout) -> DeviceGame
    demonstrate: Callable[[Any, Any, jax.Array], jax.Array]  # (settings, state, key) -> action
    optimal: Callable[[Any, Any], jax.Array]  # (settings, state) -> action
    vocabulary: Callable[[], tuple[str, ...]]
    # Settings of the game that demonstrations are played in.
    shown: Callable[[Any], Any] = lambda settings: settings


GAMES: dict[str, Game] = {
    "multihop": Game(
        multihop.Multihop,
        multihop.demonstrate,
        multihop.optimal,
        multihop.vocabulary,
        multihop.demonstration_settings,
    ),
    "errand": Game(errand.Errand, errand.demonstrate, errand.optimal, errand.vocabulary),
    "shop": Game(shop.Shop, shop.demonstrate, shop.optimal, shop.vocabulary),
}


def settings_of(config: EnvConfig) -> Any:
    """The section of the configured game."""
    return getattr(config, config.name)


def make_game(
    config: EnvConfig, heldout: bool | jax.Array = False, shown: bool = False
) -> DeviceGame:
    """The configured game, with its knobs where one is turned.

    Args:
        config: its `name` is a key of `GAMES`.
        heldout: which split; may be traced, so that one program serves both.
        shown: as demonstrations are played in it.
    """
    row, settings = GAMES[config.name], settings_of(config)
    game: DeviceGame = row.make(row.shown(settings) if shown else settings, heldout)
    return game if config.game == GameConfig() else Knobs(game, config.game)


def player_of(config: EnvConfig, how: str = "demonstrate") -> Callable[[Any, jax.Array], jax.Array]:
    """`player(state, trajectory key) -> action`, of the demonstrator or of the "optimal" one."""
    table, settings = GAMES[config.name], settings_of(config)

    def play(state: Any, key: jax.Array) -> jax.Array:
        return (
            table.optimal(settings, state)
            if how == "optimal"
            else table.demonstrate(settings, state, key)
        )

    if config.game == GameConfig():
        return play
    knobs = Knobs(table.make(settings), config.game)
    return lambda state, key: knobs.think(state, play(state.game, key), key)


def vocabulary_of(config: EnvConfig) -> tuple[str, ...]:
    """The phrases of the configured game; thoughts come last where there are any."""
    return GAMES[config.name].vocabulary() + THOUGHTS * (config.game.thought_tokens > 0)


def text_game(config: EnvConfig, heldout: bool = False) -> GameText:
    """The configured game as a text environment on the host."""
    game = make_game(config, heldout)
    return GameText(game, vocabulary_of(config), *game.stop_ids[:1])
