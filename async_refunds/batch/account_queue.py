"""The refunds of one account: what waits, what is under way, when the next may go out.

Each account has limits of its own at Stripe, so each has a queue with a pace of its
own (see `account_pacer`). Nothing here sends, and nothing else writes into a queue.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

from .account_pacer import AccountPacer
from .claim_buffer import LARGEST_PAGE, ClaimBuffer
from .item import Item

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_refunds.journal import Claim, Leases

    from .claim_budget import ClaimBudget
    from .closing import ServiceMonitor
    from .rate_control import RateController

# Stands for the heap of an account in which no item waits yet: each empty list takes 72
# bytes, and a platform has thousands of accounts.
_NO_ITEMS: list[tuple[float, int, Item]] = []


class AccountQueue(AccountPacer):
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
        "_checked_out",
        "_pushed",
        "_retry_heap",
        "claims",
        "reopening",
        "scheduled_at",
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
        super().__init__(
            account, new_pace, clock, changed, service=service, leases=leases
        )
        self.scheduled_at = math.inf
        """When the scheduler looks at it next."""
        self.reopening = False
        """Whether the account, which was dropped, is to begin anew at the end of it."""
        self.unkept = 0
        """Claims whose result, or whose return, the journal has yet to keep."""
        self.claims = ClaimBuffer(budget)
        """Those that no worker has taken."""
        self._retry_heap = _NO_ITEMS
        self._pushed = 0
        self._checked_out = 0  # items that a worker has

    # ------------------------------------------------------------------- figures

    @property
    def empty(self) -> bool:
        """Whether there is nothing to give out for now."""
        claims = self.claims
        return claims.exhausted and not claims.pending and not self._retry_heap

    @property
    def busy(self) -> bool:
        """Whether it has items, waiting or under way."""
        return self._limits.under_way > 0 or not self.empty

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

    def drop(self) -> None:
        """Forget what is not under way, and let that end without another request."""
        self.dropped, self.reopening = True, False
        self._retry_heap.clear()
        self.claims.take_all()
        self._cancels.closed = self._limits.reads.closed = True
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
            self._limits.under_way >= self._cancels.pace.concurrency
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
        retrying, ends = self._retry_heap, self.ends_items
        if retrying and (retrying[0][0] <= now or ends or not self.claims.pending):
            item = heapq.heappop(retrying)[2]
        else:
            item = Item(self.claims.take_next(now), now)
        self._checked_out += 1
        self._limits.under_way += 1
        if not ends:
            self._cancels.pace.reserve(now)
        return item

    def put_back(self, item: Item, not_before: float) -> None:
        """Take an item back, to be given out again at that time."""
        if self._retry_heap is _NO_ITEMS:
            self._retry_heap = []
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
        self._limits.release_charge(item)
        self._checked_out -= 1
        self._leave()
