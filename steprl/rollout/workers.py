"""Many environments stepped at the same time, each call under a deadline.

Threads suit environments that wait: for a server, for a file, for C code that lets go of the
interpreter. Processes suit those that compute in Python, crash, or hang for good. What a call gives
depends on its arguments only, never on the order in which calls end.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from steprl.envs.answers import describe
from steprl.envs.child_process import CLOSE_LIMIT, EnvChild, Fault, call_env, pickled
from steprl.processes import Scope

__all__ = ["EnvWorkers", "Fault"]

CALLS = ("reset", "step")
ISOLATIONS = ("thread", "process")
THREADS = "steprl-env"  # their name, seen when a hung process is inspected


class _Call(NamedTuple):
    ticket: int
    call: str
    arguments: tuple[Any, ...]
    request: Any  # both as the lane takes them

    def __str__(self) -> str:
        of = f" of task {self.arguments[0]}" if self.call == "reset" and self.arguments else ""
        return f"`{self.call}`{of} (ticket {self.ticket})"


class _Lane(Protocol):
    """Where the calls of one worker run: here, or in a child."""

    def start(self) -> None: ...
    def call(self, request: Any) -> Any: ...
    def kill(self) -> None: ...
    def end(self) -> None: ...


class _Here:
    def __init__(self, env: Any):
        self._env, self._scope = env, Scope()

    def start(self) -> None: ...

    def call(self, request: Any) -> Any:
        with self._scope.entered():
            return call_env(self._env, *request)

    def kill(self) -> None:
        self._scope.end()  # a thread cannot be killed; the tools that it waits for can

    def end(self) -> None: ...


class EnvWorkers:
    """Calls of one environment, `workers` of them at a time; a context manager.

    A call that takes longer than `timeout` becomes a `Fault` and its place is taken by a new worker.
    A hung thread cannot be ended: it is left alone, and what it returns later is dropped; tools that
    it waits for are killed where they run in processes. A hung process is killed with all that it has
    started.

    Args:
        env: the environment. In threads it is shared, and its `close`, if it has one, is called at
            the end; each process has a copy. For processes it can be pickled; a call whose state or
            answer cannot be is a fault.
        workers: calls at a time; 0 runs each in `submit`, without a deadline.
        timeout: seconds of a call from where it starts, which is not where it is submitted; None
            for no deadline.
        isolate: "thread" or "process". Processes start at the first calls, import the main module
            again (what a script needs for itself belongs under `if __name__ == "__main__":`), and
            have no accelerator.

    Raises:
        TypeError: the environment is to go to processes and cannot be pickled.
        ValueError: an argument is out of range.
    """

    def __init__(
        self, env: Any, workers: int, timeout: float | None = None, isolate: str = "thread"
    ):
        if workers < 0:
            raise ValueError(f"workers={workers}: must be 0 (calls run inline) or more")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout}: must be more than 0 seconds, or None")
        if isolate not in ISOLATIONS:
            raise ValueError(f"isolate={isolate!r}: must be one of {', '.join(ISOLATIONS)}")
        self._env, self._workers, self._timeout = env, workers, timeout
        self._pickled = pickled(env, "the environment") if isolate == "process" else None
        self._lock = threading.Lock()
        self._work, self._finished, self._started = (
            threading.Condition(self._lock) for _ in range(3)
        )
        self._waiting: deque[_Call] = deque()
        self._running: dict[_Lane, tuple[_Call, float]] = {}  # in the order of their deadlines
        self._done: list[tuple[int, Any | Fault]] = []
        self._tickets: set[int] = set()  # submitted, not collected
        self._lanes: set[_Lane] = set()  # one a worker, without those given up
        self._idle: set[_Lane] = set()
        self._threads: set[threading.Thread] = set()  # those of lanes given up too
        self._watch: threading.Thread | None = None
        self._watching = False  # the watch waits for a deadline, not for a call to begin
        self._error: Exception | None = None
        self._closed = False

    @property
    def pending(self) -> int:
        """Calls that were submitted and not yet collected."""
        return len(self._tickets)

    def submit(self, ticket: int, call: str, *arguments: Any) -> None:
        """Has `env.call(*arguments)` run as soon as a worker is free.

        Args:
            ticket: names the call; may be used again when its result was collected.
            call: "reset" or "step".

        Raises:
            ChildError: processes cannot start.
            RuntimeError: the workers are closed.
            ValueError: the ticket is in use, or there is no such call.
        """
        if call not in CALLS:
            raise ValueError(f"call={call!r}: must be one of {', '.join(CALLS)}")
        if self._workers == 0:
            self._check(ticket)
            result = _inline(self._env, call, arguments)
            self._tickets.add(ticket)
            self._done.append((ticket, result))
            return
        request: Any = (call, arguments)
        fault: Fault | None = None
        if self._pickled is not None:
            try:
                request = pickled(request, f"an argument of `{call}`")
            except TypeError as error:
                fault = Fault("crash", str(error))
        with self._lock:
            self._check(ticket)
            self._tickets.add(ticket)
            if fault is not None:
                self._done.append((ticket, fault))
                self._finished.notify()
                return
            self._waiting.append(_Call(ticket, call, arguments, request))
            self._staff()

    def collect(self, wait: float | None = None) -> list[tuple[int, Any | Fault]]:
        """(ticket, result or fault) of the calls that are over, in the order in which they ended.

        Args:
            wait: seconds to wait at most while none is; None for as long as it takes. It returns at
                once where nothing is pending.

        Raises:
            ChildError, RuntimeError: as of `submit`.
        """
        end = None if wait is None else time.monotonic() + wait
        with self._lock:
            while True:
                self._check()
                left = None if end is None else end - time.monotonic()
                if self._done or not self._tickets or (left is not None and left <= 0):
                    break
                self._finished.wait(left)
            done, self._done = self._done, []
            self._tickets.difference_update(ticket for ticket, _ in done)
        return done

    def close(self) -> None:
        """Drops all calls and ends the workers, however they hang; may be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for lane in self._lanes - self._idle:
                lane.kill()
            for condition in (self._work, self._finished, self._started):
                condition.notify_all()
            threads = list(self._threads)
        atexit.unregister(self.close)
        if self._pickled is not None and self._workers:
            _join(threads, 2 * CLOSE_LIMIT)
        elif close := getattr(self._env, "close", None):
            # A hung call may hold what `close` wants.
            closing = threading.Thread(target=_close, args=(close,), daemon=True)
            closing.start()
            _join([closing], CLOSE_LIMIT)

    def __enter__(self) -> "EnvWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # `_check` and `_staff` are called with the lock held.

    def _check(self, ticket: int | None = None) -> None:
        if self._closed:
            raise RuntimeError("the workers are closed")
        if self._error is not None:
            raise self._error
        if ticket in self._tickets:
            raise ValueError(f"ticket={ticket}: its call is not collected yet")

    def _staff(self) -> None:
        """Makes sure that some worker takes the calls that wait."""
        if len(self._idle) >= len(self._waiting):
            self._work.notify()
            return
        if len(self._lanes) >= self._workers:
            return
        if self._watch is None and self._timeout is not None:
            self._watch = threading.Thread(target=self._give_up_late, daemon=True, name=THREADS)
            self._watch.start()
        lane: _Lane = _Here(self._env)
        if self._pickled is not None:
            lane = EnvChild(self._pickled, hasattr(self._env, "close"))
            if not self._threads:
                atexit.register(self.close)  # or the children would be waited for without end
        thread = threading.Thread(target=self._serve, args=(lane,), daemon=True, name=THREADS)
        try:
            thread.start()
        except RuntimeError as error:
            self._error = RuntimeError(f"{error}; threads that hang still count")
            self._finished.notify_all()
            return
        self._lanes.add(lane)
        self._threads.add(thread)

    def _serve(self, lane: _Lane) -> None:
        """The thread of one worker."""
        try:
            call: _Call | None = None
            result: Any = None
            while (call := self._next(lane, call, result)) is not None:
                lane.start()
                if not self._begin(lane, call):
                    break
                result = lane.call(call.request)
        except Exception as error:  # another worker would fare no better
            self._fail(error)
        finally:
            lane.end()
            with self._lock:
                self._lanes.discard(lane)
                self._threads.discard(threading.current_thread())

    def _next(self, lane: _Lane, call: _Call | None, result: Any) -> _Call | None:
        """Delivers the result of a call and takes the next one; None where the worker is to end."""
        with self._lock:
            if call is not None:
                if self._running.pop(lane, None) is None:
                    return None  # it came too late
                self._done.append((call.ticket, result))
                self._finished.notify()
            self._idle.add(lane)
            while not self._waiting and not self._closed:
                self._work.wait()
            self._idle.discard(lane)
            return None if self._closed else self._waiting.popleft()

    def _begin(self, lane: _Lane, call: _Call) -> bool:
        """Starts the clock of a call; False where the workers were closed meanwhile."""
        with self._lock:
            deadline = time.monotonic() + (self._timeout or 0.0)
            self._running[lane] = (call, deadline)
            if not self._watching:
                self._started.notify()
            return not self._closed

    def _give_up_late(self) -> None:
        """The thread that looks after the deadlines."""
        with self._lock:
            while not self._closed:
                self._watching = bool(self._running)
                if not self._running:
                    self._started.wait()
                    continue
                lane, (call, deadline) = next(iter(self._running.items()))
                left = deadline - time.monotonic()
                if left > 0:  # calls that begin meanwhile end later
                    self._started.wait(left)
                    continue
                del self._running[lane]
                self._lanes.discard(lane)
                lane.kill()
                fault = Fault("timeout", f"{call} took longer than {self._timeout:g} seconds")
                self._done.append((call.ticket, fault))
                self._finished.notify()
                if self._waiting:
                    self._staff()

    def _fail(self, error: Exception) -> None:
        """Ends all: `collect` and `submit` raise the error from now on."""
        with self._lock:
            if not self._closed and self._error is None:
                self._error = error
            self._finished.notify_all()


def _inline(env: Any, call: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return getattr(env, call)(*arguments)
    except KeyboardInterrupt:  # what the user interrupts is no fault
        raise
    except BaseException as error:
        return Fault("crash", describe(error))


def _close(close: Callable[[], Any]) -> None:
    try:
        close()
    except BaseException as error:
        logging.getLogger("steprl").warning(
            "`close` of the environment failed: %s", describe(error)
        )


def _join(threads: list[threading.Thread], limit: float) -> None:
    end = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
