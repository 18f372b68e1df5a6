"""Bodies of requests, received within limits of size and time."""

import asyncio
from typing import Any

from steprl.serving.connections import Limits
from steprl.serving.fields import ApiError


class Bodies:
    """Receives the bodies of all requests of a server; for its event loop only.

    Args:
        limits: of clients.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self._held = 0  # bytes of bodies that are not complete

    async def read(self, request: Any) -> bytes:
        """The body of a request, which is not read beyond what it may have.

        Args:
            request: of Starlette.

        Raises:
            ApiError: 408, 413 or 503: it is too slow, too large, or one of too many.
            ClientDisconnect: the client has left.
        """
        self._check_stated(request.headers.get("content-length", "0"))
        body = bytearray()  # not a list: a client may send byte after byte
        end = asyncio.get_running_loop().time() + self.limits.body_seconds
        source = aiter(request.stream())
        try:
            while True:
                try:
                    part = await self._next(source, end)
                except StopAsyncIteration:
                    return bytes(body)
                body += part
                self._held += len(part)
                if len(body) > self.limits.body:
                    raise self._too_large()
                if self._held > self.limits.bodies:
                    raise ApiError(503, "Too much is being received already: try again later.")
        finally:
            self._held -= len(body)

    async def _next(self, source: Any, end: float) -> bytes:
        pause = asyncio.get_running_loop().time() + self.limits.pause_seconds
        try:
            async with asyncio.timeout_at(min(pause, end)):
                return await anext(source)
        except TimeoutError:
            raise ApiError(
                408,
                f"The body did not come in time: within {self.limits.body_seconds:g} seconds, without "
                f"a pause of {self.limits.pause_seconds:g}.",
            ) from None

    def _check_stated(self, length: str) -> None:
        """Refuses at once what says that it is too large; HTTP has checked that it is a number."""
        if length.isascii() and length.isdigit() and len(length) < 20:
            if int(length) <= self.limits.body:
                return
        raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body has more than {self.limits.body} bytes.")
