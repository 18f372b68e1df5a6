"""A call as a JSON object: read strictly, with an error that a model can act on."""

import collections
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steprl.tools.arguments import check_arguments
from steprl.tools.schema import Tool

MAX_DEPTH = 32  # of arrays and objects in each other
MAX_DIGITS = 300  # of a number, so that each one is a float, too
FORM = 'a block holds one object of the form {"name": "...", "arguments": {...}}'
ARGUMENTS = ("arguments", "parameters")
"""Names of the arguments: that of Hermes and that of Llama 3, of which an object has one."""


class ToolCall(NamedTuple):
    """A call to be made; `place` counts the calls and errors of a text from 0."""

    place: int
    name: str
    arguments: dict[str, Any]


class CallError(NamedTuple):
    """A call that cannot be made; `kind` is one of `STATUSES`, `text` says to the model why not."""

    place: int
    kind: str
    text: str
    name: str = ""


class Value(NamedTuple):
    """What was read of a text as JSON."""

    value: Any
    end: int  # where it ends, or where it cannot be read any more
    problem: str  # "" if there is none
    cut: bool = False  # a string was opened and not closed


class _Refused(ValueError):
    """JSON that Python would read and that means trouble."""


def read_value(text: str, begin: int) -> Value:
    """The JSON value that begins there; `problem` says what a call must not hold."""
    try:
        value, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        excerpt = short(text[error.pos : error.pos + 40].partition("</tool_call>")[0].strip(), 20)
        place = f'before "{excerpt}"' if excerpt else "at the end of the block"
        problem = f"no valid JSON ({error.msg}, {place}); {FORM}"
        return Value(None, error.pos, problem, error.msg.startswith("Unterminated string"))
    except _Refused as error:
        return Value(None, begin, f"{error}; {FORM}")
    except RecursionError:
        return Value(None, begin, f"more than {MAX_DEPTH} arrays and objects in each other")
    return Value(value, end, _flaw(value))


def read_call(value: Any, place: int, ignored: Sequence[str] = ()) -> ToolCall | CallError:
    """The call that a JSON value is, or what is wrong with its form.

    Args:
        value: as of `read_value`.
        place: of the call in its text.
        ignored: keys that may stand beside the name and mean nothing.
    """

    def error(problem: str) -> CallError:
        return CallError(place, "bad_form", f"Not called: {problem}.", name)

    name = ""
    if not isinstance(value, dict):
        return error(f"{FORM}, nothing else")
    if not isinstance(value.get("name"), str):
        return error(f'"name" has to be the name of a tool; {FORM}')
    name = short(value["name"], 64)
    for key in value:
        if key not in ("name", *ARGUMENTS, *ignored):
            return error(f'"{short(key, 64)}" does not belong beside "name"; {FORM}')
    given = [key for key in ARGUMENTS if key in value]
    if len(given) > 1:
        return error(f'"arguments" and "parameters" mean the same; {FORM}')
    arguments = value[given[0]] if given else {}
    if not isinstance(arguments, dict):
        return error(f'"{given[0]}" has to be an object, not a string or a list; {FORM}')
    return ToolCall(place, value["name"], arguments)


def check_call(call: ToolCall, tools: Mapping[str, Tool]) -> ToolCall | CallError:
    """The call with arguments of the right types, or why the tool cannot be called so.

    Example:
        >>> check_call(ToolCall(0, "serch", {}), {}).text
        'Not called: there is no tool `serch`. There are no tools.'
    """
    tool = tools.get(call.name) if isinstance(call.name, str) else None
    if tool is None:
        name = short(call.name, 64)
        near = difflib.get_close_matches(name, tools, 1)
        names = ", ".join(f"`{tool_name}`" for tool_name in tools)
        hint = f"Did you mean `{near[0]}`? " if near else ""
        available = f"The tools are {names}." if names else "There are no tools."
        text = f"Not called: there is no tool `{name}`. {hint}{available}"
        return CallError(call.place, "unknown_tool", text, name)
    arguments, problems = check_arguments(call.arguments, tool.parameters)
    if problems:
        text = f"`{tool.name}` was not called: {'; '.join(problems)}."
        return CallError(call.place, "bad_arguments", text, tool.name)
    return call._replace(arguments=arguments)


def _flaw(value: Any) -> str:
    """What JSON allows and no tool should have to deal with; level by level, not by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and short(item, len(item)) != item:
                    return "half of a surrogate pair is no character"
            elif isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
        if not deeper:
            return ""
        level = deeper
    return f"more than {MAX_DEPTH} arrays and objects in each other"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Refused(f'the key "{short(repeated, 64)}" occurs twice')
    return result


def _number(kind: type) -> Any:
    def read(digits: str) -> Any:
        if len(digits) > MAX_DIGITS or abs(value := kind(digits)) == float("inf"):
            raise _Refused(f"the number {digits[:20]}... is too large or too long")
        return value

    return read


def _constant(name: str) -> Any:
    raise _Refused(f"{name} is no number of JSON")


def short(text: Any, limit: int) -> str:
    """Valid unicode, and not more of it than fits into a message."""
    text = str(text)
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text.encode("utf-8", "replace").decode("utf-8")


_DECODER = json.JSONDecoder(
    strict=False,
    object_pairs_hook=_unique,
    parse_int=_number(int),
    parse_float=_number(float),
    parse_constant=_constant,
)
