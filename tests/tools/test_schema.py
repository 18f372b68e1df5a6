"""What a model reads about a function, and what is asked of the function for it."""

import doctest
import functools
import importlib
from typing import Any, Literal

import pytest

import steprl.tools
from steprl.tools import Tool, check_arguments, make_tool, make_tools, tool_schema
from tests.tools.functions import Options, Years, add, search


def of_type(annotation, default=None):
    """The schema of a parameter of this type."""

    def tool(x):
        """Do.

        Args:
            x: y.
        """

    tool.__annotations__["x"] = annotation
    found = tool_schema(tool)["function"]["parameters"]["properties"]["x"]
    assert found.pop("description") == "y."
    return found


def test_a_whole_function():
    years = {
        "type": "object",
        "properties": {
            "first": {"type": "integer", "description": "from this year on."},
            "last": {"type": "integer", "description": "up to this year."},
        },
        "required": ["first"],
    }
    options = {
        "type": "object",
        "properties": {
            "sort": {"type": "string", "enum": ["date", "rank"]},
            "language": {"type": "string"},
        },
        "required": ["sort"],
    }
    boost = {"type": "object", "additionalProperties": {"type": "number"}}
    null = {"type": "null"}
    assert tool_schema(search) == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the encyclopaedia. Words are matched whole.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "words to look for: all of them."},
                    "hits": {"type": "integer", "description": "passages at most."},
                    "years": {"anyOf": [years, null], "description": "of the passages."},
                    "options": {"anyOf": [options, null], "description": "order and language."},
                    "boost": {"anyOf": [boost, null], "description": "weights of words."},
                },
                "required": ["query"],
            },
        },
    }


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        ("int", {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal[1, True, None], {"enum": [1, True, None]}),
        (None | str, {"type": ["string", "null"]}),
        (int | str, {"type": ["integer", "string"]}),
        (int | Any, {}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (list[list[str]], {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        (dict, {"type": "object"}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (list[str] | None, {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
    ],
)  # fmt: skip
def test_types(annotation, schema):
    assert of_type(annotation) == schema


class Tree:
    """Nothing a schema knows."""


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (set[int], r"parameter `x`: set\[int\] has no JSON Schema here; use str, int"),
        (Tree, "Tree'> has no JSON Schema"),
        (dict[int, str], "needs str keys"),
        (tuple[int, str], "has a fixed length"),
        (Literal[b"a"], "holds what JSON has no word for"),
        ("Nowhere", r"annotations cannot be read \(name 'Nowhere' is not defined\)"),
    ],
)
def test_types_without_a_schema(annotation, message):
    with pytest.raises(ValueError, match=message):
        of_type(annotation)


def test_a_type_that_holds_itself_is_refused():
    import dataclasses

    cls = dataclasses.make_dataclass("Node", [("below", "list[Any]")])
    cls.__annotations__["below"] = list[cls]
    with pytest.raises(ValueError, match="Node holds itself"):
        of_type(cls)


def source(text):
    names: dict[str, Any] = {}
    exec(text, names)
    return names["f"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, "has no name that a model could call"),
        (functools.partial(add, 1), "has no name that a model could call"),
        (source("def f(): pass"), "tool `f` has no docstring"),
        (source("async def f(): 'Do.'"), "tool `f` is asynchronous"),
        (source("def f(x): 'Do.'"), "parameter `x`: no type, annotate it, as in `x: str`"),
        (source("def f(x: int): 'Do.'"), "parameter `x`: no description, add `x: ...` under `Args:`"),
        (source("def f(x: int):\n '''Do.\n\n Args:\n   x:\n '''"), "`x`: no description"),
        (source("def f():\n '''Do.\n\n Args:\n   y: z.\n '''"), "describes y, which it does not take"),
        (source("def f(*x: int): 'Do.'"), "variadic positional parameters have no schema"),
        (source("def f(x: int, /): 'Do.'"), "positional-only parameters have no schema"),
    ],
)  # fmt: skip
def test_functions_without_a_schema(function, message):
    with pytest.raises(ValueError, match=message):
        tool_schema(function)


def test_a_method_is_a_tool_without_its_self():
    class Shelf:
        def find(self, title: str) -> str:
            """Find a book.

            Args:
                title: of the book.
            """
            return title

    assert list(make_tool(Shelf().find).parameters["properties"]) == ["title"]


def test_the_same_as_transformers_writes():
    """Where both have a form: without optional parameters and results."""
    from transformers.utils import get_json_schema

    def tool(a: str, b: int, c: list[float], d: dict[str, bool], e: int | str = 1):
        """
        Do something.

        Args:
            a: One.
            b: Two.
            c: Three.
            d: Four.
            e: Five.
        """

    assert tool_schema(tool) == get_json_schema(tool)


def test_tools_by_name():
    tools = make_tools([search, Tool(add, tool_schema(add), may_hang=True)])
    assert list(tools) == ["search", "add"] and tools["add"].may_hang
    with pytest.raises(ValueError, match="two tools have the name `add`"):
        make_tools([add, add])


def test_settings_of_a_tool_are_checked():
    def local():
        """Do."""

    with pytest.raises(ValueError, match="needs a function that a new process can import"):
        make_tool(local, may_hang=True)
    for settings in ({"time_limit": 1.0}, {"time_limit": 0.0, "may_hang": True}):
        with pytest.raises(ValueError, match="only with may_hang=True"):
            make_tool(add, **settings)


# Arguments against a schema: nothing is guessed


@pytest.mark.parametrize(
    ("annotation", "value", "result"),
    [
        (int, 3.0, 3),
        (float, 3, 3.0),
        (list[float], [1, 2.5], [1.0, 2.5]),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (int | float, 3, 3),
        (float | None, None, None),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (Literal[1, "a"], 1, 1),
        (Years | None, {"first": 3.0}, {"first": 3}),
    ],
)
def test_values_that_fit(annotation, value, result):
    schema = {"type": "object", "properties": {"x": of_type(annotation)}, "required": ["x"]}
    got, problems = check_arguments({"x": value}, schema)
    assert problems == [] and got == {"x": result} and repr(got) == repr({"x": result})


@pytest.mark.parametrize(
    ("annotation", "value", "problem"),
    [
        (int, "3", '`x` has to be an integer, but is the string "3"'),
        (int, True, "`x` has to be an integer, but is true"),
        (int, 3.5, "`x` has to be an integer, but is the number 3.5"),
        (int, 1e300, "`x` has to be an integer, but is the number 1e+300"),
        (float, 10**400, "`x` has to be a number, but is an integer of very many digits"),
        (float, "nan", '`x` has to be a number, but is the string "nan"'),
        (bool, 1, "`x` has to be true or false, but is the number 1"),
        (str, None, "`x` has to be a string, but is null"),
        (str, ["a"], "`x` has to be a string, but is an array"),
        (str | None, 2, "`x` has to be a string or null, but is the number 2"),
        (Literal["a", "b"], "c", '`x` has to be one of "a", "b", but is the string "c"'),
        (Literal[1], True, "`x` has to be one of 1, but is true"),
        (Literal[1, "a"], True, '`x` has to be one of 1, "a", but is true'),
        (list[int], [1, "2"], '`x[1]` has to be an integer, but is the string "2"'),
        (dict[str, int], {"a": {}}, "`x.a` has to be an integer, but is an object"),
        (Years, {"last": 1}, "`x.first` (an integer) is missing"),
        (Options, {"sort": "date", "langauge": ""}, "`x.langauge` is not known, did you mean `language`?"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(annotation, value, problem):
    schema = {"type": "object", "properties": {"x": of_type(annotation)}, "required": ["x"]}
    assert check_arguments({"x": value}, schema)[1] == [problem]


def test_problems_are_counted_not_listed_for_ever():
    schema = {"type": "object", "properties": {"x": of_type(list[int])}, "required": ["x"]}
    problems = check_arguments({"x": ["a"] * 100}, schema)[1]
    assert len(problems) == 5 and problems[-1] == "and 96 more"
    assert check_arguments([], schema)[1] == [
        "what a tool takes has to be an object, but is an array"
    ]


@pytest.mark.parametrize(
    "module",
    [
        *(f"steprl.tools.{name}" for name in ("schema", "arguments", "hermes", "call")),
        "steprl.envs.tool_environment",
    ],
)
def test_the_examples_in_the_documentation(module):
    names = {name: getattr(steprl.tools, name) for name in steprl.tools.__all__}
    failed, attempted = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert attempted and not failed
