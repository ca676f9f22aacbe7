"""Whose turn it is: the next item of the account that may send soonest.

A slow account holds up no other one. Nothing here sends, and nothing here speaks to
the journal: workers ask for the next item, and `claiming.claim_ahead` brings claims.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import TYPE_CHECKING, Any

import msgspec

from .account_queue import AccountQueue
from .claiming import ClaimBudget, WantedClaims
from .closing import ServiceMonitor
from .endpoint import event_or

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from async_refunds.journal import Claim, Leases
    from async_refunds.models import Attempt
    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import Request
    from async_refunds.results import CancelResult

    from .item import Item
    from .rate_control import RateController

# Items that the journal may be ahead of the claims. All of a usual input, so that a run
# that is killed has it; of one without an end, what a large platform sends in seconds.
_AHEAD = 100_000
# Seconds within which an account is to send, or workers are short of work: a commit of
# claims takes about as long.
_SOON = 0.05


class Figures(msgspec.Struct, frozen=True):
    """What a scheduler knows of the whole batch at one moment."""

    under_way: int = 0
    """Items that workers have."""
    waiting: int = 0
    """Items that wait for another call."""
    requests: int = 0
    """Requests sent in all."""
    retries: int = 0
    """How many of these were sent after a sleep."""
    rate: float = 0.0
    """Requests a second that the paces of all busy accounts allow."""
    in_trouble: bool = False
    """Whether the pace of a busy account is down because Stripe fails."""


class Scheduler:
    """Gives out items, each account's at its own pace.

    Args:
        new_pace: Makes the pace of one endpoint of an account.
        clock: The event loop's time, in seconds.
        workers: How many ask for items. With so many items of one account that wait
            for another call, no new one of it begins.
        service: The address of what is asked.
        patience: Seconds after which a service that only fails is asked no more.
        leases: Of this process, where others share the work.
        on_idle: Makes accounts come and go. Called with one that then is forgotten: the
            journal has nothing more of it, or nothing of it can be canceled for now.
    """

    def __init__(
        self,
        *,
        new_pace: Callable[[float | None], RateController],
        clock: Callable[[], float],
        workers: int,
        service: str,
        patience: float,
        leases: Leases | None = None,
        on_idle: Callable[[str | None], object] | None = None,
    ) -> None:
        self._leases = leases
        self._on_idle = on_idle
        self._service = ServiceMonitor(service, patience)
        self._new_pace = new_pace
        self._clock = clock
        self._workers = workers
        self._queues: dict[str | None, AccountQueue] = {}
        self._on_change = self._queue_changed  # one method object for all of them
        # When each account may send next, soonest first. Only the entry that
        # `AccountQueue.scheduled_at` names counts; `_enqueue` leaves older ones behind.
        self._heap: list[tuple[float, int, AccountQueue]] = []
        self._pushed = 0
        self._hungry: dict[str | None, AccountQueue] = {}  # may want claims
        self._budget = ClaimBudget()
        self._returned: list[Claim] = []  # by accounts that are drained
        self._picking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._claims_wanted = asyncio.Event()
        self._ahead = 0  # items added to the journal and not claimed
        self._room = asyncio.Event()
        self._input_ended = False
        self._stopped = False
        self._checked_out = 0
        self._requests = self._retries = 0

    # ------------------------------------------------------------------- figures

    @property
    def stopped(self) -> bool:
        """Whether nothing more is given out, though there may be items left."""
        return self._stopped

    def figures(self) -> Figures:
        """Return how far it has come."""
        queues = self._queues.values()
        busy = [queue for queue in queues if queue.busy]
        return Figures(
            under_way=self._checked_out,
            waiting=sum(queue.waiting for queue in queues),
            requests=self._requests,
            retries=self._retries,
            rate=sum(queue.rate for queue in busy),
            in_trouble=any(queue.in_trouble for queue in busy),
        )

    def take_unfinished(self) -> list[tuple[Claim, CancelResult]]:
        """Remove the items that wait for another call; return what is known of them."""
        queues = self._queues.values()
        items = [item for queue in queues for item in queue.take_waiting()]
        return [(item.claim, item.known) for item in items if item.known is not None]

    def unsent(self) -> list[Claim]:
        """Return the claims that no worker has taken."""
        queues = self._queues.values()
        pending = [claim for queue in queues for claim in queue.claims.pending]
        return self._returned + pending

    # --------------------------------------------------------------------- input

    async def wait_for_room(self) -> None:
        """Wait until the journal is no longer too far ahead of what is sent."""
        while self._ahead >= _AHEAD and not self._stopped:
            self._room.clear()
            await self._room.wait()

    def extend(self, accounts: Iterable[str | None], count: int = 0) -> None:
        """Note that the journal has got items of these accounts, at most so many."""
        self._ahead += count
        for account in accounts:
            queue = self._queues.get(account) or self._new_queue(account)
            queue.extend()
            self._want_claims(queue)

    def _new_queue(self, account: str | None) -> AccountQueue:
        queue = self._queues[account] = AccountQueue(
            account,
            self._new_pace,
            self._clock,
            self._on_change,
            service=self._service,
            budget=self._budget,
            leases=self._leases,
        )
        return queue

    def end_input(self) -> None:
        """Note that the journal gets no more items."""
        self._input_ended = True
        self._changed.set()

    def stop(self) -> None:
        """Give nothing more out."""
        self._stopped = True
        self._changed.set()
        self._room.set()
        self._claims_wanted.set()

    # ------------------------------------------------------------------- accounts

    def open(self, account: str | None) -> None:
        """Work on an account whose lease this process holds, or has got more of it.

        One that was dropped begins anew once its last call has ended. One that is
        drained goes on draining.
        """
        queue = self._queues.get(account)
        if queue is not None and queue.dropped:
            queue.reopening = True
        elif queue is None or not queue.draining:
            self.extend([account])

    def works_on(self, account: str | None) -> bool:
        """Tell whether an account is open: neither forgotten nor dropped since."""
        queue = self._queues.get(account)
        return queue is not None and (queue.reopening or not queue.dropped)

    def drop(self, accounts: Iterable[str | None]) -> None:
        """Forget accounts whose leases are lost. Another process goes on with them.

        A call under way ends without another request, and its result is not told.
        """
        for account in accounts:
            queue = self._queues.get(account)
            if queue is not None:
                queue.drop()
                self._forget_if_idle(queue)

    def drain(self, account: str | None) -> None:
        """Begin nothing more of an account; see what is under way to its end.

        One that was dropped and was to begin anew does not.
        """
        queue = self._queues.get(account)
        if queue is not None and queue.dropped:
            queue.reopening = False
        elif queue is not None and not queue.draining:
            self._return_claims(queue, queue.drain())
            self._forget_if_idle(queue)

    def found_rate(self, account: str | None) -> float | None:
        """Return the rate that the pace of an account has found, if any."""
        queue = self._queues.get(account)
        return None if queue is None else queue.found_rate

    def closing_of(self, account: str | None) -> Classification[Any] | None:
        """Return the reply after which nothing of an account can be canceled."""
        queue = self._queues.get(account)
        return None if queue is None else queue.closed_by

    def claims_kept(self, claims: Iterable[Claim]) -> None:
        """Note that the journal has kept what became of claims, or lost their lease."""
        touched: set[AccountQueue] = set()
        for claim in claims:
            queue = self._queues[claim.stripe_account]
            queue.unkept -= 1
            touched.add(queue)
        for queue in touched:
            self._forget_if_idle(queue)

    def _return_claims(self, queue: AccountQueue, claims: list[Claim]) -> None:
        self._returned += claims
        queue.unkept += len(claims)
        self._claims_wanted.set()

    def take_returned(self) -> list[Claim]:
        """Remove and return the claims that the journal is to take back."""
        returned, self._returned = self._returned, []
        return returned

    def _forget_if_idle(self, queue: AccountQueue) -> None:
        if self._on_idle is None or self._stopped or not queue.idle:
            return
        if not queue.dropped:
            self._on_idle(queue.account)
        if queue.idle:  # still: there may be more of it by now
            queue.scheduled_at = math.inf
            self._hungry.pop(queue.account, None)
            del self._queues[queue.account]
            self._changed.set()  # its entries in the heap are thrown away
            if queue.reopening:
                self.open(queue.account)

    # -------------------------------------------------------------------- claims

    def _want_claims(self, queue: AccountQueue) -> None:
        self._hungry[queue.account] = queue
        self._claims_wanted.set()

    async def claims_wanted(self) -> list[WantedClaims]:
        """Wait until accounts want claims, or return some; nothing if it is stopped."""
        while not self._stopped:
            wanted = self._next_round()
            if wanted or self._returned:
                return wanted
            self._claims_wanted.clear()
            await self._claims_wanted.wait()
        return []

    def _next_round(self) -> list[WantedClaims]:
        """Return what accounts are to claim, those first that have waited longest."""
        share = self._budget.share(len(self._queues))
        wanted: list[WantedClaims] = []
        asked = 0
        while self._hungry and (room := self._budget.room_for(asked)):
            account = next(iter(self._hungry))
            queue = self._hungry.pop(account)
            if limit := queue.ask_for_claims(min(share, room)):
                wanted.append(WantedClaims(account, limit, queue.claims.version))
                asked += limit
        self._budget.short_of_work = False
        return wanted

    def add_claims(self, wanted: WantedClaims, claims: list[Claim]) -> None:
        """Take what the journal gave out for an account."""
        queue = self._queues[wanted.account]
        queue.add_claims(claims, limit=wanted.limit, version=wanted.version)
        self._ahead = max(0, self._ahead - len(claims))
        if self._ahead >= _AHEAD and all(
            each.claims.exhausted for each in self._queues.values()
        ):
            self._ahead = 0  # what was added was there already
        if self._ahead < _AHEAD:
            self._room.set()
        if queue.dropped or queue.draining:
            self._take_back(queue)
        if queue.claims.hungry:
            self._want_claims(queue)
        self._forget_if_idle(queue)

    def _take_back(self, queue: AccountQueue) -> None:
        """Remove the claims that came after a queue was dropped or drained."""
        if queue.dropped:
            queue.drop()
        else:
            self._return_claims(queue, queue.drain())

    # --------------------------------------------------------------------- items

    async def next_item(self) -> Item | None:
        """Return the next item when its turn has come; ``None`` if there is no more."""
        async with self._picking:
            while not self._stopped:
                self._changed.clear()
                queue, wait = self._soonest()
                if queue is None and self._is_over():
                    return None
                if queue is None or wait > 0:
                    if self._hungry and wait > _SOON:
                        self._budget.short_of_work = True
                        self._claims_wanted.set()
                    await event_or(self._changed, wait)
                elif queue.draining or queue.may_send():
                    return self._check_out(queue)
                else:
                    queue.pause()
            return None

    def put_back(self, item: Item, not_before: float) -> None:
        """Take an item back, to be given out again at that time."""
        self._checked_out -= 1
        queue = self._queue_of(item)
        if queue.dropped:
            queue.release(item)
            self._forget_if_idle(queue)
        else:
            queue.put_back(item, not_before)

    def release(self, item: Item) -> None:
        """Note that a worker is done with an item."""
        self._checked_out -= 1
        queue = self._queue_of(item)
        queue.release(item)
        self._forget_if_idle(queue)

    def record_result(self, item: Item) -> bool:
        """Note that a worker is done with an item, and what it knows is to be kept.

        Returns:
            Whether it is: not if the lease of its account was lost.
        """
        queue = self._queue_of(item)
        kept = not queue.dropped
        queue.unkept += kept
        self.release(item)
        return kept

    def return_claim(self, item: Item) -> None:
        """Take back the claim of an item for which nothing was sent."""
        queue = self._queue_of(item)
        queue.claims.put_back(item.claim)
        if queue.dropped or queue.draining:
            self._take_back(queue)
        self.release(item)

    def may_begin(self, item: Item) -> bool:
        """Tell whether another call for an item may begin, now or later."""
        queue = self._queue_of(item)
        return not (self._stopped or queue.draining or queue.closed_by is not None)

    def hands_over(self, item: Item) -> bool:
        """Tell whether what is open of an item is left to the next holder."""
        queue = self._queue_of(item)
        return queue.draining and queue.closed_by is None

    def permit_of(self, item: Item) -> Callable[[], bool] | None:
        """Return what its calls ask before each send."""
        return self._queue_of(item).permit

    def closed_by(self, item: Item) -> Classification[Any] | None:
        """Return the reply after which nothing of its account can be canceled."""
        return self._queue_of(item).closed_by

    # ------------------------------------------------------------------ requests

    def record_reply(
        self,
        item: Item,
        request: Request[Any],
        classification: Classification[Any],
        attempt: Attempt,
    ) -> None:
        """Learn from an attempt; see `AccountQueue.record_reply`."""
        self._requests += 1
        self._retries += attempt.slept > 0
        queue = self._queue_of(item)
        queue.record_reply(item, request, classification, attempt)
        if self._on_idle is not None and queue.closed_by is not None:
            # Nothing of it is worth a claim before its lease is taken anew.
            self.drain(queue.account)

    def needs_charge(self, item: Item) -> bool:
        """Tell whether only the item's charge can tell what it has to wait for."""
        return self._queue_of(item).needs_charge(item)

    def learn_charge(self, item: Item, charge: str | None) -> None:
        """Note the charge of an item; ``None`` if it could not be learned."""
        self._queue_of(item).learn_charge(item, charge)

    async def wait_for_slot(
        self, item: Item, request: Request[Any], seconds: float, until: float
    ) -> bool:
        """Wait until a request may go out; see `AccountQueue.wait_for_slot`."""
        queue = self._queue_of(item)
        return await queue.wait_for_slot(item, request, seconds, until)

    # ------------------------------------------------------------------ the heap

    def _queue_of(self, item: Item) -> AccountQueue:
        return self._queues[item.claim.stripe_account]

    def _is_over(self) -> bool:
        return (
            self._input_ended
            and not self._checked_out
            and all(queue.empty for queue in self._queues.values())
        )

    def _next_at(self, queue: AccountQueue) -> float:
        # Half of the workers are for the others: one account may keep its own long.
        share = self._workers if len(self._queues) == 1 else max(1, self._workers // 2)
        return queue.next_at(max_retrying=self._workers, share=share)

    def _queue_changed(self, queue: AccountQueue) -> None:
        self._enqueue(queue)
        self._changed.set()

    def _enqueue(self, queue: AccountQueue) -> None:
        when = self._next_at(queue)
        # If it may send later than its entry says, the entry is corrected when due.
        if when < queue.scheduled_at:
            self._pushed += 1
            queue.scheduled_at = when
            heapq.heappush(self._heap, (when, self._pushed, queue))

    def _soonest(self) -> tuple[AccountQueue | None, float]:
        """Return the account that may send first, and how long that is from now."""
        while self._heap:
            entry, _, queue = self._heap[0]
            valid = entry == queue.scheduled_at
            queue.reopen_if_due()
            when = self._next_at(queue)
            if valid and entry >= when:
                return queue, when - self._clock()
            # An older entry; or its pace has slowed down, or it has nothing any more.
            heapq.heappop(self._heap)
            if valid:
                queue.scheduled_at = math.inf
                self._enqueue(queue)
        return None, math.inf

    def _check_out(self, queue: AccountQueue) -> Item:
        heapq.heappop(self._heap)
        queue.scheduled_at = math.inf
        item = queue.check_out(self._clock())
        self._checked_out += 1
        self._enqueue(queue)
        if queue.claims.hungry:
            self._hungry[queue.account] = queue
        if self._hungry and self._budget.has_room:
            self._claims_wanted.set()
        return item
