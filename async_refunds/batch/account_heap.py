"""When each account may send next, soonest first."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .account_queue import AccountQueue


class AccountHeap:
    """The accounts that have something to send, in the order of their turns.

    Args:
        next_at: Tells when an account may send next; see `AccountQueue.next_at`.
    """

    def __init__(self, next_at: Callable[[AccountQueue], float]) -> None:
        self._next_at = next_at
        # Only the entry that `AccountQueue.scheduled_at` names counts; `push` leaves
        # older ones behind.
        self._entries: list[tuple[float, int, AccountQueue]] = []
        self._pushed = 0

    def push(self, queue: AccountQueue) -> None:
        """Note that an account may send sooner than its entry says, if it may."""
        when = self._next_at(queue)
        # If it may send later than its entry says, the entry is corrected when due.
        if when < queue.scheduled_at:
            self._pushed += 1
            queue.scheduled_at = when
            heapq.heappush(self._entries, (when, self._pushed, queue))

    def soonest(self) -> tuple[AccountQueue | None, float]:
        """Return the account that may send first, and when; nothing and ``inf``."""
        while self._entries:
            entry, _, queue = self._entries[0]
            valid = entry == queue.scheduled_at
            queue.reopen_if_due()
            when = self._next_at(queue)
            if valid and entry >= when:
                return queue, when
            # An older entry; or its pace has slowed down, or it has nothing any more.
            heapq.heappop(self._entries)
            if valid:
                queue.scheduled_at = math.inf
                self.push(queue)
        return None, math.inf

    def pop(self) -> None:
        """Remove the entry of the account that `soonest` has just returned."""
        queue = heapq.heappop(self._entries)[2]
        queue.scheduled_at = math.inf
