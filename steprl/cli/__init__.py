"""The command line: `steprl train | sft | eval | rollout | report | audit | export | ...`."""

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version

from rich.console import Console
from rich.markup import escape

from steprl.cli import (
    audit,
    chat,
    configurations,
    evaluation,
    explain,
    export,
    report,
    serve,
    training,
)
from steprl.cli.options import EXIT_ERROR, exit_code, notices_on

_COMMANDS = (training, evaluation, report, audit, export, chat, serve, configurations, explain)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 on an error, 128 + number after a signal."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "command"):
        if rest:
            parser.error(f"unknown argument {rest[0]!r}")
        parser.print_help()
        return 0
    # argparse takes no second group of positionals: settings may stand behind options all the same.
    strangers = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and not hasattr(options, "overrides"):
        strangers = rest
    if strangers:
        options.parser.error(f"unknown argument {strangers[0]!r}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    # Names and messages are of users, and `a:b:c` is no emoji.
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no PyTorch here is no news
    # Imports that load JAX come after the arguments are known, so that --help is quick.
    from steprl.config import ConfigError
    from steprl.config.checks import shorten
    from steprl.envs.answers import EnvironmentFailed
    from steprl.run_directory import RunDirectoryError

    try:
        with notices_on(console):
            return options.command(options, console)
    except KeyboardInterrupt as interrupt:
        console.print("Interrupted.")
        return exit_code(interrupt)
    except (ConfigError, RunDirectoryError, OSError, ImportError, ValueError) as error:
        console.print(f"[bold red]error:[/] {escape(_printable(error))}")
        return EXIT_ERROR
    except (FloatingPointError, EnvironmentFailed) as error:
        console.print(f"[bold red]stopped:[/] {escape(_printable(error))}")
        return EXIT_ERROR
    except SystemExit as error:
        console.print(
            f"[bold red]error:[/] code that was run, such as an environment's, left with {error.code!r}",
        )
        return EXIT_ERROR
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        console.print(
            "[bold red]error:[/] not enough memory: try a smaller rollout.batch_size, rollout.n, "
            f"actor.ppo_micro_batch_size or eval.num_tasks ({escape(shorten(_printable(error)))})"
        )
        return EXIT_ERROR


def _printable(error: Exception) -> str:
    """The message, which may hold what no terminal can show, or should."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steprl",
        description="Step-level reinforcement learning of language-model agents in JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"steprl {version('steprl')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        # argparse formats the line in the list of commands, and prints a description as it is.
        sub = commands.add_parser(
            name, help=text.replace("%", "%%"), description=text, allow_abbrev=False
        )
        sub.set_defaults(command=run, command_name=name, parser=sub)
        return sub

    for module in _COMMANDS:
        module.add_commands(command)
    return parser
