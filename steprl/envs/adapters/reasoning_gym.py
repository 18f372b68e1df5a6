"""reasoning-gym (https://arxiv.org/abs/2505.24760): questions of a hundred generators, one reply each."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import index
from types import MappingProxyType
from typing import Any

from steprl.envs.adapters.jvm import package_folder
from steprl.tools import last_answer

SYSTEM = (
    "You answer questions. You may think first; end with the answer alone between <answer> and "
    "</answer>, in the form that the question asks for."
)
_SPLITS = ("train", "eval", "test")


def environment(
    datasets: str | Sequence[str] = "basic_arithmetic",
    split: str = "train",
    size: int = 10_000,
    seed: int = 0,
    config: Mapping[str, Any] = MappingProxyType({}),
) -> "ReasoningGym":
    """reasoning-gym, by value. Task number i is a question of `datasets[i % n]`, number `i // n`.

    Splits have seeds of their own: those of "train" are `seed` to `seed + size - 1`, "eval" has the
    next `size`, "test" those behind. Generators of few questions may make the same one for two seeds.

    Args:
        datasets: names of generators, such as "countdown", or "all" (without "composite").
        split: "train", "eval" or "test".
        size: questions of each generator in a split; then they repeat.
        seed: of the first question.
        config: settings of the generators, by name of the generator if there are several.

    Raises:
        ValueError: a name is unknown, or a generator does not take its settings.
        ImportError: the extra `reasoning-gym` is not installed.

    Example:
        >>> env = environment("leg_counting")  # doctest: +SKIP
        >>> state, question = env.reset(0)  # doctest: +SKIP
        >>> env.step(state, "Four legs. <answer>4</answer>")  # doctest: +SKIP
    """
    package_folder("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    known = tuple(name for name in DATASETS if name != "composite")
    names = (
        known
        if datasets == "all"
        else (datasets,)
        if isinstance(datasets, str)
        else tuple(datasets)
    )
    for argument, values, allowed in (("datasets", names, known), ("split", (split,), _SPLITS)):
        unknown = [name for name in values if name not in allowed]
        if unknown or not values:
            raise ValueError(f"{argument}: {unknown or 'empty'}; choose from {', '.join(allowed)}")
    if size < 1:
        raise ValueError(f"size={size} starts at 1")
    settings = dict(config) if len(names) > 1 else {names[0]: dict(config)}
    if unmatched := [name for name in settings if name not in names]:
        raise ValueError(f"config: {unmatched[0]!r} is none of the datasets {', '.join(names)}")
    first_seed = seed + size * _SPLITS.index(split)
    env = ReasoningGym(
        tuple((name, json.dumps(dict(settings.get(name, {})), sort_keys=True)) for name in names),
        size,
        first_seed,
    )
    for name, settings_json in env.datasets:
        if settings_json != "{}":  # others cannot be wrong, and some take a second
            try:
                _dataset(name, size, first_seed, settings_json)
            except Exception as error:
                raise ValueError(f"config of {name}: {type(error).__name__}: {error}") from error
    return env


@dataclasses.dataclass(frozen=True)
class Question:
    """The state: which question it is, and whether it was answered."""

    task: int
    over: bool = False


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
    """One question, one reply; see `environment`.

    Attributes:
        datasets: names of generators, with their settings as JSON.
        size: questions of each.
        seed: of the first.
    """

    datasets: tuple[tuple[str, str], ...]
    size: int
    seed: int
    system: str = SYSTEM
    context: str = "extend"
    max_steps: int = 1

    def reset(self, task: int, key: Any = None) -> tuple[Question, str]:
        """The question of a task.

        Args:
            task: a non-negative integer; questions repeat after `size` of each generator.
            key: unused, there is no chance.

        Raises:
            ValueError: the task is negative.
        """
        if index(task) < 0:
            raise ValueError(f"tasks are non-negative integers, got {task}")
        _, _, item = self._item(index(task))
        return Question(index(task)), item["question"]

    def step(
        self, state: Question, action: str
    ) -> tuple[Question, str, float, bool, bool, dict[str, Any]]:
        """Score a reply: what stands between the last <answer> and </answer>, or else all of it.

        Returns:
            State, "", reward (the generator's score in [0, 1]), True, False, and info: `success` (a
            score of 1), `valid` (there were tags, and the generator could read the answer), `reason`,
            `task_type` (the generator).

        Raises:
            ValueError: the question was answered already.
        """
        if state.over:
            raise ValueError("the episode is over: step again from the first state, or reset")
        name, dataset, item = self._item(state.task)
        answer, tagged = last_answer(action)
        reason = "" if tagged else "no <answer>...</answer>"
        try:
            score = min(max(float(dataset.score_answer(answer, item)), 0.0), 1.0)
        except Exception as error:  # some generators read the answer as a number, or evaluate it
            score, reason = 0.0, f"the answer cannot be read: {type(error).__name__}: {error}"[:200]
        info = {
            "success": score >= 0.999,
            "valid": not reason,
            "reason": reason,
            "task_type": name,
        }
        return dataclasses.replace(state, over=True), "", score, True, False, info

    def reference_answer(self, task: int) -> str:
        """The generator's own answer; for demonstrations. Not every generator accepts its own."""
        return str(self._item(task)[2]["answer"])

    def _item(self, task: int) -> tuple[str, Any, Mapping[str, Any]]:
        dataset_index, place = task % len(self.datasets), task // len(self.datasets)
        name, settings_json = self.datasets[dataset_index]
        dataset = _dataset(name, self.size, self.seed, settings_json)
        return name, dataset, dataset[place % self.size]


@lru_cache(maxsize=256)
def _dataset(name: str, size: int, seed: int, settings_json: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(settings_json))
