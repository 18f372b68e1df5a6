"""Parameters of a run: abstract, initial, saved, and ready to be talked to."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from steprl.checkpoint import latest_step, restore
from steprl.config import Config, load_config
from steprl.models import (
    DecoderConfig,
    init_lora,
    load_model,
    make_policy,
)
from steprl.session.language import decoder_policy, language_of
from steprl.session.session import Session
from steprl.sharding import (
    PARAMETER_RULES,
    Rules,
    as_abstract,
    make_mesh,
    state_shardings,
)
from steprl.types import Params, Policy


class Opened(NamedTuple):
    """A policy to talk to: of a run or pretrained, adapters merged."""

    policy: Policy
    params: Params  # on the devices here
    tokenizer: Any
    model: DecoderConfig
    config: Config | None  # of the run


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
    if all(latest_step(Path(run) / part) is None for part in ("checkpoints", "sft")):
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
    """Adapters stay where that run had the same; else they are merged, and new ones begin."""
    saved = run / "config.resolved.yaml"
    before = load_config(saved) if saved.is_file() else session.config
    if session.model is None or before.model.lora == session.config.model.lora:
        return load_params(session, run)
    policy = decoder_policy(before, session.model)
    return _placed(session, policy.prepare(_restore(policy, session.mesh, run, None)), key)


def load_params(session: Session, run: Path, step: int | None = None) -> Params:
    """The newest parameters of a run: of its training, or else of its warm start.

    Raises:
        FileNotFoundError: the run holds no checkpoint, or none of that step.
        ValueError: they belong to another model; says which shapes differ.
    """
    return _restore(session.policy, session.mesh, run, step, session.rules)


def _restore(
    policy: Policy, mesh: Mesh, run: Path, step: int | None, rules: Rules = PARAMETER_RULES
) -> Params:
    folder = run / "checkpoints"
    if latest_step(folder) is None and step is None:
        folder = run / "sft"
    if latest_step(folder) is None:
        raise FileNotFoundError(f"{run} holds no checkpoint, neither in checkpoints/ nor in sft/")
    wanted = {"params": _abstract_params(policy, mesh, rules)}
    return restore(folder, wanted, step, partial=True).state["params"]


def open_policy(path: str | Path, step: int | None = None, merge: bool = True) -> Opened:
    """A policy of a run, or a pretrained model, ready to be talked to.

    Args:
        path: directory of a run, or what `steprl.models.resolve_model` takes.
        step: checkpoint of a run, None for the newest.
        merge: False keeps the adapters of a run apart, in `params["lora"]`.

    Raises:
        FileNotFoundError: there is no such run, checkpoint or model.
        ValueError: the parameters do not fit the settings; `step` of a model that is no run.
    """
    saved = Path(path) / "config.resolved.yaml"
    if not saved.is_file():
        if step is not None:
            raise ValueError(
                f"{path} is not a run (no config.resolved.yaml), so it has no step {step}"
            )
        pretrained = load_model(path, value_head="none")
        policy = make_policy(pretrained.config)
        return Opened(policy, pretrained.params, pretrained.tokenizer, pretrained.config, None)
    config = load_config(saved)
    if config.model.name is not None:
        raise ValueError(
            f"{path}: its policy is model.name={config.model.name}, and only the decoders that ship with "
            "the project are exported, served and talked to; `steprl rollout` shows what it does"
        )
    language, mesh = language_of(config), make_mesh(config.mesh)
    policy = decoder_policy(config, language.config)
    params = _restore(policy, mesh, Path(path), step)
    params = policy.prepare(params) if merge else params
    return Opened(policy, params, language.tokenizer, language.config, config)
