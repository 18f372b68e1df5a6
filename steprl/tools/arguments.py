"""What a model wrote as arguments, against what a tool takes."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

from steprl.tools.schema import annotation_schema

_MAX_PROBLEMS = 5
_EXACT = 2**53  # up to here every integer is a float
_ARTICLES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "an array",
    "object": "an object",
}


def check_arguments(arguments: Any, parameters: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments in the types that the schema asks for, and what is wrong with them.

    Nothing is guessed: "3" is not 3, true is not 1, null is not a missing argument, and what the
    schema does not name is refused. Two numbers are turned into each other, because JSON has one type
    for both: 3 is the number 3.0, and 3.0 (up to 2^53) is the integer 3.

    Args:
        arguments: a value from JSON, of any form.
        parameters: the schema of an object, as in `tool_schema`.

    Returns:
        The arguments, and a sentence a problem, at most 5; use the arguments only if there is none.

    Example:
        >>> hits = {
        ...     "type": "object",
        ...     "properties": {"hits": {"type": "integer"}},
        ...     "required": ["hits"],
        ... }
        >>> check_arguments({"hits": 3.0}, hits)
        ({'hits': 3}, [])
        >>> check_arguments({"hits": "3"}, hits)[1]
        ['`hits` has to be an integer, but is the string "3"']
        >>> check_arguments({"hit": 3}, hits)[1]
        ['`hits` (an integer) is missing', '`hit` is not known, did you mean `hits`?']
    """
    problems: list[str] = []
    checked = _check(arguments, parameters, "", problems)
    if len(problems) > _MAX_PROBLEMS:
        problems[_MAX_PROBLEMS - 1 :] = [f"and {len(problems) - _MAX_PROBLEMS + 1} more"]
    return (checked if isinstance(checked, dict) else {}), problems


def build_arguments(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Checked arguments as the function wants them: objects as its dataclasses, arrays as tuples."""
    if not any(isinstance(value, dict | list) for value in arguments.values()):
        return dict(arguments)
    hints = typing.get_type_hints(function)
    return {name: _build(hints.get(name), value) for name, value in arguments.items()}


def _check(value: Any, schema: dict[str, Any], path: str, problems: list[str]) -> Any:
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            option_problems: list[str] = []
            checked = _check(value, option, path, option_problems)
            if not option_problems:
                return checked
        problems.append(_expected(path, schema, value))
        return value
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kind = _json_type(value)
        if kind not in kinds:
            if kind == "integer" and "number" in kinds and abs(value) <= 10**308:
                value = float(value)
            elif (
                kind == "number"
                and "integer" in kinds
                and value.is_integer()
                and abs(value) <= _EXACT
            ):
                value = int(value)
            else:
                problems.append(_expected(path, schema, value))
                return value
    if "enum" in schema:
        # 1 == True in Python, not in JSON.
        if not any(value == e and _json_type(value) == _json_type(e) for e in schema["enum"]):
            problems.append(_expected(path, schema, value))
        return value
    if isinstance(value, list) and "items" in schema:
        items = schema["items"]
        return [_check(item, items, f"{path}[{i}]", problems) for i, item in enumerate(value)]
    if isinstance(value, dict) and "properties" in schema:
        return _check_object(value, schema, path, problems)
    if isinstance(value, dict) and "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        return {
            name: _check(item, inner, _join(path, name), problems) for name, item in value.items()
        }
    return value


def _check_object(
    value: dict[str, Any], schema: dict[str, Any], path: str, problems: list[str]
) -> dict[str, Any]:
    properties = schema["properties"]
    for name in schema["required"]:
        if name not in value:
            problems.append(f"`{_join(path, name)}` ({_describe(properties[name])}) is missing")
    checked = {}
    for name, item in value.items():
        item_path = _join(path, name)
        if name in properties:
            checked[name] = _check(item, properties[name], item_path, problems)
            continue
        near = difflib.get_close_matches(str(name)[:64], properties, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"it takes {_names(properties)}"
        problems.append(f"`{item_path}` is not known, {hint}")
    return checked


def _names(properties: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in properties) or "nothing"


def _join(path: str, name: object) -> str:
    short = str(name)
    short = short if len(short) <= 64 else short[:61] + "..."
    return f"{path}.{short}" if path else short


def _json_type(value: Any) -> str:
    """The JSON name of a value's type; Python's for what JSON does not know."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "array" if isinstance(value, list) else type(value).__name__


def _expected(path: str, schema: dict[str, Any], value: Any) -> str:
    name = f"`{path}`" if path else "what a tool takes"
    return f"{name} has to be {_describe(schema)}, but is {_show(value)}"


def _describe(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(e, ensure_ascii=False) for e in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_describe(option) for option in schema["anyOf"])
    kinds = schema.get("type", "anything")
    return " or ".join(_ARTICLES.get(k, k) for k in ([kinds] if isinstance(kinds, str) else kinds))


def _show(value: Any) -> str:
    kind = _json_type(value)
    if kind == "string":
        short = value if len(value) <= 60 else value[:57] + "..."
        return f"the string {json.dumps(short, ensure_ascii=False)}"
    if kind == "integer" and value.bit_length() > 200:
        return "an integer of very many digits"
    if kind in ("integer", "number"):
        return f"the number {value}"
    return str(value).lower() if kind == "boolean" else _ARTICLES.get(kind, f"a {kind}")


def _build(hint: Any, value: Any) -> Any:
    """Follows the annotation into containers; a value that needs nothing comes back as it is."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        fitting = (option for option in options if _fits(option, value))
        return _build(next(fitting, None), value)
    if isinstance(value, list):
        items = [_build(options[0], item) for item in value] if options else value
        return tuple(items) if hint is tuple or origin is tuple else items
    if isinstance(value, dict):
        if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
            hints = typing.get_type_hints(hint)
            fields = {name: _build(hints[name], item) for name, item in value.items()}
            return typing.cast(Callable[..., Any], hint)(**fields)
        if options:
            return {name: _build(options[1], item) for name, item in value.items()}
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a checked value is meant for this option of a union."""
    if typing.get_origin(hint) is Literal:
        return False  # scalars are never built
    problems: list[str] = []
    _check(value, annotation_schema(hint, ""), "", problems)
    return not problems
