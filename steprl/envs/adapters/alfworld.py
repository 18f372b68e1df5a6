"""ALFWorld's own engine on the games of `steprl.envs.household`, task by task.

    from steprl.envs.adapters.alfworld import environment

    env = environment(split="train")
    state, text = env.reset(0)
    state, text, reward, terminated, truncated, info = env.step(state, "go to desk 1")

`Household` plays the same games with the same texts some thousand times faster, and its states are
small values; this engine is what it is compared with. The engine cannot be copied, so a branch is a
reset and the same commands again. Needs `pip install 'steprl[alfworld]'`, parts of which
(fast_downward_textworld, jericho) are under the GPL.
"""

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from steprl.envs import Env
from steprl.envs.household import Household, HouseholdGame
from steprl.envs.household.catalogue import catalogue
from steprl.envs.household.game import Thing
from steprl.envs.replayed import replayed

SYSTEM = (
    "You act in a house. Reply with one command, such as: look; inventory; go to PLACE; open PLACE; "
    "close PLACE; take THING from PLACE; move THING to PLACE; examine THING; use LAMP; clean THING "
    "with PLACE; heat THING with PLACE; cool THING with PLACE; slice THING with KNIFE."
)
_MANGLING = (("-", "_minus_"), ("#", "-"), ("|", "_bar_"), ("+", "_plus_"), (".", "_dot_"))
_LOADING = threading.Lock()  # the translator of the games redirects the standard output


def environment(split: str = "train", engines: int = 16, **options: Any) -> Env:
    """ALFWorld's games in ALFWorld's engine (https://arxiv.org/abs/2010.03768).

    `info` is that of `Household`; a command that is not admissible is not valid.

    Args:
        split: a split of `Household`; "eval" is valid_unseen.
        engines: engines at most, one for each episode that is played at the same time.
        options: further settings of `Household`, such as `task_types` and `max_steps`.

    Raises:
        ImportError: ALFWorld is not installed.
        TypeError: `Household` has no such setting.
        ValueError: a setting names something that does not exist.
    """
    household = Household(split="valid_unseen" if split == "eval" else split, **options)
    _alfworld()
    make = partial(AlfworldEngine, household)
    return replayed(make, engines=engines, max_steps=household.max_steps, system=SYSTEM)


class AlfworldEngine:
    """ALFWorld's `PddlEnv`: an engine of `steprl.envs.replayed`."""

    def __init__(self, household: Household):
        self._household, self._task = household, -1
        self._engine = pddl_engine()

    def reset(self, task: int) -> str:
        game = self._household.game(task)
        with _LOADING:
            if task != self._task:
                self._engine.load(description(game))
                self._task = task
            self._state = self._engine.reset()
        self._task_type = game.goal.task_type
        return self._state["feedback"]

    def step(self, action: str) -> tuple[str, float, bool, bool, Mapping[str, Any]]:
        valid = action.strip() in self._state["admissible_commands"]
        self._state, score, over = self._engine.step(action)
        won = bool(self._state["won"])
        info = {
            "success": won,
            "won": won,
            "valid": valid,
            "reason": "" if valid else f"not possible here: {action.strip()[:80]!r}",
            "task_type": self._task_type,
            "admissible_commands": tuple(self._state["admissible_commands"]),
        }
        return self._state["feedback"], float(score), bool(over), False, info

    def close(self) -> None:
        # The planner's memory is freed. Its library stays loaded: unloading it crashes.
        self._engine.unwrapped.downward_lib.cleanup()


def description(game: HouseholdGame) -> dict[str, str]:
    """The game as the contents of a `.tw-pddl` file, which ALFWorld's engine loads.

    Raises:
        ImportError: ALFWorld is not installed.
    """
    alfworld = _alfworld()
    return {
        "pddl_domain": alfworld.domain,
        "grammar": alfworld.grammar.replace("UNKNOWN GOAL", game.goal.sentence),
        "pddl_problem": pddl_problem(game, alfworld.goals),
    }


def pddl_engine() -> Any:
    """ALFWorld's engine, in which no game is loaded; `load` takes a `description`.

    Raises:
        ImportError: ALFWorld is not installed.
    """
    return _alfworld().engine()


