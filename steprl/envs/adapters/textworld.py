"""TextWorld's generated games: texts of the compiled game, commands of TextWorld's model of it.

    from steprl.envs.adapters.textworld import environment

    env = environment(challenge="tw-cooking", settings={"recipe": 2, "go": 6})
    state, text = env.reset(0)
    state, text, reward, terminated, truncated, info = env.step(state, "open fridge")

A state holds all of the Z-machine and the facts of the world, so that a branch costs one restore.
Needs `pip install 'steprl[textworld]'`; parts of that (jericho) are under the GPL.
"""

import re
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from steprl.envs import Env
from steprl.envs.adapters.textworld_games import Games, games
from steprl.envs.replayed import replayed

SYSTEM = (
    "You play a text adventure. Reply with one command, such as: look; inventory; goal; examine THING; "
    "go north; open THING; take THING from THING; put THING on THING; unlock DOOR with KEY; drop "
    "THING; eat THING; cook FOOD with THING; slice FOOD with knife; prepare meal."
)
OPEN = 4  # games that an engine keeps loaded: to load one takes longer than a step
MAX_LENGTH = 190  # characters of a command; the interpreter cuts at 198
# Commands to the interpreter: they ask back, write files, or leave the facts behind.
META = (
    "disable enable noscript oops o print_state q quit restart restore restrict save script "
    "transcript undo unscript"
).split()
_EVENT = re.compile(r"\[([^\]]+)\]\n?")
_SCORE = re.compile(r"<score>\s*(-?\d+)\s*</score>")
_EXTRA = re.compile(r"<(score|moves)>.*?</\1>", re.DOTALL)
_STATUS = re.compile(r"\n?>?[ ]*-= [^\n]* =-\s*-?\d+/\d+\s*\Z")
_ENDED = re.compile(r"\s*Would you like to RESTART, .*\Z", re.DOTALL)


def environment(
    split: str = "train",
    challenge: str = "tw-cooking",
    settings: Mapping[str, Any] = MappingProxyType({}),
    games_per_split: int = 100,
    max_steps: int = 50,
    show_commands: bool = False,
    folder: str | None = None,
    engines: int = 16,
) -> Env:
    """Games of a challenge of TextWorld (https://arxiv.org/abs/1806.11532).

    The reward is the increase of the score over the highest score; success is that the game is won.
    `info` has beside the usual `won`, `lost`, `score`, `max_score` and `admissible_commands`.

    Args:
        split: games of different splits come from different seeds; "eval" has foods (tw-cooking) or
            sentences (tw-simple) of its own.
        challenge: tw-coin_collector, tw-treasure_hunter, tw-simple or tw-cooking.
        settings: of the challenge, as of `tw-make`, such as {"level": 10}.
        games_per_split: task i is game `i % games_per_split`; a new one takes a second or two to make.
        max_steps: commands of an episode at most.
        show_commands: end each observation with the admissible commands.
        folder: where games are kept, by default ~/.cache/steprl/textworld.
        engines: interpreters at most, one for each episode that is played at the same time.

    Raises:
        ImportError: TextWorld is not installed.
        ValueError: a setting names something that does not exist.
    """
    game_set = games(split, challenge, settings, games_per_split, folder)
    make = partial(TextWorldEngine, game_set, show_commands)
    return replayed(make, engines=engines, max_steps=max_steps, system=SYSTEM)


class Snapshot(NamedTuple):
    """All of a game that runs.

    Attributes:
        path: the compiled game.
        machine: state of the Z-machine, but for its memory.
        memory: the Z-machine's, compressed.
        facts, actions: TextWorld's model: what is true in the world, and what can be done in it.
        score: points so far.
    """

    path: Path
    machine: tuple[Any, ...]
    memory: bytes
    facts: frozenset[Any]
    actions: tuple[Any, ...]
    score: int


class Opened(NamedTuple):
    """A game that is loaded: TextWorld's description, its words, and jericho's interpreter."""

    game: Any
    inform: Any
    machine: Any


