"""What a run is made of, before and after it has parameters: mesh, language, model, environment."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from steprl.algorithms import algorithm
from steprl.checkpoint import latest_step, restore
from steprl.config import Config
from steprl.models import DecoderConfig, decoder_config, make_policy, with_lora
from steprl.optimizer import split_trainable
from steprl.rollout import Player, make_player, words_of
from steprl.sharding import as_abstract, make_mesh, state_shardings
from steprl.types import Params, Policy


class Session(NamedTuple):
    """What a run is made of, before any parameter exists."""

    config: Config
    mesh: Mesh
    model: DecoderConfig
    policy: Policy
    player: Player


def setup(config: Config) -> Session:
    """Builds mesh, model and environment; checks all that can be checked before computing.

    Raises:
        ValueError: the settings do not fit each other or the devices.
    """
    _check_method(config)
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
    settings = config.model
    model = decoder_config(
        settings.preset,
        vocab_size=words_of(config).vocab_size,
        d_model=settings.d_model,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        num_kv_heads=settings.num_kv_heads,
        head_dim=settings.head_dim,
        d_ff=settings.d_ff,
        value_head=settings.value_head,
        dtype=settings.dtype,
        param_dtype=settings.param_dtype,
        remat=settings.remat,
    )
    policy = make_policy(model)
    if settings.lora.rank:
        policy = with_lora(policy, settings.lora.rank, settings.lora.alpha, settings.lora.target)
    # Says now what is wrong with model.freeze and model.lora.target.
    split_trainable(jax.eval_shape(policy.init, jax.random.key(0)), settings.freeze)
    return Session(config, mesh, model, policy, make_player(config, policy, mesh))


def _check_method(config: Config) -> None:
    """The method exists and the run gives it what it needs."""
    critic = config.model.value_head != "none"
    offers = ["anchors"] + ["critic"] * critic + ["group"] * (config.rollout.n > 1)
    method = algorithm(config.algorithm.name, tuple(offers))
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


def abstract_params(session: Session) -> Params:
    """Shapes, types and placements of the parameters."""
    shapes = jax.eval_shape(session.policy.init, jax.random.key(0))
    return as_abstract(shapes, state_shardings(shapes, session.mesh))


def initial_params(session: Session) -> Params:
    """Random parameters from the seed, or those of `trainer.init_from`."""
    if session.config.trainer.init_from is not None:
        return load_params(session, Path(session.config.trainer.init_from))
    key = jax.random.key(session.config.trainer.seed)
    shapes = jax.eval_shape(session.policy.init, key)
    placed = jax.jit(session.policy.init, out_shardings=state_shardings(shapes, session.mesh))
    return placed(key)


def load_params(session: Session, run: Path, step: int | None = None) -> Params:
    """The newest parameters of a run: of its training, or else of its warm start.

    Raises:
        FileNotFoundError: the run holds no checkpoint.
        ValueError: they belong to another model; says which shapes differ.
    """
    folder = run / "checkpoints"
    if latest_step(folder) is None and step is None:
        folder = run / "sft"
    if latest_step(folder) is None:
        raise FileNotFoundError(f"{run} holds no checkpoint, neither in checkpoints/ nor in sft/")
    wanted = {"params": abstract_params(session)}
    return restore(folder, wanted, step, partial=True).state["params"]
