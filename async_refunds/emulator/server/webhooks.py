"""Posts signed events to webhook endpoints."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import TYPE_CHECKING

import aiohttp

from async_refunds.emulator.state.webhooks import WebhookAttempt

if TYPE_CHECKING:
    from async_refunds.emulator.state.webhooks import Delivery, Webhooks

# How long to wait before each retry, in seconds. Stripe retries for days; a test wants
# an answer.
RETRY_DELAYS = (0.5, 2.0, 8.0)

# How long an endpoint may take to answer, in seconds.
TIMEOUT = aiohttp.ClientTimeout(total=10)


def sign(payload: bytes, secret: str, timestamp: int) -> str:
    """Return a ``Stripe-Signature``.

    https://docs.stripe.com/webhooks#verify-manually
    """
    signed = f"{timestamp}.".encode() + payload
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={signature}"


class WebhookSender:
    """Sends events while the emulator serves, in the serving event loop.

    Deliveries run at the same time, so the order of arrival is not that of the
    events, as at Stripe.

    Args:
        webhooks: The deliveries.
    """

    def __init__(self, webhooks: Webhooks) -> None:
        self._loop = asyncio.get_running_loop()
        self._webhooks = webhooks
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Send what waits, and every delivery from now on."""
        self._webhooks.connect_sender(self._wake)

    async def close(self) -> None:
        """Stop sending; deliveries that have not succeeded are lost."""
        self._webhooks.connect_sender(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._send_waiting)

    def _send_waiting(self) -> None:
        for delivery in self._webhooks.take():
            task = self._loop.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        for delay in RETRY_DELAYS:
            if await self._attempt(delivery):
                return
            await asyncio.sleep(delay)
        await self._attempt(delivery)

    async def _attempt(self, delivery: Delivery) -> bool:
        """Post the event and return whether the endpoint has accepted it."""
        status = await self._post(delivery)
        attempt = WebhookAttempt(delivery.event_id, delivery.event_type, status)
        delivery.webhook.attempts.append(attempt)
        return status is not None and status // 100 == 2  # noqa: PLR2004  # 2xx

    async def _post(self, delivery: Delivery) -> int | None:
        """Return the status of the answer; None if there is none."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=TIMEOUT)
        webhook, payload = delivery.webhook, delivery.payload
        # The receiver compares the time with its own clock, not with the emulator's.
        signature = sign(payload, webhook.secret, int(time.time()))
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature,
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            # Stripe takes a redirect for a failure.
            async with self._session.post(
                webhook.url, data=payload, headers=headers, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return None
