"""What a run begins with: the compiled update, and the state that it left or a new one."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from steprl.carried import share_spent
from steprl.checkpoint import begun, restore, set_aside
from steprl.models.contract import takes_trees
from steprl.optimizer import has_own_passes, make_rl_optimizer
from steprl.rollout.packing import Packing, pack_rows
from steprl.session import Session
from steprl.sharding import BATCH, as_abstract, state_shardings
from steprl.types import Params, StepBatch
from steprl.update import (
    Metrics,
    TokenRecord,
    TrainState,
    initial_state,
    make_update,
    mini_batches,
    sizes_in_rows,
)

Update = Callable[
    [TrainState, StepBatch, jax.Array, float | None], tuple[TrainState, Metrics, TokenRecord]
]


class Begun(NamedTuple):
    """All that the first iteration needs."""

    update: (
        Update  # compiled when it is first called; the state that it is given is gone afterwards
    )
    state: TrainState
    row: dict[str, float] | None  # metrics of the iteration that the state was saved in


def begin(session: Session, checkpoints: Path, params: Params) -> Begun:
    """The state of the newest checkpoint that can be read, or a new one with `params`.

    Args:
        checkpoints: folder of the run; what it holds of later iterations is set aside.
        params: parameters, or their shapes where there is a checkpoint.

    Raises:
        DamagedCheckpoint: there are checkpoints, and none can be read.
    """
    config, policy, method, mesh = session.config, session.policy, session.method, session.mesh

    def fresh(params: Params) -> TrainState:
        return _fresh(session, params)

    def update(
        state: TrainState,
        batch: StepBatch,
        key: jax.Array,
        sampled: float | None,
        packing: Packing | None = None,
    ) -> tuple[TrainState, Metrics, TokenRecord]:
        spent = share_spent(config, state.carried)
        optimizer = make_rl_optimizer(config, _has_critic(session), spent)
        in_rows = sizes_in_rows(config, method.branching)
        # Recorded in every iteration, so that all are one program and have the same bits; what is not
        # written never leaves the device.
        learn = make_update(policy, method, optimizer, in_rows, mesh, recorded=True)
        return learn(state, batch, key, sampled, packing)

    shapes = jax.eval_shape(fresh, params)
    shardings = state_shardings(shapes, mesh, session.rules)
    row: dict[str, float] | None = None
    if begun(checkpoints):
        restored = restore(checkpoints, as_abstract(shapes, shardings))
        state, row = restored.state, restored.meta.get("row")
        set_aside(checkpoints, above=restored.step)
    else:
        state = jax.jit(fresh, out_shardings=shardings)(params)
    compiled = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None, None))
    return Begun(_packing(session, compiled) if _packs(session) else compiled, state, row)


def _packs(session: Session) -> bool:
    """The rows of text environments differ in length, and are on the host of this process.

    A critic with passes of its own takes the rows in an order of its own, and is not packed.
    """
    actor = session.config.actor
    if _has_critic(session) and has_own_passes(session.config.critic):
        return False
    by_tokens = actor.ppo_max_token_len > 0 and actor.ppo_micro_batch_size == 0
    is_text = session.suite.game is None and jax.process_count() == 1
    return by_tokens and is_text and takes_trees(session.policy)


def _packing(session: Session, compiled: Callable[..., Any]) -> Update:
    """The update, which packs each batch and says in `perf/padding` how much of it was padding."""
    config, mesh = sizes_in_rows(session.config, session.method.branching), session.mesh
    blocks = NamedSharding(mesh, P(None, None, None, *BATCH))

    def update(
        state: TrainState, batch: StepBatch, key: jax.Array, sampled: float | None
    ) -> tuple[TrainState, Metrics, TokenRecord]:
        order = mini_batches(batch, key, config)
        packed = pack_rows(batch, order, config.actor.ppo_max_token_len, mesh.size)
        packing = packed.packing
        packing = packing._replace(
            **{
                name: jax.device_put(getattr(packing, name), blocks)
                for name in ("place", "tree", "source")
            }
        )
        state, metrics, record = compiled(state, batch, key, sampled, packing)
        return state, metrics | {"perf/padding": packed.padding / packed.slots}, record

    return update


def abstract_state(session: Session, params: Params) -> TrainState:
    """Shapes and types of the state of a run, from those of its parameters."""
    return jax.eval_shape(functools.partial(_fresh, session), params)


def _fresh(session: Session, params: Params) -> TrainState:
    optimizer = make_rl_optimizer(session.config, _has_critic(session))
    return initial_state(params, optimizer, session.config, session.method)


def _has_critic(session: Session) -> bool:
    return "critic" in session.method.needs


def meta_of(session: Session) -> dict[str, Any]:
    """What a checkpoint says of the run that it is from."""
    model = session.config.model.name if session.model is None else session.model.__dict__
    return {"phase": "rl", "model": model, "env": session.config.env.name}
