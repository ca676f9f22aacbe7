"""What the tests of batches share: an emulator on the test's own time, and a client."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from async_refunds import CancelResult, RefundsClient, cancel_many
from async_refunds.emulator import Emulator, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_refunds.batch.source import Requests

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"


def emulator(limits: Limits | None = None) -> Emulator:
    """Return an emulator whose time is the event loop's, which jumps."""
    loop = asyncio.get_running_loop()
    return Emulator(clock=lambda: 1.8e9 + loop.time(), limits=limits)


@asynccontextmanager
async def client(
    stripe: Emulator,
    **options: Any,  # noqa: ANN401 - those of the client, whatever they are
) -> AsyncGenerator[RefundsClient]:
    """Serve the emulator, and open a client of it."""
    async with (
        stripe.serve() as base_url,
        RefundsClient(KEY, base_url=base_url, **options) as refunds,
    ):
        yield refunds


async def canceled_many(
    refunds: RefundsClient,
    requests: Requests,
    **options: Any,  # noqa: ANN401 - those of the batch
) -> dict[str, CancelResult]:
    """Run a batch to its end, and return its results by the id, each there once."""
    found: dict[str, CancelResult] = {}
    async for result in cancel_many(refunds, requests, **options):
        assert result.refund_id not in found
        found[result.refund_id] = result
    return found


def asked(stripe: Emulator, refund_id: str) -> list[str | None]:
    """Return the keys with which the emulator was asked to cancel a refund."""
    return [
        request.idempotency_key
        for request in stripe.requests
        if request.method == "POST" and f"/{refund_id}/" in request.path
    ]
