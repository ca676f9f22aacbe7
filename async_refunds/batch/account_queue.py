"""The items of one account: what is said of it by each answer, and when it is free.

Each account has its own limits at Stripe, so each has a lane with a pace of its own.
Nothing here sends.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Any

from async_refunds.protocol.classification import Classification, Limit, Outcome
from async_refunds.protocol.requests import Response, TransportFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Claim
    from async_refunds.models import Attempt
    from async_refunds.protocol.requests import Request
    from async_refunds.results import CancelResult

    from .rate_control import RateController

# The statuses with which Stripe, or what stands before it, says that it is unwell
# rather than that the request is. 424: a dependency of Stripe's failed.
_UNWELL = frozenset({408, 424})


class Item:
    """A claim under way: what its calls have met so far. It watches them for its lane.

    Args:
        claim: What the journal gave out.
        lane: Of its account.
    """

    __slots__ = (
        "_locked",
        "_serial",
        "ambiguous",
        "attempts",
        "began",
        "calls",
        "claim",
        "fixed",
        "lane",
        "not_before",
        "open",
        "reading",
    )

    def __init__(self, claim: Claim, lane: AccountQueue) -> None:
        self.claim = claim
        self.lane = lane
        self.ambiguous = claim.maybe_sent
        """Whether a request with the claim's key may have landed."""
        self.attempts: tuple[Attempt, ...] = ()
        """Of all its calls, oldest first."""
        self.began = -math.inf
        """On the event loop's clock, when its first call might begin."""
        self.calls = 0
        """How many were begun."""
        self.not_before = -math.inf
        """On the event loop's clock, when the next call may begin."""
        self.fixed = False
        """Whether the last answer to a cancel will not change: Stripe says so, or has
        saved it under the key."""
        self.open: CancelResult | None = None
        """What is told of it if it is not asked for again."""
        self.reading = False
        """Whether a read comes first, as the request that the pace is kept with."""
        self._locked = False
        self._serial = False

    def attempt_finished(
        self,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Tell the lane what an attempt says of its account."""
        self.attempts += (attempt,)
        self.lane.requests += 1
        self.lane.retries += attempt.slept > 0
        cancel = request.method == "POST"
        locked = self.lane.heard(
            classification, cancel=cancel, paced=cancel or self.reading
        )
        if cancel:
            self._locked = locked
            self.fixed = not classification.retry

    async def wait(self, seconds: float, until: float) -> None:
        """Sleep before a retry, then wait for a turn as everybody else."""
        lane = self.lane
        lane.leave()
        try:
            await asyncio.sleep(seconds)
            async with asyncio.timeout_at(until):
                if self._locked and not self._serial:
                    await lane.queue_up()
                    self._serial = True
                # Of a service that never answered there is no pace to keep to.
                if lane.heard_from:
                    await lane.turn()
        except TimeoutError:
            pass  # the call finds its time over
        finally:
            lane.under_way += 1

    def over(self) -> None:
        """End a call: let the next one have the lock's turn."""
        if self._serial:
            self._serial = self._locked = False
            self.lane.serial.release()


class AccountQueue:
    """The items of one account, and how fast it takes them.

    Args:
        account: ``acct_...``, or ``None`` for the key's own.
        pace: Of this account.
        clock: The event loop's time, in seconds.
        changed: Told when it may be free sooner than it seemed.
    """

    def __init__(
        self,
        account: str | None,
        pace: RateController,
        clock: Callable[[], float],
        changed: Callable[[AccountQueue], object],
    ) -> None:
        self.account = account
        self.pace = pace
        self.clock = clock
        self._changed = changed
        self.fresh: deque[Claim] = deque()
        self.again: list[tuple[float, int, Item]] = []
        """A heap of those to be asked again, by when."""
        self.under_way = 0
        """Calls that are not pausing."""
        self.dry = False
        """Whether the journal has no more of it for now."""
        self.news = 0
        """How often the journal got more of it."""
        self.refused: Classification[Any] | None = None
        """The reply after which nothing of this account can be asked any more."""
        self.out = 0
        """Items given out and not yet done."""
        self.requests = self.retries = 0
        """Sent, and how many of these after a pause."""
        self.heard_from = False
        """Whether any answer ever came."""
        self.noted = math.inf
        """When its valid entry in the queue of lanes says that it is free."""
        self.serial = asyncio.Lock()
        """Held by the one item at a time that retries after another held its charge."""
        self._queueing = 0
        self._turnstile = asyncio.Lock()
        self._retrying = 0
        self._stirred = asyncio.Event()

    def heard(self, advice: Classification[Any], *, cancel: bool, paced: bool) -> bool:
        """Learn from an attempt.

        Args:
            advice: What came of it.
            cancel: Whether it asked to cancel, and not to read.
            paced: Whether it had a turn. Of others, such as the reads that settle a
                cancel, only what goes wrong counts.

        Returns:
            Whether a lock was in its way.
        """
        reply, now = advice.reply, self.clock()
        limit = advice.limit
        if limit is Limit.RATE:
            self.pace.limited(now)
        elif limit is not None:
            self.pace.crowded(now, self.under_way)
        elif _is_failure(advice):
            self.pace.failed(now)
        elif paced:
            self.pace.admitted(now)
            self._stir()
        if isinstance(reply, Response):
            self.heard_from = True
            if self.refused is not None and not self.refused.was_sent:
                self.refused = None  # there is somebody after all
            if _refuses_key(advice, cancel=cancel):
                self.refused = advice
        return limit is Limit.LOCK

    def leave(self) -> None:
        """Note that one fewer is under way."""
        self.under_way -= 1
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
        self._changed(self)

    async def turn(self) -> None:
        """Wait for the turn of a retry, as long as the pace then has it."""
        self._retrying += 1
        try:
            async with self._turnstile:
                while (wait := self._wait()) > 0:
                    self._stirred.clear()
                    await event_or(self._stirred, wait)
                self.pace.reserve(self.clock())
        finally:
            self._retrying -= 1
            self._stir()

    def _wait(self) -> float:
        if self.under_way >= self.pace.concurrency:
            return math.inf
        return self.pace.free_at - self.clock()

    async def queue_up(self) -> None:
        """Wait to be the only one that retries after another held its charge.

        Nothing new is begun meanwhile. `serial` has to be released.
        """
        self._queueing += 1
        try:
            await self.serial.acquire()
        finally:
            self._queueing -= 1

    @property
    def empty(self) -> bool:
        """Whether it has nothing to give out for now."""
        return self.dry and not self.fresh and not self.again

    def free_at(self, most_again: int, share: int) -> float:
        """Return when the next item may go out, ``inf`` if something must end first.

        Args:
            most_again: With so many that wait to be asked again, none is begun: a
                bound to them is a bound to memory.
            share: How many items of it may be out.
        """
        if self.empty:
            return math.inf
        if self.refused is not None:
            return -math.inf
        if self.under_way >= self.pace.concurrency or self.out >= share:
            return math.inf
        if self._queueing or self._retrying:  # these go before what is new
            return math.inf
        fresh = (self.fresh or not self.dry) and len(self.again) < most_again
        when = -math.inf if fresh else self.again[0][0]
        return max(self.pace.free_at, when)


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


def _refuses_key(last: Classification[Any], *, cancel: bool) -> bool:
    """Tell whether the key is no good for the account, whatever the refund."""
    reply = last.reply
    return (
        isinstance(reply, Response)
        and last.confirmed
        and (reply.status == 401 or (reply.status == 403 and cancel))  # noqa: PLR2004 - Unauthorized, Forbidden
        and last.envelope.type is not None
    )


def _is_failure(advice: Classification[Any]) -> bool:
    reply = advice.reply
    if isinstance(reply, TransportFailure):
        return True
    if advice.outcome is not Outcome.AMBIGUOUS:
        return False
    return reply.status >= 500 or reply.status < 300 or reply.status in _UNWELL  # noqa: PLR2004 - HTTP's classes
