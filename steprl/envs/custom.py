"""Environments of the user, found by import path: `package.module:function`."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steprl.envs.adapters import ADAPTERS
from steprl.envs.games import Game
from steprl.envs.suite import Suite, is_env, suite_of


def load_suite(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Suite:
    """What a function of the user returns: a `Suite`, a `Game`, or an environment.

    A function that takes `split` is called with "train" and with "eval" and returns an environment for
    each, unless the options say which split is meant; any other is called once.

    Modules of the current directory are found first. After the import, that directory stays at the
    end of `sys.path`: for imports inside of functions, and for tools in processes of their own.

    Args:
        name: `package.module:function`, as in `env.name`; what stands behind the colon may have dots.
            Or a short name of `steprl.envs.adapters.ADAPTERS`.
        options: keyword arguments, as in `env.options`.

    Raises:
        ValueError: there is no such module or function, it does not take the options or fails, or
            what it returns is none of these.
    """
    name = ADAPTERS.get(name, name)
    make = _find(name)
    _check_options(name, make, options)
    made: Any
    if "split" in options or "split" not in _parameters(make):
        made = _call(name, make, options, None)
    else:
        made = {split: _call(name, make, options, split) for split in ("train", "eval")}
        if isinstance(made["train"], Suite | Game):
            raise ValueError(
                f"env.name={name!r} returned a {type(made['train']).__name__} for a split: it brings its "
                "own, so the function takes no `split`"
            )
    return suite_of(made, source=f"env.name={name!r}")


def _find(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    parts = [*module_name.split("."), *path.split(".")]
    is_file = "/" in module_name or module_name.endswith(".py")
    if is_file or not all(part.isidentifier() for part in parts):
        hint = "; a file my_env.py is the module my_env" if is_file else ""
        raise ValueError(f"env.name={name!r}: expected package.module:function{hint}")
    found: Any = _import(name, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if _made_in(value, module_name)]
            there = f"; it has {', '.join(public)}" if public else ""
            raise ValueError(f"env.name={name!r}: {module_name} has no {path!r}{there}")
        found = getattr(found, part)
    if not callable(found):
        hint = ", but an environment: give a function that returns it" if is_env(found) else ""
        raise ValueError(f"env.name={name!r}: {path} is no function{hint}")
    return found


def _import(name: str, module_name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"env.name={name!r}: {_failure(module_name, error)}") from error
        raise ValueError(
            f"env.name={name!r}: there is no module {error.name!r}, neither installed nor in the "
            f"current directory {here}"
        ) from error
    except Exception as error:
        raise ValueError(f"env.name={name!r}: {_failure(module_name, error)}") from error
    finally:
        # Behind all others: from here on it must not hide what is installed.
        sys.path.remove(here)
        if not {here, ""} & set(sys.path):
            sys.path.append(here)


def _check_options(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    strangers = [key for key in options if not (isinstance(key, str) and key.isidentifier())]
    if strangers:
        raise ValueError(f"env.options: {strangers[0]!r} is no name of an argument")
    known = _parameters(make)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for key in options:
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"env.options.{key}: {name} has no argument {key!r}; {takes}")


def _call(
    name: str, make: Callable[..., Any], options: Mapping[str, Any], split: str | None
) -> Any:
    arguments = {**options} if split is None else {**options, "split": split}
    missing = [
        key
        for key, parameter in _parameters(make).items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
        and key not in arguments
    ]
    if missing:
        raise ValueError(f"env.name={name!r} needs env.options.{missing[0]}")
    try:
        return make(**arguments)
    except Exception as error:
        called = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        call = f"{name.partition(':')[2]}({called})"
        raise ValueError(f"env.name={name!r}: {_failure(call, error)}") from error


def _parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What can be given by name; all, where Python does not know."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
    other = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return {key: value for key, value in parameters.items() if value.kind not in other}


def _failure(what: str, error: Exception) -> str:
    """What failed, and the line where it did."""
    if isinstance(error, SyntaxError):
        return f"{what} failed: {type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{what} failed at {last.filename}:{last.lineno}: {type(error).__name__}: {error}"


def _made_in(value: Any, module_name: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module_name
