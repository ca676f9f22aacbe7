"""The refunds of one account: what waits, what is under way, when the next may go out.

Each account has limits of its own at Stripe, so each has a queue with a pace of its
own. Nothing here sends, and nothing else writes into a queue.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from typing import TYPE_CHECKING, Any

from async_refunds.protocol import error_mapping
from async_refunds.protocol.classification import Classification, Outcome
from async_refunds.protocol.requests import Response, TransportFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Claim
    from async_refunds.models import Attempt
    from async_refunds.protocol.requests import Reply, Request
    from async_refunds.results import CancelResult

    from .rate_control import RateController

# Statuses below 500 by which Stripe, or a proxy before it, reports its own failure and
# not the request's. 424: something that Stripe depends on failed.
_OUTAGE = frozenset({408, 424})

# Statuses below 500 that say nothing about a key: timed out, limited, or forbidden by a
# proxy.
_NO_WORD = frozenset({401, 403, 408, 429})

# Refusals in a row of the key (of different calls) or of its permissions (of different
# refunds), with no other answer between, before the account is closed. One may concern
# the refund alone; after several every further request is wasted.
_EVIDENCE = 3

# Claims held ahead for one account: a commit of the journal serves so many.
_PAGE = 100


class Item:
    """A claim under way, and what its calls have met so far.

    Args:
        claim: What the journal gave out.
        began_at: On the event loop's clock, when its first call may begin.
    """

    __slots__ = ("attempts", "began_at", "calls", "claim", "known", "maybe_sent")

    def __init__(self, claim: Claim, began_at: float) -> None:
        self.claim = claim
        self.began_at = began_at
        self.attempts: tuple[Attempt, ...] = ()
        """Of all its calls, oldest first."""
        self.calls = 0
        """How many calls were begun."""
        self.maybe_sent = claim.maybe_sent
        """Whether a request with the claim's key may have landed."""
        self.known: CancelResult | None = None
        """Its result if no call follows the last one."""


