"""Refunds of one charge, which Stripe changes one at a time.

A cancel that meets a lock (``lock_timeout``) fails at once if another one of the same
charge is under way, so that those that retry together would fail together.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .item import Item

# The charge of refunds whose charge could not be learned: they wait for each other.
_UNKNOWN = ""


class ChargeLocks:
    """Lets one refund of a charge retry at a time, among those that met a lock."""

    __slots__ = ("_held", "_locked", "_locks")

    def __init__(self) -> None:
        self._locked: dict[Item, str | None] = {}  # whose last cancel met a lock
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: dict[Item, str] = {}

    def note(self, item: Item, *, locked: bool) -> None:
        """Note whether the last cancel of an item met a lock."""
        if not locked:
            self._locked.pop(item, None)
        else:
            self._locked.setdefault(item, self._held.get(item))

    def needs_charge(self, item: Item) -> bool:
        """Tell whether to learn the charge of an item before it retries.

        A read is worth it only where several refunds may stand in each other's way.
        """
        return len(self._locked) > 1 and self._locked.get(item, _UNKNOWN) is None

    def learn(self, item: Item, charge: str | None) -> None:
        """Note the charge of a locked item; ``None`` if it could not be learned."""
        self._locked[item] = charge or _UNKNOWN

    async def acquire(self, item: Item) -> None:
        """Wait for the turn of an item that met a lock; others do not wait."""
        charge = self._locked.get(item)
        if charge is None or item in self._held:
            return
        await self._locks.setdefault(charge, asyncio.Lock()).acquire()
        self._held[item] = charge

    def release(self, item: Item) -> None:
        """Note the end of an item's call: the next one of its charge may retry."""
        self._locked.pop(item, None)
        charge = self._held.pop(item, None)
        if charge is not None:
            self._locks[charge].release()
            if charge not in self._held.values() and not self._has_waiters(charge):
                del self._locks[charge]

    def _has_waiters(self, charge: str) -> bool:
        return charge in self._locked.values()
