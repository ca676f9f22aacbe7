"""Read many refunds once, at the pace of Stripe's limit for reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from async_refunds.errors import (
    APIConnectionError,
    AuthenticationError,
    RefundsError,
)

from .progress import ReadProgress, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_refunds.client import RefundsClient
    from async_refunds.models import Refund
    from async_refunds.results import CancelRequest

    from .options import ReadOptions
    from .output import Output

STRIPE_RATE = 25.0
"""Requests per second of an account to one endpoint, by
https://docs.stripe.com/rate-limits."""

# Below that limit, since other programs read too.
_READ_RATE = 20.0
_IN_FLIGHT = 25


class UnreachableError(Exception):
    """So many reads in turn had no answer that the others would have none either."""


class PacedReads:
    """Reads each refund once, each account at its own pace.

    Args:
        options: The rate and the time-out.
        on_read: Called with each request, and its refund or what kept it from us.
    """

    def __init__(
        self,
        options: ReadOptions,
        on_read: Callable[[CancelRequest, Refund | RefundsError], object],
    ) -> None:
        self._interval = 1 / min(options.rate or _READ_RATE, STRIPE_RATE)
        self._timeout = options.timeout
        self._on_read = on_read
        self._next: dict[str | None, float] = {}
        self._done = 0
        self._unanswered = 0  # in turn

    async def run(
        self,
        refunds: RefundsClient,
        requests: Iterator[CancelRequest],
        *,
        total: int,
        output: Output,
    ) -> None:
        """Read them all.

        Raises:
            AuthenticationError: The key is refused, so every read would be.
            UnreachableError: As many reads in turn as are made at once had no answer.
            Exception: What ``on_read`` raises.
        """
        progress = ReadProgress(
            lambda: self._done, total=total, clock=asyncio.get_running_loop().time
        )
        async with shown(output, progress.line):
            readers = [
                asyncio.create_task(self._read(refunds, requests))
                for _ in range(min(total, _IN_FLIGHT))
            ]
            # No TaskGroup: before Python 3.13 a task that fails while the last others
            # end can leave a cancellation behind.
            try:
                await asyncio.gather(*readers)
            finally:
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)

    async def _read(
        self, refunds: RefundsClient, requests: Iterator[CancelRequest]
    ) -> None:
        for request in requests:
            await self._wait_for_turn(request.stripe_account)
            found: Refund | RefundsError
            try:
                found = await refunds.retrieve(
                    request.refund_id,
                    stripe_account=request.stripe_account,
                    timeout=self._timeout,
                )
            except AuthenticationError:
                raise
            except RefundsError as error:
                found = error
            self._done += 1
            self._on_read(request, found)
            if not isinstance(found, APIConnectionError):
                self._unanswered = 0
                continue
            self._unanswered += 1
            if self._unanswered >= _IN_FLIGHT:
                raise UnreachableError(
                    f"the last {self._unanswered} reads had no answer, and no other "
                    f"was made: {found}"
                )

    async def _wait_for_turn(self, account: str | None) -> None:
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next.get(account, now))
        self._next[account] = turn + self._interval
        await asyncio.sleep(turn - now)
