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
    vocabulary: Callable[[], tuple[str, ...]]  # phrases, in the order of the ids from 3 on
    # (settings, state, key) -> action; None where nothing is shown
    demonstrate: Callable[[Any, Any, jax.Array], jax.Array] | None = None
    # (settings, state) -> action; None where it is not known
    optimal: Callable[[Any, Any], jax.Array] | None = None
    # Settings of the game that demonstrations are played in.
    shown: Callable[[Any], Any] = lambda settings: settings


GAMES: dict[str, Game] = {
    "multihop": Game(
        multihop.Multihop,
        multihop.vocabulary,
        multihop.demonstrate,
        multihop.optimal,
        multihop.demonstration_settings,
    ),
    "errand": Game(errand.Errand, errand.vocabulary, errand.demonstrate, errand.optimal),
    "shop": Game(shop.Shop, shop.vocabulary, shop.demonstrate, shop.optimal),
}


def settings_of(config: EnvConfig) -> Any:
    """The section of the configured game."""
    return getattr(config, config.name)


def _row_of(config: EnvConfig, row: Game | None) -> tuple[Game, Any]:
    """The row of the configured game and its settings; one's own has none."""
    return (GAMES[config.name], settings_of(config)) if row is None else (row, None)


def make_game(
    config: EnvConfig,
    heldout: bool | jax.Array = False,
    shown: bool = False,
    row: Game | None = None,
) -> DeviceGame:
    """The configured game, with its knobs where one is turned.

    Args:
        config: its `name` is a key of `GAMES`.
        heldout: which split; may be traced, so that one program serves both.
        shown: as demonstrations are played in it.
        row: of a game of one's own, in place of the one that `name` names.
    """
    row, settings = _row_of(config, row)
    game: DeviceGame = row.make(row.shown(settings) if shown else settings, heldout)
    return game if config.game == GameConfig() else Knobs(game, config.game)


def player_of(
    config: EnvConfig, how: str = "demonstrate", row: Game | None = None
) -> Callable[[Any, jax.Array], jax.Array]:
    """`player(state, trajectory key) -> action`, of the demonstrator or of the "optimal" one.

    Raises:
        ValueError: a game of one's own has no such player.
    """
    table, settings = _row_of(config, row)
    shows, solves = table.demonstrate, table.optimal
    if (solves if how == "optimal" else shows) is None:
        raise ValueError(f"game: it has no player `{how}`; give Game({how}=...)")

    def play(state: Any, key: jax.Array) -> jax.Array:
        if how == "optimal":
            return solves(settings, state)  # type: ignore[misc]
        return shows(settings, state, key)  # type: ignore[misc]

    if config.game == GameConfig():
        return play
    knobs = Knobs(table.make(settings, False), config.game)
    return lambda state, key: knobs.think(state, play(state.game, key), key)


def vocabulary_of(config: EnvConfig, row: Game | None = None) -> tuple[str, ...]:
    """The phrases of the configured game; thoughts come last where there are any."""
    return _row_of(config, row)[0].vocabulary() + THOUGHTS * (config.game.thought_tokens > 0)


def text_game(config: EnvConfig, heldout: bool = False, row: Game | None = None) -> GameText:
    """The configured game, or one's own, as a text environment on the host."""
    game = make_game(config, heldout, row=row)
    return GameText(game, vocabulary_of(config, row), *game.stop_ids[:1])
