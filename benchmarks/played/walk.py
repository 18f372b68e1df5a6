"""A text environment for timing branches and rollouts, with tool calls that hang or crash.

A language of numbers: a word is a number, a number is a token. Observations depend on the task and
on all actions so far, so that a wrong state or a lost action is noticed. No JAX here: processes
that step the environment import this file.
"""

import functools
import os
import random
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

SHORTEST, LONGEST = 12, 20  # words of an observation
VOCABULARY = 4096


class State(NamedTuple):
    """Where a walk is; a value, so keeping it is a snapshot."""

    task: int
    number: int  # steps so far
    said: int  # a digest of all actions


class Walk:
    """Observations of 12 to 20 words; ends after as many steps as `length(task)` says.

    Args:
        length: steps of a task; None for no end.
        words: of the vocabulary that observations use.
        before_step: called with state and action before each step: a delay, or a fault.
    """

    def __init__(
        self,
        length: Callable[[int], int] | None = None,
        words: int = VOCABULARY,
        before_step: Callable[[State, str], None] | None = None,
    ):
        self.length, self.words, self.before_step = length, words, before_step

    def reset(self, task: int, key: Any = None) -> tuple[State, str]:
        state = State(task, 0, zlib.crc32(str(task).encode()))
        return state, self.observation(state)

    def step(self, state: State, action: str) -> tuple[State, str, float, bool, bool, dict]:
        if self.before_step is not None:
            self.before_step(state, action)
        next_state = State(state.task, state.number + 1, zlib.crc32(action.encode(), state.said))
        over = self.length is not None and next_state.number >= self.length(state.task)
        info = {"success": over and next_state.said % 2 == 0, "valid": True}
        return next_state, self.observation(next_state), float(info["success"]), over, False, info

    def observation(self, state: State) -> str:
        rng = random.Random(state.said)
        size = rng.randint(SHORTEST, LONGEST)
        return " ".join(str(rng.randrange(self.words)) for _ in range(size))


class Weather(NamedTuple):
    """How tool calls go: seconds that one takes, and shares of those that go wrong."""

    quickest: float = 0.005
    slowest: float = 0.020
    hanging: float = 0.0
    crashing: float = 0.0
    hang: float = 6.0  # seconds; longer than any deadline


def fault_of(weather: Weather, task: int, step: int) -> str:
    """ "timeout", "crash" or "": drawn from task and step, the same in every run."""
    drawn = random.Random(f"fault {task} {step}").random()
    if drawn < weather.hanging:
        return "timeout"
    # From the other end, so that the two kinds do not change places when one is left out.
    return "crash" if drawn >= 1 - weather.crashing else ""


def call_tool(weather: Weather, dies: bool, state: State, action: str) -> None:
    """Takes its time; hangs or crashes where that was drawn. `dies`: with its whole process."""
    fault = fault_of(weather, state.task, state.number)
    share = random.Random(f"delay {state.task} {state.number}").random()
    time.sleep(weather.quickest + share * (weather.slowest - weather.quickest))
    if fault == "timeout":
        time.sleep(weather.hang)
    elif fault == "crash" and dies:
        os._exit(3)
    elif fault == "crash":
        raise ConnectionError("the tool is gone")


def always(steps: int, task: int) -> int:
    """The length of every episode."""
    return steps


def mixed(shortest: int, longest: int, task: int) -> int:
    """Lengths of episodes uniform in the logarithm: short ones are more frequent."""
    share = random.Random(f"length {task}").random()
    return round(shortest * (longest / shortest) ** share)


def with_tool(weather: Weather, length: Callable[[int], int], dies: bool = False) -> Walk:
    """A walk whose steps call a tool."""
    return Walk(length, before_step=functools.partial(call_tool, weather, dies))
