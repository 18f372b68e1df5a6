"""The loop that a reader can follow: rollout, advantages and update, evaluate, save.

    warm start supervised, on demonstrations                 -> parameters
    iteration  play tasks -> one update -> metrics, and now and then an evaluation and a checkpoint

All randomness follows from the seed and the iteration, and so do the tasks: a checkpoint is the
train state alone, and a run that was stopped resumes bit for bit.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from steprl.carried import share_spent
from steprl.checkpoint import Checkpointer, begun, latest_step, restore, set_aside
from steprl.config import load_config
from steprl.disk import writing
from steprl.envs.answers import EnvironmentFailed
from steprl.evaluation import evaluate_all
from steprl.experience import are_saved, make_gather, save_experience
from steprl.interrupts import interrupts
from steprl.metrics import STEP, CompilationCounter, MetricWriter, read_metrics, truncate_after
from steprl.optimizer import make_optimizer
from steprl.rollout import attempts, summary
from steprl.rollout.faults import check_faults, first_fault
from steprl.rollout.rollouts import Experience
from steprl.run_directory import locked, record_settings
from steprl.session import Session, abstract_params, initial_params
from steprl.session.checks import check_plays
from steprl.sft import warm_start
from steprl.sharding import as_abstract, state_shardings
from steprl.types import Params, StepBatch
from steprl.update import (
    Metrics,
    TokenRecord,
    TrainState,
    initial_state,
    make_update,
    sizes_in_rows,
)


class Event(NamedTuple):
    """What a run reports to `watch`: phase "sft" or "rl", the step, its last step, metrics."""

    phase: str
    step: int
    steps: int
    metrics: dict[str, float]


def train(
    session: Session, run: Path, watch: Callable[[Event], None] = lambda event: None
) -> tuple[Params, list[str]]:
    """Runs the warm start and the training of a configuration, from wherever `run` has come to.

    Args:
        session: from `setup`.
        run: directory of the run, from `open_run`.
        watch: called with what happens, to show progress.

    Returns:
        The trained parameters and the names of what was compiled.

    Raises:
        Stopped: a signal asked the run to stop; its state is saved.
        KeyboardInterrupt: a second Ctrl-C; what was learnt since the last save is lost.
        FloatingPointError: something was not finite; the last good state is saved.
        EnvironmentFailed: all attempts of an iteration or an evaluation failed; the state is saved.
        DamagedCheckpoint: no checkpoint that is there can be read.
        RunDirectoryError: another process trains in `run`.
        WriteError: the disk refuses; names the file, and the last saved step if it is a checkpoint.
    """
    config = session.config
    if config.trainer.total_training_steps == 0:
        raise ValueError(
            "trainer.total_training_steps=0: there is nothing to train; use `steprl sft`"
        )
    check_plays(config)
    _check_names(session, run)
    with locked(run), CompilationCounter() as compiled, interrupts() as interrupted:
        if not begun(run / "checkpoints"):
            params = run_warm_start(session, run, watch, interrupted)
        else:
            params = abstract_params(session)
        params = _reinforce(session, run, params, watch, interrupted, compiled)
        return params, sorted(compiled.names.elements())


def _check_names(session: Session, run: Path) -> None:
    """The settings in the run's directory name what is trained there."""
    saved = run / "config.resolved.yaml"
    if not saved.is_file():
        return
    before = load_config(saved)
    for section in ("env", "model", "algorithm"):
        old, new = (getattr(config, section).name for config in (before, session.config))
        if old != new:
            raise ValueError(
                f"{saved} says {section}.name={old}, and the session has {new}: open the run with the "
                "settings of the session, open_run(session.config)"
            )


