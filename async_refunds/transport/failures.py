"""From an exception of aiohttp or the system to a `TransportFailure`."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import TYPE_CHECKING

import aiohttp

from async_refunds.protocol.redaction import excerpt
from async_refunds.protocol.requests import Cause, TransportFailure

from .connections import (
    NotConnectedError,
    NotPermittedError,
    StaleConnectionError,
    is_cancelled,
)

if TYPE_CHECKING:
    from .connections import SendEvidence

# Not an error of its own: an earlier attempt may have been executed.
CLOSED = TransportFailure(Cause.CLOSED, "the session is closed", sent=False)

NO_CONNECTION_FREE = TransportFailure(
    Cause.CONNECT_TIMEOUT, "no connection was free in time", sent=False
)

# Characters of another library's text: a line or two.
_DETAIL_LIMIT = 200

# The first row that fits names the failure.
_TABLE: tuple[tuple[tuple[type[Exception], ...], Cause, str], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        Cause.CERTIFICATE,
        "the server's certificate is not trusted (SSL_CERT_FILE can name your CA)",
    ),
    (
        (
            # A refused connection, DNS and TLS.
            aiohttp.ClientConnectorError,
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
        "no connection: the server answers before it is asked",
    ),
    ((NotConnectedError,), Cause.CLOSED, "the session was closed"),
    (
        (NotPermittedError,),
        Cause.NOT_PERMITTED,
        "sending for this account is not permitted any more",
    ),
    ((TimeoutError,), Cause.TIMEOUT, "no answer in time"),
    (
        (aiohttp.ClientPayloadError,),
        Cause.CUT_BODY,
        "the answer broke off or cannot be decompressed",
    ),
    (
        (aiohttp.ClientConnectionError, OSError),
        Cause.RESET,
        "the connection broke ({})",
    ),
)

# aiohttp raises these before it has a connection to write to. They prove nothing in a
# session that runs its owner's hooks, which may raise the same after the answer.
_BEFORE_SENDING = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    NotConnectedError,
    NotPermittedError,
    StaleConnectionError,
)


def failure_for(
    error: BaseException, evidence: SendEvidence, waited: float
) -> TransportFailure:
    """Return the failure that an exception stands for.

    Args:
        error: What an attempt raised.
        evidence: Whether any byte of the request may have gone out.
        waited: Seconds that the own pool had no connection free.

    Raises:
        asyncio.CancelledError: The current task was cancelled.
    """
    sent = evidence.sent
    if isinstance(error, asyncio.CancelledError):
        if is_cancelled():
            raise error
        # A session that is closed cancels what waits in it. Passed on, that would end
        # the caller's task without a word.
        return TransportFailure(Cause.CLOSED, "the session was closed", sent=sent)
    if not evidence.started:
        # aiohttp failed before it looked for a connection; or a test has put canned
        # answers in place of aiohttp's sending, where only the class tells.
        sent = not isinstance(error, (*_BEFORE_SENDING, RecursionError, MemoryError))
    cause, detail = _explain(error, sent=sent)
    return TransportFailure(cause, detail, sent=sent, waited=waited)


def _explain(error: BaseException, *, sent: bool) -> tuple[Cause, str]:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        # The proxy passed nothing on: this is its answer to CONNECT.
        wants_login = error.status == 407  # noqa: PLR2004 - Proxy Authentication Required
        return (
            Cause.PROXY_AUTHENTICATION if wants_login else Cause.REFUSED,
            f"the proxy refused the connection (HTTP status {error.status})",
        )
    if isinstance(error, aiohttp.ClientResponseError):
        return Cause.MALFORMED, _malformed(error)
    for kinds, cause, words in _TABLE:
        if isinstance(error, kinds):
            return cause, words.format(_reason(error))
    text = excerpt(f"an unexpected {type(error).__name__}: {error}", _DETAIL_LIMIT)
    return Cause.UNEXPECTED if sent else Cause.REFUSED, text


def _malformed(error: aiohttp.ClientResponseError) -> str:
    # aiohttp's message may quote what was received, so only its kind is repeated.
    if "content-encoding" in error.message.lower():
        return "the answer has an encoding that was not requested"
    if "too long" in error.message or "bytes when reading" in error.message:
        return "the answer's headers are too large"
    return "the answer is not HTTP"


def _reason(error: BaseException) -> str:
    """Return the system's own words, or the name of the exception.

    The full text of aiohttp's errors may quote what was received. The numbers of a
    resolver and of OpenSSL are not the system's, so `os.strerror` cannot explain them.
    """
    cause = getattr(error, "os_error", error)
    if isinstance(cause, (socket.gaierror, socket.herror)) or isinstance(
        error, aiohttp.ClientConnectorDNSError
    ):
        return "the host name cannot be resolved"
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or 'the handshake failed'}"
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno)
    return type(error).__name__
