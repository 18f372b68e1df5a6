"""From a typed, documented function to the JSON Schema that a model reads."""

import collections.abc
import dataclasses
import inspect
import pickle
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union

MAX_TIME_LIMIT = 86400.0  # seconds
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ARRAYS = (list, tuple, collections.abc.Sequence)
_OBJECTS = (dict, collections.abc.Mapping)
_ALLOWED = (
    "str, int, float, bool, Literal, None, Any, list, tuple[X, ...], dict with str keys, a dataclass, a "
    "TypedDict, or a union of these"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SECTION = re.compile(
    r"(Args|Arguments|Parameters|Attributes|Returns?|Raises|Yields?|Examples?|Notes?|Warnings?|"
    r"See Also|References|Todo):\s*$"
)
_ENTRY = re.compile(
    r"(?P<names>\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?:\([^)]*\))?\s*:\s*(?P<text>.*)"
)


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function with its schema; made by `make_tool`.

    Attributes:
        function: takes the arguments by name.
        schema: what the model reads, see `tool_schema`.
        may_hang: each call gets a process of its own, which is killed at the time limit.
        time_limit: seconds of one call where it differs from that of `call_tools`.
    """

    function: Callable[..., Any]
    schema: dict[str, Any]
    may_hang: bool = False
    time_limit: float | None = None

    @property
    def name(self) -> str:
        """The name that a call gives."""
        return self.schema["function"]["name"]

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self.schema["function"]["parameters"]


def make_tool(
    function: Callable[..., Any], *, may_hang: bool = False, time_limit: float | None = None
) -> Tool:
    """A function as a tool.

    Args:
        function: typed and documented, see `tool_schema`.
        may_hang: run each call in a process of its own, which is killed at the time limit. To start
            it takes a tenth of a second, and the time to import the tool's module and the main one.
        time_limit: seconds of one call; None for that of `call_tools`. Only where `may_hang` is set:
            a thread cannot be stopped.

    Raises:
        ValueError: there is no schema for the function; a time limit is not positive, over a day or
            not kept; or a new process could not find the function (one inside a function, or typed
            into a prompt).
    """
    schema = tool_schema(function)
    name = schema["function"]["name"]
    if time_limit is not None and not (may_hang and 0 < time_limit <= MAX_TIME_LIMIT):
        raise ValueError(
            f"tool `{name}`: time_limit={time_limit} has to be positive, at most a day, and is kept "
            "only with may_hang=True"
        )
    if may_hang:
        try:
            pickle.dumps(function)
        except Exception as error:
            raise ValueError(
                f"tool `{name}`: may_hang needs a function that a new process can import, at the top "
                f"level of a module ({error})"
            ) from error
        main = sys.modules.get("__main__")
        if function.__module__ == "__main__" and not hasattr(main, "__file__"):
            raise ValueError(
                f"tool `{name}`: may_hang needs a function in a file; put it into a module and "
                "import it"
            )
    return Tool(function, schema, may_hang, time_limit)


def make_tools(functions: Iterable[Callable[..., Any] | Tool]) -> dict[str, Tool]:
    """Tools by name, in the order given; functions become tools with the settings of `make_tool`.

    Raises:
        ValueError: two have the same name, or one has no schema.
    """
    if not isinstance(functions, Iterable):
        raise ValueError(f"tools is {type(functions).__name__}: give a list of functions")
    tools: dict[str, Tool] = {}
    for function in functions:
        tool = function if isinstance(function, Tool) else make_tool(function)
        if tool.name in tools:
            raise ValueError(f"two tools have the name `{tool.name}`: rename one of the functions")
        tools[tool.name] = tool
    return tools


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The OpenAI tool schema of a typed, documented Python function.

    Types are read from the annotations, descriptions from the Google docstring: the text before the
    first section, and `Args:`. A parameter with a default is not required.

    Args:
        function: parameters of str, int, float, bool, Literal, None, Any, list, tuple[X, ...], dict
            with str keys, dataclasses, TypedDicts, and unions of these.

    Returns:
        `{"type": "function", "function": {"name", "description", "parameters"}}`.

    Raises:
        ValueError: a parameter has no type, no description or a type that JSON has no word for; the
            docstring describes a parameter that is not there; or the function is one without a name,
            asynchronous, or takes `*args`, `**kwargs` or positional-only parameters.

    Note:
        As `transformers.utils.get_json_schema`, but an optional parameter has the type
        `["string", "null"]` of JSON Schema where that writes `"nullable": true`, and what the function
        returns is left out. Descriptions of fields come from `Attributes:` and may be missing.

    Example:
        >>> def search(query: str, hits: int = 5) -> list[str]:
        ...     '''Search Wikipedia.
        ...
        ...     Args:
        ...         query: words to look for.
        ...         hits: passages at most.
        ...     '''
        >>> schema = tool_schema(search)["function"]
        >>> schema["name"], schema["description"]
        ('search', 'Search Wikipedia.')
        >>> schema["parameters"]["properties"]["hits"]
        {'type': 'integer', 'description': 'passages at most.'}
        >>> schema["parameters"]["required"]
        ['query']
    """
    name = getattr(function, "__name__", "")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{function!r} has no name that a model could call: give a function made with `def`, with "
            "a name of at most 64 ASCII letters, digits and underscores"
        )
    where = f"tool `{name}`"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(
            f"{where} is asynchronous: give a plain function that waits for its result"
        )
    description, documented = _docstring(inspect.getdoc(function) or "", ("Args", "Arguments"))
    if not description:
        raise ValueError(f"{where} has no docstring: say in its first line what it does")
    hints = _hints(function, where)
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        label = f"{where}, parameter `{parameter.name}`"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"{label}: {parameter.kind.description} parameters have no schema")
        if parameter.name not in hints:
            raise ValueError(f"{label}: no type, annotate it, as in `{parameter.name}: str`")
        text = documented.pop(parameter.name, "")
        if not text:
            raise ValueError(
                f"{label}: no description, add `{parameter.name}: ...` under `Args:` in the docstring"
            )
        properties[parameter.name] = {
            **annotation_schema(hints[parameter.name], label),
            "description": text,
        }
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    if documented:
        raise ValueError(
            f"{where}: `Args:` describes {', '.join(documented)}, which it does not take"
        )
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _hints(annotated: Any, where: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated)
    except Exception as error:  # a name that is not there, or nonsense in quotes
        raise ValueError(f"{where}: its annotations cannot be read ({error})") from error