def run_warm_start(
    session: Session,
    run: Path,
    watch: Callable[[Event], None] = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Params:
    """The supervised phase alone; without `sft.steps` the initial parameters as they are."""
    config = session.config
    if config.sft.steps == 0:
        return initial_params(session)

    def on_step(step: int, metrics: dict[str, float]) -> None:
        watch(Event("sft", step, config.sft.steps, metrics))

    return warm_start(session, initial_params(session), run, on_step, interrupted)


def _reinforce(
    session: Session,
    run: Path,
    params: Params,
    watch: Callable[[Event], None],
    interrupted: Callable[[], bool],
    compiled: CompilationCounter,
) -> Params:
    config, policy, player, mesh = session.config, session.policy, session.player, session.mesh
    rollout, trainer = config.rollout, config.trainer
    rows, total = rollout.batch_size * rollout.n, trainer.total_training_steps
    updates = total * config.actor.ppo_epochs * (rows // config.actor.ppo_mini_batch_size)
    method = session.method

    def fresh(params: Params) -> TrainState:
        optimizer = make_optimizer(config.actor, config.critic, updates)
        return initial_state(params, optimizer, config, method)

    def update(
        state: TrainState, batch: StepBatch, key: jax.Array, sampled: float | None
    ) -> tuple[TrainState, Metrics, TokenRecord]:
        spent = share_spent(config, state.carried)
        optimizer = make_optimizer(config.actor, config.critic, updates, spent)
        in_rows = sizes_in_rows(config, method.branching)
        # Recorded in every iteration, so that all are one program and have the same bits; what is not
        # written never leaves the device.
        learn = make_update(policy, method, optimizer, in_rows, mesh, recorded=True)
        return learn(state, batch, key, sampled)

    shapes = jax.eval_shape(fresh, params)
    shardings = state_shardings(shapes, mesh, session.rules)
    folder = run / "checkpoints"
    last_row: dict[str, float] | None = None
    if begun(folder):
        restored = restore(folder, as_abstract(shapes, shardings))
        state, last_row = restored.state, restored.meta.get("row")
        set_aside(folder, above=restored.step)
    else:
        state = jax.jit(fresh, out_shardings=shardings)(params)
    gather = make_gather(session)
    record_settings(run, config)
    compiled_update = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None, None))
    summarise = jax.jit(summary)
    seed = jax.random.key(trainer.seed)
    play_key, update_key = jax.random.fold_in(seed, 2), jax.random.fold_in(seed, 3)

    faults, done = _Faults(), int(state.iteration)
    budget = float("inf") if trainer.token_budget is None else trainer.token_budget
    ended = done == total or float(state.carried["tokens"]) >= budget
    # A run that was killed before its first checkpoint evaluates again, so row 0 goes as well.
    truncate_after(run / "metrics.jsonl", done if done else -1)
    tensorboard = run / "tensorboard" if "tensorboard" in trainer.logger else None
    wandb = {"name": trainer.experiment_name} if "wandb" in trainer.logger else None
    with (
        Checkpointer(folder, max_to_keep=trainer.max_to_keep) as saver,
        MetricWriter(run / "metrics.jsonl", tensorboard_dir=tensorboard, wandb=wandb) as writer,
    ):
        if last_row is not None and not _written(run / "metrics.jsonl", done):
            writer.write(done, last_row)
        if done == 0 and trainer.val_before_train:
            before = evaluate_all(player, state.params, config)
            writer.write(0, before)
            watch(Event("rl", 0, total, before))

        def write(iteration: int, experience: Experience, record: TokenRecord | None) -> None:
            file = run / "trajectories" / f"step_{iteration:06d}.jsonl"
            with writing(file):
                save_experience(file, experience, record, player.tokenizer, iteration, trainer)

        for iteration in range(done + 1, done + 1 if ended else total + 1):
            clock = _Clock()
            tasks = attempts((iteration - 1) * rollout.batch_size, rollout.batch_size, rollout.n)
            experience = gather(state, play_key, *tasks)
            metrics = experience.report | jax.device_get(summarise(experience.batch))
            clock.lap("gen")
            failed = faults.check(iteration, experience, metrics)
            if failed is not None:
                if are_saved(trainer, iteration, last=True):
                    write(iteration, experience, None)  # what went wrong can be looked at
                saver.wait()
                if latest_step(folder) != iteration - 1:
                    saver.save(iteration - 1, state, _meta(session))
                raise failed
            key, sampled = (
                jax.random.fold_in(update_key, iteration),
                experience.report.get("token/decoded"),
            )
            state, learnt, record = compiled_update(state, experience.batch, key, sampled)
            metrics |= jax.device_get(learnt)
            clock.lap("update")
            broken = bool(metrics["train/nonfinite"])
            last = iteration == total or metrics["token/total"] >= budget
            if are_saved(trainer, iteration, last or broken):
                write(iteration, experience, record)
                clock.lap("save_trajectories")
            del record  # its memory is free for the next rollout
            if not broken and (last or _due(iteration, trainer.test_freq)):
                try:
                    metrics |= evaluate_all(player, state.params, config)
                except EnvironmentFailed as error:
                    failed = error
                clock.lap("testing")
            stop = interrupted()
            if broken or failed or stop or last or _due(iteration, trainer.save_freq):
                # An update that is not finite has changed nothing: what is saved is the good state.
                row = _row(metrics, clock, compiled)
                saver.save(iteration, state, _meta(session) | {"row": row})
                clock.lap("save_checkpoint")
            plain = _row(metrics, clock, compiled)
            writer.write(iteration, plain)
            watch(Event("rl", iteration, total, plain))
            if broken:
                saver.wait()  # before it is said
                raise FloatingPointError(
                    f"iteration {iteration}: loss or gradient is not finite; the last good parameters "
                    f"are saved in {folder}. Try a smaller actor.lr or a larger batch"
                )
            if failed is not None:
                raise failed
            if last:
                break
            if stop:
                raise KeyboardInterrupt
    return state.params


