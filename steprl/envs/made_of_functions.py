"""What the environments that are made of functions are given, checked before anything is played."""

import math
from collections.abc import Mapping, Sized
from numbers import Real
from operator import index
from typing import Any

from steprl.envs import CONTEXTS
from steprl.envs.answers import shown


def check_arguments(
    tasks: Any, context: Any, success: Any, system: Any, counts: Mapping[str, Any],
    functions: Mapping[str, Any],
) -> None:  # fmt: skip
    """The arguments that `FlowEnvironment` and `ToolEnvironment` share.

    Args:
        tasks, context, success, system: as there.
        counts: whole numbers from 1, by name.
        functions: what is called, by name.

    Raises:
        ValueError: names the argument, and says what was expected.
    """
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name}: {shown(function)} is no function")
    if not isinstance(tasks, Sized) or isinstance(tasks, Mapping | set | frozenset):
        raise ValueError(
            f"tasks: {shown(tasks)} ({type(tasks).__name__}); give a list, which has a length and an order"
        )
    if not len(tasks):
        raise ValueError("tasks: there is none; an environment needs at least one")
    for name, count in counts.items():
        if not _is_count(count):
            raise ValueError(f"{name}={shown(count)}: give a whole number from 1")
    if not isinstance(context, str) or context not in CONTEXTS:
        raise ValueError(f"context: {shown(context)}; choose from {', '.join(CONTEXTS)}")
    if isinstance(success, bool) or not isinstance(success, Real) or math.isnan(success):
        raise ValueError(
            f"success={shown(success)}: give the reward from which on a task counts as solved"
        )
    if not isinstance(system, str | None):
        raise ValueError(f"system={shown(system)}: give text, or None")


def _is_count(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and index(value) >= 1
    except TypeError:
        return False
