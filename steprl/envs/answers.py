"""What an environment gives, checked at one place: where it comes in, before anything reads it.

An answer is checked value by value, and what is wrong is named with the value. Whoever plays the
environment turns a `BadAnswer` into a fault of that trajectory alone.
"""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

OBSERVATION_LIMIT = 1_000_000
"""Characters of one observation at most, unless `rollout.observation_limit` sets it; a longer one is
a fault and is never tokenised."""

REWARD_LIMIT = 1e9
"""The largest reward of a step; beyond it, squares of sums of rewards overflow float32."""

UNREADABLE = -math.inf
"""The reward of a step of a game whose tokens are none: like any that is not finite, it is a fault."""

MESSAGE_LIMIT = 500
"""Characters of the description of a fault."""

_RESET = ("state", "observation")
_STEP = ("state", "observation", "reward", "terminated", "truncated", "info")
_NO_NUMBERS = "cSUMmO"  # kinds of NumPy types: complex, texts, dates, objects

Checked = TypeVar("Checked")


class BadAnswer(ValueError):
    """An environment gave something else than its protocol says."""


class EnvironmentFailed(RuntimeError):
    """Every attempt ended by a fault of the environment: there is nothing to learn or to measure."""


class Answer(NamedTuple):
    """What `step` gives, in the types of Python."""

    state: Any
    observation: str | list[dict[str, Any]]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]  # with "success" and "valid"


def checked_reset(given: Any, limit: int = OBSERVATION_LIMIT) -> tuple[Any, Any]:
    """State and observation from what `reset` returned.

    Args:
        limit: characters of an observation at most.

    Raises:
        BadAnswer: it is none, with the value that is wrong.
    """

    def check() -> tuple[Any, Any]:
        state, observation = _parts(given, "reset", _RESET)
        return state, _observation(observation, limit)

    return _guarded(check)


def checked_step(given: Any, limit: int = OBSERVATION_LIMIT) -> Answer:
    """The answer from what `step` returned.

    Args:
        limit: characters of an observation, or of a text in the info, at most.

    Raises:
        BadAnswer: it is none, with the value that is wrong.
    """

    def check() -> Answer:
        state, *values = _parts(given, "step", _STEP)
        return _answer(state, values, limit)

    return _guarded(check)


