"""The one place that speaks aiohttp: a request goes in, a reply comes out.

`Session.send` returns what happened and raises nothing but a cancellation, so that no
error of aiohttp, and no traceback through its frames with the request in them, gets
any further than this module.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.hdrs import CONTENT_TYPE
from multidict import CIMultiDict, istr
from yarl import URL

from async_refunds.protocol.redaction import SecretStr, scrub
from async_refunds.protocol.requests import Cause, Response, TransportFailure

from .connections import (
    ConnectionLimiter,
    FreshConnector,
    NotConnectedError,
    SendTracker,
    StaleConnectionError,
    is_cancelled,
)
from .deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from async_refunds.protocol.requests import Reply, Request

BODY_LIMIT = 1024 * 1024
"""Bytes. A page of 100 refunds with three expansions each stays below it."""

# Folded once, not at every request.
_IDEMPOTENCY_KEY = istr("Idempotency-Key")
_STRIPE_ACCOUNT = istr("Stripe-Account")

# A default of the session's would go out where a call names none, and act on another
# account than it was told.
_OURS = frozenset({"idempotency-key", "stripe-account", "stripe-context"})

# aiohttp rounds time-outs over five seconds up to a whole second, to wake up less
# often; with a deadline for the whole call they have to be exact.
_NO_CEILING = float("inf")

# Not an error of its own: an attempt before may have landed.
_CLOSED = TransportFailure(Cause.CLOSED, "the session is closed", sent=False)
_NO_ROOM = TransportFailure(
    Cause.CONNECT_TIMEOUT, "no connection was free in time", sent=False
)

# Characters of a foreign error's text: a line or two.
_DETAIL_LIMIT = 200


# The first line that fits names the failure. `ClientConnectorError` covers refusal, DNS
# and TLS; a proxy that refuses CONNECT passed nothing on.
_TABLE: tuple[tuple[tuple[type[Exception], ...], Cause, str], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        Cause.CERTIFICATE,
        "the server's certificate is not trusted",
    ),
    (
        (
            aiohttp.ClientConnectorError,
            aiohttp.ClientHttpProxyError,
            aiohttp.InvalidURL,
            aiohttp.NonHttpUrlClientError,
        ),
        Cause.REFUSED,
        "no connection ({})",
    ),
    ((aiohttp.ConnectionTimeoutError,), Cause.CONNECT_TIMEOUT, "no connection in time"),
    (
        (StaleConnectionError,),
        Cause.REFUSED,
        "no connection that waits to be asked",
    ),
    ((NotConnectedError,), Cause.CLOSED, "the session was closed"),
    ((TimeoutError,), Cause.TIMEOUT, "no answer in time"),
    (
        (aiohttp.ClientPayloadError,),
        Cause.CUT_BODY,
        "the answer broke off or does not decompress",
    ),
    (
        (aiohttp.ClientConnectionError, OSError),
        Cause.RESET,
        "the connection broke ({})",
    ),
    ((aiohttp.ClientResponseError,), Cause.MALFORMED, "the answer is not HTTP"),
)


# What aiohttp raises before it has a connection to write to. No proof in a session that
# runs its owner's hooks, which may raise the same after the answer.
_BEFORE_SENDING = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    NotConnectedError,
    StaleConnectionError,
)


class Body(list[bytes]):
    """The chunks of a body, which may hold a customer's address: shown as a count."""

    def __repr__(self) -> str:
        return f"<{len(self)} chunks>"


