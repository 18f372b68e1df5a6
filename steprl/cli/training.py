"""`steprl train` and `steprl sft`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.options import EXIT_ERROR, config_of, exit_code, session_of
from steprl.cli.outcome import print_outcome
from steprl.cli.progress import Watch, fewer_tasks, print_results
from steprl.cli.report import report_of_run
from steprl.config.environments import NO_ENVIRONMENT


def add_commands(command: Any) -> None:
    """Adds both to the parser."""
    configuration = "YAML file, or one of `steprl configs`, such as quickstart"
    for name, run, text, source in (
        ("train", _train, "Warm start, then reinforcement learning, as a configuration says.",
         configuration),
        ("sft", _sft, "Supervised training alone: a warm start, or a model on your conversations.",
         f"{configuration}; or a model, with sft.data=FILE sft.steps=N"),
    ):  # fmt: skip
        sub = command(name, run, text)
        sub.add_argument(
            "config", metavar="CONFIG|MODEL" if name == "sft" else "CONFIG", help=source
        )
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="algorithm.gamma=0.99 ..."
        )
        sub.add_argument(
            "--resume",
            nargs="?",
            const="auto",
            metavar="auto|RUN",
            help="continue where a run was stopped",
        )
        sub.add_argument("--overwrite", action="store_true", help="delete the run that is there")
        sub.add_argument(
            "--dry-run",
            action="store_true",
            help="check and print the settings that act in this run, then stop",
        )
        sub.add_argument(
            "--all", action="store_true", help="with --dry-run: print those without effect as well"
        )


def _train(options: argparse.Namespace, console: Console) -> int:
    from steprl.config import ConfigError
    from steprl.disk import WriteError
    from steprl.envs.answers import EnvironmentFailed
    from steprl.run_directory import open_run, run_path
    from steprl.session.checks import check_plays
    from steprl.train import train

    _read_resume(options)
    config = config_of(options)
    run_path(config)  # a name that cannot be is told at once
    if config.trainer.total_training_steps == 0:
        raise ConfigError("trainer.total_training_steps=0: nothing to train; use `steprl sft`")
    if options.dry_run:
        return _dry_run(config, options.all, console)
    if options.all:
        raise ConfigError("--all says what --dry-run prints: give both, or neither")
    check_plays(config)
    session = _checked_session(config, options.resume)
    run = open_run(session.config, options.resume, options.overwrite)
    _announce(session, run, console)
    left = _say_what_is_ahead(session, run, console)
    with Watch(console, left) as watch:
        try:
            params, _ = train(session, run, watch)
        except KeyboardInterrupt as interrupt:
            return _interrupted(options, run, console, interrupt)
        except (FloatingPointError, EnvironmentFailed):
            report_of_run(run, console)  # where it went wrong can be looked at
            raise
        except WriteError as error:
            return _not_written(options, run, console, error)
    try:
        print_outcome(session, run, params, console)
    except OSError as error:
        console.print(
            f"[bold red]error:[/] {escape(str(error))}; the run itself is complete and saved"
        )
        return EXIT_ERROR
    return 0


def _sft(options: argparse.Namespace, console: Console) -> int:
    from steprl.config import ConfigError
    from steprl.disk import WriteError
    from steprl.evaluation import evaluate_all
    from steprl.interrupts import interrupts
    from steprl.run_directory import open_run, run_path
    from steprl.session.sources import tuning_settings
    from steprl.train import run_warm_start

    _read_resume(options)
    config = tuning_settings(options.config, options.overrides)
    run_path(config)
    if config.sft.steps == 0:
        raise ConfigError("sft.steps=0: there is nothing to do")
    if options.dry_run:
        return _dry_run(config, options.all, console)
    if options.all:
        raise ConfigError("--all says what --dry-run prints: give both, or neither")
    session = _checked_session(config, options.resume)
    run = open_run(session.config, options.resume, options.overwrite)
    _announce(session, run, console)
    with Watch(console) as watch:
        try:
            with interrupts() as interrupted:
                params = run_warm_start(session, run, watch, interrupted)
        except KeyboardInterrupt as interrupt:
            return _interrupted(options, run, console, interrupt)
        except WriteError as error:
            return _not_written(options, run, console, error)
        if config.env.name != NO_ENVIRONMENT:
            results = evaluate_all(session.player, params, config)
            print_results(results, console, config.eval.num_tasks)
    if config.model.path is not None:
        console.print(f"Talk to it with [bold]steprl chat {escape(shlex.quote(str(run)))}[/]")
    console.print(f"Start from it with [bold]trainer.init_from={escape(str(run))}[/]")
    return 0


def _read_resume(options: argparse.Namespace) -> None:
    """A setting right behind --resume is a setting, and no run."""
    word = options.resume
    if word and "=" in word and not Path(word).exists():
        options.resume, options.overrides = "auto", [*options.overrides, word]


def _checked_session(config, resume: str | None = None):  # type: ignore[no-untyped-def]
    """All that can fail before training has failed here: no directory is made for it."""
    import jax
    import numpy as np

    from steprl.session import check_origin

    session = session_of(config)
    if resume is None:  # else the run has its own parameters
        check_origin(config)
        if config.sft.data is not None and config.sft.steps and session.player.demonstrate:
            rows = np.arange(config.sft.batch_size)
            session.player.demonstrate(jax.random.key(0), rows)  # reads the file, which is kept
    return session


def _dry_run(config, everything: bool, console: Console) -> int:  # type: ignore[no-untyped-def]
    from omegaconf import OmegaConf

    from steprl.session import (
        abstract_params,
        acting_settings,
        check_first_reset,
        idle_settings,
        notice_idle,
    )
    from steprl.train import estimate

    session = _checked_session(config)
    check_first_reset(session.suite, config.env.name)
    shown = OmegaConf.structured(config) if everything else acting_settings(session)
    console.print(escape(OmegaConf.to_yaml(shown)))
    if not everything:
        hidden = len(idle_settings(session))
        console.print(f"{hidden} settings without effect here are left out: --all prints them.")
    if notice := notice_idle(session):
        console.print(escape(notice))
    if config.env.name != NO_ENVIRONMENT and config.trainer.total_training_steps:
        console.print(estimate.described(estimate.work_of(session)), markup=False)
    console.print(f"Settings are fine: {_parameters(abstract_params(session)):,} parameters.")
    return 0


def _parameters(tree) -> int:  # type: ignore[no-untyped-def]
    import math

    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _announce(session, run: Path, console: Console) -> None:  # type: ignore[no-untyped-def]
    from steprl.evaluation import splits_of
    from steprl.session import abstract_params, notice_idle

    config, devices = session.config, session.mesh.devices.flatten()
    what, where = config.algorithm.name, config.env.name
    if where == NO_ENVIRONMENT:  # then nothing but supervised training takes place
        what, where = f"sft of {config.model.path or config.model.preset}", config.sft.data
    console.print(
        f"[bold]{escape(what)}[/] on [bold]{escape(str(where))}[/]: "
        f"{_parameters(abstract_params(session)):,} parameters, {len(devices)} x {devices[0].platform}, "
        f"seed {config.trainer.seed}, run directory {escape(str(run))}"
    )
    if notice := notice_idle(session):
        console.print(f"[dim]{escape(notice)}[/]")
    for split, size in session.player.sizes.items():
        if split in splits_of(session.player, config.eval) and size < config.eval.num_tasks:
            line = fewer_tasks(f"split {split}", size, config.eval.num_tasks)
            console.print(line, style="dim", markup=False)


def _say_what_is_ahead(session, run: Path, console: Console):  # type: ignore[no-untyped-def]
    """What a long run will cost, and what says how much of it is left when that can be measured."""
    from steprl.checkpoint import latest_step
    from steprl.train import estimate

    work = estimate.work_of(session, latest_step(run / "checkpoints") or 0)
    if work.long and work.iterations > 0:
        console.print(estimate.described(work), style="dim", markup=False)

    def left(iteration: int, metrics: dict[str, float]) -> str | None:
        ahead = estimate.measured(work, session.config, iteration, [metrics])
        return estimate.left(ahead) if ahead.seconds > estimate.LONG else None

    return left


def _interrupted(
    options: argparse.Namespace, run: Path, console: Console, interrupt: KeyboardInterrupt
) -> int:
    from steprl.interrupts import Stopped

    if isinstance(interrupt, Stopped):
        said = f"Interrupted; the state is saved in {run}"
    else:
        said = "Interrupted at once; what was learnt since the last save is lost"
    console.print(escape(f"{said}: {_last_saved(run)}. Continue with:"))
    console.print(f"  [bold]{escape(_resume_command(options))}[/]")
    return exit_code(interrupt)


def _not_written(options: argparse.Namespace, run: Path, console: Console, error: OSError) -> int:
    console.print(f"[bold red]stopped:[/] {escape(f'{error}. In {run}, {_last_saved(run)}')}.")
    command = escape(_resume_command(options))
    console.print(f"When it can be written, continue with:\n  [bold]{command}[/]")
    return EXIT_ERROR


def _last_saved(run: Path) -> str:
    """What is on disk now, whatever was meant to be."""
    from steprl.checkpoint import latest_step

    iteration, step = latest_step(run / "checkpoints"), latest_step(run / "sft")
    if iteration is not None:
        return f"iteration {iteration} is the last that is saved"
    if step is not None:
        return f"step {step} of the warm start is the last that is saved"
    return "nothing is saved yet"


def _resume_command(options: argparse.Namespace) -> str:
    words = ["steprl", options.command_name, str(options.config), *options.overrides]
    return shlex.join([*words, "--resume", options.resume or "auto"])
