"""The one door of trainers: from settings, and what is given in their place, to a session."""

import dataclasses
from typing import Any

import jax

from steprl.algorithms import Algorithm
from steprl.config import Config, check_consistency, check_ranges, check_types
from steprl.config.import_path import name_of_value
from steprl.envs.opening import open_suite
from steprl.envs.suite import suite_of
from steprl.models import DecoderConfig
from steprl.optimizer import split_trainable
from steprl.rollout import make_player
from steprl.session.checks import (
    check_critic,
    check_loggers,
    check_method,
    check_player,
    check_rows,
    reads_privileged,
)
from steprl.session.language import decoder_policy, language_of, own_policy, own_tokenizer
from steprl.session.method import GIVEN_METHOD, method_of
from steprl.session.session import Session
from steprl.sharding import PARAMETER_RULES, Rules, check_rules, make_mesh, notice_replicated


def setup(
    config: Config,
    *,
    env: Any = None,
    policy: Any = None,
    method: Algorithm | None = None,
    tokenizer: Any = None,
    rules: Rules = PARAMETER_RULES,
) -> Session:
    """Builds mesh, model, environment and method; checks all that can be checked before computing.

    Args:
        config: all settings. What is given as a value takes the place of what they name; the settings
            of the session say so.
        env: see `steprl.envs.suite.suite_of`, in place of `env.name`.
        policy: see `steprl.models.modules.as_policy`, in place of the decoder of `model`.
        method: in place of `algorithm.name`.
        tokenizer: of `policy`; None takes that of the environment's own language, or of `model.path`.
        rules: where parameters lie on the mesh, in place of `PARAMETER_RULES`; what no rule covers is
            replicated.

    Raises:
        ValueError: the settings do not fit each other or the devices, or what was given breaks its
            contract.
        TypeError: what was given is something else.
    """
    check_types(config)  # settings may have been made in Python, without `load_config`
    check_ranges(config)
    check_consistency(config)
    _check_options(config, env, policy, method)
    method, source = method_of(config, method)
    config = _with_names(config, env, policy, method if source == GIVEN_METHOD else None)
    is_own = policy is not None or config.model.name is not None
    if not is_own:
        check_method(config, method, source, config.model.value_head != "none")
    check_loggers(config)
    mesh = make_mesh(config.mesh)
    check_rules(rules, mesh)
    check_rows(config, mesh)
    suite = open_suite(config.env) if env is None else suite_of(env, config.env.game)
    model: DecoderConfig | None = None
    load = None
    if is_own:
        tokenizer = own_tokenizer(config, suite) if tokenizer is None else tokenizer
        policy = own_policy(config, policy, len(tokenizer))
        check_method(config, method, source, policy.value is not None)
    else:
        model, tokenizer, load = language_of(config, suite)
        policy = decoder_policy(config, model)
    check_critic(config, method, policy, is_own)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    # Raises here if model.freeze or model.lora.target is wrong.
    split_trainable(shapes, config.model.freeze, config.model.train_layers)
    notice_replicated(shapes, mesh, rules)
    has_own_critic = model is not None and model.value_head == "separate"
    privileged = reads_privileged(config, method, has_own_critic)
    player = make_player(suite, config, policy, mesh, tokenizer, privileged)
    check_player(config, suite, player)
    return Session(config, mesh, model, policy, suite, player, method, load, rules)


def _check_options(config: Config, env: Any, policy: Any, method: Any) -> None:
    """Options are arguments of a function that is named, and a value has none."""
    for section, argument, value in (
        ("env", "env", env), ("model", "policy", policy), ("algorithm", "method", method),
    ):  # fmt: skip
        if value is not None and getattr(config, section).options:
            raise ValueError(
                f"{section}.options are for a function named by {section}.name, and {argument}= was "
                "given as a value: leave them out"
            )


def _with_names(config: Config, env: Any, policy: Any, method: Any) -> Config:
    """The settings, with a name for each value that was given in Python."""
    for section, value in (("env", env), ("model", policy), ("algorithm", method)):
        if value is not None:
            shown = value.credit if isinstance(value, Algorithm) else value
            part = dataclasses.replace(getattr(config, section), name=name_of_value(shown))
            config = dataclasses.replace(config, **{section: part})
    return config
