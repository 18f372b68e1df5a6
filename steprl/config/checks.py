"""What a setting may be, and what settings may be together."""

import dataclasses
import difflib
import math
import re
from typing import Any, get_args, get_origin

from steprl.config.environments import ADAPTERS, ENVIRONMENTS, NO_ENVIRONMENT, EnvConfig
from steprl.config.settings import KL_WITHOUT_GRADIENT, LOGGERS, Config, CriticConfig

_LARGEST = 2**31 - 1  # of whole numbers that declare nothing else: sizes and counts are int32


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


def shorten(text: str, length: int = 160) -> str:
    """One line of that length at most."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def shown(value: Any) -> str:
    """A value in a message."""
    return shorten(repr(value))


def check_types(config: Any, prefix: str = "") -> None:
    """Every value is of the type that its field declares, at every depth."""
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_types(value, key + ".")
        elif problem := _problem_of_type(value, field.type):
            raise ConfigError(f"{key}={shown(value)}: {problem}")


def _problem_of_type(value: Any, kind: Any) -> str | None:
    kinds = get_args(kind) if type(None) in get_args(kind) else (kind,)
    if value is None:
        return None if type(None) in kinds else "a value is missing"
    kind = kinds[0]
    if kind is bool:
        return None if isinstance(value, bool) else "expected true or false"
    if kind is int:
        return None if type(value) is int else "expected a whole number"
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return None if fits else "expected a number"
    if kind is str:
        return _problem_of_text(value)
    if get_origin(kind) is list:
        if not isinstance(value, list):
            return "expected a list, such as [a, b]"
        return next((said for item in value if (said := _problem_of_text(item))), None)
    if not isinstance(value, dict):
        return "expected a mapping, such as {a: 1}"
    if strangers := [key for key in value if not isinstance(key, str)]:
        return f"the key {shown(strangers[0])} is not text"
    if get_args(kind)[1] is str:
        return next((said for item in value.values() if (said := _problem_of_text(item))), None)
    return None


def _problem_of_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"expected text, got {shown(value)}"
    if "\0" in value:
        return "text holds a character of code 0"
    return None


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
        if high is None and isinstance(value, int):
            high = _LARGEST
        if choices is not None and value not in choices:
            raise ConfigError(f"{key}={shown(value)}: allowed are {', '.join(choices)}")
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
    _check_critic(config)
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
    if actor.use_kl_loss and actor.kl_loss_type in KL_WITHOUT_GRADIENT:
        kind = actor.kl_loss_type
        raise ConfigError(
            f"actor.kl_loss_type={kind}: the gradient of this estimate is 0 on average, so it would not "
            f"keep the policy anywhere; use {kind}+ (same value, gradient of the KL), k2 or low_var_kl"
        )
    for key, pattern in (
        ("model.freeze", config.model.freeze),
        ("model.lora.target", config.model.lora.target),
    ):
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ConfigError(
                f"{key}={shown(pattern)} is not a regular expression: {error}"
            ) from None
    _check_bins(config.critic)
    _check_evaluations(config)
    strangers = [name for name in config.trainer.logger if name not in LOGGERS]
    if strangers:
        raise ConfigError(f"trainer.logger={shown(strangers[0])}: allowed are {', '.join(LOGGERS)}")
    _check_environment(config.env)


def _check_critic(config: Config) -> None:
    actor, size = config.actor, config.critic.ppo_mini_batch_size
    rows = config.rollout.batch_size * config.rollout.n
    if size is not None and rows % size:
        raise ConfigError(
            f"critic.ppo_mini_batch_size={size} must divide rollout.batch_size * rollout.n = {rows}"
        )
    if size is not None and actor.ppo_micro_batch_size and size % actor.ppo_micro_batch_size:
        raise ConfigError(
            f"actor.ppo_micro_batch_size={actor.ppo_micro_batch_size} must divide "
            f"critic.ppo_mini_batch_size={size}"
        )
    warmup, total = config.trainer.critic_warmup, config.trainer.total_training_steps
    if total and warmup >= total:
        raise ConfigError(
            f"trainer.critic_warmup={warmup}: the policy would not be trained in any of the {total} "
            "iterations; make it less than trainer.total_training_steps, or set actor.lr=0 to train the "
            "critic alone"
        )


def _check_bins(critic: CriticConfig) -> None:
    """A categorical critic has a range of values, and bins enough to tell them apart."""
    if critic.head != "hl_gauss":
        return
    if critic.value_min >= critic.value_max:
        raise ConfigError(
            f"critic.value_min={critic.value_min!r} must be below critic.value_max={critic.value_max!r}"
        )
    least = 2 + math.ceil(
        8 * critic.sigma_ratio
    )  # the Gaussian reaches four deviations beyond the range
    if critic.num_bins < least:
        raise ConfigError(
            f"critic.num_bins={critic.num_bins}: must be at least {least} with "
            f"critic.sigma_ratio={critic.sigma_ratio!r}"
        )


def _check_evaluations(config: Config) -> None:
    """What is decided by evaluations needs some."""
    trainer = config.trainer
    if trainer.patience is not None and trainer.keep_best is None:
        raise ConfigError(
            f"trainer.patience={trainer.patience} waits for a better evaluation, and trainer.keep_best=null "
            "does not say of which metric: set it, to eval/success_rate for example"
        )
    if trainer.patience is not None and trainer.test_freq == 0:
        raise ConfigError(
            f"trainer.patience={trainer.patience} counts evaluations, and trainer.test_freq=0 makes none "
            "before the end: set trainer.test_freq=5 for example"
        )
    if config.sft.until is not None and config.env.name == NO_ENVIRONMENT:
        raise ConfigError(
            f"sft.until={config.sft.until}: env.name=none has no tasks to measure success on; leave it out, "
            "or name an environment"
        )


def _check_environment(env: EnvConfig) -> None:
    if ":" in env.name or env.name in (*ADAPTERS, NO_ENVIRONMENT):
        return
    if env.name not in ENVIRONMENTS:
        near = difflib.get_close_matches(env.name, ENVIRONMENTS + ADAPTERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"env.name={shown(env.name)}: allowed are {', '.join(ENVIRONMENTS + ADAPTERS)}, and your own "
            f"as package.module:function{hint}"
        )
    if env.options:
        raise ConfigError(
            "env.options are for an environment of your own or of another package; settings of "
            f"{env.name} are those of env.{env.name}"
        )
