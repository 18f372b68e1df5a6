"""TextWorldExpress (https://arxiv.org/abs/2208.01174): eight quick text games."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from steprl.envs.adapters.jvm import Jvm, java_text, package_folder
from steprl.envs.replayed import ReplayedEnvironment, replayed

GAMES = (
    "cookingworld",
    "twc",
    "coin",
    "mapreader",
    "arithmetic",
    "sorting",
    "simonsays",
    "peckingorder",
)
SYSTEM = (
    "You play a text game. Reply with one command, such as: look around; inventory; move north; open "
    "door to north; open THING; take THING; put THING in THING; read THING; cook THING in THING; eat "
    "THING; or what the game itself names."
)
_FOLDS = {"train": "train", "eval": "dev", "dev": "dev", "test": "test"}


def environment(
    games: str | Sequence[str] = "coin",
    params: str | Mapping[str, Any] = "",
    split: str = "train",
    max_steps: int = 50,
    engines: int | None = None,
    memory_mb: int = 512,
) -> ReplayedEnvironment:
    """TextWorldExpress, by value. Task number i is `games[i % n]`, with the next seed of its fold.

    The reward is the increase of the score, which ends at 1. `info["admissible_commands"]` lists what
    the game understands.

    Args:
        games: names out of `GAMES`.
        params: properties of the games, as "numLocations=3,includeDoors=0" or as a mapping.
        split: "train", "dev" (also as "eval") or "test": a thousand seeds each.
        max_steps: an episode is truncated after so many commands.
        engines: games at most that are live at once, all in one Java process: 16, but 1 where "sorting"
            is among the games, as two of those with one seed disturb each other. Going back is quick.
        memory_mb: heap of that process at most.

    Raises:
        ValueError: a name is unknown, or "sorting" has several engines. Properties are checked
            at the first reset.
        ImportError: the extra `textworld-express` is not installed.
    """
    package_folder("textworld_express")
    names = (games,) if isinstance(games, str) else tuple(games)
    for argument, values, allowed in (("games", names, GAMES), ("split", (split,), tuple(_FOLDS))):
        unknown = [name for name in values if name not in allowed]
        if unknown or not values:
            raise ValueError(f"{argument}: {unknown or 'empty'}; choose from {', '.join(allowed)}")
    engines = (1 if "sorting" in names else 16) if engines is None else engines
    if "sorting" in names and engines > 1:
        raise ValueError(f"engines={engines}: with 'sorting' among the games, 1")
    if not isinstance(params, str):
        params = ",".join(f"{key}={_property(value)}" for key, value in params.items())
    jvm = Jvm(
        "textworld_express",
        "textworld-express.jar",
        "textworldexpress.runtime.PythonInterface",
        memory_mb,
    )
    make = TextWorldExpress(names, params, _FOLDS[split], jvm)
    return replayed(make, engines=engines, max_steps=max_steps, system=SYSTEM)


@dataclasses.dataclass(frozen=True)
class TextWorldExpress:
    """Makes engines; see `environment`."""

    games: tuple[str, ...]
    params: str
    fold: str
    jvm: Jvm

    def __call__(self) -> "_Engine":
        return _Engine(self)


class _Engine:
    def __init__(self, settings: TextWorldExpress):
        self._settings, self._lock = settings, settings.jvm.lock
        self._open = contextlib.ExitStack()
        self._game = self._open.enter_context(settings.jvm.simulator())

    def reset(self, task: int, solve: bool = False) -> str:
        settings, game = self._settings, self._game
        round_, index = divmod(task, len(settings.games))
        self._name, self._score = settings.games[index], 0.0
        with self._lock:
            if problem := game.load(self._name, settings.params):
                raise ValueError(f"params: {problem}")
            seeds = getattr(game, f"getSeeds{settings.fold.capitalize()}")()
            seed = seeds[round_ % len(seeds)]
            response = json.loads(game.generateNewGameJSON(seed, settings.fold, solve))
            return f"{game.getTaskDescription()}\n\n{response['observation']}"

    def step(self, action: str) -> tuple[str, float, bool, bool, Mapping[str, Any]]:
        with self._lock:
            response = json.loads(self._game.stepJSON(java_text(action).strip()))
        text, score = response["observation"], float(response["score"])
        reward, self._score = score - self._score, score
        success, failure = bool(response["tasksuccess"]), bool(response["taskfailure"])
        unknown = text.startswith("Unknown action")
        info = {
            "success": success,
            "valid": not unknown,
            "reason": text if unknown else "",
            "score": score,
            "task_type": self._name,
            "admissible_commands": tuple(sorted(response["validActions"])),
        }
        return text, reward, success or failure or score >= 1.0, False, info

    def solve(self, task: int) -> list[str]:
        with self._lock:
            self.reset(task, solve=True)
            return list(self._game.getGoldActionSequence())

    def close(self) -> None:
        self._open.close()


def gold_actions(env: ReplayedEnvironment, task: int) -> list[str]:
    """A solution of a task, as TextWorldExpress gives it; for demonstrations.

    Raises:
        ValueError: `env` is not of `environment`.
    """
    with env.engine() as engine:
        if not isinstance(engine, _Engine):
            raise ValueError("env: expected what textworld_express.environment returns")
        return engine.solve(task)


def _property(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
