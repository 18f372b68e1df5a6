"""From a YAML file and dotted overrides to settings: merged, typed and checked.

An unknown key is an error that names the nearest one; a value of the wrong type or out of range is an
error that names the key, the value and what is allowed.
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steprl.config.checks import (
    ConfigError,
    check_consistency,
    check_ranges,
    check_types,
    shorten,
    shown,
)
from steprl.config.settings import Config, setting_values
from steprl.config.shipped import config_file
from steprl.config.yaml_text import parse

SHORT_NAMES = {"train.steps": "trainer.total_training_steps"}
"""Short forms of longer keys on the command line."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, checks everything.

    Args:
        path: YAML file, or the name of a configuration that ships, or None for the defaults.
        overrides: dotted settings such as ``algorithm.gamma=0.99``, or one of `SHORT_NAMES`. A list
            may be given as its only element.

    Raises:
        ConfigError: unknown key (names the nearest one), wrong type, out of range, contradiction.
        FileNotFoundError: there is no such file.
    """
    parts = [] if path is None else [_read(config_file(path))]
    parts += [_override(item) for item in overrides]
    tree: dict[str, Any] = {}
    for part in parts:
        _check_known(part, Config, "")
        tree = _laid_over(tree, part)
    config = _typed(tree)
    check_types(config)
    check_ranges(config)
    check_consistency(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Writes every setting, resolved, as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """The settings in a file."""
    named = f"config file {shown(str(path))}"
    try:
        if path.is_dir():
            raise ConfigError(f"{named} is {_folder_of(path)}")
        if not path.is_file():
            raise FileNotFoundError(f"{named} does not exist")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{named} is not text in UTF-8") from None
    except OSError as error:
        if error.strerror is None:
            raise
        raise ConfigError(f"{named} cannot be read: {error.strerror}") from None
    try:
        loaded = parse(text)
    except ValueError as error:
        raise ConfigError(f"{named} is not YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{named}: expected a mapping of settings")
    if strangers := [key for key in loaded if not isinstance(key, str)]:
        raise ConfigError(f"{named}: the key {shown(strangers[0])} is no section of settings")
    return loaded


def _folder_of(path: Path) -> str:
    """What a directory is that stands where a YAML file should, and what to give instead."""
    if (path / "config.resolved.yaml").is_file():
        return (
            "a run: give its configuration, with --resume to continue it, or with trainer.init_from="
            f"{path} to begin another from its parameters"
        )
    if (path / "config.json").is_file():
        return f"a model: give a configuration, which names the model as model.path={path}"
    return "a directory: give the YAML file in it"


def _override(item: str) -> dict[str, Any]:
    """`a.b=value` as {a: {b: value}}."""
    key, equals, text = item.partition("=")
    if not equals or not key or item.startswith("-"):
        raise ConfigError(
            f"override {shown(item)}: expected key=value, such as algorithm.gamma=0.99"
        )
    try:
        value = parse(text)
    except ValueError as error:
        raise ConfigError(f"override {shown(item)}: {error}") from None
    for name in reversed(SHORT_NAMES.get(key, key).split(".")):
        value = {name: value}
    return dict(value)


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees; where they meet, the values of the second."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _laid_over(below, value)
        both[key] = value
    return both


@functools.cache
def _declared() -> DictConfig:
    """All settings, their types and defaults. To make it takes longer than all else; never changed."""
    declared = OmegaConf.structured(Config)
    assert isinstance(declared, DictConfig)
    return declared


def _typed(tree: dict[str, Any]) -> Config:
    """The settings of a tree, converted to their types."""
    try:
        merged = OmegaConf.merge(_declared(), _shaped(tree, Config))  # a copy
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).split("\n")[0]
        raise ConfigError(f"{error.full_key or 'config'}: {shorten(message)}") from None
    except ValueError as error:  # of settings that check themselves
        raise ConfigError(str(error)) from None
    assert isinstance(config, Config)
    return config


def _shaped(tree: dict[str, Any], kind: type, prefix: str = "") -> dict[str, Any]:
    """The tree; one name where a list is expected is a list of it, other kinds are refused."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    made = {}
    for key, value in tree.items():
        inner, name = fields[key].type, prefix + key
        declared = str(inner)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            value = _shaped(value, inner, f"{name}.")
        elif value == "???":
            raise ConfigError(f"{name}=???: stands for a missing value; leave the setting out")
        elif declared.startswith("list"):
            value = [value] if isinstance(value, str) and "${" not in value else value
            if not isinstance(value, list):
                raise ConfigError(f"{name}={shown(value)}: expected a list, such as [a, b]")
        elif inner is bool and not isinstance(value, bool | str):
            raise ConfigError(f"{name}={shown(value)}: expected true or false")
        elif declared.startswith("dict") and not isinstance(value, dict):
            raise ConfigError(f"{name}={shown(value)}: expected a mapping, such as {{a: 1}}")
        made[key] = value
    return made


def _check_known(tree: Any, kind: type, prefix: str) -> None:
    """Every key of the tree is a field of the dataclass `kind`, at every depth."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{prefix.rstrip('.')}: expected settings {sorted(known)}, got {shown(tree)}"
        )
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key)[:80], known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            elsewhere = (
                [] if near else [p for p in setting_values(Config()) if p.split(".")[-1] == key]
            )
            hint += f" (or {elsewhere[0]}?)" if elsewhere else ""
            raise ConfigError(f"unknown setting {prefix}{shorten(str(key))}: {hint}")
        inner = known[key].type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _check_known(value, inner, f"{prefix}{key}.")
