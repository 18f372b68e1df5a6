"""`steprl help`: what a setting means, without a look into the source."""

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command("help", _help, "Say what a setting or a section means: steprl help actor.lr.")
    sub.add_argument(
        "key", nargs="?", help="such as actor.lr, actor, or lr; none lists the sections"
    )


def _help(options: argparse.Namespace, console: Console) -> int:
    from rich.table import Table

    from steprl.config.described import lookup, sections

    everything = sections()
    if options.key is None:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, section in everything.items():
            table.add_row(f"[bold]{name}[/]", escape(section.meaning))
        console.print(table)
        console.print(
            "\n[dim]`steprl help SECTION` or `steprl help KEY`; `steprl COMMAND --help`.[/]"
        )
        return 0
    try:
        found = lookup(options.key)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    for number, setting in enumerate(found):
        if not number or setting.section != found[number - 1].section:
            meaning = everything[setting.section].meaning
            console.print(f"[dim]{escape(f'{setting.section}: {meaning}')}[/]")
        kind = ", ".join(filter(None, (setting.kind, setting.allowed)))
        console.print(
            f"[bold]{setting.key}[/]{escape(f'={setting.default}')}  [dim]({escape(kind)})[/]"
        )
        console.print(f"    {escape(setting.meaning)}")
    return 0
