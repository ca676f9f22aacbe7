"""Connections that are what they seem, and evidence of what went out on them.

aiohttp keeps connections, and takes what it reads first for the answer. Whether that
is so, and whether anything was sent before an error, decides what may be told of money.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from .deadlines import Deadlines


class NotConnectedError(aiohttp.ClientConnectionError):
    """There was no connection to send on: the pool was closed meanwhile."""


class StaleConnectionError(aiohttp.ClientConnectionError):
    """The other side speaks before it is asked, on one connection after the other."""


# A kept connection may have gone stale, and the next one too. Where even more are so,
# the other side greets every connection with a refusal, and another one at once would
# be a flood: the retries come back with their pauses.
_TURNS = 3


class FreshConnector(aiohttp.TCPConnector):
    """An own session's pool, which hands out no connection with a stale answer in it.

    A kept connection may hold what nobody asked for (a proxy's 408 for idling is such),
    and aiohttp would take it for the answer to what is sent next.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
    ) -> Connection:
        """Return a connection that has nothing to say yet."""
        turns = _TURNS
        while turns:
            turns -= 1
            try:
                conn = await super().connect(req, traces, timeout)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise NotConnectedError from None
            protocol = conn.protocol
            if protocol is not None and not protocol.should_close:
                return conn
            conn.close()
        raise StaleConnectionError


class ConnectionLimiter:
    """So many requests at a time, one for each connection: first come, first served.

    In aiohttp's own queue for a full pool whoever comes takes a connection that came
    free for somebody who waits: with five requests in flight for each connection, the
    slowest of a hundred took 215 ms in place of 64 (``benchmarks/bench_cancel.py``).
    And who is cancelled there may take the wake-up of the next one with it.

    Args:
        size: How many.
        deadlines: End the waits that are too long.
    """

    __slots__ = ("_deadlines", "_queue", "free")

    def __init__(self, size: int, deadlines: Deadlines) -> None:
        self.free = size
        """How many may come in now, without a `wait`; to be counted down by each."""
        self._deadlines = deadlines
        self._queue: deque[asyncio.Future[None]] = deque()

    async def wait(self, seconds: float, now: float) -> float:
        """Wait for a place, and return the seconds it took from now.

        Raises:
            TimeoutError: There was none in time.
        """
        loop = asyncio.get_running_loop()
        place = loop.create_future()
        self._queue.append(place)
        try:
            with self._deadlines.start(seconds, now):
                await place
        except BaseException:
            if not place.done():
                self._queue.remove(place)  # thrown away, and not by a cancellation
            elif not place.cancelled():
                self.leave()  # got one at the moment of giving up
            raise
        waited = loop.time() - now
        if waited >= seconds:
            # The event loop was busy with something else for so long. What is sent now
            # would be cut off; and aiohttp takes no time left for any time you like.
            self.leave()
            raise TimeoutError
        return waited

    def leave(self) -> None:
        """Give a place back, to who has waited longest."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():  # else given up
                place.set_result(None)
                return
        self.free += 1


class SendTracker:
    """A client middleware that sees a request handed to a connection, or not.

    For a session whose owner's tracing may raise anything at any time. It has to do on
    the way what `FreshConnector` does for an own one, and costs 5 % of a cancel.
    """

    __slots__ = ("asked", "sent")

    def __init__(self) -> None:
        self.asked = False
        self.sent = False

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Pass the request on, with an eye on its way out."""
        self.asked = True
        for _ in range(_TURNS):
            self._watch(request)
            # aiohttp closes a stale one on the way here.
            with contextlib.suppress(StaleConnectionError):
                return await handler(request)
        raise StaleConnectionError

    def _watch(self, request: aiohttp.ClientRequest) -> None:
        send = request.send

        async def sending(conn: Connection) -> aiohttp.ClientResponse:
            del request.send  # or each request would wait for the garbage collector
            if conn.protocol is None or conn.protocol.should_close:
                raise StaleConnectionError
            self.sent = True
            return await send(conn)

        # The one place between the wait for a connection and the first byte.
        request.send = sending  # type: ignore[method-assign]  # on this one request


def is_cancelled() -> bool:
    """Tell whether somebody has cancelled the current task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
