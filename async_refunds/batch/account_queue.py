"""The refunds of one account: what waits, what is under way, when the next may go out.

Each account has limits of its own at Stripe, so each has a queue with a pace of its
own. Nothing here sends, and nothing else writes into a queue.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from async_refunds.protocol.classification import Classification, Limit
from async_refunds.protocol.requests import Cause, Response, TransportFailure

from .charge_locks import ChargeLocks
from .claim_buffer import LARGEST_PAGE, ClaimBuffer
from .closing import Closing, refuses_key
from .endpoint import Endpoint
from .item import Item

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Claim, Leases
    from async_refunds.models import Attempt
    from async_refunds.protocol.requests import Request

    from .claim_budget import ClaimBudget
    from .closing import ServiceMonitor
    from .rate_control import RateController

# Seconds until a queue whose permit was refused asks again: a lease may live on.
_PAUSE = 0.5


class AccountQueue:
    """The items of one account, and how fast they go out.

    Args:
        account: ``acct_...``, or ``None`` for the key's own.
        new_pace: Makes the pace of one endpoint, at a given rate if there is one.
        clock: The event loop's time, in seconds.
        changed: Called when an item may go out sooner than `next_at` said.
        service: What all accounts ask.
        budget: Of the claims of all accounts.
        leases: Of this process; ``None`` if no other process shares the work.
    """

    __slots__ = (
        "_cancels",
        "_changed",
        "_charge_locks",
        "_checked_out",
        "_clock",
        "_ended",
        "_has_answered",
        "_leases",
        "_made_closing",
        "_made_reads",
        "_new_pace",
        "_paused_until",
        "_pushed",
        "_retry_heap",
        "_service",
        "_sleeping",
        "account",
        "claims",
        "draining",
        "dropped",
        "reopening",
        "scheduled_at",
        "under_way",
        "unkept",
    )

    def __init__(
        self,
        account: str | None,
        new_pace: Callable[[float | None], RateController],
        clock: Callable[[], float],
        changed: Callable[[AccountQueue], object],
        *,
        service: ServiceMonitor,
        budget: ClaimBudget,
        leases: Leases | None = None,
    ) -> None:
        self.account = account
        self.scheduled_at = math.inf
        """When the scheduler looks at it next."""
        self.dropped = False
        """Whether its lease is lost: nothing of it is sent, kept or told any more."""
        self.reopening = False
        """Whether the account, which was dropped, is to begin anew at the end of it."""
        self.draining = False
        """Whether nothing more of it begins, and what is under way still counts."""
        self.unkept = 0
        """Claims whose result, or whose return, the journal has yet to keep."""
        self._leases = leases
        self._paused_until = -math.inf
        self._clock = clock
        self._changed = changed
        self._service = service
        self.claims = ClaimBuffer(budget)
        """Those that no worker has taken."""
        self._retry_heap: list[tuple[float, int, Item]] = []
        self._pushed = 0
        self._checked_out = 0  # items that a worker has
        self.under_way = 0
        """How many calls are not between two attempts."""
        start = None if leases is None else leases.rate(account)
        self._cancels = Endpoint(new_pace(start), clock, self)
        self._new_pace = new_pace
        self._made_reads: Endpoint | None = None
        self._made_closing: Closing | None = None
        self._ended: asyncio.Event | None = None  # while a call sleeps: 0.8 KB
        self._sleeping = 0  # how many do
        self._has_answered = False
        self._charge_locks: ChargeLocks | None = None  # made when a lock is met

    @property
    def _reads(self) -> Endpoint:
        """The reads, of which most accounts make none."""
        if self._made_reads is None:
            pace = self._new_pace(None)
            self._made_reads = Endpoint(pace, self._clock, self)
        return self._made_reads

    @property
    def _closing(self) -> Closing:
        """What closes it, for which most accounts give no reason."""
        if self._made_closing is None:
            self._made_closing = Closing()
        return self._made_closing

    # ------------------------------------------------------------------- figures

    @property
    def closed_by(self) -> Classification[Any] | None:
        """The reply after which nothing of this account can be canceled for now.

        It stays until `reopen_if_due` or a good reply opens the account.
        """
        closing = self._made_closing
        return None if closing is None else closing.reply

    @property
    def ends_items(self) -> bool:
        """Whether what it gives out ends without a request, a pace and a permit."""
        return self.draining or self.closed_by is not None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to give out for now."""
        claims = self.claims
        return claims.exhausted and not claims.pending and not self._retry_heap

    @property
    def busy(self) -> bool:
        """Whether it has items, waiting or under way."""
        return self.under_way > 0 or not self.empty

    @property
    def rate(self) -> float:
        """Cancels a second that its pace allows now."""
        return self._cancels.pace.rate

    @property
    def found_rate(self) -> float | None:
        """See `RateController.found_rate`."""
        return self._cancels.pace.found_rate

    @property
    def in_trouble(self) -> bool:
        """Whether a pace of it is down because Stripe fails."""
        reads = self._made_reads
        return self._cancels.pace.in_trouble or (
            reads is not None and reads.pace.in_trouble
        )

    @property
    def waiting(self) -> int:
        """How many items wait for another call."""
        return len(self._retry_heap)

    @property
    def idle(self) -> bool:
        """Whether the journal has heard of all that it gave out, and has no more."""
        return self.empty and not (
            self._checked_out or self.claims.asked or self.unkept
        )

    # ------------------------------------------------------------------ the lease

    @property
    def permit(self) -> Callable[[], bool] | None:
        """What is asked before each send; ``None`` permits everything."""
        return None if self._leases is None else self.may_send

    def may_send(self) -> bool:
        """Tell whether a request may go out now."""
        leases = self._leases
        return leases is None or (not self.dropped and leases.may_send(self.account))

    def pause(self) -> None:
        """Begin nothing for a moment, because the permit was refused."""
        self._paused_until = self._clock() + _PAUSE

    def drop(self) -> None:
        """Forget what is not under way, and let that end without another request."""
        self.dropped, self.reopening = True, False
        self._retry_heap.clear()
        self.claims.take_all()
        self._cancels.closed = self._reads.closed = True
        self._wake_sleepers()
        self.notify()

    def drain(self) -> list[Claim]:
        """Begin nothing more; return the claims that no worker has taken.

        The items that wait for another call are given out at once, to end without one.
        A call ends with the attempt that is under way, and perhaps a read to settle it.
        """
        self.draining = True
        unsent = self.claims.take_all()
        self._cancels.closed = True
        self._wake_sleepers()
        self.notify()
        return unsent

    def _wake_sleepers(self) -> None:
        """End the sleeps of calls between two attempts: no other one follows."""
        if self._ended is not None:
            self._ended.set()

    # -------------------------------------------------------------------- claims

    def extend(self) -> None:
        """Note that the journal has got more of this account."""
        self.claims.extend()
        self.notify()

    def ask_for_claims(self, most: int) -> int:
        """Return how many claims to ask the journal for; 0 for none now.

        Args:
            most: The share of this account in the memory for all claims.
        """
        self.reopen_if_due()
        if self.closed_by is not None:
            # Nothing is sent for them, so they have no pace.
            return self.claims.ask(most, LARGEST_PAGE)
        return self.claims.ask(most, max(1, int(self._cancels.pace.rate)))

    def add_claims(self, claims: list[Claim], *, limit: int, version: int) -> None:
        """Take what the journal gave out; see `ClaimBuffer.fill`."""
        self.claims.fill(claims, limit=limit, version=version, now=self._clock())
        self.notify()

    # --------------------------------------------------------------------- items

    def next_at(self, *, max_retrying: int, share: int) -> float:
        """Return when the next item may go out; ``inf`` if something must end first.

        Args:
            max_retrying: With so many items that wait for another call, no new one
                begins: a bound to them is a bound to memory.
            share: How many of its items may be checked out.
        """
        pending, retrying = self.claims.pending, self._retry_heap
        if not pending and not retrying:
            return math.inf
        if self.ends_items:
            return -math.inf
        if (
            self.under_way >= self._cancels.pace.concurrency
            or self._checked_out >= share
            or self._cancels.waiting  # retries go before new items
        ):
            return math.inf
        return max(
            self._cancels.pace.free_at,
            -math.inf if pending and len(retrying) < max_retrying else retrying[0][0],
            self._paused_until,
        )

    def check_out(self, now: float) -> Item:
        """Give out the item whose turn it is, which `next_at` says there is."""
        retrying, closed = self._retry_heap, self.closed_by is not None
        if retrying and (retrying[0][0] <= now or closed or not self.claims.pending):
            item = heapq.heappop(retrying)[2]
        else:
            item = Item(self.claims.take_next(now), now)
        self._checked_out += 1
        self.under_way += 1
        if not self.ends_items:
            self._cancels.pace.reserve(now)
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
        if self._charge_locks is not None:
            self._charge_locks.release(item)
        self._checked_out -= 1
        self._leave()

    def close(self, reply: Classification[Any], until: float = math.inf) -> None:
        """Cancel nothing of this account until then, because of this reply."""
        self._closing.close(reply, until)
        self._cancels.closed = self.dropped or self.draining or until < math.inf
        self.notify()

    def reopen_if_due(self) -> None:
        """Open the account if it was closed for long enough.

        The first step of each turn: of the account to give out an item or to claim
        more, of a reply, of a retry that has slept. No timer does it: what a closed
        account has is given out at once, to end, so nothing in it waits to be opened.
        While it is drained it opens no more: the next holder is to wait for that long.
        """
        closing = self._made_closing
        if closing is None or self.draining:
            return
        if closing.until <= self._clock():
            self._reopen()

    def _reopen(self) -> None:
        self._closing.reopen()
        self._cancels.outage = None
        self._cancels.closed = self.dropped or self.draining

    # ------------------------------------------------------------------- replies

    def record_reply(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Learn from an attempt.

        Args:
            item: Whose attempt it was.
            request: What was asked.
            classification: What came of it.
            attempt: When, and how long it took.
        """
        reply = classification.reply
        if isinstance(reply, TransportFailure) and reply.cause is Cause.NOT_PERMITTED:
            self.pause()
            return
        self._learn_pace(item, request, classification, attempt)
        closing, outage = self._made_closing, self._cancels.outage
        if closing is not None and closing.until < math.inf and outage is None:
            self._reopen()
        if isinstance(reply, Response):
            self._has_answered = self._service.has_answered = True
            self._judge_key(
                item, reply, classification, cancel=request.method == "POST"
            )
        # After it was noted: a failure that came late does not begin the next outage.
        self.reopen_if_due()
        outage = self._cancels.outage
        if outage is not None and self.closed_by is None:
            verdict = self._service.judge(outage, reply, self._clock())
            if verdict is not None:
                self.close(*verdict)

    def _judge_key(
        self,
        item: Item,
        reply: Response,
        classification: Classification[Any],
        *,
        cancel: bool,
    ) -> None:
        """Close the account once there is evidence that the key is no good for it."""
        if self._made_closing is None and not refuses_key(reply, cancel=cancel):
            return  # nothing speaks against it, now or before
        if self._closing.condemns_key(
            item.claim.refund_id, reply, classification, cancel=cancel
        ):
            self.close(classification)

    def _learn_pace(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Tell the paces and the locks of charges what came of an attempt."""
        cancel, limit = request.method == "POST", classification.limit
        endpoint = self._cancels if cancel else self._reads
        if limit is None or limit is Limit.LOCK:
            endpoint.record_other(item, request, classification, attempt)
            self.notify()
        elif classification.limits_account:
            self._cancels.record_limit(limit, attempt)
            self._reads.record_limit(limit, attempt)
        else:
            endpoint.record_limit(limit, attempt)
        if cancel:
            self._note_lock(item, locked=limit is Limit.LOCK)

    async def wait_for_slot(
        self, item: Item, request: Request[Any], seconds: float, until: float
    ) -> bool:
        """Sleep, then wait until the pace lets a request of a call out.

        Args:
            item: Whose call it is.
            request: A retry, or a read that has a slot of its own.
            seconds: At least so long.
            until: On the event loop's clock; a slot that is free is taken also later.

        Returns:
            Whether it may go out. If not, it was not its turn in time.
        """
        cancel = request.method == "POST"
        endpoint = self._cancels if cancel else self._reads
        if self._ends_before(endpoint, seconds):
            return False
        if self._clock() + seconds > until and (
            seconds or (self._has_answered and not endpoint.is_free)
        ):
            return False
        self._leave()
        try:
            await self._sleep(seconds)
            self.reopen_if_due()
            if seconds and self._ends_before(endpoint, seconds):
                return False
            async with asyncio.timeout_at(until):
                if cancel and self._charge_locks is not None:
                    await self._charge_locks.acquire(item)
                # A service that never answered has no pace to keep to.
                if self._has_answered:
                    return await endpoint.acquire_slot()
        except TimeoutError:
            return False
        finally:
            self.under_way += 1
            self._changed(self)  # new items may have waited for this one
        return not endpoint.closed

    def _ends_before(self, endpoint: Endpoint, seconds: float) -> bool:
        """Tell whether a call is to end without a request that would be the next.

        While the account is drained, only what may settle a call at once goes out.
        """
        if self.dropped:
            return True
        if not self.draining:
            return False
        return endpoint is self._cancels or seconds > 0 or not endpoint.is_free

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the account."""
        if not seconds:
            await asyncio.sleep(0)
            return
        self._ended = self._ended or asyncio.Event()
        self._sleeping += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ended.wait()
        finally:
            self._sleeping -= 1
            if not self._sleeping:
                self._ended = None

    # --------------------------------------------------------------------- locks

    def _note_lock(self, item: Item, *, locked: bool) -> None:
        if locked and self._charge_locks is None:
            self._charge_locks = ChargeLocks()
        if self._charge_locks is not None:
            self._charge_locks.note(item, locked=locked)

    def needs_charge(self, item: Item) -> bool:
        """Tell whether only the item's charge can tell what it has to wait for."""
        locks = self._charge_locks
        if locks is None or self.dropped or self.draining:
            return False
        return locks.needs_charge(item)

    def learn_charge(self, item: Item, charge: str | None) -> None:
        """Note the charge of an item; ``None`` if it could not be learned."""
        assert self._charge_locks is not None  # noqa: S101 - `needs_charge` comes before
        self._charge_locks.learn(item, charge)

    def _leave(self) -> None:
        self.under_way -= 1
        self.notify()

    def notify(self) -> None:
        """Wake what waits for a change of this queue."""
        self._cancels.notify()
        if self._made_reads is not None:
            self._made_reads.notify()
        self._changed(self)
