"""What Stripe limits together: the cancels of an account, or its reads."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Protocol

from async_refunds.protocol.classification import Classification, Limit, Outcome
from async_refunds.protocol.requests import TransportFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.models import Attempt
    from async_refunds.protocol.requests import Request

    from .item import Item
    from .rate_control import RateController

# Statuses below 500 by which Stripe, or a proxy before it, reports its own failure and
# not the request's. 424: something that Stripe depends on failed.
_OUTAGE = frozenset({408, 424})

# Failures further apart are not one outage: the slowest pace lets a request out every
# two seconds, and an attempt may take thirty.
_GAP = 60.0

# Refunds that must have failed before the service counts as failing: one or two may be
# the cause themselves.
_SEVERAL = 3


class Outage:
    """Failures of one endpoint, with no success between them.

    Args:
        now: When the first one came.
    """

    __slots__ = ("failed_at", "reached", "refunds", "since")

    def __init__(self, now: float) -> None:
        self.since = self.failed_at = now
        self.reached = False
        """Whether any of the requests may have reached a server."""
        self.refunds: set[int] = set()
        """The numbers of some refunds that failed."""

    def add(self, item: Item, classification: Classification[Any], now: float) -> None:
        """Note one more failure."""
        self.failed_at = now
        self.reached = self.reached or classification.was_sent
        if len(self.refunds) < _SEVERAL:
            self.refunds.add(item.claim.number)

    def lasts(self, seconds: float, now: float) -> bool:
        """Tell whether the service, and not single refunds, failed for so long.

        Where nothing was reached, no refund can be the cause.
        """
        several = not self.reached or len(self.refunds) >= _SEVERAL
        return several and now - self.since >= seconds


class CountsUnderWay(Protocol):
    """Knows how many calls of an account are under way, to both endpoints."""

    under_way: int


class Endpoint:
    """The pace of one endpoint, and the line of calls that wait for a slot.

    Args:
        pace: Of this endpoint alone.
        clock: The event loop's time, in seconds.
        limits: Of the account. They tell how many calls are under way, to both
            endpoints; a function that tells would take 250 bytes for each account.
    """

    __slots__ = (
        "_clock",
        "_limits",
        "_line",
        "_moved",
        "closed",
        "outage",
        "pace",
        "waiting",
    )

    def __init__(
        self,
        pace: RateController,
        clock: Callable[[], float],
        limits: CountsUnderWay,
    ) -> None:
        self.pace = pace
        self._clock = clock
        self._limits = limits
        # Both are there while a call waits. Afterwards they would take 1.8 KB of each
        # of thousands of accounts.
        self._line: asyncio.Lock | None = None  # first come, first served
        self._moved: asyncio.Event | None = None
        self.outage: Outage | None = None
        """The failures since the last success, if any."""
        self.closed = False
        """Whether the calls that wait for a slot are to end without one."""
        self.waiting = 0
        """How many calls stand in line."""

    def record_limit(self, limit: Limit, attempt: Attempt) -> None:
        """Learn from a 429 of a limiter, of this endpoint or of the account."""
        now = self._clock()
        self.outage = None
        if limit is Limit.RATE:
            self.pace.on_rate_limit(now, _sent_at(attempt, now))
        else:
            self.pace.on_concurrency_limit(now, self._limits.under_way)

    def record_other(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Learn from any reply that is no 429 of a limiter."""
        now = self._clock()
        if not _is_outage(request, classification):
            self.outage = None
            self.pace.on_success(now, _sent_at(attempt, now))
            return
        if self.outage is None or now - self.outage.failed_at > _GAP:
            self.outage = Outage(now)
        self.outage.add(item, classification, now)
        self.pace.on_failure(now)

    @property
    def is_free(self) -> bool:
        """Whether a request may go out at once."""
        return not self.waiting and self._seconds_to_slot() <= 0

    async def acquire_slot(self) -> bool:
        """Wait in line until the pace lets one more request out, and take its slot.

        Returns:
            Whether it was taken: not if the endpoint is closed.
        """
        self._line = self._line or asyncio.Lock()
        self.waiting += 1
        try:
            async with self._line:
                while (wait := self._seconds_to_slot()) > 0 and not self.closed:
                    self._moved = self._moved or asyncio.Event()
                    self._moved.clear()
                    await event_or(self._moved, wait)
                if self.closed:
                    return False
                self.pace.reserve(self._clock())
                return True
        finally:
            self.waiting -= 1
            if not self.waiting:
                self._line = self._moved = None

    def notify(self) -> None:
        """Wake what waits for a slot that may be free sooner."""
        if self._moved is not None:
            self._moved.set()

    def _seconds_to_slot(self) -> float:
        if self._limits.under_way >= self.pace.concurrency:
            return math.inf
        return self.pace.free_at - self._clock()


async def event_or(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long; it is set afterwards either way."""
    if seconds == math.inf:
        await event.wait()
        return
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


def _sent_at(attempt: Attempt, now: float) -> float:
    """Return when a request went out, which it did after its wait for a connection."""
    return now - attempt.seconds + attempt.waited


def _is_outage(request: Request[Any], classification: Classification[Any]) -> bool:
    """Tell whether the service failed, rather than refused.

    A good status with a readable body about another refund, or in another state, is
    wrong, but no outage.
    """
    reply = classification.reply
    if isinstance(reply, TransportFailure):
        return True
    if classification.outcome is Outcome.AMBIGUOUS and reply.status < 300:  # noqa: PLR2004 - HTTP's successes
        return request.decode(reply.body) is None
    return reply.status >= 500 or reply.status in _OUTAGE  # noqa: PLR2004 - server errors
