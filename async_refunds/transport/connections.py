"""Connections that answer only what was sent on them, and evidence of what was sent.

aiohttp keeps connections open and takes the first thing it reads for the answer.
Whether that holds, and whether anything was sent before an error, decides what may be
said about money.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from .deadlines import Deadlines


class NotConnectedError(aiohttp.ClientConnectionError):
    """There was no connection to send on: the pool was closed, or a look-up failed."""


class StaleConnectionError(aiohttp.ClientConnectionError):
    """The server speaks before it is asked, on one connection after the other."""


class NotPermittedError(aiohttp.ClientConnectionError):
    """The permit to send was refused when there was a connection to send on."""


# A kept connection may be stale, and the next one too. If three are, the server greets
# every connection with a refusal, and more attempts at once would be a flood. The
# retries come back with their pauses.
_MAX_TRIES = 3


class SendEvidence(msgspec.Struct, eq=False):
    """Whether an attempt has got a connection to send on.

    Whatever goes wrong before that sends nothing: a resolver, a thread that cannot be
    started, a tracing callback.
    """

    requested: bool = False
    """Whether aiohttp has got the request."""
    started: bool = False
    """Whether aiohttp has begun to look for a connection."""
    protocol: ResponseHandler | None = None
    """Of the connection, once there is one."""
    key_generation: int = 0
    """Of the API key in the request, which may change while it waits to be sent."""
    alone: bool = False
    """Whether the request needs a connection of its own, on which no late answer to
    another request can come. A borrowed session has no such thing."""
    permit: Callable[[], bool] | None = None
    """Asked once there is a connection, before the first byte; ``False`` sends nothing.
    ``None`` permits everything."""

    @property
    def sent(self) -> bool:
        """Whether anything of the request may have gone out."""
        return self.protocol is not None

    @property
    def maybe_sent(self) -> bool:
        """The same, also of an attempt whose end nobody saw.

        Canned answers in place of aiohttp's sending start nothing, and may mean
        anything.
        """
        return self.protocol is not None or (self.requested and not self.started)

    def abandon_connection(self) -> None:
        """Keep the connection from being used again."""
        if self.protocol is not None:
            self.protocol.force_close()


send_evidence: ContextVar[SendEvidence] = ContextVar("send_evidence")
"""Of the attempt that the current task makes."""


class FreshConnector(aiohttp.TCPConnector):
    """A pool that never hands out a connection with an unread answer on it.

    A kept connection may hold something that nobody requested (such as a proxy's 408
    for an idle connection), and aiohttp would take it for the answer to the next
    request.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own argument
    ) -> Connection:
        """Return a connection on which nothing has arrived yet."""
        evidence = send_evidence.get()
        evidence.started = True
        tries = 0
        while True:
            try:
                # `super()` costs more; this is the way of every request.
                conn = await aiohttp.TCPConnector.connect(self, req, traces, timeout)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise NotConnectedError from None
            protocol = conn.protocol
            if protocol is not None and not protocol.should_close:
                if evidence.permit is not None and not evidence.permit():
                    conn.release()  # nothing was written: the next request may have it
                    raise NotPermittedError
                evidence.protocol = protocol
                return conn
            conn.close()
            tries += 1
            if tries == _MAX_TRIES:
                raise StaleConnectionError


class ConnectionLimiter:
    """Admits one request for each connection, first come, first served.

    In aiohttp's own queue for a full pool, a new request takes a connection that was
    freed for a waiting one: with five requests in flight for each connection, the
    slowest of a hundred took 215 ms instead of 64 (``benchmarks/bench_cancel.py``).
    And a request that is cancelled there may swallow the wake-up of the next one.

    Args:
        size: How many requests at a time.
        deadlines: Ends the waits that take too long.
    """

    __slots__ = ("_deadlines", "_size", "free", "waiters")

    def __init__(self, size: int, deadlines: Deadlines) -> None:
        self.free = size
        """How many may be admitted without `acquire`, counting down by one each."""
        self.waiters: deque[asyncio.Future[None]] = deque()
        """Oldest first. After ``free`` has grown, `admit` lets them go on."""
        self._size = size
        self._deadlines = deadlines

    @property
    def in_use(self) -> int:
        """Requests that were admitted and not released."""
        return self._size - self.free

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return sum(not waiter.done() for waiter in self.waiters)

    async def acquire(self, seconds: float, now: float) -> float:
        """Wait until a request is admitted, and return the seconds it took from now.

        Raises:
            TimeoutError: It was not admitted in time.
        """
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self.waiters.append(waiter)
        try:
            with self._deadlines.start(seconds, now):
                await waiter
        except BaseException:
            if not waiter.done():
                self.waiters.remove(waiter)  # thrown away without a cancellation
            elif not waiter.cancelled():
                self.release()  # admitted at the moment of giving up
            raise
        waited = loop.time() - now
        if waited >= seconds:
            # The event loop was busy with something else for that long. A request sent
            # now would be cut off, and aiohttp takes "no time left" for "no limit".
            self.release()
            raise TimeoutError
        return waited

    def release(self) -> None:
        """Note the end of a request that was admitted."""
        self.free += 1
        self.admit()

    def admit(self) -> None:
        """Admit the requests that have waited longest, as many as are free."""
        while self.waiters and self.free:
            waiter = self.waiters.popleft()
            if not waiter.done():  # else it gave up
                self.free -= 1
                waiter.set_result(None)


class SendTracker(SendEvidence, eq=False):
    """A client middleware that sees whether a request reaches a connection.

    For a borrowed session, whose owner's tracing may raise anything at any time. It
    also does what `FreshConnector` does for an own session, and costs 5 % of a cancel.
    """

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Pass the request on and watch it being sent."""
        self.started = True
        for _ in range(_MAX_TRIES):
            self._watch(request)
            # aiohttp closes a stale connection when this is raised.
            with contextlib.suppress(StaleConnectionError):
                return await handler(request)
        raise StaleConnectionError

    def _watch(self, request: aiohttp.ClientRequest) -> None:
        send = request.send

        async def send_on_fresh(conn: Connection) -> aiohttp.ClientResponse:
            del request.send  # breaks a cycle that would wait for garbage collection
            if conn.protocol is None or conn.protocol.should_close:
                raise StaleConnectionError
            if self.permit is not None and not self.permit():
                raise NotPermittedError
            self.protocol = conn.protocol
            return await send(conn)

        # The only place between the wait for a connection and the first byte.
        request.send = send_on_fresh  # type: ignore[method-assign]  # on this request


def is_cancelled() -> bool:
    """Tell whether the current task has been cancelled."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def closes_coroutine(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Tell whether an exception is a `GeneratorExit` that closes a coroutine of a task.

    A task raises none at its own coroutine: that one comes from somebody's callback,
    and the coroutine may go on.
    """
    if not isinstance(error, GeneratorExit):
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # there is no event loop any more
        return True
