"""Pace the attempts of a call for one item, and tell the scheduler of each."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from async_refunds.client import RefundsClient, begin_call
from async_refunds.errors import RefundsError
from async_refunds.models import id_of
from async_refunds.protocol.requests import Request, settling_read

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.models import Attempt, Refund
    from async_refunds.protocol.classification import Classification

    from .item import Item
    from .scheduler import Scheduler


class CallPacing:
    """Reports the attempts of a call for an item to the scheduler, and paces it.

    It does not know its call, which knows it: with its answer, a cycle takes 5 KB until
    the garbage collector comes, and with many accounts it comes once for thousands.

    Args:
        refunds: The client.
        scheduler: Of the batch.
        item: The item.
        give_up_at: On the event loop's clock, when the item's patience is over.
        permit: Tells whether a request of it may still be sent; see `Call`.
    """

    def __init__(
        self,
        refunds: RefundsClient,
        scheduler: Scheduler,
        item: Item,
        give_up_at: float,
        permit: Callable[[], bool] | None,
    ) -> None:
        self._permit = permit
        self._refunds = refunds
        self._scheduler = scheduler
        self._clock = asyncio.get_running_loop().time
        self._item = item
        self._give_up_at = give_up_at
        self.read_refused = False
        """Whether the pace let no settling read out."""

    def attempt_finished(
        self,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Report an attempt; see `CallObserver`."""
        self._item.attempts += (attempt,)
        self._scheduler.record_reply(self._item, request, classification, attempt)

    def attempt_broken_off(self, attempt: Attempt) -> None:
        """Count an attempt of which no answer comes; see `CallObserver`."""
        self._item.attempts += (attempt,)

    async def wait(self, request: Request[Any], seconds: float, until: float) -> bool:
        """Wait for a slot of the account's pace; see `RetryGate`."""
        until = min(until, self._give_up_at)
        if request.method == "POST" and self._scheduler.needs_charge(self._item):
            charge = await self._read_charge(settling_read(request), until)
            self._scheduler.learn_charge(self._item, charge)
        ready = await self._scheduler.wait_for_slot(self._item, request, seconds, until)
        self.read_refused = not ready and request.method == "GET"
        return ready

    async def _read_charge(self, reading: Request[Refund], until: float) -> str | None:
        """Read the charge of a refund, one of several that met a lock."""
        seconds = until - self._clock()
        ready = seconds > 0 and await self.wait(reading, 0.0, until)
        refund = None
        with suppress(RefundsError):
            refund = await self._read(reading, seconds) if ready else None
        if refund is None:
            return None
        return id_of(refund.charge) or id_of(refund.payment_intent)

    async def _read(self, reading: Request[Refund], seconds: float) -> Refund | None:
        call = begin_call(
            self._refunds,
            seconds,
            observer=self,
            retry_gate=self,
            permit=self._permit,
        )
        return (await call.read(reading)).value
