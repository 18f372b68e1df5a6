"""The command line: `steprl train | sft | eval | rollout | audit | export | chat | serve`."""

import argparse
import os
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from steprl.cli import audit, chat, evaluation, export, serve, training
from steprl.cli.options import EXIT_ERROR, exit_code, notices_on

_COMMANDS = (training, evaluation, audit, export, chat, serve)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 on an error, 128 + number after a signal."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no second group of positionals: settings may stand behind options all the same.
    strangers = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and not hasattr(options, "overrides"):
        strangers = rest
    if strangers:
        parser.error(f"unknown argument {strangers[0]!r}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    console = Console(highlight=False, soft_wrap=True)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no PyTorch here is no news
    # Imports that load JAX come after the arguments are known, so that --help is quick.
    from steprl.config import ConfigError
    from steprl.run_directory import RunDirectoryError

    try:
        with notices_on(console):
            return options.command(options, console)
    except KeyboardInterrupt as interrupt:
        return exit_code(interrupt)
    except (ConfigError, RunDirectoryError, OSError, ImportError, ValueError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return EXIT_ERROR
    except FloatingPointError as error:
        console.print(f"[bold red]stopped:[/] {escape(str(error))}")
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steprl",
        description="Step-level reinforcement learning of language-model agents in JAX.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        text = text.replace("%", "%%")  # argparse formats what it prints
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run, command_name=name)
        return sub

    for module in _COMMANDS:
        module.add_commands(command)
    return parser
