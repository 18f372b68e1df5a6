"""An environment whose tasks misbehave, each in another way; the tasks behind them are sound.

Light, for it is imported by child processes.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

STEPS = 3


class Unprintable(Exception):
    """Says nothing, but raises another error."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Odd:
    """Nothing that can be told, compared or counted."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __float__(self) -> float:
        raise RuntimeError("no number")


def _raise(error: BaseException) -> Any:
    raise error


def _deep(depth: int = 0) -> Any:
    return _deep(depth + 1)


SOUND: tuple[Any, ...] = ("go on", 0.5, False, False, {"success": False, "valid": True})
FIELDS = ("observation", "reward", "terminated", "truncated", "info")
TEXTS: dict[str, Any] = {
    "None": None, "bytes": b"go on", "an int": 7, "a list": ["go on"], "a dict": {"text": "go on"},
    "a lone surrogate": "go \ud800 on", "a lone low surrogate": "\udfff", "NaN": math.nan,
}  # fmt: skip
NUMBERS: dict[str, Any] = {
    "None": None, "NaN": math.nan, "inf": math.inf, "-inf": -math.inf, "1e38": 1e38, "-1e38": -1e38,
    "1e300": 1e300, "10**400": 10**400, "text": "0.5", "a list": [0.5], "two numbers": np.ones(2),
    "complex": 1j, "a dict": {}, "float32 NaN": np.float32("nan"), "an odd object": Odd(),
}  # fmt: skip
FLAGS: dict[str, Any] = {
    "None": None, "text": "no", "two": np.ones(2, bool), "a list": [], "NaN": math.nan, "2": 2,
    "an odd object": Odd(),
}  # fmt: skip
INFOS: dict[str, Any] = {
    "None": None, "empty": {}, "without success": {"valid": True}, "a list": [], "text": "success",
    "success None": {"success": None, "valid": True},
    "success text": {"success": "yes", "valid": True},
    "success NaN": {"success": math.nan, "valid": True},
    "success two": {"success": np.ones(2, bool), "valid": True},
    "success odd": {"success": Odd(), "valid": True},
}  # fmt: skip
RAISED: dict[str, Callable[[], Any]] = {
    "ValueError": lambda: _raise(ValueError("a value")),
    "KeyError": lambda: _raise(KeyError("a key")),
    "StopIteration": lambda: _raise(StopIteration()),
    "SystemExit": lambda: _raise(SystemExit(0)),
    "MemoryError": lambda: _raise(MemoryError()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "TimeoutError": lambda: _raise(TimeoutError()),
    "AssertionError": lambda: _raise(AssertionError()),
    "an error whose text raises": lambda: _raise(Unprintable()),
    "an error with a lone surrogate": lambda: _raise(ValueError("\ud800")),
    "an error with markup": lambda: _raise(ValueError("[/bold] [red] :smile: {x}")),
    "an error of a million letters": lambda: _raise(ValueError("x" * 10**6)),
    "endless recursion": _deep,
    "an error with a cause": lambda: _raise(BaseExceptionGroup("two", [ValueError(), KeyError()])),
}


def _with(place: int, value: Any) -> Callable[[], Any]:
    return lambda: (*SOUND[:place], value, *SOUND[place + 1 :])


def _step_faults() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    values = (TEXTS, NUMBERS, FLAGS, FLAGS, INFOS)
    for place, (field, kinds) in enumerate(zip(FIELDS, values, strict=True)):
        found |= {f"{field}: {name}": _with(place, value) for name, value in kinds.items()}
        found[f"{field}: missing"] = lambda place=place: SOUND[:place] + SOUND[place + 1 :]  # type: ignore[misc]
    found["observation: 100 MB"] = lambda: ("x" * 10**8, *SOUND[1:])
    found |= {f"raises {name}": act for name, act in RAISED.items()}
    found |= {
        "returns None": lambda: None,
        "returns a number": lambda: 3,
        "returns text of six letters": lambda: "abcdef",
        "returns nothing": lambda: (),
        "returns seven values": lambda: (*SOUND, 1),
        "returns a generator": lambda: (x for x in range(6)),
        "returns a dict": lambda: dict(enumerate(range(6))),
    }
    return found


STEP_FAULTS = _step_faults()
RESET_FAULTS: dict[str, Callable[[int], Any]] = {
    **{f"observation: {name}": lambda task, v=v: ((task, 0), v) for name, v in TEXTS.items()},  # type: ignore[misc]
    **{f"raises {name}": lambda task, act=act: act() for name, act in RAISED.items()},  # type: ignore[misc]
    "observation: 100 MB": lambda task: ((task, 0), "x" * 10**8),
    "observation: longer than the context": lambda task: ((task, 0), "a long story " * 500),
    "returns None": lambda task: None,
    "returns the state alone": lambda task: ((task, 0),),
    "returns three values": lambda task: ((task, 0), "begin", {}),
    "returns text": lambda task: "begin",
}
FAULTS = (*(("step", name) for name in STEP_FAULTS), *(("reset", name) for name in RESET_FAULTS))


class Misbehaving:
    """Task k < len(FAULTS) has fault k, in its second step or in `reset`."""

    max_steps = STEPS

    def reset(self, task: int, key: Any = None) -> Any:
        where, name = FAULTS[task] if task < len(FAULTS) else ("", "")
        if where == "reset":
            return RESET_FAULTS[name](task)
        return (task, 0), f"task {task}, begin"

    def step(self, state: tuple[int, int], action: str) -> Any:
        task, turn = state
        where, name = FAULTS[task] if task < len(FAULTS) else ("", "")
        turn += 1
        over = turn == STEPS
        if where == "step" and turn == 2:
            given = STEP_FAULTS[name]()
            # The state comes first, in whatever has the form of a tuple of a step.
            return (
                ((task, turn), *given)
                if isinstance(given, tuple) and len(given) in (4, 5)
                else given
            )
        info = {"success": over, "valid": True}
        return (task, turn), f"turn {turn}", 1.0 if over else 0.0, over, False, info


class AlwaysBroken(Misbehaving):
    """Every step of every task fails."""

    def step(self, state: tuple[int, int], action: str) -> Any:
        raise ConnectionError("the simulator at port 8080 does not answer")


def misbehaving() -> Misbehaving:
    """For env.name=faults.environment:misbehaving."""
    return Misbehaving()


def always_broken() -> AlwaysBroken:
    """For env.name=faults.environment:always_broken."""
    return AlwaysBroken()
