"""Connections of the server: none that does nothing, or takes nothing, keeps others from being answered.

Uvicorn has a time limit between two requests only. Here a connection also has one until its first
request has come with all headers, one to take what is sent to it, and, where there are too many, the
one that has been idle for longest makes room.
"""

import asyncio
import resource
from typing import Any, NamedTuple

_RESERVED_FILES = 128  # descriptors for everything else that a server opens


class Limits(NamedTuple):
    """What clients may take up of a server."""

    body: int = 8 * 2**20  # bytes of a request
    bodies: int = 256 * 2**20  # bytes of all requests that are being received
    requests: int = 256  # that are answered or wait for their turn
    connections: int = 1000
    header_seconds: float = 10.0  # from the connection, or the last answer, to a request's headers
    pause_seconds: float = 10.0  # without a byte of a body
    body_seconds: float = 60.0  # until a body is complete
    write_seconds: float = 30.0  # until a client has taken what it was sent


def connection_limit(limits: Limits) -> int:
    """How many connections there may be: as many as asked for, or as there are file descriptors for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return limits.connections
    return max(1, min(limits.connections, max(files // 2, files - _RESERVED_FILES)))


def server_config(app: Any, limits: Limits | None = None, **settings: Any) -> Any:
    """Settings of a uvicorn server that keeps the limits.

    Args:
        app: as from `make_app`.
        limits: of clients; None for the default ones.
        **settings: further ones of `uvicorn.Config`.
    """
    import uvicorn

    limits = limits or Limits()
    # A short queue is accepted in one go, before the connections that make room have gone.
    config = uvicorn.Config(app, **{"backlog": 128, "ws": "none", **settings})
    config.load()
    config.http_protocol_class = watched(config.http_protocol_class, limits)
    return config


def watched(protocol: Any, limits: Limits) -> Any:
    """A protocol of uvicorn whose connections keep the limits."""
    most = connection_limit(limits)
    there: set[Any] = set()
    idle: dict[Any, None] = {}  # the one that has been for longest first

    class Watched(protocol):
        _alarm: asyncio.TimerHandle | None = None
        _running = 0
        _unsent = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._answer: Any = self.app
            self.app: Any = self._watch
            there.add(self)
            if len(there) > most:
                _drop(next(iter(idle), self))
            if not transport.is_closing():
                self._rest()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wake()
            there.discard(self)
            super().connection_lost(exc)

        def _rest(self) -> None:
            """No request is in progress from now on."""
            self._wake()
            idle[self] = None
            self._unsent = self.transport.get_write_buffer_size() + 1
            self._alarm = self.loop.call_later(limits.header_seconds, self._end_rest)

        def _end_rest(self) -> None:
            unsent = self.transport.get_write_buffer_size()
            if 0 < unsent < self._unsent:  # it still reads its last answer
                self._unsent = unsent
                self._alarm = self.loop.call_later(limits.header_seconds, self._end_rest)
            else:
                _drop(self)

        def _wake(self) -> None:
            idle.pop(self, None)
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

        async def _watch(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_in_time(message: Any) -> None:
                alarm = self.loop.call_later(limits.write_seconds, self.transport.abort)
                try:
                    await send(message)  # returns when the connection is lost, too
                finally:
                    alarm.cancel()

            self._running += 1
            self._wake()
            try:
                await self._answer(scope, receive, send_in_time)
            finally:
                self._running -= 1
                if self._running == 0 and self in there:
                    self._rest()

    def _drop(connection: Any) -> None:
        idle.pop(connection, None)
        there.discard(connection)  # it is gone soon, and makes room now
        connection.transport.abort()

    return Watched