def checked_engine_step(given: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """The answer from what `step` of a `steprl.envs.replayed.Engine` returned.

    Raises:
        BadAnswer: it is none, with the value that is wrong.
    """

    def check() -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *values, info = _parts(given, "step", _STEP[1:])
        if isinstance(info, Mapping):
            info = {"valid": True, "reason": "", **info}
        # Simulators often have 0 and 1 for False and True.
        return _answer(None, [*values, info], OBSERVATION_LIMIT, numbers=True)[1:]

    return _guarded(check)


def checked_observation(given: Any, limit: int = OBSERVATION_LIMIT) -> Any:
    """Text, or a list of messages.

    Raises:
        BadAnswer: it is neither, is no valid Unicode, or has more characters than `limit`.
    """
    return _guarded(lambda: _observation(given, limit))


def checked_reward(value: Any) -> float:
    """The reward as a number of Python.

    Raises:
        BadAnswer: it is no number, not finite, or beyond `REWARD_LIMIT`.
    """
    number = _number(value)
    if number is None:
        raise BadAnswer(f"the reward is {_with_type(value)}; expected a number")
    if not abs(number) <= REWARD_LIMIT:
        raise BadAnswer(
            f"the reward is {number:g}; expected a finite number of at most {REWARD_LIMIT:g} in size"
        )
    return number


def checked_flag(value: Any, name: str, numbers: bool = False) -> bool:
    """True or False; with `numbers`, 1 and 0 as well.

    Raises:
        BadAnswer: it is something else, with `name`.
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(plain, bool):
        return plain
    if numbers and isinstance(plain, int | float) and plain in (0, 1):
        return bool(plain)
    raise BadAnswer(f"{name} is {_with_type(value)}; expected True or False")


def checked_metrics(given: Any) -> dict[str, float]:
    """The numbers of an episode from what `metrics` returned.

    Raises:
        BadAnswer: it is no dict of numbers, with the value that is wrong. NaN is allowed.
    """

    def check() -> dict[str, float]:
        if not isinstance(given, Mapping):
            raise BadAnswer(f"`metrics` returned {_with_type(given)}; expected a dict of numbers")
        numbers = {}
        for name, value in given.items():
            number = _number(value)
            if not isinstance(name, str) or number is None or abs(number) > 3e38:
                raise BadAnswer(
                    f"`metrics` gave {shown(name)} as {_with_type(value)}; expected a finite "
                    "number, or NaN for what the episode has not"
                )
            numbers[_text(name, "the name of a metric", MESSAGE_LIMIT)] = number
        return numbers

    return _guarded(check)


def checked_privileged(given: Any, limit: int = OBSERVATION_LIMIT) -> str:
    """The text that `privileged` returned.

    Args:
        limit: characters of it at most.

    Raises:
        BadAnswer: it is no text, no valid Unicode, or has more characters.
    """

    def check() -> str:
        if not isinstance(given, str):
            raise BadAnswer(f"`privileged` returned {_with_type(given)}; expected text")
        return _text(given, "what `privileged` returned", limit)

    return _guarded(check)


def describe(error: BaseException) -> str:
    """Type and message of an exception in one short line, whatever its `__str__` does."""
    name = type(error).__name__
    try:
        message = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"{name} (its message cannot be shown)"
    return one_line(f"{name}: {message}").rstrip(": ")


def one_line(text: str) -> str:
    """A text in one line of valid Unicode, cut where it is long."""
    line = " ".join(text[: 4 * MESSAGE_LIMIT].split())
    line = line if len(line) <= MESSAGE_LIMIT else line[:MESSAGE_LIMIT] + " ..."
    return line.encode("utf-8", "replace").decode("utf-8")


def shown(value: Any) -> str:
    """A value for a message: short, in one line, whatever its `__repr__` does."""
    try:
        if isinstance(value, bytes | bytearray):
            value = bytes(value[:40])
        return one_line(_SHORT.repr(value))[:200]
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "a value that cannot be shown"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _guarded(check: Callable[[], Checked]) -> Checked:
    """Values of an environment may raise when they are merely looked at."""
    try:
        return check()
    except (BadAnswer, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise BadAnswer(f"its answer cannot be read: {describe(error)}") from None


def _answer(state: Any, values: Sequence[Any], limit: int, numbers: bool = False) -> Answer:
    observation, reward, terminated, truncated, info = values
    return Answer(
        state,
        _observation(observation, limit),
        checked_reward(reward),
        checked_flag(terminated, "terminated", numbers),
        checked_flag(truncated, "truncated", numbers),
        _info(info, limit),
    )


def _with_type(value: Any) -> str:
    return "None" if value is None else f"{shown(value)} ({type(value).__name__})"


def _parts(given: Any, call: str, names: tuple[str, ...]) -> Sequence[Any]:
    expected = f"expected {len(names)} values: {', '.join(names)}"
    if not isinstance(given, tuple | list):
        raise BadAnswer(f"`{call}` returned {_with_type(given)}; {expected}")
    if len(given) != len(names):
        number = f"{len(given)} value{'s' * (len(given) != 1)}"
        raise BadAnswer(f"`{call}` returned {number}, {shown(given)}; {expected}")
    return given


def _observation(value: Any, limit: int) -> Any:
    """Text, or a list of messages, whose texts are valid Unicode and not too long."""
    if isinstance(value, str):
        return _text(value, "the observation", limit)
    messages = isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)
    if not messages or not all(isinstance(message, Mapping) for message in value) or not len(value):
        raise BadAnswer(
            f"the observation is {_with_type(value)}; expected text, or a list of messages"
        )
    if wrong := [message for message in value if not isinstance(message.get("role"), str)]:
        raise BadAnswer(
            f"the observation has the message {shown(wrong[0])}; expected a dict with 'role' and 'content'"
        )
    return _messages(value, limit)


def _messages(value: Any, limit: int) -> list[dict[str, Any]]:
    """A copy of messages in the types of Python, which nobody else can change or be asked of."""
    left = limit

    def copied(part: Any) -> Any:
        nonlocal left
        left -= 1 + (str.__len__(part) if isinstance(part, str) else 0)
        if left < 0:  # one that holds itself comes to an end here too
            raise BadAnswer(_too_long("the observation", "too many characters", limit))
        if isinstance(part, str):
            return _text(part, "the observation", limit)
        if isinstance(part, Mapping):
            return {copied(key): copied(each) for key, each in part.items()}
        if isinstance(part, Sequence) and not isinstance(part, bytes | bytearray | memoryview):
            return [copied(each) for each in part]
        plain = _scalar(part)
        if plain is not None and not isinstance(plain, bool | int | float):
            raise BadAnswer(
                f"the observation has a message with {_with_type(part)}; expected texts, numbers, lists "
                "and dicts"
            )
        return plain

    return [copied(message) for message in value]


def _text(value: str, what: str, limit: int) -> str:
    value = str.__str__(value)  # of a subclass, the text alone
    if len(value) > limit:
        raise BadAnswer(_too_long(what, f"{len(value):,} characters", limit))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadAnswer(
            f"{what} is no valid Unicode: it has a lone surrogate, {value[error.start]!r}, at character "
            f"{error.start}; decode bytes with errors='replace'"
        ) from None
    return value


def _too_long(what: str, size: str, limit: int) -> str:
    return f"{what} has {size}; at most {limit:,} are read (rollout.observation_limit)"


def _number(value: Any) -> float | None:
    """The number that a value is, an array without axes included; None where it is none."""
    if isinstance(value, str | bytes | bytearray | complex) or not hasattr(value, "__float__"):
        return None
    if getattr(value, "ndim", 0) != 0:
        return None
    if getattr(getattr(value, "dtype", None), "kind", "f") in _NO_NUMBERS:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _scalar(value: Any) -> Any:
    """The text or number of Python that a value is, an array without axes included; else the value."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__pos__(value)  # of a subclass, the number alone
    if isinstance(value, float):
        return float.__pos__(value)
    return value


def _info(given: Any, limit: int) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise BadAnswer(
            f"the info is {_with_type(given)}; expected a dict with 'success' and 'valid'"
        )
    info = {_scalar(key): _scalar(value) for key, value in given.items()}
    for name in ("success", "valid"):
        if name not in info:
            raise BadAnswer(
                f"the info has no {name!r}, only {shown(sorted(map(str, info)))}: say whether "
                + ("the task is solved" if name == "success" else "the action was understood")
            )
        info[name] = checked_flag(info[name], f"info[{name!r}]", numbers=True)
    for key, value in info.items():
        if isinstance(value, str):
            info[key] = _text(value, f"info[{shown(key)}]", limit)
    return info