class TextWorldEngine:
    """A game of TextWorld: an engine of `steprl.envs.replayed`."""

    def __init__(self, made: Games, show_commands: bool = False):
        self._games, self._show = made, show_commands
        self._path: Path | None = None
        self._opened: OrderedDict[Path, Opened] = OrderedDict()  # the last used is the last

    def reset(self, task: int) -> str:
        self._open(self._games.path(task))
        text, _ = self._machine.reset()
        self._machine.step("tw-extra-infos score")
        self._machine.step("tw-trace-actions")
        self._facts, self._score = self._game.world.state.copy(), 0
        self._find_actions()
        text = text.rpartition("$$")[2].partition("\n")[2]  # after the banner
        return self._with_commands(plain(text))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        command = " ".join(action.split())
        reason = refusal(command)
        if reason:
            return self._with_commands(reason), 0.0, False, False, self._info(reason)
        raw, *_ = self._machine.step(command)
        events = _EVENT.findall(raw)
        for event in events:
            if event.endswith(" - succeeded"):
                self._follow(event.removesuffix(" - succeeded"))
        text, previous_score = plain(raw), self._score
        if scores := _SCORE.findall(raw):
            self._score = int(scores[-1])
        won, lost = "*** The End ***" in text, "*** You lost! ***" in text
        info = self._info("" if events else text[:200], won, lost)
        reward = (self._score - previous_score) / max(info["max_score"], 1)
        return text if won or lost else self._with_commands(text), reward, won or lost, False, info

    def snapshot(self) -> Snapshot:
        memory, *machine = self._machine.get_state()
        packed = zlib.compress(memory.tobytes(), 1)
        facts, actions = frozenset(self._facts.facts), tuple(self._actions)
        assert self._path is not None, "a snapshot before the first reset"
        return Snapshot(self._path, tuple(machine), packed, facts, actions, self._score)

    def restore(self, snapshot: Snapshot) -> None:
        import numpy as np
        from textworld.logic import State

        self._open(snapshot.path)
        memory = np.frombuffer(bytearray(zlib.decompress(snapshot.memory)), dtype=np.uint8)
        self._machine.set_state((memory, *snapshot.machine))
        self._facts = State(self._game.kb.logic, snapshot.facts)
        self._actions, self._score = list(snapshot.actions), snapshot.score

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].machine.close()
        self._path = None

    def _open(self, path: Path) -> None:
        """Change to a game, which is somewhere in its middle: `reset` or set its state."""
        if path not in self._opened:
            if len(self._opened) >= OPEN:
                self._opened.pop(next(iter(self._opened))).machine.close()
            self._opened[path] = _open_game(path)
        self._opened.move_to_end(path)
        self._path, (self._game, self._inform, self._machine) = path, self._opened[path]

    def _follow(self, event: str) -> None:
        """Applies an action of the game to TextWorld's model of the world."""
        done = self._inform.detect_action(event, self._actions)
        if done is not None and (done.added or done.removed):
            self._facts.apply(done)
            self._find_actions()

    def _find_actions(self) -> None:
        knowledge = self._game.kb
        self._actions = list(
            self._facts.all_applicable_actions(
                knowledge.rules.values(), knowledge.types.constants_mapping
            )
        )

    def _commands(self) -> tuple[str, ...]:
        return tuple(sorted(set(self._inform.gen_commands_from_actions(self._actions))))

    def _with_commands(self, text: str) -> str:
        return f"{text}\n\nCommands: {'; '.join(self._commands())}" if self._show else text

    def _info(self, reason: str, won: bool = False, lost: bool = False) -> dict[str, Any]:
        return {
            "success": won,
            "valid": not reason,
            "reason": reason,
            "won": won,
            "lost": lost,
            "score": self._score,
            "max_score": self._game.max_score,
            "admissible_commands": self._commands(),
        }


def _open_game(path: Path) -> Opened:
    import jericho
    from textworld.generator.game import Game
    from textworld.generator.inform7 import Inform7Game

    game = Game.load(str(path.with_suffix(".json")))
    # With a seed, for what chance there may be in a game is to be the same again.
    return Opened(game, Inform7Game(game), jericho.FrotzEnv(str(path), seed=1))


def plain(text: str) -> str:
    """What the game says, without traces, points, prompt, status line and its last question."""
    text = _ENDED.sub("", _STATUS.sub("", _EXTRA.sub("", _EVENT.sub("", text))))
    return re.sub(r"\n\s*\n", "\n\n", text).strip()


def refusal(command: str) -> str:
    """Why a command is not given to the interpreter; "" if it is.

    Brackets would look like the game's own traces in its echo of what was said, and a backslash is
    the interpreter's own. One line may hold several sentences, and each may begin with a command to
    the interpreter.
    """
    if len(command) > MAX_LENGTH:
        return f"A command has at most {MAX_LENGTH} characters."
    illegal = sorted({c for c in command if c in "[]<>\\" or not (c.isascii() and c.isprintable())})
    if illegal:
        return f"A command has no {illegal[0]!r}."
    for sentence in re.split(r"[.,;:!?\"]|\bthen\b|\band\b", command.lower()):
        first_word = sentence.split()[:1]
        if first_word and (first_word[0] in META or first_word[0].startswith("tw-")):
            return f"{first_word[0]!r} is no command of this game."
    return ""
