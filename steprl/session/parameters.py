"""Parameters of a run: abstract, initial, saved, and ready to be talked to."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from steprl.checkpoint import BEST, begun, best_steps, restore
from steprl.config import Config
from steprl.models import (
    DecoderConfig,
    init_lora,
    load_model,
    make_policy,
)
from steprl.models.chat import set_variables
from steprl.models.values import value_support
from steprl.optimizer import CRITIC_PARTS
from steprl.run_directory import is_run, saved_settings
from steprl.session.language import decoder_policy, language_of
from steprl.session.session import Session
from steprl.session.sources import CONFIG, MODEL, RUN, kind_of, settings_of
from steprl.sharding import (
    PARAMETER_RULES,
    Rules,
    as_abstract,
    make_mesh,
    state_shardings,
)
from steprl.types import Params, Policy

_LOG = logging.getLogger("steprl")

WARM_START = "warm_start"
"""In place of a number of a checkpoint: the parameters that the warm start of a run ended with."""


class Opened(NamedTuple):
    """A policy to talk to: of a run or pretrained, adapters merged."""

    policy: Policy
    params: Params  # on the devices here
    tokenizer: Any
    model: DecoderConfig
    config: Config | None  # of the run, or the configuration


def abstract_params(session: Session) -> Params:
    """Shapes, types and placements of the parameters."""
    return _abstract_params(session.policy, session.mesh, session.rules)


def _abstract_params(policy: Policy, mesh: Mesh, rules: Rules = PARAMETER_RULES) -> Params:
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return as_abstract(shapes, state_shardings(shapes, mesh, rules))


def initial_params(session: Session) -> Params:
    """Those of `trainer.init_from`, or the pretrained ones, or random ones from the seed."""
    key = jax.random.key(session.config.trainer.seed)
    if session.config.trainer.init_from is not None:
        return _params_of_run(session, Path(session.config.trainer.init_from), key)
    return _new_params(session, key)


def _new_params(session: Session, key: jax.Array) -> Params:
    """The pretrained parameters, or random ones."""
    if session.load is not None:
        params = session.load(mesh=session.mesh, key=key)
        return _placed(session, params, key)
    shapes = jax.eval_shape(session.policy.init, key)
    shardings = state_shardings(shapes, session.mesh, session.rules)
    return jax.jit(session.policy.init, out_shardings=shardings)(key)


def check_origin(config: Config) -> None:
    """Whether `trainer.init_from` has parameters to start from; nothing is read.

    Raises:
        FileNotFoundError: it has none.
    """
    run = config.trainer.init_from
    if run is None:
        return
    if not Path(run).is_dir():
        raise FileNotFoundError(f"trainer.init_from={run}: there is no such run")
    if not any(begun(Path(run) / part) for part in ("checkpoints", "sft")):
        raise FileNotFoundError(
            f"trainer.init_from={run} holds no checkpoint, neither in checkpoints/ nor in sft/"
        )


def _placed(session: Session, params: Params, key: jax.Array) -> Params:
    """Parameters of a decoder on the mesh, with new adapters where there are to be some."""
    lora = session.config.model.lora
    if lora.rank:
        params |= {"lora": init_lora(key, params, lora.rank, lora.target)}
    return jax.device_put(params, state_shardings(params, session.mesh, session.rules))


def _params_of_run(session: Session, run: Path, key: jax.Array) -> Params:
    """Adapters stay where that run had the same; else they are merged, and new ones begin.

    So does a critic: one with another trunk, head or bins begins anew.
    """
    before, now = saved_settings(run) if is_run(run) else session.config, session.config
    same_lora, same_critic = before.model.lora == now.model.lora, _form(before) == _form(now)
    if session.model is None or (same_lora and same_critic):
        return load_params(session, run)
    model = session.model
    if not same_critic:
        model = dataclasses.replace(model, value_head="none", value_support=None)
    policy = decoder_policy(before, model)
    params, _ = _restore(policy, session.mesh, run, None, session.rules)
    if not same_lora:
        params = _placed(session, policy.prepare(params), key)
    if same_critic:
        return params
    if "critic" in session.method.needs:
        _LOG.warning(
            "trainer.init_from=%s: that run has another critic (model.value_head, critic.head or its bins), "
            "so a new one begins", run,
        )  # fmt: skip
    new = _new_params(session, key)
    return params | {name: new[name] for name in CRITIC_PARTS if name in new}


def _form(config: Config) -> Any:
    """What the parameters of a critic are made for."""
    return config.model.value_head, value_support(config.critic)


def load_params(session: Session, run: Path, step: int | str | None = None) -> Params:
    """The newest parameters of a run: of its training, or else of its warm start.

    Args:
        step: checkpoint to take; "best" is that of the best evaluation, by `trainer.keep_best`, and
            "warm_start" what the warm start ended with.

    Raises:
        FileNotFoundError: the run holds no checkpoint, or none of that step.
        ValueError: they belong to another model; says which shapes differ.
        DamagedCheckpoint: `step` is damaged, or all steps are.
    """
    return load_step(session, run, step)[0]


def load_step(
    session: Session, run: Path, step: int | str | None = None
) -> tuple[Params, int | None]:
    """As `load_params`, and the iteration that they are of; None for the warm start."""
    return _restore(session.policy, session.mesh, run, step, session.rules)


def _restore(
    policy: Policy, mesh: Mesh, run: Path, step: int | str | None, rules: Rules = PARAMETER_RULES
) -> tuple[Params, int | None]:
    if isinstance(step, str) and step not in (BEST, WARM_START):
        raise ValueError(f"step={step!r}: expected a number, {BEST!r} or {WARM_START!r}")
    folder = run / "checkpoints"
    warm = step == WARM_START or (step is None and not begun(folder))
    if warm:
        folder, step = run / "sft", None if step == WARM_START else step
    if not begun(folder):
        where = "in sft/" if begun(run / "checkpoints") else "neither in checkpoints/ nor in sft/"
        raise FileNotFoundError(f"{run} holds no checkpoint, {where}")
    wanted = {"params": _abstract_params(policy, mesh, rules)}
    chosen = _ranked(run) if isinstance(step, str) else step
    restored = restore(folder, wanted, chosen, partial=True)
    return restored.state["params"], None if warm else restored.step


def _ranked(run: Path) -> list[int]:
    """The steps of a run that were evaluated, the best first."""
    trainer = saved_settings(run).trainer if is_run(run) else Config().trainer
    metric = trainer.keep_best or Config().trainer.keep_best or ""
    steps = best_steps(run / "checkpoints", metric)
    if not steps:
        raise FileNotFoundError(
            f"{run}: no checkpoint of it was evaluated by {metric} (trainer.keep_best), so none is the "
            "best; take one by its number, or the newest"
        )
    return steps


def open_policy(path: str | Path, step: int | str | None = None, merge: bool = True) -> Opened:
    """A policy of a run, or a pretrained model, ready to be talked to.

    Args:
        path: as of `steprl.session.sources.kind_of`; of a configuration, what its training begins with.
        step: checkpoint of a run, None for the newest, or a word, see `load_params`.
        merge: False keeps the adapters of a run apart, in `params["lora"]`.

    Raises:
        FileNotFoundError: there is no such run, checkpoint or model.
        ValueError: the parameters do not fit the settings; `step` of a model that is no run.
    """
    kind = kind_of(path)
    if kind != RUN and step is not None:
        raise ValueError(f"{path} is a {kind}, not a run, so it has no step {step}")
    if kind == MODEL:
        pretrained = load_model(path, value_head="none")
        policy = make_policy(pretrained.config)
        return Opened(policy, pretrained.params, pretrained.tokenizer, pretrained.config, None)
    config = settings_of(path)
    if config.model.name is not None:
        raise ValueError(
            f"{path}: its policy is model.name={config.model.name}, and only the decoders that ship with "
            "the project are exported, served and talked to; `steprl rollout` shows what it does"
        )
    if kind == CONFIG:
        return _opened_start(path, config, merge)
    language, mesh = language_of(config), make_mesh(config.mesh)
    policy = decoder_policy(config, language.config)
    params, _ = _restore(policy, mesh, Path(path).expanduser(), step)
    params = policy.prepare(params) if merge else params
    return Opened(policy, params, language.tokenizer, language.config, config)


def _opened_start(path: str | Path, config: Config, merge: bool) -> Opened:
    """The policy that the training of a configuration begins with."""
    start = config.trainer.init_from or config.model.path
    if start is None:
        raise ValueError(
            f"{path} is a configuration of a new model, which has learnt nothing yet; `steprl train "
            f"{path}` makes a run of it"
        )
    opened = open_policy(start, merge=merge)
    if config.model.template:
        set_variables(opened.tokenizer, config.model.template)
    return opened._replace(config=config)
