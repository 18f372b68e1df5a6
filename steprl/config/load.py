"""From a YAML file and dotted overrides to settings: merged, typed and checked by omegaconf.

An unknown key is an error that names the nearest one; a value of the wrong type or out of range is an
error that names the key, the value and what is allowed.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steprl.config.environments import ADAPTERS, ENVIRONMENTS, EnvConfig
from steprl.config.settings import LOGGERS, Config
from steprl.config.shipped import config_file

SHORT_NAMES = {"train.steps": "trainer.total_training_steps"}
"""Short forms of longer keys on the command line."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, checks everything.

    Args:
        path: YAML file, or the name of a configuration that ships, or None for the defaults.
        overrides: dotted settings such as ``algorithm.gamma=0.99``, or one of `SHORT_NAMES`.

    Raises:
        ConfigError: unknown key (names the nearest one), wrong type, out of range, contradiction.
        FileNotFoundError: there is no such file.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        path = config_file(path)
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(path))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"config file {str(path)!r} is not YAML: {_one_line(error)}"
            ) from None
        if not isinstance(loaded, dict):
            raise ConfigError(f"config file {str(path)!r}: expected a mapping of settings")
        tree = {str(key): value for key, value in loaded.items()}
    for item in overrides:
        if "=" not in item or item.startswith(("-", "=")):
            raise ConfigError(
                f"override {item!r}: expected key=value, such as algorithm.gamma=0.99"
            )
    _check_known(tree, Config, "")
    overrides = [_in_full(item) for item in overrides]
    try:
        dotted = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    except yaml.YAMLError as error:
        raise ConfigError(f"overrides {list(overrides)}: {_one_line(error)}") from None
    assert isinstance(dotted, dict)
    _check_known(dotted, Config, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), tree, dotted)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).split("\n")[0]
        raise ConfigError(f"{error.full_key or 'config'}: {message}") from None
    except ValueError as error:  # of settings that check themselves
        raise ConfigError(str(error)) from None
    assert isinstance(config, Config)
    check_ranges(config)
    check_consistency(config)
    return config


def _in_full(override: str) -> str:
    key, value = override.split("=", 1)
    return f"{SHORT_NAMES.get(key, key)}={value}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def save_config(config: Config, path: Path) -> None:
    """Writes every setting, resolved, as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _check_known(tree: Any, kind: type, prefix: str) -> None:
    """Every key of the tree is a field of the dataclass `kind`, at every depth."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(tree, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: expected settings {sorted(known)}, got {tree!r}")
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
            elsewhere = [] if near else [p for p in _paths(Config) if p.split(".")[-1] == key]
            hint += f" (or {elsewhere[0]}?)" if elsewhere else ""
            raise ConfigError(f"unknown setting {prefix}{key}: {hint}")
        inner = known[key].type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            _check_known(value, inner, f"{prefix}{key}.")


def _paths(kind: type, prefix: str = "") -> list[str]:
    paths = []
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            paths += _paths(field.type, f"{prefix}{field.name}.")
        else:
            paths.append(prefix + field.name)
    return paths


def check_ranges(config: Any, prefix: str = "") -> None:
    """Every value lies in the range or among the names that are declared with its field."""
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.metadata
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            check_ranges(value, key + ".")
        if value is None or not allowed:
            continue
        low, high, choices = allowed["low"], allowed["high"], allowed["choices"]
        if choices is not None and value not in choices:
            raise ConfigError(f"{key}={value!r}: allowed are {', '.join(choices)}")
        if isinstance(value, float) and math.isinf(value):
            raise ConfigError(f"{key}={value!r}: must be finite")
        # written so that NaN fails too
        if low is not None and not value >= low:
            raise ConfigError(f"{key}={value!r}: must be at least {low}")
        if high is not None and not value <= high:
            raise ConfigError(f"{key}={value!r}: must be at most {high}")


def check_consistency(config: Config) -> None:
    """Settings that contradict each other are refused before anything is computed."""
    actor, rollout = config.actor, config.rollout
    rows = rollout.batch_size * rollout.n
    if rows % actor.ppo_mini_batch_size:
        raise ConfigError(
            f"actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} must divide "
            f"rollout.batch_size * rollout.n = {rows}"
        )
    if actor.ppo_micro_batch_size and actor.ppo_mini_batch_size % actor.ppo_micro_batch_size:
        raise ConfigError(
            f"actor.ppo_micro_batch_size={actor.ppo_micro_batch_size} must divide "
            f"actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}"
        )
    if 0 < actor.clip_ratio_c <= 1:
        raise ConfigError(f"actor.clip_ratio_c={actor.clip_ratio_c}: must be 0 (off) or above 1")
    if rollout.top_k == 1:
        raise ConfigError(
            "rollout.top_k=1: one token alone could be sampled, whose log-prob is 0 whatever the "
            "parameters are, so nothing would be learnt; use 0 (off) or at least 2"
        )
    if rollout.temperature == 0.0:
        raise ConfigError("rollout.temperature=0.0: training samples, it must be above 0")
    similarity = config.algorithm.similarity_thresh
    if similarity is not None and not 0 < similarity < 1:
        raise ConfigError(
            f"algorithm.similarity_thresh={similarity}: must lie between 0 and 1, ends excluded; "
            "null compares for equality"
        )
    if config.algorithm.rollout_is != "off" and config.algorithm.rollout_is_threshold <= 1:
        raise ConfigError(
            f"algorithm.rollout_is_threshold={config.algorithm.rollout_is_threshold}: must be above 1"
        )
    strangers = [name for name in config.trainer.logger if name not in LOGGERS]
    if strangers:
        raise ConfigError(f"trainer.logger={strangers[0]!r}: allowed are {', '.join(LOGGERS)}")
    _check_environment(config.env)


def _check_environment(env: EnvConfig) -> None:
    if ":" in env.name or env.name in ADAPTERS:
        return
    if env.name not in ENVIRONMENTS:
        near = difflib.get_close_matches(env.name, ENVIRONMENTS + ADAPTERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"env.name={env.name!r}: allowed are {', '.join(ENVIRONMENTS + ADAPTERS)}, and your own "
            f"as package.module:function{hint}"
        )
    if env.options:
        raise ConfigError(
            "env.options are for an environment of your own or of another package; settings of "
            f"{env.name} are those of env.{env.name}"
        )
