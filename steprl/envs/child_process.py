"""An environment in a process of its own, which can be killed with all that it has started.

The child imports this module and what the environment needs; JAX only where one of these does, and
then it runs on the CPU, for the accelerator is the parent's. What goes between the two is pickled:
the child is trusted as much as an environment that runs in the parent. How it ends with all that it
has started is in `steprl.processes`.
"""

import os
import pickle
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from steprl.envs.answers import describe
from steprl.processes import REAP_LIMIT, Child, start

START_LIMIT = 120.0  # seconds until a child has its environment, imports included
CLOSE_LIMIT = 2.0  # seconds for `close` of an environment, before its child is killed


class Fault(NamedTuple):
    """A call that gave nothing: it raised, its process ended, or it took too long."""

    kind: str  # "timeout" or "crash"
    message: str


class ChildError(RuntimeError):
    """A child cannot do its work, and another one could not either."""


def call_env(env: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    """What `env.name(*arguments)` returns, or the fault "crash" for what it raises."""
    try:
        return getattr(env, name)(*arguments)
    except BaseException as error:  # a thread or a child has no caller that would see it
        return Fault("crash", describe(error))


def pickled(value: Any, what: str) -> bytes:
    """Bytes of a value that is to go to a child.

    Raises:
        TypeError: it cannot be pickled.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(_unpicklable(what, error)) from error


class EnvChild:
    """The parent's side of one child. One thread uses it; `kill` may be called from any.

    Args:
        env: the pickled environment.
        has_close: the environment has a method `close`, to be called before its child ends.
    """

    def __init__(self, env: bytes, has_close: bool):
        self._env, self._has_close = env, has_close
        self._child: Child | None = None
        self._connection: Connection | None = None
        self._killed, self._lock = False, threading.Lock()

    def start(self) -> None:
        """Starts the child where it does not run, and waits until it has its environment.

        Raises:
            ChildError: it ended before, it took longer than `START_LIMIT`, or it was killed.
        """
        if self._connection is not None:
            return
        with self._lock:
            if self._killed:
                raise ChildError("it was ended while it started")
            # A fork is not safe beside JAX.
            self._child, self._connection = start(_serve, variables={"JAX_PLATFORMS": "cpu"})
        end = time.monotonic() + START_LIMIT
        try:
            for message in (b"", self._env):  # it is up; it has the environment
                if message:
                    self._connection.send_bytes(message)
                if not self._connection.poll(max(0.0, end - time.monotonic())):
                    raise ChildError(f"it was not ready after {START_LIMIT:g} seconds")
                if failure := self._connection.recv_bytes():
                    raise ChildError(failure.decode())
        except (EOFError, OSError):
            raise ChildError(
                f"{self._ended()} before it was ready; a script that makes environments in "
                'processes must do so under `if __name__ == "__main__":`'
            ) from None

    def call(self, request: bytes) -> Any:
        """What the environment returns, or a fault "crash": also where that cannot be pickled.

        Args:
            request: pickled name and arguments.
        """
        assert self._connection is not None
        try:
            self._connection.send_bytes(request)
            reply = self._connection.recv_bytes()
        except (EOFError, OSError):
            fault = Fault("crash", self._ended())
            self.end(kindly=False)  # with what it has left behind
            return fault
        try:
            unsent, value = pickle.loads(reply)
        except Exception as error:
            return Fault("crash", _unpicklable("what the environment returns", error))
        return Fault("crash", unsent) if unsent else value

    def kill(self) -> None:
        """Kills the child with all that it has started, for good; returns at once."""
        with self._lock:
            self._killed = True
            if self._child is not None:
                self._child.stop()

    def end(self, kindly: bool = True) -> None:
        """Ends the child and forgets it; `kindly` lets an environment with `close` use it first."""
        if self._connection is not None:
            self._connection.close()  # which the child takes as the end
            self._connection = None
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return
        if kindly and self._has_close and not self._killed:
            child.wait(CLOSE_LIMIT)
        child.end()

    def _ended(self) -> str:
        """What happened to a child that does not answer any more."""
        assert self._child is not None
        code = self._child.wait(REAP_LIMIT)
        if code is None:
            return "the process of the environment closed its connection"
        if code >= 0:
            return f"the process of the environment ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "a signal"
        hint = ", as for want of memory" if name == "SIGKILL" else ""
        return f"the process of the environment ended with exit code {code} ({name}{hint})"


def _unpicklable(what: str, error: BaseException) -> str:
    return (
        f"{what} cannot be pickled, as processes need it ({type(error).__name__}: {error}); "
        'use isolate="thread"'
    )


def _serve(connection: Connection) -> None:
    """The child: answers calls one after the other until the parent closes the connection."""
    # A process that the environment forks must not keep the connection open behind it.
    os.register_at_fork(after_in_child=connection.close)
    if "jax" in sys.modules:  # the main module has it, which is imported before
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    connection.send_bytes(b"")
    try:
        env = pickle.loads(connection.recv_bytes())
    except EOFError:
        return
    except BaseException as error:
        connection.send_bytes(describe(error).encode())
        return
    connection.send_bytes(b"")
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            break
        connection.send_bytes(_answer(env, request))
    if close := getattr(env, "close", None):
        close()


def _answer(env: Any, request: bytes) -> bytes:
    """Pickled (what cannot be sent, None) or ("", result)."""
    try:
        name, arguments = pickle.loads(request)
    except BaseException as error:
        return pickle.dumps((_unpicklable("an argument of the environment", error), None))
    result = call_env(env, name, arguments)
    try:
        return pickle.dumps(("", result), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps((_unpicklable("what the environment returns", error), None))
