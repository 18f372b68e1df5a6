"""Text for what is in Gymnasium's spaces, and back: spaces are looked at by name, none is imported.

Discrete        "3"                 the last whole number of a reply, or the name of an action
Box             "0.5, -1.25"        so many numbers, in the order of the flat array
MultiDiscrete, MultiBinary          as Box, whole numbers
Text            itself
Dict, Tuple     a line for each     a JSON object or list
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_NUMBERS = 256  # in an observation; an image is none
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WHOLE = re.compile(r"(?<![\w.])[-+]?\d+(?!\.?\d)(?!\w)")
_ARRAYS = ("Box", "MultiDiscrete", "MultiBinary")


def kind_of(space: Any) -> str:
    """The name of Gymnasium's class that a space is of; "" for one that has no text."""
    names = [kind.__name__ for kind in type(space).__mro__]
    return next((n for n in names if n in ("Discrete", "Text", "Dict", "Tuple", *_ARRAYS)), "")


def check_space(space: Any, give: str) -> None:
    """All parts of a space have a text.

    Args:
        give: the argument that would be the way out.

    Raises:
        ValueError: a part has none, or one that is too long.
    """
    kind = kind_of(space)
    if not kind:
        raise ValueError(f"{type(space).__name__} has no text of its own: give `{give}`")
    if kind in _ARRAYS and _size(space) > MOST_NUMBERS:
        raise ValueError(
            f"{_size(space)} numbers are too many for a text, at most {MOST_NUMBERS}: give `{give}`"
        )
    for part in _parts(space).values():
        check_space(part, give)


def describe(space: Any, value: Any) -> str:
    """A value of a space as text."""
    kind = kind_of(space)
    if kind in _ARRAYS:
        return ", ".join(_number(x) for x in value.reshape(-1).tolist())
    if kind in ("Dict", "Tuple"):
        items = value.items() if kind == "Dict" else enumerate(value)
        parts = _parts(space)
        return "\n".join(f"{key}: {describe(parts[str(key)], item)}" for key, item in items)
    return str(value) if kind == "Text" else str(int(value))


def parse(space: Any, text: str, names: Sequence[str] = ()) -> Any:
    """The value of a space that a text stands for.

    Args:
        names: of the values of a Discrete space, from the first on; case does not matter.

    Raises:
        ValueError: it stands for none; the message says why.
    """
    kind = kind_of(space)
    if kind == "Discrete":
        return _choice(space, text, names)
    if kind in _ARRAYS:
        return _array(space, _NUMBER.findall(text))
    if kind in ("Dict", "Tuple"):
        try:
            value = json.loads(text)
        except ValueError:
            raise ValueError("This is not JSON.") from None
        return _structure(space, value)
    if not space.contains(text):
        raise ValueError(f"A reply has {space.min_length} to {space.max_length} known characters.")
    return text


def ask(space: Any, names: Sequence[str] = ()) -> str:
    """How to reply with a value of a space, as a sentence for the model."""
    kind = kind_of(space)
    if kind == "Discrete":
        if names:
            return f"Reply with one of: {', '.join(names)}."
        return f"Reply with one whole number from {space.start} to {space.start + space.n - 1}."
    if kind in _ARRAYS:
        return f"Reply with numbers separated by commas: {_size(space)} in all. {_bounds(space)}"
    if kind in ("Dict", "Tuple"):
        shape = ", ".join(f"{key!r}: {ask(part)}" for key, part in _parts(space).items())
        return f"Reply with a JSON {'object' if kind == 'Dict' else 'list'}. {shape}"
    return f"Reply with a text of at most {space.max_length} characters."


def _parts(space: Any) -> dict[str, Any]:
    kind = kind_of(space)
    if kind == "Dict":
        return {str(key): part for key, part in space.spaces.items()}
    return {str(i): part for i, part in enumerate(space.spaces)} if kind == "Tuple" else {}


def _size(space: Any) -> int:
    size = 1
    for length in space.shape:
        size *= int(length)
    return size


def _bounds(space: Any) -> str:
    kind = kind_of(space)
    if kind == "MultiBinary":
        return "Each is 0 or 1."
    if kind == "MultiDiscrete":
        starts, counts = (x.reshape(-1).tolist() for x in (space.start, space.nvec))
        ends = [f"{start} to {start + n - 1}" for start, n in zip(starts, counts, strict=True)]
    else:
        lows, highs = (x.reshape(-1).tolist() for x in (space.low, space.high))
        ends = [f"{_number(a)} to {_number(b)}" for a, b in zip(lows, highs, strict=True)]
    if len(set(ends)) == 1:
        return f"Each is from {ends[0]}."
    return f"They are from {', '.join(ends)}."


def _number(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(int(x))


def _choice(space: Any, text: str, names: Sequence[str]) -> int:
    if names:
        words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        if matches := re.findall(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE):
            lower = [name.lower() for name in names]
            return int(space.start) + lower.index(matches[-1].lower())
        raise ValueError(ask(space, names))
    numbers = _WHOLE.findall(text)
    if not numbers or not space.contains(int(numbers[-1])):
        raise ValueError(ask(space))
    return int(numbers[-1])


def _array(space: Any, numbers: Sequence[Any]) -> Any:
    import numpy as np

    if len(numbers) != _size(space):
        raise ValueError(f"These are {len(numbers)} numbers. {ask(space)}")
    integral = kind_of(space) != "Box" or np.issubdtype(space.dtype, np.integer)
    floats = [float(x) for x in numbers]
    if integral and not all(x.is_integer() for x in floats):
        raise ValueError(f"These are not whole numbers. {ask(space)}")
    flat = np.asarray(floats)
    with np.errstate(over="ignore", invalid="ignore"):
        value = flat.astype(space.dtype).reshape(space.shape)
    if not space.contains(value) or (integral and (value.reshape(-1) != flat).any()):
        raise ValueError(f"Out of bounds. {ask(space)}")
    return value


def _structure(space: Any, value: Any) -> Any:
    """A value from what was read as JSON."""
    kind, parts = kind_of(space), _parts(space)
    if kind == "Dict":
        if not isinstance(value, Mapping) or set(value) != set(parts):
            raise ValueError(f"Expected a JSON object with {', '.join(map(repr, parts))}.")
        return {key: _structure(part, value[str(key)]) for key, part in space.spaces.items()}
    if kind == "Tuple":
        if not isinstance(value, list) or len(value) != len(parts):
            raise ValueError(f"Expected a JSON list of {len(parts)}.")
        return tuple(_structure(p, item) for p, item in zip(space.spaces, value, strict=True))
    return parse(space, value if isinstance(value, str) else json.dumps(value))
