"""Whose turn it is: the next item of the account that may send soonest.

A slow account holds up no other one. Nothing here sends, and nothing here speaks to
the journal: workers ask for the next item, and `claiming.claim_ahead` brings claims to
the `accounts`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from .account_heap import AccountHeap
from .account_queue import AccountQueue
from .accounts import Accounts
from .claim_rounds import ClaimRounds
from .closing import ServiceMonitor
from .endpoint import event_or

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Claim, Leases
    from async_refunds.models import Attempt
    from async_refunds.protocol.classification import Classification
    from async_refunds.protocol.requests import Request
    from async_refunds.results import CancelResult

    from .item import Item
    from .rate_control import RateController

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
        self._clock = clock
        self._workers = workers
        self._changed = asyncio.Event()
        self._claims = ClaimRounds()
        service_monitor, on_change = ServiceMonitor(service, patience), self._on_change

        def new_queue(account: str | None) -> AccountQueue:
            return AccountQueue(
                account,
                new_pace,
                clock,
                on_change,  # one method object for all of them
                service=service_monitor,
                budget=self._claims.budget,
                leases=leases,
            )

        self.accounts = Accounts(
            new_queue,
            self._claims,
            on_idle=on_idle,
            on_forgotten=self._changed.set,  # its entries in the heap are thrown away
        )
        """Those that it works on."""
        self._queues = self.accounts.queues
        self._heap = AccountHeap(self._next_at)
        self._picking = asyncio.Lock()
        self._input_ended = False
        self._stopped = False
        self._checked_out = 0
        self._requests = self._retries = 0

    # ------------------------------------------------------------------- figures

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

    def end_input(self) -> None:
        """Note that the journal gets no more items."""
        self._input_ended = True
        self._changed.set()

    def stop(self) -> None:
        """Give nothing more out."""
        self._stopped = True
        self._changed.set()
        self._claims.stop()

    # --------------------------------------------------------------------- items

    async def next_item(self) -> Item | None:
        """Return the next item when its turn has come; ``None`` if there is no more."""
        async with self._picking:
            while not self._stopped:
                self._changed.clear()
                queue, when = self._heap.soonest()
                wait = when - self._clock()
                if queue is None and self._is_over():
                    return None
                if queue is None or wait > 0:
                    if wait > _SOON:
                        self._claims.note_short_of_work()
                    await event_or(self._changed, wait)
                elif queue.ends_items or queue.may_send():
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
            self.accounts.forget_if_idle(queue)
        else:
            queue.put_back(item, not_before)

    def release(self, item: Item) -> None:
        """Note that a worker is done with an item."""
        self._checked_out -= 1
        queue = self._queue_of(item)
        queue.release(item)
        self.accounts.forget_if_idle(queue)

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
        self.accounts.take_back_if_ending(queue)
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
        if attempt.sent:
            self._requests += 1
            self._retries += attempt.slept > 0
        queue = self._queue_of(item)
        queue.record_reply(item, request, classification, attempt)
        if queue.closed_by is not None:
            self.accounts.drain_closed(queue)

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

    # --------------------------------------------------------------------- turns

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

    def _on_change(self, queue: AccountQueue) -> None:
        self._heap.push(queue)
        self._changed.set()

    def _check_out(self, queue: AccountQueue) -> Item:
        self._heap.pop()
        item = queue.check_out(self._clock())
        self._checked_out += 1
        self._heap.push(queue)
        self._claims.note_use(queue)
        return item
