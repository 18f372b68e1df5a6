"""A function in a process of its own, which is killed when its time is over.

The child says when it is ready, so that the limit does not depend on what it has to import. It never
ends by itself: the parent kills it with its whole process group, and an alarm of its own does where
the parent is gone.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

START_METHODS = ("forkserver", "spawn")
START_LIMIT = 120.0  # seconds until a child is ready, its imports included
GRACE = 5.0  # seconds behind the limit after which a child ends itself
_STARTING = threading.Lock()  # multiprocessing looks after all children at each start


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
    context: Any = multiprocessing.get_context(start_method)
    parent_end, child_end = context.Pipe()
    process = context.Process(
        target=_child, args=(child_end, function, arguments, time_limit), daemon=True
    )
    ready, start = False, time.perf_counter()
    try:
        try:
            with _STARTING:
                process.start()
        finally:
            child_end.close()
        if not parent_end.poll(START_LIMIT):
            return "not_started", f"`{name}` could not be started in {START_LIMIT:g} seconds.", 0.0
        parent_end.recv_bytes()
        ready, start = True, time.perf_counter()
        if parent_end.poll(time_limit):
            status, text = json.loads(parent_end.recv_bytes())
        else:
            status = "time_limit"
            text = f"`{name}` was stopped: it took longer than {time_limit:g} seconds."
        return status, text, time.perf_counter() - start
    except (EOFError, ConnectionError):
        seconds = time.perf_counter() - start
        if ready:
            return "crashed", f"`{name}` failed: its process ended without a result.", seconds
        return "not_started", f"`{name}` failed: its process ended before it could begin.", 0.0
    finally:
        parent_end.close()
        _end(process)


def _end(process: BaseProcess) -> None:
    """Kills a child and what it has started, and forgets it."""
    if process.pid is None:
        return
    # Nothing has that group if the child did not come as far as making it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(GRACE)
    if not process.is_alive():
        process.close()


def _child(
    connection: Connection,
    function: Callable[..., tuple[str, str]],
    arguments: tuple[Any, ...],
    time_limit: float,
) -> None:
    os.setsid()  # a group of its own, to be killed as one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, time_limit + GRACE)
    connection.send_bytes(b"ready")
    # JSON: what a tool's process sends must not be able to run anything here.
    connection.send_bytes(json.dumps(function(*arguments)).encode())
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()  # until the parent ends this process
