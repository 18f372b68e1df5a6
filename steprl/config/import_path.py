"""Functions of the user's, found by import path: `package.module:function`."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steprl.config.import_rules import problem_of_function, problem_of_module

GIVEN = "python"
"""In place of the module where a value was given in Python, such as `python:MyEnvironment`."""


def name_of_value(value: Any) -> str:
    """The name in the settings of a run for a value that was given in Python."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{GIVEN}:{named.__qualname__.replace('<', '').replace('>', '')}"


def find_function(name: str, setting: str) -> Callable[..., Any]:
    """The function at an import path.

    Modules of the current directory are found first. After the import, that directory stays at the
    end of `sys.path`: for imports inside of functions, and for tools in processes of their own.

    Args:
        name: `package.module:function`; the part behind the colon may have dots.
        setting: where the name was given, such as "env.name", for messages.

    Raises:
        ValueError: there is no such module or function, the import fails, or it is not the user's to
            be called, see `steprl.config.import_rules`.
    """
    module_name, _, path = name.partition(":")
    if module_name == GIVEN:
        raise ValueError(
            f"{setting}={name!r} was given to `steprl.session.setup` as a value: only a Python process "
            "that gives it again can use this run"
        )
    parts = [*module_name.split("."), *path.split(".")]
    is_file = "/" in module_name or module_name.endswith(".py")
    if is_file or not all(part.isidentifier() for part in parts):
        hint = "; a file my_env.py is the module my_env" if is_file else ""
        raise ValueError(f"{setting}={name!r}: expected package.module:function{hint}")
    function: Any = _import(name, module_name, setting)
    for part in path.split("."):
        if not hasattr(function, part):
            public = [key for key, value in vars(function).items() if _made_in(value, module_name)]
            there = f"; it has {', '.join(public)}" if public else ""
            raise ValueError(f"{setting}={name!r}: {module_name} has no {path!r}{there}")
        function = getattr(function, part)
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(
            f"{setting}={name!r}: {path} is no function but a value of type {kind}: give a function "
            "that returns it"
        )
    if problem := problem_of_function(function):
        raise ValueError(f"{setting}={name!r} is not called: {problem}")
    return function


def call_function(
    name: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    setting: str = "env",
    **given: Any,
) -> Any:
    """Calls the function at an import path.

    Args:
        name: as of `find_function`.
        options: keyword arguments from the configuration.
        setting: section of the configuration: name and options are `<setting>.name` and
            `<setting>.options` there.
        given: further keyword arguments; the options come first.

    Raises:
        ValueError: there is no such function, it does not take the options, lacks one, or raises.
    """
    function = find_function(name, f"{setting}.name")
    check_options(name, function, options, setting)
    arguments = {**given, **options}
    missing = [
        key
        for key, parameter in parameters_of(function).items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and key not in arguments
    ]
    if missing:
        raise ValueError(f"{setting}.name={name!r} needs {setting}.options.{missing[0]}")
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        called = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        call = f"{name.partition(':')[2]}({called})"
        raise ValueError(f"{setting}.name={name!r}: {_failure(call, error)}") from error


def check_options(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], setting: str
) -> None:
    """Raises ValueError where a function does not take the options of the configuration."""
    strangers = [key for key in options if not (isinstance(key, str) and key.isidentifier())]
    if strangers:
        raise ValueError(f"{setting}.options: {strangers[0]!r} is no name of an argument")
    known = parameters_of(function)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for key in options:
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{setting}.options.{key}: {name} has no argument {key!r}; {takes}")


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What can be given by name; all, where Python does not know."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
    not_by_name = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return {key: value for key, value in parameters.items() if value.kind not in not_by_name}


def _import(name: str, module_name: str, setting: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        problem = problem_of_module(module_name)
        if problem is None:
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{setting}={name!r}: {_failure(module_name, error)}") from error
        raise ValueError(
            f"{setting}={name!r}: there is no module {error.name!r}, neither installed nor in the "
            f"current directory {here}"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{setting}={name!r}: {_failure(module_name, error)}") from error
    finally:
        # Behind all others: from here on it must not hide what is installed.
        sys.path.remove(here)
        if not {here, ""} & set(sys.path):
            sys.path.append(here)
    raise ValueError(f"{setting}={name!r} is not imported: {problem}")


def _failure(what: str, error: BaseException) -> str:
    """What failed, and the line where it did."""
    if isinstance(error, SyntaxError):
        return f"{what} failed: {type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{what} failed at {last.filename}:{last.lineno}: {type(error).__name__}: {error}"


def _made_in(value: Any, module_name: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module_name