def _docstring(text: str, sections: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The description, and the entries of one section, of a Google docstring."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if _SECTION.match(line)]
    description = " ".join(" ".join(lines[: heads[0] if heads else len(lines)]).split())
    entries: dict[str, str] = {}
    for head, end in zip(heads, [*heads[1:], len(lines)], strict=False):
        if lines[head].rstrip().rstrip(":") not in sections:
            continue
        body = [line for line in lines[head + 1 : end] if line.strip()]
        margin = min((len(line) - len(line.lstrip()) for line in body), default=0)
        names: list[str] = []
        for line in body:
            match = _ENTRY.match(line[margin:])
            if match:
                names = [name.strip().lstrip("*") for name in match["names"].split(",")]
            for name in names:
                entries[name] = f"{entries.get(name, '')} {match['text'] if match else line}"
    return description, {name: " ".join(entry.split()) for name, entry in entries.items()}


def annotation_schema(annotation: Any, where: str, above: tuple[type, ...] = ()) -> dict[str, Any]:
    """The JSON Schema of a type; `above` holds the classes that it is a field of."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return {}
    if annotation is None or annotation is type(None):
        return {"type": "null"}
    if isinstance(annotation, type) and annotation in _SCALARS:
        return {"type": _SCALARS[annotation]}
    if origin is Literal:
        kinds = {type(option) for option in options}
        if not kinds <= {*_SCALARS, type(None)}:
            raise ValueError(f"{where}: {annotation} holds what JSON has no word for")
        kind = {"type": _SCALARS[kinds.pop()]} if len(kinds) == 1 and None not in options else {}
        return {**kind, "enum": list(options)}
    if origin in (Union, types.UnionType):
        return _union([annotation_schema(option, where, above) for option in options])
    if annotation in _ARRAYS or origin in _ARRAYS:
        if origin is tuple and (len(options) != 2 or options[1] is not ...):
            raise ValueError(f"{where}: {annotation} has a fixed length; use list or a dataclass")
        inner = annotation_schema(options[0], where, above) if options else {}
        return {"type": "array", "items": inner} if inner else {"type": "array"}
    if annotation in _OBJECTS or origin in _OBJECTS:
        if options and options[0] is not str:
            raise ValueError(f"{where}: {annotation} needs str keys, JSON has no others")
        inner = annotation_schema(options[1], where, above) if options else {}
        return {"type": "object", "additionalProperties": inner} if inner else {"type": "object"}
    if dataclasses.is_dataclass(annotation) or typing.is_typeddict(annotation):
        return _fields(annotation, where, above)
    raise ValueError(f"{where}: {annotation!r} has no JSON Schema here; use {_ALLOWED}")


def _union(options: list[dict[str, Any]]) -> dict[str, Any]:
    """Types of one word share a list; null, the rarest, comes last."""
    options = sorted(options, key=lambda option: option == {"type": "null"})
    if {} in options:
        return {}
    if all(option.keys() == {"type"} for option in options):
        return {"type": list(dict.fromkeys(option["type"] for option in options))}
    return {"anyOf": options}


def _fields(cls: Any, where: str, above: tuple[type, ...]) -> dict[str, Any]:
    """An object with the fields of a dataclass or TypedDict."""
    if cls in above:
        raise ValueError(f"{where}: {cls.__name__} holds itself; a schema has to end")
    hints = _hints(cls, f"{where}, {cls.__name__}")
    if typing.is_typeddict(cls):
        names = list(hints)
        required = [name for name in names if name in cls.__required_keys__]
    else:
        fields = [field for field in dataclasses.fields(cls) if field.init]
        names = [field.name for field in fields]
        required = [
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
    described = _docstring(inspect.cleandoc(cls.__doc__ or ""), ("Attributes",))[1]
    properties = {}
    for name in names:
        schema = annotation_schema(hints[name], f"{where}, field `{name}`", (*above, cls))
        text = described.get(name)
        properties[name] = {**schema, "description": text} if text else schema
    return {"type": "object", "properties": properties, "required": required}
