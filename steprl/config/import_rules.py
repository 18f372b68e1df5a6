"""Whose code a configuration may name: the user's own, and packages made for this project.

A configuration is code: what `env.name`, `model.name` and `algorithm.name` point at is imported and
called. So that a wrong or a borrowed configuration runs nothing that is no environment, policy or
method, modules of the standard library and of packages that do not ask for steprl are refused before
they are imported.
"""

import functools
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROJECT = "steprl"
_FOLDERS = {"site-packages", "dist-packages"}  # of what is installed
_PLAIN = (int, float, bool, str, bytes, list, tuple, set, type(None), None)


def problem_of_module(module_name: str) -> str | None:
    """Why a module is none to name functions of; the module is not imported. None: it is one."""
    top = module_name.partition(".")[0]
    places = _places(top)
    if top in sys.stdlib_module_names and not any(_is_here(place) for place in places):
        return f"{top} is part of Python: name a function in a module of your own, of another name"
    if top == _PROJECT or not any(_FOLDERS & set(place.parts) for place in places):
        return None
    owners = importlib.metadata.packages_distributions().get(top, [])
    if not owners or any(_asks_for_project(owner) for owner in owners):
        return None
    return (
        f"{top} belongs to the package {owners[0]}, which does not require steprl: name a function of your "
        "own that calls it"
    )


def problem_of_function(function: Callable[..., Any]) -> str | None:
    """Why a function is none to be called, from where it was made and what it says to return."""
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    home = getattr(inner, "__module__", None) or type(inner).__module__
    if problem := problem_of_module(home):
        return f"it comes from {home}, and {problem}"
    returned = getattr(inner, "__annotations__", {}).get("return", inspect.Parameter.empty)
    if not isinstance(inner, type) and any(returned is plain for plain in _PLAIN):
        name = "None" if returned is None else returned.__name__
        return f"it says that it returns {name}"
    return None


def _places(top: str) -> list[Path]:
    """Files and folders that a module would be imported from."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # such as __main__
        return []
    if spec is None:
        return []
    return [
        Path(place).resolve()
        for place in (*(spec.submodule_search_locations or ()), spec.origin)
        if place is not None and Path(place).is_absolute()  # others are "built-in" and "frozen"
    ]


def _is_here(place: Path) -> bool:
    return place.is_relative_to(Path.cwd().resolve()) and not _FOLDERS & set(place.parts)


def _asks_for_project(distribution: str) -> bool:
    requirements = importlib.metadata.requires(distribution) or []
    names = (re.match(r"[\w.-]+", line) for line in (distribution, *requirements))
    return any(name is not None and name[0].lower() == _PROJECT for name in names)
