"""What the parts share: reading a result file, tables, and numbers with their intervals."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def read(results: Path, name: str) -> dict[str, Any] | None:
    """The record of `name`.json; None where it was not measured."""
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def interval(row: dict[str, Any] | None, form: str = ".3f") -> str:
    """`value [low, high]`; the value alone without a spread, nothing without a row."""
    if row is None:
        return ""
    value = format(row["value"], form)
    if not row["spread"]:
        return value
    low, high = (format(bound, form) for bound in row["spread"])
    return f"{value} [{low}, {high}]"


def machine(record: dict[str, Any]) -> str:
    """The hardware, and the load where other work ran at the same time."""
    load = f", shared with other work (load {record['load']:.0f})"
    return record["hardware"] + (load if record["load"] > 2 else "")


def file(link: str, name: str) -> str:
    """A link to a result file."""
    return f"[results/{name}]({link}/{name})"
