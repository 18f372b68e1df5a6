"""Supervised warm start: log-likelihood of a demonstrator's action tokens, nothing else."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steprl.checkpoint import Checkpointer, begun, restore, set_aside
from steprl.metrics import MetricWriter, truncate_after
from steprl.models.scoring import score
from steprl.optimizer import combine, make_sft_optimizer, split_trainable
from steprl.run_directory import record_settings
from steprl.session import Session
from steprl.sharding import as_abstract, state_shardings
from steprl.types import Params, Policy, StepBatch
from steprl.update import TrainState

_KEPT = 2  # checkpoints, so that there is another one if the newest is damaged


def make_sft_update(
    policy: Policy,
    optimizer: optax.GradientTransformation,
    chunk_tokens: int,
    freeze: str | None = None,
    train_layers: int | None = None,
) -> Callable[[TrainState, StepBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """`update(state, batch) -> (state, metrics)`: one step on the mean over action tokens.

    `split_trainable` defines what is trained, and so what the optimiser's state covers.
    """

    def loss(trainable: Params, frozen: Params, batch: StepBatch) -> jax.Array:
        params = combine(trainable, frozen)
        logprob_NT = score(policy, params, batch, chunk_tokens=chunk_tokens).logprob_NT
        return -jnp.sum(logprob_NT) / jnp.maximum(jnp.sum(batch.step_ids_NT >= 0), 1)

    def update(state: TrainState, batch: StepBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        trainable, frozen = split_trainable(state.params, freeze, train_layers)
        value, gradient = jax.value_and_grad(loss)(trainable, frozen, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trainable)
        norm = optax.tree.norm(gradient)
        fine = jnp.isfinite(norm) & jnp.isfinite(value)
        keep = lambda new, old: jnp.where(fine, new, old)  # noqa: E731
        trainable = jax.tree.map(keep, optax.apply_updates(trainable, updates), trainable)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        metrics = {
            "sft/loss": value,
            "sft/grad_norm": norm,
            "sft/demonstrations_solved": jnp.mean(batch.success_N.astype(jnp.float32)),
            "train/nonfinite": (~fine).astype(jnp.float32),
        }
        return TrainState(combine(trainable, frozen), opt_state, state.iteration + 1), metrics

    return update


def warm_start(
    session: Session,
    params: Params,
    run: Path,
    on_step: Callable[[int, dict[str, float]], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> Params:
    """Trains on fresh demonstrations; resumes from the newest checkpoint in `<run>/sft`.

    Args:
        params: to start from, placed on the mesh.
        on_step: called with the step and its metrics (every tenth step).
        interrupted: asked after every step; True saves and raises `KeyboardInterrupt`.

    Returns:
        The trained parameters.

    Raises:
        FloatingPointError: a loss was not finite; the last good state is saved.
    """
    config, mesh = session.config, session.mesh
    sft, demonstrate = config.sft, session.player.demonstrate
    if demonstrate is None:
        raise ValueError("sft.steps: the environment shows no demonstrations; set sft.data")
    optimizer = make_sft_optimizer(sft)
    trainable, _ = split_trainable(params, config.model.freeze, config.model.train_layers)
    state = TrainState(params, optimizer.init(trainable), jnp.zeros((), jnp.int32))
    shardings = state_shardings(state, mesh, session.rules)
    state = jax.device_put(state, shardings)
    update = jax.jit(
        make_sft_update(
            session.policy,
            optimizer,
            config.model.logprob_chunk,
            config.model.freeze,
            config.model.train_layers,
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    folder = run / "sft"
    if begun(folder):
        restored = restore(folder, as_abstract(state, shardings))
        state = restored.state
        set_aside(folder, above=restored.step)
    record_settings(run, config)
    done = int(state.iteration)
    truncate_after(run / "sft.jsonl", done)
    key = jax.random.fold_in(jax.random.key(config.trainer.seed), 1)
    with (
        Checkpointer(folder, max_to_keep=_KEPT) as saver,
        MetricWriter(run / "sft.jsonl") as writer,
    ):
        broken: list[jax.Array] = []
        for step in range(done + 1, sft.steps + 1):
            tasks = np.arange((step - 1) * sft.batch_size, step * sft.batch_size)
            batch = demonstrate(jax.random.fold_in(key, step), tasks)
            state, metrics = update(state, batch)
            broken.append(metrics["train/nonfinite"])
            if step % 10 == 0 or step == sft.steps:
                plain = {name: float(value) for name, value in metrics.items()}
                plain["train/nonfinite"] = sum(float(flag) for flag in broken)  # since the last row
                broken.clear()
                if plain["train/nonfinite"]:
                    saver.save(step, state, {"phase": "sft"})
                    raise FloatingPointError(f"warm start: loss is not finite at step {step}")
                writer.write(step, plain)
                on_step(step, plain)
            stop = interrupted()
            if stop and any(float(flag) for flag in broken):
                saver.save(step, state, {"phase": "sft"})
                raise FloatingPointError(f"warm start: loss is not finite before step {step}")
            due = sft.save_freq and step % sft.save_freq == 0
            if due or stop or step == sft.steps:
                saver.save(step, state, {"phase": "sft"})
            if stop:
                raise KeyboardInterrupt
    return state.params
