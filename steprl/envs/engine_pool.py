"""Engines lent to one thread at a time: at most `limit`, the one at the right place first."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


E = TypeVar("E", bound=Closable)
P = TypeVar("P")


@dataclasses.dataclass(eq=False)
class Lent(Generic[E, P]):
    """An engine, and the place it is at; None where nothing can continue from it.

    The borrower writes the place.
    """

    engine: E
    place: P | None = None


class EnginePool(Generic[E, P]):
    """At most `limit` engines, made when one is needed.

    Args:
        make: makes an engine; called without a lock, in the thread that needs it.
        limit: engines at most, from 1.
    """

    def __init__(self, make: Callable[[], E], limit: int):
        self._make, self._limit = make, limit
        self._idle: list[Lent[E, P]] = []  # the least recently used first
        self._alive = 0
        self._closed = False
        self._changed = threading.Condition()
        self.made = 0

    @contextlib.contextmanager
    def lend(self, place: P | None) -> Iterator[Lent[E, P]]:
        """An engine: one at `place`, else one at no place, a new one, or the least recently used.

        Waits while all are lent. If the body raises, the engine is closed and another may be made.

        Raises:
            ValueError: the pool is closed.
        """
        lent = self._take(place)
        try:
            yield lent
        except BaseException:
            self._drop(lent)
            raise
        self._give_back(lent)

    def close(self) -> None:
        """Close the engines; those that are lent, when they come back."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for lent in idle:
            self._drop(lent)

    def _take(self, place: P | None) -> Lent[E, P]:
        with self._changed:
            while True:
                if self._closed:
                    raise ValueError("the environment is closed")
                if (chosen := self._choose(place)) is not None:
                    return self._idle.pop(chosen)
                if self._alive < self._limit:
                    self._alive += 1
                    break
                self._changed.wait()
        try:
            lent: Lent[E, P] = Lent(self._make())
        except BaseException:
            self._lose_one()
            raise
        with self._changed:
            self.made += 1
        return lent

    def _choose(self, place: P | None) -> int | None:
        """Which idle engine to take; None: make one, or wait."""
        idle = self._idle
        if place is not None:
            for at in reversed(range(len(idle))):
                if idle[at].place == place:
                    return at
        for at, lent in enumerate(idle):
            if lent.place is None:
                return at
        return 0 if idle and self._alive >= self._limit else None

    def _give_back(self, lent: Lent[E, P]) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(lent)
                self._changed.notify()
                return
        self._drop(lent)

    def _drop(self, lent: Lent[E, P]) -> None:
        try:
            with contextlib.suppress(Exception):  # the caller sees the error that led here
                lent.engine.close()
        finally:
            self._lose_one()

    def _lose_one(self) -> None:
        with self._changed:
            self._alive -= 1
            self._changed.notify()
