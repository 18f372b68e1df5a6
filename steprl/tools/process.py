"""A function in a process of its own, which is killed when its time is over.

The process says when it is ready, so that the limit does not depend on what it has to import. It never
ends by itself: it is ended, with all that it has started, when there is a result or no time is left, and
when the program is gone. See `steprl.processes`.
"""

import contextlib
import json
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from steprl.processes import belonging, start

START_METHODS = ("forkserver", "spawn")
START_LIMIT = 120.0  # seconds until a process is ready, its imports included


def run_in_process(
    function: Callable[..., tuple[str, str]],
    arguments: tuple[Any, ...],
    name: str,
    time_limit: float,
    start_method: str,
) -> tuple[str, str, float]:
    """Status and text that the function returns, or what happened to its process, and the seconds.

    Args:
        function: at the top level of a module; returns a status and a text.
        arguments: can be pickled.
        name: of the tool, for messages.
        time_limit: seconds from where the child is ready.
        start_method: one of `START_METHODS`.

    Raises:
        Exception: the function or its arguments cannot be pickled, or the main module starts a
            process while it is imported (it needs `if __name__ == "__main__":`).
    """
    ready, begin = False, time.perf_counter()
    child, connection = start(_child, (function, arguments), method=start_method)
    try:
        with belonging(child):
            if not connection.poll(START_LIMIT):
                text = f"`{name}` could not be started in {START_LIMIT:g} seconds."
                return "not_started", text, 0.0
            connection.recv_bytes()
            ready, begin = True, time.perf_counter()
            if connection.poll(time_limit):
                status, text = json.loads(connection.recv_bytes())
            else:
                status = "time_limit"
                text = f"`{name}` was stopped: it took longer than {time_limit:g} seconds."
        return status, text, time.perf_counter() - begin
    except (EOFError, ConnectionError):
        seconds = time.perf_counter() - begin
        if ready:
            return "crashed", f"`{name}` failed: its process ended without a result.", seconds
        return "not_started", f"`{name}` failed: its process ended before it could begin.", 0.0
    finally:
        connection.close()
        child.end()


def _child(
    connection: Connection,
    function: Callable[..., tuple[str, str]],
    arguments: tuple[Any, ...],
) -> None:
    connection.send_bytes(b"ready")
    # JSON: what a tool's process sends must not be able to run anything here.
    connection.send_bytes(json.dumps(function(*arguments)).encode())
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()  # until the parent ends this process
