"""Tools of the tests, good ones and bad ones, where a new process can import them."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, NotRequired, TypedDict


@dataclasses.dataclass(frozen=True)
class Years:
    """A time.

    Attributes:
        first: from this year on.
        last: up to this year.
    """

    first: int
    last: int = 2026


class Options(TypedDict):
    sort: Literal["date", "rank"]
    language: NotRequired[str]


def search(
    query: str,
    hits: int = 5,
    years: Years | None = None,
    options: Options | None = None,
    boost: dict[str, float] | None = None,
) -> str:
    """Search the
    encyclopaedia.

    Words are matched whole.

    Args:
        query: words to look
            for: all of them.
        hits (int): passages at most.
        years: of the passages.
        options: order and language.
        boost: weights of words.

    Returns:
        What was asked for.
    """
    return f"{query} {hits} {years} {options} {boost}"


def add(a: float, b: float) -> float:
    """Add two numbers.

    Args:
        a, b: the numbers.
    """
    return a + b


def wait(seconds: float, says: str) -> str:
    """Sleep.

    Args:
        seconds: how long.
        says: the result.
    """
    time.sleep(seconds)
    return says


def fail(how: Literal["raise", "exit", "recurse", "text", "kill", "quit"]) -> str:
    """Go wrong.

    Args:
        how: in this way.
    """
    if how == "raise":
        raise ValueError("a \ud800 message")
    if how == "exit":
        sys.exit(3)
    if how == "recurse":
        return fail(how)
    if how == "text":
        raise _Unreadable
    if how == "kill":
        os.kill(os.getpid(), 9)
    os._exit(0)


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message either")


def hang(pid_file: str) -> None:
    """Never return, with a child of its own that does not either.

    Args:
        pid_file: where the process ids go.
    """
    child = subprocess.Popen(["sleep", "1000"])
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    while True:
        pass


def process_id() -> int:
    """The id of the process that runs this."""
    return os.getpid()
