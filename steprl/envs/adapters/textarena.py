"""TextArena (https://arxiv.org/abs/2504.11442): text games of one player, or against a fixed opponent."""

import contextlib
import copy
import dataclasses
import importlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steprl.envs.adapters.jvm import package_folder
from steprl.envs.replayed import ReplayedEnvironment, replayed

_FIRST_SEED = {"train": 0, "eval": 1_000_000, "test": 2_000_000}
# Games draw from the generators of the whole process: each engine brings its own, one at a time.
_CHANCE = threading.RLock()


def environment(
    games: str | Sequence[str] = "TowerOfHanoi-v0",
    split: str = "train",
    players: int = 1,
    opponent: str | Callable[[str], str] | None = None,
    player: int = 0,
    success: float = 1.0,
    max_steps: int = 100,
    engines: int = 64,
    snapshot_every: int = 1,
) -> ReplayedEnvironment:
    """Games of TextArena, by value. Task number i is `games[i % n]` with seed `i // n` of its split.

    The reward comes at the end, as the game gives it: 1 for a win, -1 for an invalid move too many,
    something between in some games. An observation is what was new to the player.

    Args:
        games: ids, such as "Minesweeper-v0".
        split: "train", "eval" or "test": seeds of their own, a million each.
        players: of each game.
        opponent: `opponent(text) -> action` plays all other players, as a function or as
            `package.module:function`; `text` is all that its player has seen. Needed from two players
            on. It should always answer the same text alike.
        player: which player is trained.
        success: the reward from which on a game counts as won.
        max_steps: an episode is truncated after so many actions.
        engines: games at most that are live at once; another is a copy away.
        snapshot_every: steps between copies of a game; 0 makes none, and plays again instead.

    Raises:
        ValueError: a game is unknown or does not start, as some need downloads or a newer Python; or
            there is no opponent for its other players.
        ImportError: the extra `textarena` is not installed.
    """
    package_folder("textarena")
    names = (games,) if isinstance(games, str) else tuple(games)
    if not names:
        raise ValueError("games: empty; name at least one")
    if split not in _FIRST_SEED:
        raise ValueError(f"split: {split!r}; choose from {', '.join(_FIRST_SEED)}")
    if not 0 <= player < players:
        raise ValueError(f"player={player} is none of players={players}, which count from 0")
    if players > 1 and opponent is None:
        raise ValueError(
            f"opponent: none, and players={players}: give a function of the text that a player sees, as "
            "package.module:function, which plays the others"
        )
    if isinstance(opponent, str):
        _function(opponent)
    make = TextArena(names, split, players, opponent, player, success)
    engine = make()
    for task, name in enumerate(names):
        try:
            engine.reset(task)
        except Exception as error:
            advice = "" if players > 1 else "; if it is for several, give players and opponent"
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(
                f"games: {name!r} does not start with players={players} ({problem}){advice}"
            ) from error
    return replayed(make, engines=engines, snapshot_every=snapshot_every, max_steps=max_steps)


@dataclasses.dataclass(frozen=True)
class TextArena:
    """Makes engines; see `environment`."""

    games: tuple[str, ...]
    split: str
    players: int
    opponent: str | Callable[[str], str] | None
    player: int
    success: float

    def __call__(self) -> "_Engine":
        return _Engine(self)


class _Snapshot(NamedTuple):
    """All of a game, never changed: play continues on a copy of it."""

    name: str
    game: Any
    chance: tuple[Any, Any]
    seen: tuple[tuple[str, ...], ...]


