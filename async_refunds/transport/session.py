"""The only module that sends: a request goes in, a reply comes out.

`Session.send` returns what happened and raises nothing but a cancellation. So no error
of aiohttp, and no traceback through its frames with the request in them, gets any
further than this module.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.hdrs import AUTHORIZATION, CONTENT_TYPE
from multidict import CIMultiDict, istr
from yarl import URL

from async_refunds.protocol.redaction import SecretStr
from async_refunds.protocol.requests import (
    IDEMPOTENCY_KEY,
    Cause,
    Response,
    TransportFailure,
)

from .borrowed_session import check_borrowed
from .connections import (
    ConnectionLimiter,
    FreshConnector,
    SendEvidence,
    SendTracker,
    closes_coroutine,
    send_evidence,
)
from .deadlines import Deadlines
from .failures import CLOSED, NO_CONNECTION_FREE, failure_for
from .own_session import new_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from async_refunds.protocol.requests import Reply, Request

BODY_LIMIT = 1024 * 1024
"""Bytes. A page of 100 refunds with three expansions each stays below it."""

# Folded once, not for every request.
_STRIPE_ACCOUNT = istr("Stripe-Account")

# aiohttp rounds time-outs over five seconds up to a whole second, to wake up less
# often. With one deadline for the whole call they have to be exact.
_NO_CEILING = float("inf")


class Body(list[bytes]):
    """The chunks of a body. The repr shows their number: they may hold an address."""

    def __repr__(self) -> str:
        return f"<{len(self)} chunks>"


class Session:
    """An aiohttp session with Stripe's headers, made lazily or borrowed.

    It belongs to the event loop in which it is first used. A session of its own has no
    cookies. A borrowed one keeps its connector, proxy, CA, tracing and owner; its
    middlewares are not run, because they may send a request again unseen.

    Args:
        origin: ``scheme://host[:port]``, as `validation.base_url` returns it.
        headers: Sent with every request.
        api_key: Sent with every request; ``None`` if `set_api_key` gives it later.
        attempt_timeout: Seconds for one attempt, including the wait for a connection.
        borrowed: The caller's session, or ``None`` to make one.

    Raises:
        TypeError: ``borrowed`` is no aiohttp session.
        ValueError: ``borrowed`` could not carry the API key, or not safely.
    """

    def __init__(
        self,
        *,
        origin: str,
        headers: Mapping[str, str],
        api_key: str | None,
        attempt_timeout: float,
        borrowed: aiohttp.ClientSession | None,
    ) -> None:
        if borrowed is not None:
            check_borrowed(borrowed, origin)
        self.origin = origin
        """``scheme://host[:port]``."""
        self._origin = URL(origin)
        self._session = borrowed
        self._owned = borrowed is None
        self.new_evidence: type[SendEvidence] = (
            SendEvidence if self._owned else SendTracker
        )
        """Makes what `send` fills in, which tells also of an attempt cut short."""
        # An own session carries the headers itself, which is cheaper than merging them
        # into each request. Their case is folded here, and not for each request.
        own: dict[str, str] = {istr(name): text for name, text in headers.items()}
        if api_key is not None:
            own[AUTHORIZATION] = authorization(api_key)
        self._own_headers: Mapping[str, str] = own if self._owned else {}
        self._request_headers: dict[str, str] = {} if self._owned else own
        self.key_generation = 0
        """How often the API key has changed."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: Deadlines | None = None
        self._limiter: ConnectionLimiter | None = None
        self._single_use: aiohttp.ClientSession | None = None
        self._refusing = False
        self._closed = False
        self._timeout = _connect_within(attempt_timeout / 2)
        self._attempt_timeout = attempt_timeout

    def open(self) -> asyncio.AbstractEventLoop:
        """Make sure that a call may begin, here and now; return the event loop.

        Raises:
            RuntimeError: Closed, or its borrowed session is; or used in a second event
                loop, or in none of asyncio. Nothing was sent.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "async_refunds needs asyncio, and no asyncio event loop is running "
                "here (it does not run on trio)"
            ) from None
        closed = not self._owned and self._session is not None and self._session.closed
        if self._loop is loop and not self._refusing and not closed:
            return loop
        if self._refusing:
            raise RuntimeError("this RefundsClient is closed")
        if closed:
            # Each call would fail as in an outage, whose end a batch would wait for.
            raise RuntimeError("the session given to this RefundsClient is closed")
        if self._loop is not None:
            raise RuntimeError(
                "this RefundsClient belongs to another event loop: make one client "
                "per event loop, inside it"
            )
        deadlines = Deadlines(loop, self._attempt_timeout)
        waits = Deadlines(loop, self._attempt_timeout / 2)
        if not self._owned:
            # Its owner decides how many connections its pool has, and for whom.
            limiter = ConnectionLimiter(sys.maxsize, waits)
        else:
            connector = FreshConnector()
            limiter = ConnectionLimiter(connector.limit, waits)
            self._session = new_session(self._origin, self._own_headers, connector)
        self._deadlines, self._limiter = deadlines, limiter
        # Last: an error before this (a RecursionError, say) leaves it unopened.
        self._loop = loop
        return loop

    def _session_of_single_use(self) -> aiohttp.ClientSession:
        """Return a session that opens a connection for each request."""
        if self._single_use is None:
            connector = FreshConnector(force_close=True)
            self._single_use = new_session(self._origin, self._own_headers, connector)
        return self._single_use

    @property
    def connections_in_use(self) -> int:
        """Requests that have, or are about to get, a connection."""
        return 0 if self._limiter is None else self._limiter.in_use

    @property
    def waiting_for_connection(self) -> int:
        """Requests that wait because the own pool has no connection free."""
        return 0 if self._limiter is None else self._limiter.waiting

    def set_api_key(self, api_key: str) -> None:
        """Send another API key from now on."""
        self._request_headers[AUTHORIZATION] = authorization(api_key)
        self.key_generation += 1

    async def send(
        self,
        request: Request[Any],
        seconds: float,
        now: float,
        evidence: SendEvidence,
    ) -> Reply:
        """Send once and return what came back, within so many seconds from now.

        The wait for a connection may take half of them, so that a request that is sent
        has as long for its answer. And since that wait ends first, a time-out in it
        proves that nothing was sent.
        """
        # None is made that nobody would close any more.
        alone = evidence.alone and self._owned and not self._closed
        session = self._session_of_single_use() if alone else self._session
        deadlines, limiter = self._deadlines, self._limiter
        assert session is not None  # noqa: S101 - `open` comes before
        assert deadlines is not None  # noqa: S101
        assert limiter is not None  # noqa: S101
        connect_seconds, waited = seconds / 2, 0.0
        if limiter.free:
            limiter.free -= 1
        else:
            try:
                waited = await limiter.acquire(connect_seconds, now)
            except TimeoutError:
                return NO_CONNECTION_FREE
        task = asyncio.current_task(self._loop)
        send_evidence.set(evidence)
        try:
            if self._closed or (not self._owned and session.closed):
                return CLOSED
            with deadlines.start(seconds - waited, now + waited, task):
                evidence.key_generation = self.key_generation
                evidence.requested = True
                response = await self._request(
                    session, request, connect_seconds - waited, evidence
                )
                try:
                    content = response.content
                    # Most answers are here already, head and body at once.
                    body = (
                        content.read_nowait()
                        if content.is_eof()
                        else await _read(content)
                    )
                finally:
                    # At the end of the body, aiohttp itself has returned the connection
                    # to the pool; to release it again costs 2 % of a cancel. Anything
                    # less is closed.
                    if response.connection is not None:
                        response.close()
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) or closes_coroutine(
                error, task
            ):
                raise  # meant for the process, or for the coroutine itself
            return failure_for(error, evidence, waited)
        finally:
            # First without a call: a nearly full stack may have no room for one.
            limiter.free += 1
            if limiter.waiters:
                limiter.admit()
        if len(body) > BODY_LIMIT:
            text = f"the answer is over {BODY_LIMIT} bytes"
            return TransportFailure(Cause.TOO_LARGE, text, sent=True)
        status, headers = response.status, response.headers
        key = request.idempotency_key
        if status < 200 or headers.get(IDEMPOTENCY_KEY, key) != key:  # noqa: PLR2004 - an interim answer (1xx)
            # The answer to this request may still arrive on the connection.
            evidence.abandon_connection()
        return Response(status, headers, body, waited)

    def _request(
        self,
        session: aiohttp.ClientSession,
        request: Request[Any],
        connect_seconds: float,
        evidence: SendEvidence,
    ) -> Awaitable[aiohttp.ClientResponse]:
        """Return what sends a request once awaited."""
        if not isinstance(evidence, SendTracker):
            # Each argument costs, and a session of ours has the others by default.
            return session.request(
                request.method,
                self._url_of(request),
                data=request.form,
                headers=self._headers_of(request),
                allow_redirects=False,
                timeout=self._timeout_of(connect_seconds),
            )
        return session.request(
            request.method,
            self._url_of(request),
            data=request.form,
            headers=self._headers_of(request),
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=True,
            timeout=self._timeout_of(connect_seconds),
            middlewares=(evidence,),
        )

    def _url_of(self, request: Request[Any]) -> URL:
        url = self._origin.with_path(request.path, encoded=True)
        if request.query:
            return URL(f"{url}?{request.query}", encoded=True)
        return url

    def _timeout_of(self, connect_seconds: float) -> aiohttp.ClientTimeout:
        # aiohttp's own total is off: the deadline around the whole attempt is ours.
        if connect_seconds == self._timeout.connect:
            return self._timeout
        return _connect_within(connect_seconds)

    def _headers_of(self, request: Request[Any]) -> CIMultiDict[str]:
        headers = CIMultiDict(self._request_headers)
        if request.idempotency_key is not None:
            headers[IDEMPOTENCY_KEY] = request.idempotency_key
            # Also without a form: the official clients always send it.
            headers[CONTENT_TYPE] = "application/x-www-form-urlencoded"
        if request.stripe_account is not None:
            headers[_STRIPE_ACCOUNT] = request.stripe_account
        return headers

    @property
    def is_open(self) -> bool:
        """Whether connections may be open that only `close` closes."""
        return self._owned and self._session is not None and not self._closed

    def refuse_new_calls(self) -> None:
        """Let no new call begin."""
        self._refusing = True

    async def close(self) -> None:
        """Close the session if it is an own one; whatever is in progress fails."""
        self._refusing = self._closed = True
        if self._deadlines is not None:
            self._deadlines.close()
        if self._owned and self._session is not None:
            await self._session.close()
            if self._single_use is not None:
                await self._single_use.close()


def authorization(api_key: str) -> SecretStr:
    """Return the value of the header that carries the key, hidden from reprs."""
    return SecretStr(f"Bearer {api_key}")


async def _read(content: aiohttp.StreamReader) -> bytes:
    # `read()` has no limit; chunk by chunk, an endless body ends a little over ours.
    body = Body([await content.readany()])
    size = len(body[0])
    while size <= BODY_LIMIT and not content.at_eof():
        body.append(await content.readany())
        size += len(body[-1])
    return b"".join(body)


def _connect_within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=seconds, ceil_threshold=_NO_CEILING)