class AccountQueue:
    """The items of one account, and how fast they go out.

    Args:
        account: ``acct_...``, or ``None`` for the key's own.
        pace: Of this account.
        clock: The event loop's time, in seconds.
        changed: Called when an item may go out sooner than `next_at` said.
    """

    def __init__(
        self,
        account: str | None,
        pace: RateController,
        clock: Callable[[], float],
        changed: Callable[[AccountQueue], object],
    ) -> None:
        self.account = account
        self._pace = pace
        self._clock = clock
        self._changed = changed
        self._pending: deque[Claim] = deque()
        self._retry_heap: list[tuple[float, int, Item]] = []
        self._pushed = 0
        self._exhausted = False  # the journal has no more of it for now
        self._version = 0  # how often the journal got more of it
        self._checked_out = 0  # items that a worker has
        self._under_way = 0  # calls that are not between two attempts
        self._closed_by: Reply | None = None
        self._refused: set[tuple[int, int]] = set()  # since a cancel was not refused
        self._has_answered = False
        self._slot_line = asyncio.Lock()  # first come, first served
        self._retrying = 0  # calls that wait for a slot
        self._retry_lock = asyncio.Lock()
        self._lock_holder: Item | None = None
        self._lock_waiting = 0
        self._locked: set[Item] = set()  # those whose last cancel met a lock
        self._moved = asyncio.Event()

    # ------------------------------------------------------------------- figures

    @property
    def has_answered(self) -> bool:
        """Whether an answer to a request for this account ever came."""
        return self._has_answered

    @property
    def closed_by(self) -> Reply | None:
        """The reply after which nothing of this account can be canceled any more."""
        return self._closed_by

    @property
    def empty(self) -> bool:
        """Whether there is nothing to give out for now."""
        return self._exhausted and not self._pending and not self._retry_heap

    @property
    def busy(self) -> bool:
        """Whether it has items, waiting or under way."""
        return self._under_way > 0 or not self.empty

    @property
    def rate(self) -> float:
        """Requests a second that its pace allows now."""
        return self._pace.rate

    @property
    def in_trouble(self) -> bool:
        """Whether its pace is down because Stripe fails."""
        return self._pace.in_trouble

    @property
    def waiting(self) -> int:
        """How many items wait for another call."""
        return len(self._retry_heap)

    @property
    def unsent(self) -> list[Claim]:
        """The claims that no worker has taken."""
        return list(self._pending)

    # -------------------------------------------------------------------- claims

    def extend(self) -> None:
        """Note that the journal has got more of this account."""
        self._exhausted = False
        self._version += 1
        self.notify()

    def claims_wanted(self, most: int) -> int:
        """Return how many claims to ask the journal for; 0 for none now.

        Never more than goes out in about a second, since a killed run asks again for
        all that it had claimed.

        Args:
            most: The share of this account in the memory for all claims.
        """
        if self._exhausted or self._pending:
            return 0
        return max(1, min(_PAGE, most, int(self._pace.rate)))

    @property
    def version(self) -> int:
        """How often the journal got more of this account."""
        return self._version

    def add_claims(self, claims: list[Claim], *, limit: int, version: int) -> None:
        """Take what the journal gave out.

        Args:
            claims: In the order in which they are to go out.
            limit: How many were asked for: fewer mean that there are no more.
            version: Of the queue when they were asked for.
        """
        self._pending.extend(claims)
        if len(claims) < limit and version == self._version:
            self._exhausted = True
        self.notify()

    def return_claim(self, item: Item) -> None:
        """Take back the claim of an item for which nothing was sent."""
        self._pending.append(item.claim)

    # --------------------------------------------------------------------- items

    def next_at(self, *, max_retrying: int, share: int) -> float:
        """Return when the next item may go out; ``inf`` if something must end first.

        Args:
            max_retrying: With so many items that wait for another call, no new one
                begins: a bound to them is a bound to memory.
            share: How many of its items may be checked out.
        """
        fresh = bool(self._pending) and len(self._retry_heap) < max_retrying
        if not self._pending and not self._retry_heap:
            return math.inf
        if self._closed_by is not None:
            return -math.inf
        if (
            self._under_way >= self._pace.concurrency
            or self._checked_out >= share
            or self._lock_waiting  # retries go before new items
            or self._retrying
        ):
            return math.inf
        return max(self._pace.free_at, -math.inf if fresh else self._retry_heap[0][0])

    def check_out(self, now: float) -> Item:
        """Give out the item whose turn it is, which `next_at` says there is."""
        due = bool(self._retry_heap) and (
            self._retry_heap[0][0] <= now
            or self._closed_by is not None
            or not self._pending
        )
        if due:
            item = heapq.heappop(self._retry_heap)[2]
        else:
            item = Item(self._pending.popleft(), now)
        self._checked_out += 1
        self._under_way += 1
        if self._closed_by is None:
            self._pace.reserve(now)
        return item

    def put_back(self, item: Item, not_before: float) -> None:
        """Take an item back, to be given out again at that time."""
        self._pushed += 1
        heapq.heappush(self._retry_heap, (not_before, self._pushed, item))
        self.release(item)

    def take_waiting(self) -> list[Item]:
        """Remove and return the items that wait for another call."""
        taken = [item for _, _, item in self._retry_heap]
        self._retry_heap.clear()
        return taken

    def release(self, item: Item) -> None:
        """Note that a worker is done with an item."""
        if self._lock_holder is item:
            self._lock_holder = None
            self._retry_lock.release()
        self._locked.discard(item)
        self._checked_out -= 1
        self._leave()

    def close(self, reply: Reply) -> None:
        """Cancel nothing of this account any more, because of this reply."""
        self._closed_by = reply
        self.notify()

    # ------------------------------------------------------------------- replies

    def record_reply(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        *,
        paced: bool,
    ) -> None:
        """Learn from an attempt.

        Args:
            item: Whose attempt it was.
            request: What was asked.
            classification: What came of it.
            paced: Whether the attempt had a slot. Of others, such as the reads that
                settle a cancel, only what goes wrong counts.
        """
        reply, now = classification.reply, self._clock()
        cancel = request.method == "POST"
        limit = error_mapping.limited_by(reply)
        if limit is error_mapping.Limit.RATE:
            self._pace.on_rate_limit(now)
        elif limit is not None:
            self._pace.on_concurrency_limit(now, self._under_way)
        elif _is_outage(classification):
            self._pace.on_failure(now)
        elif paced:
            self._pace.on_success(now)
            self.notify()
        if cancel and limit is error_mapping.Limit.LOCK:
            self._locked.add(item)
        elif cancel:
            self._locked.discard(item)
        if isinstance(reply, Response):
            self._has_answered = True
            if isinstance(self._closed_by, TransportFailure):
                self._closed_by = None  # the service can be reached after all
            self._judge_key(item, reply, cancel=cancel)

    def _judge_key(self, item: Item, reply: Response, *, cancel: bool) -> None:
        """Close the account once there is evidence that the key is no good for it.

        A key may be good for cancels and not for reads. Only Stripe can refuse it: a
        page of a proxy says nothing about keys.
        """
        unauthorized = reply.status == 401  # noqa: PLR2004 - Unauthorized
        forbids = unauthorized or (reply.status == 403 and cancel)  # noqa: PLR2004 - Forbidden
        if forbids and error_mapping.envelope(reply).type is not None:
            # A 403 may always concern this refund, a 401 says something each time.
            self._refused.add((item.claim.number, item.calls if unauthorized else 0))
            if len(self._refused) >= _EVIDENCE:
                self.close(reply)
        elif cancel and reply.status < 500 and reply.status not in _NO_WORD:  # noqa: PLR2004 - server errors
            self._refused.clear()

    async def wait_to_retry(self, item: Item, seconds: float, until: float) -> None:
        """Sleep before a retry of a call, then wait for its slot, not beyond a time."""
        self._leave()
        try:
            await asyncio.sleep(seconds)
            async with asyncio.timeout_at(until):
                if item in self._locked and self._lock_holder is not item:
                    await self._acquire_retry_lock(item)
                # A service that never answered has no pace to keep to.
                if self._has_answered:
                    await self._acquire_slot()
        except TimeoutError:
            pass  # the call finds its time over
        finally:
            self._under_way += 1

    async def _acquire_retry_lock(self, item: Item) -> None:
        """Wait to be the only one that retries after another request held its charge.

        No new item begins meanwhile. `release` passes the lock on.
        """
        self._lock_waiting += 1
        try:
            await self._retry_lock.acquire()
            self._lock_holder = item
        finally:
            self._lock_waiting -= 1

    async def _acquire_slot(self) -> None:
        """Wait in line until the pace lets one more request out, and take its slot."""
        self._retrying += 1
        try:
            async with self._slot_line:
                while (wait := self._seconds_to_slot()) > 0:
                    self._moved.clear()
                    await event_or(self._moved, wait)
                self._pace.reserve(self._clock())
        finally:
            self._retrying -= 1
            self.notify()

    def _seconds_to_slot(self) -> float:
        if self._under_way >= self._pace.concurrency:
            return math.inf
        return self._pace.free_at - self._clock()

    def _leave(self) -> None:
        self._under_way -= 1
        self.notify()

    def notify(self) -> None:
        """Wake what waits for a change of this queue."""
        self._moved.set()
        self._changed(self)


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


def _is_outage(classification: Classification[Any]) -> bool:
    """Tell whether the service failed, rather than refused."""
    reply = classification.reply
    if isinstance(reply, TransportFailure):
        return True
    if classification.outcome is not Outcome.AMBIGUOUS:
        return False
    return reply.status >= 500 or reply.status < 300 or reply.status in _OUTAGE  # noqa: PLR2004 - HTTP's classes
