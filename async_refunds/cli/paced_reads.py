"""Read many refunds once, at the pace of Stripe's limit for reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from async_refunds.batch.closing import longest_outage
from async_refunds.errors import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    RateLimitError,
    RefundsError,
)

from .options import PATIENCE
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
_NOT_READ = " could not be read: "


class _Service:
    """Tells when what is asked has only failed for too long.

    Args:
        patience: Seconds that it may fail, once it has answered.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.has_answered = False
        """Whether an answer to any read ever came."""
        self._failing_since: float | None = None

    def judge(
        self, found: Refund | RefundsError, began: float, now: float
    ) -> float | None:
        """Return for how many seconds it has failed, if that is too long.

        Args:
            found: What a read came to.
            began: When it began.
            now: The time by the same clock.
        """
        if not isinstance(found, (APIConnectionError, APIError, RateLimitError)):
            self.has_answered, self._failing_since = True, None
            return None
        self.has_answered |= any(each.status is not None for each in found.attempts)
        if self._failing_since is None:
            self._failing_since = began
        failing = now - self._failing_since
        longest = longest_outage(self._patience, answered=self.has_answered)
        return failing if failing >= longest else None


class PacedReads:
    """Reads each refund once, each account at its own pace.

    Where the service only fails, those that are left are given up: after five seconds
    if it never answered, else after the patience of a batch.

    Args:
        options: The rate, the time-out, and of a batch the patience.
        on_read: Called with each request, and its refund or what kept it from us.
    """

    def __init__(
        self,
        options: ReadOptions,
        on_read: Callable[[CancelRequest, Refund | RefundsError], object],
    ) -> None:
        self._interval = 1 / min(options.rate or _READ_RATE, STRIPE_RATE)
        self._timeout = options.timeout
        self._service = _Service(getattr(options, "patience", None) or PATIENCE)
        self._on_read = on_read
        self._next: dict[str | None, float] = {}
        self._done = self._failed = 0
        self.given_up = ""
        """Why those that were left were not asked for; empty if none was given up."""

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
            Exception: What ``on_read`` raises.
        """
        progress = ReadProgress(
            lambda: (self._done, self._failed),
            total=total,
            clock=asyncio.get_running_loop().time,
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
        now = asyncio.get_running_loop().time
        for request in requests:
            await self._wait_for_turn(request.stripe_account)
            if self.given_up:
                self._note(request, not_asked_for(request, self.given_up))
                continue
            began = now()
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
            failing = self._service.judge(found, began, now())
            if failing is not None and not self.given_up:
                what = (
                    "failed" if self._service.has_answered else "could not be reached"
                )
                why = cause(request, str(found))
                self.given_up = f"{refunds.base_url} {what} for {failing:.0f} s: {why}"
            self._note(request, found)

    def _note(self, request: CancelRequest, found: Refund | RefundsError) -> None:
        self._done += 1
        self._failed += isinstance(found, RefundsError)
        self._on_read(request, found)

    async def _wait_for_turn(self, account: str | None) -> None:
        if self.given_up:
            return
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next.get(account, now))
        self._next[account] = turn + self._interval
        await asyncio.sleep(turn - now)


def not_asked_for(request: CancelRequest, why: str) -> RefundsError:
    """Return the error of a refund that was given up without a request."""
    return APIConnectionError(f"{request.refund_id}{_NOT_READ}{why}")


def cause(request: CancelRequest, error: str) -> str:
    """Return why a refund could not be read, without its id."""
    return error.removeprefix(f"{request.refund_id}{_NOT_READ}")
