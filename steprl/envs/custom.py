"""Environments of the user, found by import path: `package.module:function`."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steprl.envs import Env
from steprl.envs.adapters import ADAPTERS


def load_environment(
    name: str, options: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Env]:
    """The environments that a function of the user makes, one for each split.

    A function that takes `split` is called with "train" and with "eval", unless the options say which
    split is meant; any other is called once, and its environment is that of "train".

    Modules of the current directory are found first. After the import, that directory stays at the
    end of `sys.path`: for imports inside of functions, and for tools in processes of their own.

    Args:
        name: `package.module:function`, as in `env.name`; what stands behind the colon may have dots.
            Or a short name of `steprl.envs.adapters.ADAPTERS`.
        options: keyword arguments, as in `env.options`.

    Returns:
        Environments by split: "train", and "eval" where the function takes `split`.

    Raises:
        ValueError: there is no such module or function, it does not take the options or fails, or
            what it returns has no `reset` and `step`.
    """
    name = ADAPTERS.get(name, name)
    make = _find(name)
    _check_options(name, make, options)
    splits: tuple[str | None, ...] = (None,)
    if "split" not in options and "split" in _parameters(make):
        splits = ("train", "eval")
    return {split or "train": _make(name, make, options, split) for split in splits}


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
        hint = ", but an environment: give a function that returns it" if _is_env(found) else ""
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


def _make(
    name: str, make: Callable[..., Any], options: Mapping[str, Any], split: str | None
) -> Env:
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
        made = make(**arguments)
    except Exception as error:
        called = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        call = f"{name.partition(':')[2]}({called})"
        raise ValueError(f"env.name={name!r}: {_failure(call, error)}") from error
    if not _is_env(made):
        what = f"the class {made.__name__}" if isinstance(made, type) else type(made).__name__
        raise ValueError(
            f"env.name={name!r} returned {what}; expected an object with reset and step, see "
            "steprl.envs.Env"
        )
    _check_attributes(name, made)
    return made


def _check_attributes(name: str, env: Any) -> None:
    """What an environment may say about its observations, it says rightly."""
    context = getattr(env, "context", "extend")
    if context not in ("rebuild", "extend"):
        raise ValueError(f"env.name={name!r}: its context is {context!r}; rebuild or extend")
    system = getattr(env, "system", None)
    if not isinstance(system, str | None):
        raise ValueError(f"env.name={name!r}: its system is {type(system).__name__}, not text")
    tools = getattr(env, "tools", None) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(
            f"env.name={name!r}: its tools are no list of schemas, see steprl.tools.tool_schema"
        )


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


def _is_env(thing: Any) -> bool:
    methods = (getattr(thing, method, None) for method in ("reset", "step"))
    return not isinstance(thing, type) and all(map(callable, methods))


def _made_in(value: Any, module_name: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module_name
