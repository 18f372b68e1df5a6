"""ScienceWorld (https://arxiv.org/abs/2203.07540): thirty tasks of elementary science in a text world."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from steprl.envs.adapters.jvm import Jvm, java_text, package_folder
from steprl.envs.replayed import ReplayedEnvironment, replayed

SYSTEM = (
    "You are in a text world, where you do the task that you are given. Reply with one command, such "
    "as: look around; look at OBJECT; look in OBJECT; inventory; open OBJECT; close OBJECT; go to "
    "PLACE; teleport to PLACE; pick up OBJECT; put down OBJECT; move OBJECT to OBJECT; pour OBJECT "
    "into OBJECT; dunk OBJECT into OBJECT; mix OBJECT; activate OBJECT; deactivate OBJECT; use OBJECT "
    "on OBJECT; connect OBJECT to OBJECT; disconnect OBJECT; read OBJECT; eat OBJECT; flush OBJECT; "
    "focus on OBJECT, to show what the task is about; wait; wait1; task, to read the task again. If "
    "a request is ambiguous, reply with the number of the action that you mean."
)
_SPLITS = {"train": "Train", "eval": "Dev", "dev": "Dev", "test": "Test"}
_SIMPLIFICATIONS = (
    "easy",
    "noElectricalAction",
    "openContainers",
    "openDoors",
    "selfWateringFlowerPots",
    "teleportAction",
)
# Without it, objects are listed in the order of their addresses, and even temperatures depend on it.
_SAME_ORDER = ("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")


def environment(
    tasks: str | Sequence[str] = "all",
    split: str = "train",
    simplification: str = "easy",
    valid_actions: bool = False,
    max_steps: int = 100,
    engines: int = 16,
    memory_mb: int = 1024,
) -> ReplayedEnvironment:
    """ScienceWorld, by value. Task number i is of `tasks[i % n]`; its variations follow in order.

    The reward is the increase of the score over 100. Success is a score of 100; a score below 0 means
    that the task has failed, and ends the episode, as in ScienceWorld itself.

    Args:
        tasks: names of tasks, such as "boil", or "all".
        split: "train", "dev" (also as "eval") or "test": ScienceWorld's own parts of the variations.
        simplification: "easy" for all, "" for none, or names with commas between them.
        valid_actions: list them in `info["admissible_commands"]`; that takes longer than the step.
        max_steps: an episode is truncated after so many commands.
        engines: simulators at most, about 11 MB each; all are in one Java process.
        memory_mb: heap of that process at most.

    Raises:
        ValueError: a name is unknown.
        ImportError: the extra `scienceworld` is not installed.
    """
    package_folder("scienceworld")
    from scienceworld.constants import ID2TASK

    known = tuple(ID2TASK.values())
    names = known if tasks == "all" else (tasks,) if isinstance(tasks, str) else tuple(tasks)
    simplifications = tuple(name for name in simplification.split(",") if name)
    for argument, values, allowed in (
        ("tasks", names, known),
        ("split", (split,), tuple(_SPLITS)),
        ("simplification", simplifications, _SIMPLIFICATIONS),
    ):
        unknown = [name for name in values if name not in allowed]
        if unknown or (argument == "tasks" and not values):
            raise ValueError(f"{argument}: {unknown or 'empty'}; choose from {', '.join(allowed)}")
    jvm = Jvm(
        "scienceworld",
        "scienceworld.jar",
        "scienceworld.runtime.pythonapi.PythonInterface",
        memory_mb,
        _SAME_ORDER,
    )
    make = ScienceWorld(names, split, simplification, valid_actions, jvm)
    return replayed(make, engines=engines, max_steps=max_steps, system=SYSTEM)


@dataclasses.dataclass(frozen=True)
class ScienceWorld:
    """Makes engines; see `environment`."""

    tasks: tuple[str, ...]
    split: str
    simplification: str
    valid_actions: bool
    jvm: Jvm

    def __call__(self) -> "_Engine":
        return _Engine(self)


class _Engine:
    def __init__(self, settings: ScienceWorld):
        self._settings, self._lock = settings, settings.jvm.lock
        self._variations: dict[str, list[int]] = {}
        self._open = contextlib.ExitStack()
        self._game = self._open.enter_context(settings.jvm.simulator())

    def reset(self, task: int) -> str:
        settings, game = self._settings, self._game
        round_, index = divmod(task, len(settings.tasks))
        name = settings.tasks[index]
        with self._lock:
            if name not in self._variations:  # the simulator lists them for a loaded task only
                game.load(name, 0, settings.simplification, False)
                listed = getattr(game, f"getVariations{_SPLITS[settings.split]}")()
                self._variations[name] = list(listed)
            variations = self._variations[name]
            self._name, self._variation = name, variations[round_ % len(variations)]
            # `reset` of the simulator would do this again, and look for a solution, for seconds.
            game.load(name, self._variation, settings.simplification, False)
            self._score = 0
            return f"{game.getTaskDescription()}\n\n{game.step('look around')}"

    def step(self, action: str) -> tuple[str, float, bool, bool, Mapping[str, Any]]:
        game = self._game
        with self._lock:
            text = game.step(java_text(action).strip())
            score = round(100 * game.getScore())
            over = score < 0 or score >= 100 or bool(game.getCompleted())
            listed = ()
            if self._settings.valid_actions:
                listed = tuple(sorted(game.getValidActionObjectCombinations()))
        reward, self._score = (score - self._score) / 100, score
        unknown = text.startswith(("No known action", "Unknown action"))
        info = {
            "success": score >= 100,
            "valid": not unknown,
            "reason": text if unknown else "",
            "score": score,
            "task_type": self._name,
            "variation": self._variation,
        }
        if self._settings.valid_actions:
            info["admissible_commands"] = listed
        return text, reward, over, False, info

    def solve(self, task: int) -> list[str]:
        with self._lock:
            self.reset(task)
            simplification = self._settings.simplification
            self._game.load(self._name, self._variation, simplification, True)
            return list(self._game.getGoldActionSequence())

    def close(self) -> None:
        self._open.close()


def gold_actions(env: ReplayedEnvironment, task: int) -> list[str]:
    """A solution of a task, as ScienceWorld gives it; for demonstrations.

    Raises:
        ValueError: `env` is not of `environment`.
    """
    with env.engine() as engine:
        if not isinstance(engine, _Engine):
            raise ValueError("env: expected what scienceworld.environment returns")
        return engine.solve(task)
