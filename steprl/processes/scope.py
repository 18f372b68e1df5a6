"""Processes that were started by some calls, to be ended with them."""

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CURRENT: contextvars.ContextVar["Scope | None"] = contextvars.ContextVar("scope", default=None)


class Scope:
    """What is started in its context, and in contexts copied from it, ends when it is asked to end.

    A thread that hangs cannot be killed; the processes that it waits for can.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[Any] = set()
        self._ended = False
        self._outer = _CURRENT.get()

    @contextmanager
    def entered(self) -> Iterator["Scope"]:
        """Makes it the current one."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def end(self) -> None:
        """Ends its processes, and those that are still to come; returns at once, from any thread."""
        with self._lock:
            self._ended = True
            children = list(self._children)
        for child in children:
            child.stop()

    def _add(self, child: Any) -> None:
        with self._lock:
            self._children.add(child)
            ended = self._ended
        if ended:
            child.stop()
        if self._outer is not None:
            self._outer._add(child)

    def _discard(self, child: Any) -> None:
        with self._lock:
            self._children.discard(child)
        if self._outer is not None:
            self._outer._discard(child)


@contextmanager
def belonging(child: Any) -> Iterator[None]:
    """As long as the body runs, the child ends with the current scope."""
    scope = _CURRENT.get()
    if scope is None:
        yield
        return
    scope._add(child)
    try:
        yield
    finally:
        scope._discard(child)
