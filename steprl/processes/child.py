"""A supervised process, as the program sees it: started, asked to end, and forgotten."""

import contextlib
import multiprocessing
import multiprocessing.process
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any

from steprl.processes.supervisor import descendants, enter, kill

REAP_LIMIT = 5.0  # seconds until a process is gone with all its descendants; milliseconds, mostly
_STARTING = threading.Lock()  # multiprocessing looks after all children at each start
_PROGRAM = "import sys; sys.path[:] = {path!r}; from steprl.processes.child import _begin; _begin({numbers})"


class Child:
    """A supervisor and its worker. One thread waits and ends; any thread may stop.

    Args:
        process: the supervisor, as `subprocess` or `multiprocessing` has it.
        lifeline: the end of the pipe that the program keeps.
    """

    def __init__(self, process: Any, lifeline: Connection):
        self._process, self._lifeline = process, lifeline
        self._forgotten = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Has the worker killed with all that it has started; returns at once, from any thread."""
        with self._lock:
            if not self._forgotten:
                self._signal(signal.SIGTERM)
                self._signal(signal.SIGCONT)  # a supervisor that was stopped goes on, and ends

    def wait(self, limit: float) -> int | None:
        """The exit code of the worker once all is gone, negative for a signal; None where it is not.

        Args:
            limit: seconds.
        """
        if isinstance(self._process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, limit))
            return self._process.returncode
        end = time.monotonic() + limit
        while self._process.exitcode is None and time.monotonic() < end:
            self._process.join(0.02)
        return self._process.exitcode

    def end(self) -> int | None:
        """Stops it, waits until all is gone, and forgets it; may be called again.

        Returns:
            See `wait`.
        """
        with self._lock:
            if self._forgotten:
                return None
        self.stop()
        code = self.wait(REAP_LIMIT)
        if code is None:  # the supervisor hangs, as in a debugger: its work is done from here
            kill([*descendants(self._process.pid), self._process.pid])
            code = self.wait(REAP_LIMIT)
        with self._lock:
            self._forgotten = True
        self._lifeline.close()
        if code is not None and not isinstance(self._process, subprocess.Popen):
            self._process.close()
        return code

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if isinstance(self._process, subprocess.Popen):
                self._process.send_signal(number)
            elif self._process.exitcode is None:
                os.kill(self._process.pid, number)


def start(
    target: Callable[..., None],
    arguments: tuple[Any, ...] = (),
    *,
    method: str = "spawn",
    variables: Mapping[str, str] | None = None,
) -> tuple[Child, Connection]:
    """Starts `target(connection, *arguments)` in a supervised process.

    Args:
        target: at the top level of a module. It may return: then its process ends.
        arguments: can be pickled.
        method: "spawn" for a new interpreter, which imports the main module again; "forkserver" for a
            fork of a server that has done so.
        variables: of the new interpreter's environment, beside those of this process.

    Returns:
        The child, and the other end of its connection.

    Raises:
        Exception: the target or its arguments cannot be pickled, or the main module starts a process
            while it is imported (it needs `if __name__ == "__main__":`).
    """
    ours, theirs = multiprocessing.Pipe()
    lifeline, kept = multiprocessing.Pipe(duplex=False)
    messages: tuple[bytes, ...] = ()
    try:
        with theirs, lifeline:
            if method == "spawn":
                messages = _messages(target, arguments)
                process: Any = _interpreter(theirs, lifeline, variables or {})
            else:
                context: Any = multiprocessing.get_context(method)
                process = context.Process(
                    target=_forked,
                    args=(theirs, lifeline, os.getpid(), target, arguments),
                    daemon=True,
                )
                with _STARTING:
                    process.start()
        child = Child(process, kept)
    except BaseException:
        ours.close()
        kept.close()
        raise
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is seen later
            for message in messages:
                ours.send_bytes(message)
    except BaseException:
        child.end()
        ours.close()
        raise
    return child, ours


def _messages(target: Any, arguments: tuple[Any, ...]) -> tuple[bytes, bytes]:
    data: dict[str, Any] = spawn.get_preparation_data("steprl-worker")
    data["authkey"] = bytes(data["authkey"])  # of its own type, which is not pickled
    return pickle.dumps(data), pickle.dumps((target, arguments), pickle.HIGHEST_PROTOCOL)


def _interpreter(
    theirs: Connection, lifeline: Connection, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    numbers = f"{theirs.fileno()}, {lifeline.fileno()}, {os.getpid()}"
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    program = _PROGRAM.format(path=[os.fspath(folder) for folder in sys.path], numbers=numbers)
    return subprocess.Popen(
        [spawn.get_executable(), *flags, "-c", program],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), lifeline.fileno()),
        start_new_session=True,
        env={**os.environ, **variables},
    )


def _begin(connection: int, lifeline: int, program: int) -> None:
    """The first thing that a new interpreter does. The fork comes first, while there are no threads."""
    enter(lifeline, program, [connection])
    pipe = Connection(connection)
    current: Any = multiprocessing.process.current_process()
    current._inheriting = (
        True  # so that a main module without a guard is told, and starts no others
    )
    try:
        spawn.prepare(pickle.loads(pipe.recv_bytes()))
        target, arguments = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionError):
        return
    finally:
        del current._inheriting
    target(pipe, *arguments)


def _forked(
    connection: Connection, lifeline: Connection, program: int, target: Any, arguments: Any
) -> None:
    """The same in a fork of the server, where the main module was imported before."""
    enter(lifeline.fileno(), program, [connection.fileno()])
    lifeline._handle = None  # type: ignore[attr-defined]  # the worker has closed it
    target(connection, *arguments)
