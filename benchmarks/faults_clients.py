"""The clients, each with what its own documentation makes of its errors.

All have the same seconds for one attempt, by a public argument, so that a stalled
request costs all of them the same: left alone, it would take 30 of async_refunds, 80 of
Stripe's own client and 300 of aiohttp. Everything else is each one's default.
"""

from __future__ import annotations

import contextlib
import enum
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import aiohttp
import msgspec
import stripe
import tenacity

from async_refunds import (
    STRIPE_VERSION,
    OutcomeUnknownError,
    RefundsClient,
    RefundsError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Cancel: TypeAlias = Callable[[str], Awaitable[str]]
"""Cancels the refund of an id, and returns the status that the caller is told."""

Opener: TypeAlias = Callable[[str, float], AbstractAsyncContextManager[Cancel]]
"""Opens a client of a base URL with so many seconds for an attempt, and closes it."""

API_KEY = "sk_test_bench"


class Told(enum.Enum):
    """What a caller is told of one refund."""

    CANCELED = "canceled"
    NO = "not canceled"
    """An error that says, or by its documentation means, that nothing was done."""
    OPEN = "error, left open"
    """An error from which nobody can tell."""
    UNKNOWN = "unknown, with the key"
    """An error that says that the outcome is unknown, and has the idempotency key with
    which to ask again. Only async_refunds has one."""
    NOTHING = "no report"


class Client(msgspec.Struct, frozen=True):
    """A way to cancel refunds, and how its errors are read."""

    open: Opener
    told_by: Callable[[Exception], Told]
    family: tuple[type[Exception], ...]
    """The errors it documents; any other is raw."""


@contextlib.asynccontextmanager
async def async_refunds(base_url: str, seconds: float) -> AsyncGenerator[Cancel, None]:
    """This project."""
    async with RefundsClient(
        API_KEY, base_url=base_url, attempt_timeout=seconds
    ) as refunds:

        async def cancel(refund_id: str) -> str:
            await refunds.cancel(refund_id)
            return "canceled"  # that it returned says so, whatever it returned

        yield cancel


def told_by_async_refunds(error: Exception) -> Told:
    """Its README: anything but `OutcomeUnknownError` means that nothing was canceled.

    So the same is held against it for an error that is not even its own.
    """
    return Told.UNKNOWN if isinstance(error, OutcomeUnknownError) else Told.NO


@contextlib.asynccontextmanager
async def bare(base_url: str, seconds: float) -> AsyncGenerator[Cancel, None]:
    """Aiohttp with an idempotency key, and no second attempt."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def cancel(refund_id: str) -> str:
            return await _post(session, base_url, refund_id, str(uuid.uuid4()))

        yield cancel


@contextlib.asynccontextmanager
async def bare_retry(base_url: str, seconds: float) -> AsyncGenerator[Cancel, None]:
    """Aiohttp with the loop that a careful person writes: three attempts, one key."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    retry = tenacity.retry(
        retry=tenacity.retry_if_exception(_is_passing),
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
        reraise=True,
    )
    async with aiohttp.ClientSession(timeout=timeout) as session:

        @retry
        async def attempt(refund_id: str, key: str) -> str:
            return await _post(session, base_url, refund_id, key)

        async def cancel(refund_id: str) -> str:
            return await attempt(refund_id, str(uuid.uuid4()))

        yield cancel


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status == 429 or error.status >= 500  # noqa: PLR2004 - HTTP's
    return isinstance(error, (aiohttp.ClientError, TimeoutError))


async def _post(
    session: aiohttp.ClientSession, base_url: str, refund_id: str, key: str
) -> str:
    async with session.post(
        f"{base_url}/v1/refunds/{refund_id}/cancel",
        headers={
            "Authorization": f"Bearer {API_KEY}",
            "Stripe-Version": STRIPE_VERSION,
            "Content-Type": "application/x-www-form-urlencoded",
            "Idempotency-Key": key,
        },
    ) as response:
        response.raise_for_status()
        refund: Any = await response.json()
        status: str = refund["status"]
        return status


def told_by_aiohttp(error: Exception) -> Told:
    """Stripe's own table of statuses, and what aiohttp's class names say.

    https://docs.stripe.com/error-low-level: most 4xx are given before anything is
    done; a 409 may be due to the same key, and a 424 to half of the work. A 5xx is
    indeterminate, and so is what was lost on the way.
    """
    if isinstance(error, aiohttp.ClientConnectorError):
        return Told.NO
    if isinstance(error, aiohttp.ClientResponseError):
        refused = 400 <= error.status < 500 and error.status not in (408, 409, 424)  # noqa: PLR2004 - HTTP's
        return Told.NO if refused else Told.OPEN
    return Told.OPEN


def _official(
    make: Callable[[float], stripe.HTTPClient], retries: int | None
) -> Opener:
    """Return what opens Stripe's own client on one of its transports.

    With None it is as it comes, which in 16.1 is no retry at all: the two that
    `stripe.max_network_retries` names are for those who use no `StripeClient`.
    """

    @contextlib.asynccontextmanager
    async def opened(base_url: str, seconds: float) -> AsyncGenerator[Cancel, None]:
        transport = make(seconds)
        client = stripe.StripeClient(
            API_KEY,
            base_addresses={"api": base_url},
            http_client=transport,
            max_network_retries=retries,
        )

        async def cancel(refund_id: str) -> str:
            refund = await client.v1.refunds.cancel_async(refund_id)
            return str(refund.status)

        try:
            yield cancel
        finally:
            await transport.close_async()  # type: ignore[no-untyped-call] # stripe's

    return opened


def told_by_official(error: Exception) -> Told:
    """https://docs.stripe.com/error-handling, which has a section for each class.

    Of `APIConnectionError` and `APIError` it says to "treat the result of the API call
    as indeterminate". All others tell that the request was refused.
    """
    if isinstance(error, (stripe.APIConnectionError, stripe.APIError)):
        return Told.OPEN
    return Told.NO if isinstance(error, stripe.StripeError) else Told.OPEN


def _on_aiohttp(seconds: float) -> stripe.HTTPClient:
    return stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=seconds))


def _on_httpx(seconds: float) -> stripe.HTTPClient:
    return stripe.HTTPXClient(timeout=seconds)


_AIOHTTP = (aiohttp.ClientError, TimeoutError)
_OFFICIAL = (stripe.StripeError,)

CLIENTS = {
    "async_refunds": Client(async_refunds, told_by_async_refunds, (RefundsError,)),
    "bare": Client(bare, told_by_aiohttp, _AIOHTTP),
    "bare_retry": Client(bare_retry, told_by_aiohttp, _AIOHTTP),
    "official_aiohttp": Client(
        _official(_on_aiohttp, None), told_by_official, _OFFICIAL
    ),
    "official_aiohttp_2": Client(
        _official(_on_aiohttp, 2), told_by_official, _OFFICIAL
    ),
    "official_httpx": Client(_official(_on_httpx, None), told_by_official, _OFFICIAL),
    "official_httpx_2": Client(_official(_on_httpx, 2), told_by_official, _OFFICIAL),
}
