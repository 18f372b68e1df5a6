"""The loop that a reader can follow: rollout, advantages and update, evaluate, save.

    warm start supervised, on demonstrations                 -> parameters
    iteration  play tasks -> one update -> metrics, and now and then an evaluation and a checkpoint

All randomness follows from the seed and the iteration, and so do the tasks: a checkpoint is the
train state alone, and a run that was stopped resumes bit for bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from steprl.checkpoint import Checkpointer, begun, latest_step
from steprl.disk import writing
from steprl.envs.answers import EnvironmentFailed
from steprl.evaluation import evaluate_all
from steprl.experience import are_saved, make_gather, save_experience
from steprl.interrupts import interrupts
from steprl.metrics import CompilationCounter, truncate_after
from steprl.rollout import attempts, summary
from steprl.rollout.rollouts import Experience
from steprl.run_directory import SETTINGS, is_run, locked, record_settings, saved_settings
from steprl.session import Session, abstract_params, initial_params
from steprl.session.checks import check_plays
from steprl.sft import warm_start
from steprl.train.begin import begin, meta_of
from steprl.train.best import Best
from steprl.train.faults import Faults
from steprl.train.measures import Clock, is_written, open_metrics, row_of
from steprl.train.warnings import Warnings
from steprl.types import Params
from steprl.update import TokenRecord


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
    if not is_run(run):
        return
    before = saved_settings(run)
    for section in ("env", "model", "algorithm"):
        old, new = (getattr(config, section).name for config in (before, session.config))
        if old != new:
            raise ValueError(
                f"{run / SETTINGS} says {section}.name={old}, and the session has {new}: open the run "
                "with the settings of the session, open_run(session.config)"
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
    config, player, trainer = session.config, session.player, session.config.trainer
    size, total = config.rollout.batch_size, trainer.total_training_steps
    budget = float("inf") if trainer.token_budget is None else trainer.token_budget
    checkpoints, file = run / "checkpoints", run / "metrics.jsonl"
    update, state, last_row = begin(session, checkpoints, params)
    done = int(state.iteration)
    best = Best(checkpoints, trainer)
    ended = done == total or float(state.carried["tokens"]) >= budget or best.is_over(done)
    gather, summarise = make_gather(session), jax.jit(summary)
    record_settings(run, config)
    seed = jax.random.key(trainer.seed)
    play_key, update_key = jax.random.fold_in(seed, 2), jax.random.fold_in(seed, 3)
    faults = Faults()
    # A run that was killed before its first checkpoint evaluates again, so row 0 goes as well.
    truncate_after(file, done if done else -1)
    with (
        Checkpointer(
            checkpoints, max_to_keep=trainer.max_to_keep, keep_best=trainer.keep_best
        ) as saver,
        open_metrics(run, trainer) as writer,
    ):

        def write(iteration: int, experience: Experience, record: TokenRecord | None) -> None:
            path = run / "trajectories" / f"step_{iteration:06d}.jsonl"
            with writing(path):
                save_experience(path, experience, record, player.tokenizer, iteration, trainer)

        if last_row is not None and not is_written(file, done):
            writer.write(done, last_row)
        if done == 0 and trainer.val_before_train:
            before = evaluate_all(player, state.params, config)
            best.check(before)
            writer.write(0, before)
            watch(Event("rl", 0, total, before))
        warnings = Warnings(file, config, fixed_width=session.suite.game is not None)
        for iteration in range(done + 1, done + 1 if ended else total + 1):
            clock = Clock()
            tasks = attempts((iteration - 1) * size, size, config.rollout.n)
            experience = gather(state, play_key, *tasks)
            metrics = experience.report | jax.device_get(summarise(experience.batch))
            clock.lap("gen")
            failed = faults.check(iteration, experience, metrics)
            if failed is not None:
                if are_saved(trainer, iteration, last=True):
                    write(iteration, experience, None)  # what went wrong can be looked at
                saver.wait()
                if latest_step(checkpoints) != iteration - 1:
                    saver.save(iteration - 1, state, meta_of(session))
                raise failed

            key = jax.random.fold_in(update_key, iteration)
            sampled = experience.report.get("token/decoded")
            state, learnt, record = update(state, experience.batch, key, sampled)
            metrics |= jax.device_get(learnt)
            clock.lap("update")
            broken = bool(metrics["train/nonfinite"])
            last = iteration == total or metrics["token/total"] >= budget
            if are_saved(trainer, iteration, last or broken):
                write(iteration, experience, record)
                clock.lap("save_trajectories")
            del record  # its memory is free for the next rollout
            better = False
            if not broken and (last or _due(iteration, trainer.test_freq)):
                try:
                    metrics |= evaluate_all(player, state.params, config)
                    better = best.see(iteration, metrics)
                    last = last or best.is_over(iteration)
                except EnvironmentFailed as error:
                    failed = error
                clock.lap("testing")

            metrics |= warnings.check(iteration, metrics)
            stop = interrupted()
            if broken or failed or stop or last or better or _due(iteration, trainer.save_freq):
                # An update that is not finite has changed nothing: what is saved is the good state.
                row = row_of(metrics, clock, compiled)
                saver.save(iteration, state, meta_of(session) | {"row": row})
                clock.lap("save_checkpoint")
            row = row_of(metrics, clock, compiled)
            writer.write(iteration, row)
            watch(Event("rl", iteration, total, row))
            if broken:
                saver.wait()  # before it is said
                raise FloatingPointError(
                    f"iteration {iteration}: loss or gradient is not finite; the last good parameters "
                    f"are saved in {checkpoints}. Try a smaller actor.lr or a larger batch"
                )
            if failed is not None:
                raise failed
            if last:
                break
            if stop:
                raise KeyboardInterrupt
    return state.params


def _due(iteration: int, frequency: int) -> bool:
    return frequency > 0 and iteration % frequency == 0
