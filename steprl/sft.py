"""Supervised warm start: log-likelihood of a demonstrator's action tokens, nothing else."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steprl.checkpoint import Checkpointer, begun, restore, set_aside
from steprl.config import EvalConfig, SftConfig
from steprl.envs.answers import EnvironmentFailed
from steprl.evaluation import evaluate
from steprl.metrics import MetricWriter, truncate_after
from steprl.models.scoring import score
from steprl.optimizer import combine, make_sft_optimizer, split_trainable
from steprl.run_directory import record_settings
from steprl.session import Session
from steprl.sharding import as_abstract, state_shardings
from steprl.types import Params, Policy, StepBatch
from steprl.update import TrainState

_LOG = logging.getLogger("steprl")
_FAR = 2**30  # number of a training task where there is no end of them
_KEPT = 2  # checkpoints, so that there is another one if the newest is damaged
_RATE = "success_rate"  # in the record of a checkpoint, where it was measured at that step


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


class Panel(NamedTuple):
    """The training tasks on which the success of a warm start is measured; no demonstration shows them.

    Held-out tasks are for the results: what is chosen by them is not measured by them any more.
    """

    first: int  # number of the first of them
    size: int
    shown: (
        int | None
    )  # demonstrations are of training tasks below this number; None: of any below `first`


def panel_of(session: Session) -> Panel:
    """The last training tasks, half of them at most; where there is no end of them, some far away."""
    player, wanted = session.player, session.config.sft.test_tasks
    number = player.sizes.get(player.splits[0])
    if number is None:
        return Panel(_FAR, wanted, None)
    if number < 2:
        raise ValueError(
            f"sft.until={session.config.sft.until}: of {number} training tasks none can be kept from the "
            "demonstrations to measure success on; set sft.until=null, and sft.steps as you need it"
        )
    size = min(wanted, number // 2)
    return Panel(number - size, size, number - size)


def measure(session: Session, params: Params, panel: Panel) -> dict[str, float]:
    """Success, return, entropy and what else the environment measures, as `sft/...`.

    Raises:
        EnvironmentFailed: the environment failed in all attempts.
    """
    config, player = session.config, session.player
    rollout, devices = config.rollout, session.mesh.size
    sampled = EvalConfig(
        num_tasks=panel.size,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
    )
    rows = min(-(-panel.size // devices) * devices, rollout.batch_size * rollout.n)
    found = evaluate(
        player, params, sampled, player.splits[0], rows, rollout.temperature, panel.first
    )
    return {f"sft/{name}": value for name, value in found.items()}


def _is_reached(sft: SftConfig, rate: Any) -> bool:
    return sft.until is not None and rate is not None and rate >= sft.until


def warm_start(
    session: Session,
    params: Params,
    run: Path,
    on_step: Callable[[int, dict[str, float]], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> Params:
    """Trains on fresh demonstrations; resumes from the newest checkpoint in `<run>/sft`.

    With `sft.until` it ends with the first measurement, `measure` every `sft.test_freq` steps and before
    the first one, whose success rate is that high.

    Args:
        params: to start from, placed on the mesh.
        on_step: called with the step and its metrics (every tenth step, and where success is measured).
        interrupted: asked after every step; True saves and raises `KeyboardInterrupt`.

    Returns:
        The trained parameters.

    Raises:
        FloatingPointError: a loss was not finite; the last good state is saved.
        EnvironmentFailed: all attempts of a measurement failed; the state is saved.
    """
    config, mesh = session.config, session.mesh
    sft, demonstrate = config.sft, session.player.demonstrate
    if demonstrate is None:
        raise ValueError("sft.steps: the environment shows no demonstrations; set sft.data")
    panel = None if sft.until is None else panel_of(session)
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
    folder, rate, anew = run / "sft", None, True
    if begun(folder):
        restored = restore(folder, as_abstract(state, shardings))
        state, rate, anew = restored.state, restored.meta.get(_RATE), False
        set_aside(folder, above=restored.step)
    record_settings(run, config)
    done = int(state.iteration)
    truncate_after(run / "sft.jsonl", -1 if anew else done)
    if _is_reached(sft, rate):
        return state.params
    key = jax.random.fold_in(jax.random.key(config.trainer.seed), 1)
    with (
        Checkpointer(folder, max_to_keep=_KEPT) as saver,
        MetricWriter(run / "sft.jsonl") as writer,
    ):

        def save(step: int, rate: float | None = None) -> None:
            found = {} if rate is None else {_RATE: rate}
            saver.save(step, state, {"phase": "sft"} | found)

        def tested(step: int) -> dict[str, float]:
            assert panel is not None
            try:
                return measure(session, state.params, panel)
            except EnvironmentFailed:
                save(step)
                raise

        if panel is not None and anew:
            found = tested(0)
            rate = found["sft/success_rate"]
            writer.write(0, found)
            on_step(0, found)
            if _is_reached(sft, rate):
                save(0, rate)
                return state.params
        broken: list[jax.Array] = []
        for step in range(done + 1, sft.steps + 1):
            tasks = np.arange((step - 1) * sft.batch_size, step * sft.batch_size)
            if panel is not None and panel.shown is not None and sft.data is None:
                tasks %= panel.shown
            batch = demonstrate(jax.random.fold_in(key, step), tasks)
            state, metrics = update(state, batch)
            broken.append(metrics["train/nonfinite"])
            is_last = step == sft.steps
            is_tested = panel is not None and (step % sft.test_freq == 0 or is_last)
            rate = None
            if step % 10 == 0 or is_last or is_tested:
                plain = {name: float(value) for name, value in metrics.items()}
                plain["train/nonfinite"] = sum(float(flag) for flag in broken)  # since the last row
                broken.clear()
                if plain["train/nonfinite"]:
                    save(step)
                    raise FloatingPointError(f"warm start: loss is not finite at step {step}")
                if is_tested:
                    plain |= tested(step)
                    rate = plain["sft/success_rate"]
                writer.write(step, plain)
                on_step(step, plain)
            reached = _is_reached(sft, rate)
            stop = interrupted()
            if stop and any(float(flag) for flag in broken):
                save(step)
                raise FloatingPointError(f"warm start: loss is not finite before step {step}")
            due = sft.save_freq and step % sft.save_freq == 0
            if due or stop or reached or is_last:
                save(step, rate)
            if stop:
                raise KeyboardInterrupt
            if reached:
                break
        else:
            if rate is not None:
                _LOG.warning(
                    "the warm start ends with sft.steps=%d at a success rate of %.3f, below sft.until=%g",
                    sft.steps, rate, sft.until,
                )  # fmt: skip
    return state.params