class Session:
    """An aiohttp session with Stripe's headers, lazily made or borrowed.

    It belongs to the event loop it is first used in. A session of its own has no
    cookies; a borrowed one keeps its connector, proxy, CA, tracing and owner. Its
    middlewares are not run: for what they send again nobody could vouch.

    Args:
        origin: ``scheme://host[:port]``, as `validate.base_url` returns it.
        headers: Sent with every request, the credentials among them.
        attempt_timeout: Seconds for one attempt, the wait for a connection included.
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
        attempt_timeout: float,
        borrowed: aiohttp.ClientSession | None,
    ) -> None:
        if borrowed is not None:
            _check(borrowed, origin)
        self._origin = URL(origin)
        self._headers = headers
        self._session = borrowed
        self._owned = borrowed is None
        # An own session carries the headers itself, which is cheaper than to merge
        # them into each request.
        self._each: Mapping[str, str] = {} if borrowed is None else headers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: Deadlines | None = None
        self._room: ConnectionLimiter | None = None
        self._closed = False
        self._timeout = _connect_within(attempt_timeout / 2)
        self._attempt_timeout = attempt_timeout

    def open(self) -> asyncio.AbstractEventLoop:
        """Make sure that a call may begin, here and now; return the event loop.

        Raises:
            RuntimeError: Closed, or used in a second event loop; nothing was sent.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop and not self._closed:
            return loop
        if self._closed:
            raise RuntimeError("this RefundsClient is closed")
        if self._loop is not None:
            raise RuntimeError(
                "this RefundsClient belongs to another event loop: make one client "
                "per event loop, inside it"
            )
        self._loop = loop
        self._deadlines = Deadlines(loop, self._attempt_timeout)
        waits = Deadlines(loop, self._attempt_timeout / 2)
        if not self._owned:
            # How many its pool has room for, and for whom, is for its owner to say.
            self._room = ConnectionLimiter(sys.maxsize, waits)
        else:
            connector = FreshConnector()
            self._room = ConnectionLimiter(connector.limit, waits)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=CIMultiDict(self._headers),
            )
        return loop

    async def send(self, request: Request[Any], seconds: float, now: float) -> Reply:
        """Send once and return what came back, within so many seconds from now.

        Half of them may go into the wait for a connection, so that what does go out has
        as long for its answer; and since the wait ends first, a time-out in it proves
        that nothing was sent.
        """
        session, deadlines, room = self._session, self._deadlines, self._room
        assert session is not None  # noqa: S101 - `open` comes before
        assert deadlines is not None  # noqa: S101
        assert room is not None  # noqa: S101
        connect_seconds = seconds / 2
        if room.free:
            room.free -= 1
        else:
            try:
                waited = await room.wait(connect_seconds, now)
            except TimeoutError:
                return _NO_ROOM
            now += waited
            seconds -= waited
            connect_seconds -= waited
        tracker = None if self._owned else SendTracker()
        try:
            if self._closed or (tracker is not None and session.closed):
                return _CLOSED
            with deadlines.start(seconds, now):
                response = await session.request(
                    request.method,
                    self._url_of(request),
                    data=request.form,
                    headers=self._headers_of(request),
                    allow_redirects=False,
                    raise_for_status=False,
                    auto_decompress=True,
                    timeout=self._timeout_of(connect_seconds),
                    middlewares=() if tracker is None else (tracker,),
                )
                try:
                    content = response.content
                    # Most answers are here whole, the head and the body at once.
                    body = (
                        content.read_nowait()
                        if content.is_eof()
                        else await _read(content)
                    )
                finally:
                    # At the body's end the connection has gone back to the pool by
                    # itself; to release it again costs 2 % of a cancel. Anything less
                    # is closed.
                    if response.connection is not None:
                        response.close()
        except Exception as error:  # noqa: BLE001 - the table maps every one
            return _failure(error, tracker)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            # A session that is closed cancels what waits in it; passed on, that would
            # end the caller's task without a word.
            sent = tracker is None or tracker.sent
            return TransportFailure(Cause.CLOSED, "the session was closed", sent=sent)
        finally:
            room.leave()
        if len(body) > BODY_LIMIT:
            text = f"the answer is over {BODY_LIMIT} bytes"
            return TransportFailure(Cause.TOO_LARGE, text, sent=True)
        return Response(response.status, response.headers, body)

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

    def _headers_of(self, request: Request[Any]) -> dict[str, str]:
        headers = {**self._each}
        if request.idempotency_key is not None:
            headers[_IDEMPOTENCY_KEY] = request.idempotency_key
            # Also without a form: the official clients always say so.
            headers[CONTENT_TYPE] = "application/x-www-form-urlencoded"
        if request.stripe_account is not None:
            headers[_STRIPE_ACCOUNT] = request.stripe_account
        return headers

    async def close(self) -> None:
        """Close the session if it is our own; whatever is under way fails."""
        self._closed = True
        if self._deadlines is not None:
            self._deadlines.close()
        if self._owned and self._session is not None:
            await self._session.close()


def _check(session: aiohttp.ClientSession, origin: str) -> None:
    if not isinstance(session, aiohttp.ClientSession):
        raise TypeError("session must be an aiohttp.ClientSession")
    if session.auth is not None:
        raise ValueError(
            "session has an auth of its own, which aiohttp refuses to combine with "
            "the API key's"
        )
    # aiohttp has no public name for the proxy that a session was made with.
    proxied = session.trust_env or getattr(session, "_default_proxy", None) is not None
    if proxied and origin.startswith("http:"):
        raise ValueError(
            "session goes through a proxy (proxy or trust_env), and to that plain http "
            "would show the API key"
        )
    if taken := sorted(_OURS & {name.casefold() for name in session.headers}):
        raise ValueError(f"session has {taken[0]} among its headers: it is the call's")


def authorization(api_key: str) -> SecretStr:
    """Return the value of the header that carries the key, and hides it."""
    return SecretStr(f"Bearer {api_key}")


async def _read(content: aiohttp.StreamReader) -> bytes:
    # `read()` has no cap; by the chunk, a body without end ends a little over ours.
    body = Body([await content.readany()])
    size = len(body[0])
    while size <= BODY_LIMIT and not content.at_eof():
        body.append(await content.readany())
        size += len(body[-1])
    return b"".join(body)


def _connect_within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=seconds, ceil_threshold=_NO_CEILING)


def _failure(error: Exception, tracker: SendTracker | None) -> TransportFailure:
    if tracker is not None and tracker.asked:
        sent = tracker.sent
    else:  # also where canned answers stand in for aiohttp's sending, in a test
        sent = not isinstance(error, _BEFORE_SENDING)
    for kinds, cause, words in _TABLE:
        if isinstance(error, kinds):
            return TransportFailure(cause, words.format(_reason(error)), sent=sent)
    text = scrub(f"an unforeseen {type(error).__name__}: {error}")
    return TransportFailure(Cause.UNEXPECTED, text[:_DETAIL_LIMIT], sent=sent)


def _reason(error: Exception) -> str:
    # The name and the system's own words; the full text of aiohttp's errors may quote
    # what was received.
    number = error.errno if isinstance(error, OSError) else None
    return type(error).__name__ if number is None else os.strerror(number)
