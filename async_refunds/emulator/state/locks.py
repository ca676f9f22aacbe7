"""Locks: one write at a time on the refunds of one charge.

https://docs.stripe.com/rate-limits#object-lock-timeouts
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Hashable


class ChargeLocks:
    """The locks that a request holds or waits for; the others are forgotten."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def __bool__(self) -> bool:
        return bool(self._locks)

    def in_use(self, name: Hashable) -> bool:
        """Return whether a request holds the lock or waits for it."""
        return name in self._locks

    async def acquire(self, name: Hashable, *, wait: float) -> asyncio.Lock | None:
        """Take a lock, in order of arrival; return None if it stays taken.

        Args:
            name: What the lock protects.
            wait: How many seconds to wait for another request to release it.
        """
        lock = self._locks.setdefault(name, asyncio.Lock())
        # Without an iteration of the event loop, in which the lock could be released.
        if wait == 0 and lock.locked():
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await lock.acquire()
                return lock
        return None
