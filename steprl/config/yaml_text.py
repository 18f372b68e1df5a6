"""YAML as settings are written in it: numbers mean what they look like, and nothing is executed."""

import re
from typing import Any

import yaml

_DEPTH, _VALUES = 32, 100_000
_FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
       |[0-9][0-9_]*[eE][-+]?[0-9]+
       |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
       |\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
# In YAML 1.1 these are octal numbers and numbers to the base of 60.
_SURPRISES = re.compile(
    r"[-+]?(?:0[0-7_]*[1-7_][0-7_]*|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)$"
)


class _Loader(yaml.SafeLoader):
    """`1e-3` is a number, dates are text, and no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError("a key is a list or a mapping; a file name or text needs quotes")
            if key_node.value in seen:
                raise ValueError(f"the key {key_node.value!r} comes twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        if _SURPRISES.match(text):
            raise ValueError(
                f"YAML reads {text} to the base of 8 or 60: write a decimal number, or text in quotes"
            )
        if len(text) > 100 or abs(number := self.construct_yaml_int(node)) >= 2**63:
            raise ValueError("a whole number beyond 64 bits")
        return number


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Not yes, no, on and off: they are names, as of algorithm.rollout_is, and answers.
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)


def parse(text: str) -> Any:
    """What a YAML document says: None, numbers, text, lists, and dicts.

    Raises:
        ValueError: it is not YAML, is nested too deeply, or has a key twice; says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not all of its characters are Unicode") from None
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
        _count(value, 0, [0])
    except yaml.YAMLError as error:
        raise ValueError(_said(error)) from None
    except RecursionError:
        raise ValueError(f"nested more than {_DEPTH} deep") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError):  # of `!!bool x` and the like
        raise ValueError("a tag with a value that it does not take") from None
    return value


def _said(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line without the text itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())


def _count(value: Any, depth: int, seen: list[int]) -> None:
    """Refuses what would grow without bounds: aliases of aliases, or of themselves."""
    seen[0] += 1
    if depth > _DEPTH:
        raise ValueError(f"nested more than {_DEPTH} deep")
    if seen[0] > _VALUES:
        raise ValueError(f"more than {_VALUES:,} values")
    if isinstance(value, dict):
        for inner in value.values():
            _count(inner, depth + 1, seen)
    elif isinstance(value, list):
        for inner in value:
            _count(inner, depth + 1, seen)
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"a value of type {type(value).__name__}, which no setting takes")
