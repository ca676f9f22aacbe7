"""Whose turn it is: the next item of the account that may send soonest.

A slow account holds up no other one. Nothing here sends; a worker asks for the next
turn, and says when it is over.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import TYPE_CHECKING

from .account_queue import AccountQueue, Item, event_or

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from async_refunds.journal import Claim, Journal
    from async_refunds.results import CancelResult

    from .rate_control import RateController

# Claims held in memory over all lanes: some megabytes. With a thousand accounts a
# commit still serves twenty.
_CLAIMS = 20_000
# At most, of one account: a commit serves so many. A killed run has to ask again for
# what it had claimed, so it is no more than goes out in about a second.
_PAGE = 100


class Scheduler:
    """Gives out items, each account's at its own pace.

    Args:
        journal: Where the items come from.
        new_pace: Makes the pace of an account.
        clock: The event loop's time, in seconds.
        workers: How many ask for items. With as many of an account that wait to be
            asked again, no new one of it is begun.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        new_pace: Callable[[], RateController],
        clock: Callable[[], float],
        workers: int,
    ) -> None:
        self._journal = journal
        self._new_pace = new_pace
        self._clock = clock
        self._workers = workers
        self.lanes: dict[str | None, AccountQueue] = {}
        self._queue: list[tuple[float, int, AccountQueue]] = []
        self._count = 0
        self._picking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._complete = False
        self._stopped = False
        self.under_way = 0
        """Items given out and not yet done."""

    def more(self, accounts: Iterable[str | None]) -> None:
        """Say that the journal has got items of these accounts."""
        for account in accounts:
            lane = self.lanes.get(account)
            if lane is None:
                lane = AccountQueue(account, self._new_pace(), self._clock, self._stir)
                self.lanes[account] = lane
            lane.dry = False
            lane.news += 1
            self._stir(lane)

    def _free_at(self, lane: AccountQueue) -> float:
        # Half of the workers are for the others: one account may keep its own long.
        share = self._workers if len(self.lanes) == 1 else max(1, self._workers // 2)
        return lane.free_at(self._workers, share)

    def complete(self) -> None:
        """Say that no more will come."""
        self._complete = True
        self._changed.set()

    def stop(self) -> None:
        """Give nothing more out."""
        self._stopped = True
        self._changed.set()

    @property
    def heard_from(self) -> bool:
        """Whether any answer ever came."""
        return any(lane.heard_from for lane in self.lanes.values())

    @property
    def stopped(self) -> bool:
        """Whether nothing more is given out, though there may be something."""
        return self._stopped

    def ask_again(self, item: Item) -> None:
        """Take an item back, to be given out again when its time has come."""
        self._count += 1
        heapq.heappush(item.lane.again, (item.not_before, self._count, item))
        self.done(item)

    def left_open(self) -> list[tuple[Claim, CancelResult]]:
        """Return what is known of the items that were to be asked for again."""
        waiting = [item for lane in self.lanes.values() for _, _, item in lane.again]
        return [(item.claim, item.open) for item in waiting if item.open is not None]

    def unsent(self) -> list[Claim]:
        """Return the claims that never became an item."""
        return [claim for lane in self.lanes.values() for claim in lane.fresh]

    def done(self, item: Item) -> None:
        """Note that an item that was given out is not under way any more."""
        self.under_way -= 1
        item.over()
        item.lane.out -= 1
        item.lane.leave()

    async def next(self) -> Item | None:
        """Return the next item when its turn has come; ``None`` if there is no more."""
        async with self._picking:
            while not self._stopped:
                self._changed.clear()
                lane, wait = self._soonest()
                if lane is None and self._complete and not self.under_way:
                    return None
                if lane is None or wait > 0:
                    await event_or(self._changed, wait)
                elif (item := await self._take(lane)) is not None:
                    return item
            return None

    def _stir(self, lane: AccountQueue) -> None:
        self._enqueue(lane)
        self._changed.set()

    def _enqueue(self, lane: AccountQueue) -> None:
        when = self._free_at(lane)
        if when < lane.noted:  # what is noted later is looked at again when it is due
            self._count += 1
            lane.noted = when
            heapq.heappush(self._queue, (when, self._count, lane))

    def _soonest(self) -> tuple[AccountQueue | None, float]:
        """Return the lane that is free first, and how long that is from now."""
        while self._queue:
            noted, _, lane = self._queue[0]
            when = self._free_at(lane)
            if noted == lane.noted >= when:
                return lane, when - self._clock()
            # An older entry; or its pace has slowed down, or it has nothing any more.
            heapq.heappop(self._queue)
            if noted == lane.noted:
                lane.noted = math.inf
                self._enqueue(lane)
        return None, math.inf

    async def _take(self, lane: AccountQueue) -> Item | None:
        heapq.heappop(self._queue)
        lane.noted = math.inf
        item: Item | None = None
        now = self._clock()
        if lane.again and (lane.again[0][0] <= now or lane.refused is not None):
            _, _, item = heapq.heappop(lane.again)
        else:
            if not lane.fresh:
                await self._fetch(lane)
            if lane.fresh and not self._stopped:
                item = Item(lane.fresh.popleft(), lane)
                item.began = now
        if item is not None:
            lane.out += 1
            lane.under_way += 1
            self.under_way += 1
            if lane.refused is None:
                lane.pace.reserve(now)
        self._enqueue(lane)
        return item

    async def _fetch(self, lane: AccountQueue) -> None:
        news = lane.news
        page = max(1, min(_PAGE, _CLAIMS // len(self.lanes), int(lane.pace.rate)))
        claims = await self._journal.claim(lane.account, page)
        lane.fresh.extend(claims)
        if len(claims) < page and news == lane.news:
            lane.dry = True