class _Faults:
    """Warns once where the environment failed in many attempts, and tells where it failed in all."""

    def __init__(self) -> None:
        self._many = False

    def check(
        self, iteration: int, experience: Experience, metrics: Mapping[str, Any]
    ) -> EnvironmentFailed | None:
        failed, share = int(metrics["env/faults"]), float(metrics["env/fault_frac"])
        if not failed:
            return None
        what, first = f"iteration {iteration}", first_fault(experience.faults, [experience.batch])
        try:
            attempts, warn = round(failed / share), not self._many
            self._many |= check_faults(what, failed, attempts, first, warn)
        except EnvironmentFailed as error:
            return EnvironmentFailed(
                f"{error}. Mend the environment and continue with --resume auto: the state behind "
                f"iteration {iteration - 1} is saved"
            )
        return None


def _due(iteration: int, frequency: int) -> bool:
    return frequency > 0 and iteration % frequency == 0


def _row(metrics: Metrics, clock: "_Clock", compiled: CompilationCounter) -> dict[str, float]:
    """Metrics of an iteration, with what it cost so far."""
    found = metrics | clock.laps
    found["perf/agent_steps_per_s"] = float(metrics["step/count"]) / clock.laps["timing_s/step"]
    found["compile/count"] = compiled.count
    return {name: float(value) for name, value in found.items()}


def _written(file: Path, iteration: int) -> bool:
    """Whether the row of an iteration is there: a process may end when it has saved, and before."""
    return file.is_file() and any(row.get(STEP) == iteration for row in read_metrics(file))


def _meta(session: Session) -> dict[str, Any]:
    model = session.config.model.name if session.model is None else session.model.__dict__
    return {"phase": "rl", "model": model, "env": session.config.env.name}


class _Clock:
    """Seconds between laps, by the names of metrics; `timing_s/step` is their sum."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"timing_s/{name}"] = now - self._last
        self.laps["timing_s/step"] = now - self._start
        self._last = now