class _Engine:
    def __init__(self, settings: TextArena):
        self._settings = settings
        opponent = settings.opponent
        self._opponent = _function(opponent) if isinstance(opponent, str) else opponent

    def reset(self, task: int) -> str:
        import textarena

        settings = self._settings
        round_, index = divmod(task, len(settings.games))
        seed = _FIRST_SEED[settings.split] + round_
        self._name = settings.games[index]
        self._chance = (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())
        self._seen: list[list[str]] = [[] for _ in range(settings.players)]
        with self._playing():
            # Without wrappers a game sends each player what is new, not everything again.
            self._game = textarena.make(f"{self._name}-raw")
            self._game.reset(num_players=settings.players, seed=seed)
        self._read_messages()
        self._others_move()
        return self._unread()

    def step(self, action: str) -> tuple[str, float, bool, bool, Mapping[str, Any]]:
        settings, snapshot = self._settings, self.snapshot()
        try:
            errors = getattr(self._game.state, "error_count", 0)
            over = self._move(action)
            invalid = getattr(self._game.state, "error_count", 0) > errors
        except Exception as error:  # an action that the game cannot read changes nothing
            self.restore(snapshot)
            reason = f"The game cannot read that: {type(error).__name__}: {error}"[:200]
            info = {"success": False, "valid": False, "reason": reason, "task_type": self._name}
            return reason, 0.0, False, False, info
        self._read_messages()
        if not over and not invalid:
            over = self._others_move()
        reward, reason = 0.0, ""
        if over:
            rewards, outcome = self._game.close()
            raw_reward = (rewards or {}).get(settings.player, 0.0)
            # Some games put the reason of an invalid move here; its reward is -1 elsewhere.
            reward = -1.0 if isinstance(raw_reward, str) else float(raw_reward)
            outcome = outcome.get(settings.player, {})
            invalid = bool(outcome.get("invalid_move"))
            reason = str(outcome.get("reason") or "")
        text = self._unread()
        if over and reason and reason not in text:
            text = f"{text}\n{reason}".strip()
        info = {
            "success": over and reward >= settings.success,
            "valid": not invalid,
            "reason": (reason or text) if invalid else "",
            "task_type": self._name,
        }
        return text, reward, over, False, info

    def snapshot(self) -> _Snapshot:
        seen = tuple(tuple(texts) for texts in self._seen)
        return _Snapshot(self._name, copy.deepcopy(self._game), self._chance, seen)

    def restore(self, snapshot: _Snapshot) -> None:
        self._name, game, self._chance, seen = snapshot
        self._game = copy.deepcopy(game)
        self._seen = [list(texts) for texts in seen]

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def _playing(self) -> Iterator[None]:
        """Runs the body under the random state of the game, and restores that of the process."""
        with _CHANCE:
            process_state = random.getstate(), np.random.get_state()
            random.setstate(self._chance[0])
            np.random.set_state(self._chance[1])
            try:
                yield
            finally:
                self._chance = random.getstate(), np.random.get_state()
                random.setstate(process_state[0])
                np.random.set_state(process_state[1])

    def _move(self, action: str) -> bool:
        # As the games' own wrapper does: what has no brackets is put into some.
        bracketed = action if "[" in action or "]" in action else f"[{action.strip()}]"
        with self._playing():
            return bool(self._game.step(bracketed)[0])

    def _read_messages(self) -> None:
        """Stores the messages that are new to the player whose turn it is."""
        self._add_messages(*self._game.get_observation())

    def _add_messages(self, player: int, messages: Sequence[Any]) -> None:
        roles = getattr(self._game.state, "role_mapping", {})
        for sender, text in map(_message, messages):
            if sender != player:  # else it is its own action
                prefix = f"[{roles.get(sender, f'Player {sender}')}] " if sender >= 0 else ""
                self._seen[player].append(f"{prefix}{text}".strip())

    def _others_move(self) -> bool:
        """Let the opponent play until it is our turn; whether the game is over."""
        over = False
        while not over and self._game.state.current_player_id != self._settings.player:
            assert self._opponent is not None  # checked where there are several players
            player = self._game.state.current_player_id
            over = self._move(self._opponent("\n".join(self._seen[player])))
            self._read_messages()
        return over

    def _unread(self) -> str:
        """The messages that our player has not seen yet."""
        player = self._settings.player
        if self._game.state.current_player_id != player:  # the game ended on another's turn
            self._add_messages(player, self._game.state.observations.get(player, []))
        text, self._seen[player] = "\n".join(self._seen[player]), []
        return text


def _message(item: Sequence[Any]) -> tuple[int, str]:
    """Sender and text; some games leave the sender out or at another place."""
    senders = [part for part in item if isinstance(part, int)]
    texts = [part for part in item if isinstance(part, str)]
    return (senders or [-1])[0], (texts or [""])[0]


def _function(path: str) -> Callable[[str], str]:
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"opponent={path!r}: expected package.module:function ({error})"
        ) from error
    if not callable(function):
        raise ValueError(f"opponent={path!r}: {name} is no function")
    return function
