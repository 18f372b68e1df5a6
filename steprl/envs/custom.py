"""Environments of the user, found by import path: `package.module:function`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from steprl.config.environments import ADAPTERS
from steprl.config.import_path import call_function, find_function, parameters_of
from steprl.envs.games import Game
from steprl.envs.suite import Suite, suite_of


def load_suite(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Suite:
    """What a function of the user returns: a `Suite`, a `Game`, or an environment.

    A function that takes `split` is called with "train" and with "eval" and returns an environment for
    each, unless the options say which split is meant; any other is called once.

    Args:
        name: `package.module:function`, as in `env.name`, see `steprl.config.import_path`. Or a short
            name of `steprl.config.environments.ADAPTERS`.
        options: keyword arguments, as in `env.options`.

    Raises:
        ValueError: there is no such module or function, it does not take the options or fails, or
            what it returns is none of these.
    """
    name = f"steprl.envs.adapters.{name}:environment" if name in ADAPTERS else name
    function = find_function(name, "env.name")
    if isinstance(function, type) and not _makes_environments(function):
        raise ValueError(
            f"env.name={name!r} is not called: the class {function.__name__} has no reset and step "
            "(steprl.envs.Env)"
        )
    returned: Any
    if "split" in options or "split" not in parameters_of(function):
        returned = call_function(name, options, "env")
    else:
        returned = {
            split: call_function(name, options, "env", split=split) for split in ("train", "eval")
        }
        if isinstance(returned["train"], Suite | Game):
            raise ValueError(
                f"env.name={name!r} returned a {type(returned['train']).__name__} for a split: it brings its "
                "own, so the function takes no `split`"
            )
    return suite_of(returned, source=f"env.name={name!r}")


def _makes_environments(kind: type) -> bool:
    return issubclass(kind, Suite | Game) or all(
        callable(getattr(kind, name, None)) for name in ("reset", "step")
    )
