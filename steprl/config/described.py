"""What each setting means: read from the comments beside the fields, where everybody reads them.

A comment behind a field, or right above it, is about that field. One above it that ends with a colon is
a heading: it is about all fields down to the next empty line or heading. What an empty line parts from
a field is not about it alone, and left out.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import io
import re
import tokenize
import typing
from typing import Any, NamedTuple

from steprl.config.load import SHORT_NAMES
from steprl.config.settings import Config

_LARGE = 1e9  # a bound beyond it is none to know of


class Setting(NamedTuple):
    """One setting, as help and pages show it."""

    key: str  # dotted
    kind: str  # of its value
    default: str  # as YAML
    allowed: str  # range or names, or ""
    meaning: str

    @property
    def section(self) -> str:
        """The dotted name of its section."""
        return self.key.rpartition(".")[0]


class Section(NamedTuple):
    """Settings that belong together."""

    key: str
    meaning: str
    settings: tuple[Setting, ...]


@functools.cache
def sections() -> dict[str, Section]:
    """All sections by dotted name, in the order of the configuration; without those that hold none."""
    found: dict[str, Section] = {}

    def visit(kind: type, prefix: str) -> None:
        comments = field_comments(kind)
        settings, inner = [], []
        for field in dataclasses.fields(kind):
            key = f"{prefix}{field.name}"
            if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
                inner.append((field.type, key))
            else:
                settings.append(_setting(key, field, comments.get(field.name, "")))
        if settings:
            name = prefix.rstrip(".")
            found[name] = Section(name, _summary(kind), tuple(settings))
        for type_, key in inner:
            visit(type_, f"{key}.")

    visit(Config, "")
    return found


def lookup(word: str) -> list[Setting]:
    """The settings that a word means: a key, a short name, a section, or the last part of keys.

    Words that are part of no key are looked for in what is said of the settings.

    Raises:
        KeyError: it means none; the message names near ones.
    """
    everything = sections()
    key = SHORT_NAMES.get(word, word).strip(".")
    settings = [setting for section in everything.values() for setting in section.settings]
    if exact := [setting for setting in settings if setting.key == key]:
        return exact
    if within := [setting for setting in settings if setting.key.startswith(f"{key}.")]:
        return within
    if ending := [setting for setting in settings if setting.key.endswith(f".{key}")]:
        return ending
    keys = [*everything, *(setting.key for setting in settings)]
    near = difflib.get_close_matches(key, keys, n=3)
    last = [name for name in keys if difflib.SequenceMatcher(None, key.rpartition(".")[2],
            name.rpartition(".")[2]).ratio() > 0.75]  # fmt: skip
    near = list(dict.fromkeys([*near, *last]))[:4]
    said = re.compile(rf"\b{re.escape(word.replace('_', ' '))}\b", re.IGNORECASE)
    if not near and (about := [setting for setting in settings if said.search(setting.meaning)]):
        return about
    hint = f"did you mean {', '.join(near)}?" if near else f"sections are {', '.join(everything)}"
    raise KeyError(f"there is no setting {word}: {hint}")


def field_comments(kind: type) -> dict[str, str]:
    """The comments of a dataclass, by field; headings stand before what is said of a field itself."""
    source = inspect.cleandoc("\n" + inspect.getsource(kind))
    lines = source.splitlines()
    comment_of = {
        token.start[0]: (token.string.lstrip("# "), lines[token.start[0] - 1].lstrip()[0] == "#")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    heading, last = "", tree.lineno
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if any(not lines[line - 1].strip() for line in range(last + 1, node.lineno)):
            heading = ""
        first = node.lineno
        while comment_of.get(first - 1, ("", False))[1]:
            first -= 1
        above = " ".join(comment_of[line][0] for line in range(first, node.lineno))
        assert node.end_lineno is not None
        behind = " ".join(
            comment_of[line][0]
            for line in range(node.lineno, node.end_lineno + 1)
            if line in comment_of
        )
        if above.endswith(":"):
            heading, above = _sentence(above).removesuffix(":.") + ": ", ""
        said = " ".join(_sentence(part) for part in (above, behind) if part)
        found[node.target.id] = f"{heading}{said}"
        last = node.end_lineno
    return found


def _setting(key: str, field: Any, meaning: str) -> Setting:
    if field.default is not dataclasses.MISSING:
        value = field.default
    else:
        value = field.default_factory()
    return Setting(key, _kind(field.type), _as_yaml(value), _allowed(field.metadata), meaning)


def _kind(kind: Any) -> str:
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    kinds = [one for one in typing.get_args(kind) if one is not type(None)]
    optional = type(None) in typing.get_args(kind)
    main = kinds[0] if optional else kind
    origin = typing.get_origin(main)
    text = "list" if origin is list else "mapping" if origin is dict else names[main]
    return f"{text} or null" if optional else text


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(metadata: Any) -> str:
    if not metadata:
        return ""
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if choices is not None:
        return ", ".join(choices)
    low, high = (
        bound if bound is not None and abs(bound) < _LARGE else None for bound in (low, high)
    )
    if low is None and high is None:
        return ""
    if high is None:
        return f"{low:.12g} or more"
    return f"{high:.12g} or less" if low is None else f"{low:.12g} to {high:.12g}"


def _summary(kind: type) -> str:
    """The first paragraph of its docstring; none is made up."""
    doc = "" if (kind.__doc__ or "").startswith(f"{kind.__name__}(") else inspect.getdoc(kind) or ""
    return " ".join(doc.split("\n\n")[0].split())


def _sentence(text: str) -> str:
    """Capitalised and closed; Python's values as YAML has them."""
    text = re.sub(r"\s+", " ", text).strip()
    for python, yaml in (("None", "null"), ("False", "false"), ("True", "true")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    is_name = re.match(
        r"[a-z_]+(, [a-z_]+)*:|[a-z]+[.=_\d]|null\b", text
    )  # of a method, a setting, a value
    text = text if is_name else text[0].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."
