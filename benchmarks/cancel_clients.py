"""Ways to cancel a refund: this project, Stripe's own client, and what people write.

Every client sends ``POST /v1/refunds/{id}/cancel`` over plain HTTP, and makes of the
answer what its users get.

Pools: ``async_refunds``, ``bare`` and ``bare_plain`` are left as their users get them,
with aiohttp's default of 100 connections, and so is ``tuned``, since a ratio between
unlike pools would say little: 500 busy connections cost more CPU than 100 and a queue.
``official_httpx`` has httpx's own 100, of which 20 are kept alive, since no public
argument of it changes them. All others have a connection for each call in flight.
"""

from __future__ import annotations

import contextlib
import json
import operator
import secrets
import uuid
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import msgspec
import stripe
import yarl

from async_refunds import STRIPE_VERSION, Refund, RefundsClient
from benchmarks import raw_http

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from benchmarks.harness import Call, Opener

# It never leaves the machine; of the length of a real one.
API_KEY = "sk_test_" + "0" * 99
HEADERS = {
    "Authorization": f"Bearer {API_KEY}",
    "Stripe-Version": STRIPE_VERSION,
    "Content-Type": "application/x-www-form-urlencoded",
}


@contextlib.asynccontextmanager
async def async_refunds(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """This project, with all of its defaults."""
    del concurrency
    async with RefundsClient(API_KEY, base_url=base_url) as refunds:
        yield refunds.cancel


@contextlib.asynccontextmanager
async def bare(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """What a careful person writes with aiohttp, and nothing for when it fails."""
    del concurrency
    async with aiohttp.ClientSession() as session:
        yield bare_call(session, base_url)


def bare_call(session: aiohttp.ClientSession, base_url: str) -> Call:
    """Return what `bare` does with a session."""

    async def cancel(refund_id: str) -> object:
        response = await session.post(
            f"{base_url}/v1/refunds/{refund_id}/cancel",
            headers={
                "Authorization": f"Bearer {API_KEY}",
                "Stripe-Version": STRIPE_VERSION,
                "Content-Type": "application/x-www-form-urlencoded",
                "Idempotency-Key": str(uuid.uuid4()),
            },
        )
        return await response.json()

    return cancel


@contextlib.asynccontextmanager
async def bare_plain(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """The same without any header: Stripe would refuse it, but nothing is cheaper."""
    del concurrency
    async with aiohttp.ClientSession() as session:

        async def cancel(refund_id: str) -> object:
            response = await session.post(f"{base_url}/v1/refunds/{refund_id}/cancel")
            return await response.json()

        yield cancel


@contextlib.asynccontextmanager
async def tuned(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """All that is known to make aiohttp fast: the floor.

    No status is looked at, no deadline kept, no error named, no attempt noted.
    """
    del concurrency
    decode = msgspec.json.Decoder(Refund).decode
    timeout = aiohttp.ClientTimeout(connect=10.0)
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS,
        timeout=timeout,
    ) as session:

        async def cancel(refund_id: str) -> object:
            response = await session.post(
                yarl.URL(f"{base_url}/v1/refunds/{refund_id}/cancel", encoded=True),
                headers={"Idempotency-Key": secrets.token_hex(16)},
                allow_redirects=False,
            )
            return decode(await response.read())

        yield cancel


@contextlib.asynccontextmanager
async def official(
    base_url: str, http_client: stripe.HTTPClient
) -> AsyncGenerator[Call, None]:
    """Stripe's own client on an HTTP client of its kinds, which it closes."""
    client = stripe.StripeClient(
        API_KEY, base_addresses={"api": base_url}, http_client=http_client
    )
    try:
        yield client.v1.refunds.cancel_async
    finally:
        await http_client.close_async()  # type: ignore[no-untyped-call] # stripe's


@contextlib.asynccontextmanager
async def official_aiohttp(
    base_url: str, concurrency: int
) -> AsyncGenerator[Call, None]:
    """Stripe's own client on aiohttp."""
    connector = aiohttp.TCPConnector(limit=concurrency)
    http_client = stripe.AIOHTTPClient(connector=connector)
    async with official(base_url, http_client) as call:
        yield call


@contextlib.asynccontextmanager
async def official_httpx(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """Stripe's own client as it comes: httpx is its first choice."""
    del concurrency
    async with official(base_url, stripe.HTTPXClient()) as call:
        yield call


@contextlib.asynccontextmanager
async def httpx_json(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """What `bare` does, with httpx."""
    limits = httpx.Limits(
        max_connections=concurrency, max_keepalive_connections=concurrency
    )
    # The default of five seconds is for an idle peer, not for one that queues.
    async with httpx.AsyncClient(limits=limits, timeout=60.0) as client:

        async def cancel(refund_id: str) -> object:
            response = await client.post(
                f"{base_url}/v1/refunds/{refund_id}/cancel",
                headers={**HEADERS, "Idempotency-Key": str(uuid.uuid4())},
            )
            return response.json()

        yield cancel


@contextlib.asynccontextmanager
async def raw(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
    """Bytes to an open socket and bytes from it: the limit for any client."""
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    async with raw_http.pool(base_url, concurrency) as exchange:

        async def cancel(refund_id: str) -> object:
            body = await exchange(
                f"POST /v1/refunds/{refund_id}/cancel HTTP/1.1\r\n"
                f"Host: localhost\r\n{head}"
                f"Idempotency-Key: {secrets.token_hex(16)}\r\n"
                "Content-Length: 0\r\n\r\n"
            )
            return json.loads(body)

        yield cancel


def checked(opener: Opener) -> Opener:
    """Make sure once that a client does what it is measured for."""

    @contextlib.asynccontextmanager
    async def opened(base_url: str, concurrency: int) -> AsyncGenerator[Call, None]:
        async with opener(base_url, concurrency) as call:
            answer: Any = await call("re_check")
            # A dictionary, or an object of the client's own.
            is_dict = isinstance(answer, dict)
            read = operator.itemgetter if is_dict else operator.attrgetter
            if read("id", "status")(answer) != ("re_check", "canceled"):
                raise RuntimeError(f"no canceled refund: {answer!r}")
            yield call

    return opened


CLIENTS: dict[str, Opener] = {
    "async_refunds": async_refunds,
    "bare": bare,
    "bare_plain": bare_plain,
    "tuned": tuned,
    "official_aiohttp": official_aiohttp,
    "official_httpx": official_httpx,
    "httpx": httpx_json,
    "raw": raw,
}
