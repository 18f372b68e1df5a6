"""`steprl configs`: the configurations that ship."""

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command("configs", _configs, "List the configurations that ship, or print one.")
    sub.add_argument("name", nargs="?", help="print this one, such as quickstart")


def _configs(options: argparse.Namespace, console: Console) -> int:
    from rich.table import Table

    from steprl.config import ConfigError
    from steprl.config.shipped import config_file, shipped_configs, summary_of

    if options.name is not None:
        file = config_file(options.name)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = "it is not text in UTF-8" if isinstance(error, ValueError) else error.strerror
            raise ConfigError(f"config file {str(file)!r} cannot be read: {why}") from None
        print(text, end="")  # not through rich: what is printed is to be a file
        return 0
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, file in shipped_configs().items():
        table.add_row(f"[bold]{name}[/]", escape(summary_of(file)))
    console.print(table)
    console.print(
        "\n[dim]`steprl train NAME` trains with one, from any folder; `steprl configs NAME > mine.yaml` "
        "makes a copy to change.[/]"
    )
    return 0
