"""Stripe's own Python client, on each of its transports."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import stripe
from stripe import AIOHTTPClient, HTTPXClient, RequestsClient

from tests.support.official_cases import OFFICIAL_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

# What the client returns: the tests look into it freely.
Found: TypeAlias = Any


class Official:
    """One client; every call blocks until it is done, on each transport.

    Args:
        transport: A name from `TRANSPORTS`.
        base_url: Takes the place of https://api.stripe.com.
        runner: Runs the coroutines of asynchronous transports.
        key: The API key.
        retries: How often the client may retry.
    """

    def __init__(
        self,
        transport: str,
        base_url: str,
        runner: asyncio.Runner,
        *,
        key: str = OFFICIAL_KEY,
        retries: int = 0,
    ) -> None:
        make, self._asynchronous = TRANSPORTS[transport]
        self._runner = runner
        self.http_client = make()
        self.client = stripe.StripeClient(
            key,
            base_addresses={"api": base_url},
            http_client=self.http_client,
            max_network_retries=retries,
        )

    def call(self, name: str, *arguments: Found, **named: Found) -> Found:
        """Call a method of the refunds service."""
        return self._call(self.client.v1.refunds, name, arguments, named)

    def expire(self, refund_id: str) -> Found:
        """Call the test helper."""
        helpers = self.client.v1.test_helpers.refunds
        return self._call(helpers, "expire", (refund_id,), {})

    def everything(self, **params: Found) -> list[Found]:
        """Return the refunds of all pages of a list."""
        page = self.call("list", params)
        if not self._asynchronous:
            return list(page.auto_paging_iter())

        async def read() -> list[Found]:
            return [item async for item in page.auto_paging_iter()]

        return self._runner.run(read())

    def close(self) -> None:
        """Close its connections."""
        if self._asynchronous:
            self._runner.run(self.http_client.close_async())
        else:
            self.http_client.close()

    def _call(
        self,
        service: Found,
        name: str,
        arguments: tuple[Found, ...],
        named: dict[str, Found],
    ) -> Found:
        if not self._asynchronous:
            return getattr(service, name)(*arguments, **named)

        async def run() -> Found:
            return await getattr(service, name + "_async")(*arguments, **named)

        return self._runner.run(run())


def _httpx_sync() -> Found:
    return HTTPXClient(allow_sync_methods=True)


# How to make each transport, and whether it is asynchronous.
TRANSPORTS: Mapping[str, tuple[Callable[[], Found], bool]] = {
    "requests": (RequestsClient, False),
    "httpx_sync": (_httpx_sync, False),
    "httpx": (HTTPXClient, True),
    "aiohttp": (AIOHTTPClient, True),
}


@contextmanager
def opened(
    transport: str, base_url: str, *, key: str = OFFICIAL_KEY, retries: int = 0
) -> Generator[Official]:
    """Open a client, and close its connections at the end."""
    with asyncio.Runner() as runner, warnings.catch_warnings():
        # The client uses deprecated parts of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        client = Official(transport, base_url, runner, key=key, retries=retries)
        yield client
        client.close()