class _Alfworld(NamedTuple):
    engine: Callable[[], Any]
    goals: Mapping[str, Any]
    domain: str
    grammar: str


@cache
def _alfworld() -> _Alfworld:
    """The parts of ALFWorld that are used. Its import would make a folder in the home directory."""
    spec, previous = importlib.util.find_spec("alfworld"), os.environ.get("ALFWORLD_DATA")
    if spec is not None and previous is None:
        os.environ["ALFWORLD_DATA"] = str(Path(spec.submodule_search_locations[0], "data"))  # type: ignore[index]
    try:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from alfworld.gen.goal_library import gdict
        from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
        from textworld.envs import PddlEnv
    except ImportError as error:
        raise ImportError(f"{error}; ALFWorld needs `pip install 'steprl[alfworld]'`") from error
    finally:
        if previous is None:
            os.environ.pop("ALFWORLD_DATA", None)

    def engine() -> Any:
        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        return AlfredDemangler(PddlEnv(infos), shuffle=False)

    domain, grammar = (Path(path).read_text() for path in (ALFRED_PDDL_PATH, ALFRED_TWL2_PATH))
    return _Alfworld(engine, gdict, domain, grammar)


def _identifier(thing: Thing) -> str:
    """An id that the engine turns into our name: it numbers the sorted ids of a type downwards."""
    position = f"+{99 - thing.number:02d}.00|+00.00|+00.00"
    if thing.type.endswith("Basin"):
        return f"{thing.type.removesuffix('Basin')}|{position}|{thing.type}"
    return f"{thing.type}|{position}"


def pddl_problem(game: HouseholdGame, goals: Mapping[str, Any]) -> str:
    """The game as the problem text of a `.tw-pddl` file, in ALFWorld's spelling."""
    facts = catalogue()
    ids = {t: _identifier(t) for t in (*game.receptacles, *game.objects)}
    object_types = sorted({t.type for t in game.objects} | {game.goal.object})
    receptacle_types = sorted({t.type for t in game.receptacles})
    locations = {t: f"loc|{i}|0|0|30" for i, t in enumerate(game.receptacles)}
    start = "loc|99|0|0|30"
    lines = ["(define (problem plan_0)", "(:domain alfred)", "(:objects", "agent1 # agent"]
    lines += [f"{start} # location", *(f"{place} # location" for place in locations.values())]
    lines += [f"{t}Type # otype" for t in object_types]
    lines += [f"{t}Type # rtype" for t in receptacle_types]
    lines += [f"{ids[t]} # object" for t in game.objects]
    lines += [f"{ids[t]} # receptacle" for t in game.receptacles]
    lines += [")", "(:init", f"(atLocation agent1 {start})"]
    for kind in receptacle_types:
        fitting = [t for t in object_types if t in facts.fits[kind]]
        lines += [f"(canContain {kind}Type {t}Type)" for t in fitting]
    for t in game.receptacles:
        lines += [f"(receptacleType {ids[t]} {t.type}Type)"]
        lines += [f"(receptacleAtLocation {ids[t]} {locations[t]})"]
        lines += [f"(openable {ids[t]})"] if t.type in facts.openable else []
    for t, place in zip(game.objects, game.places, strict=True):
        receptacle = game.receptacles[place]
        lines += [
            f"(objectType {ids[t]} {t.type}Type)",
            f"(inReceptacle {ids[t]} {ids[receptacle]})",
        ]
        lines += [f"(objectAtLocation {ids[t]} {locations[receptacle]})"]
        properties = [name for name, types in facts.properties.items() if t.type in types]
        properties += ["isReceptacleObject"] if t.type in facts.movable_receptacles else []
        properties += ["pickupable"] if any(t.type in fits for fits in facts.fits.values()) else []
        lines += [f"({name} {ids[t]})" for name in properties]
    text = "\n".join([*lines, ")"])
    text += goals[game.goal.task_type]["pddl"].format(
        obj=game.goal.object, recep=game.goal.receptacle, toggle=game.goal.lamp
    )
    for plain, mangled in _MANGLING:
        text = text.replace(plain, mangled)
    return text
